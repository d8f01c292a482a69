//! Programs that start a program.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::seccomp::{self, Argument};

/// The read end of a pipe whose write end only the launcher has, in what the launcher starts. There
/// is a byte in the pipe.
pub const LIFELINE: i32 = 10;

/// The role `launcher`: starts a command and stays, whatever becomes of it, until it is killed (or the
/// thread of the test ends).
pub fn launch(command: &[OsString]) -> i32 {
    assert_eq!(
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) },
        0
    );
    let mut ends = [0; 2];
    assert_eq!(
        unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) },
        0
    );
    assert_eq!(unsafe { libc::write(ends[1], b"x".as_ptr().cast(), 1) }, 1);
    assert_eq!(unsafe { libc::dup2(ends[0], LIFELINE) }, LIFELINE);
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .spawn()
        .unwrap();
    // The conversation is the child's alone: who reads there sees an end when the child ends.
    for fd in [0, 1] {
        unsafe { libc::close(fd) };
    }
    child.wait().unwrap();
    loop {
        unsafe { libc::pause() };
    }
}

/// The role `denied CALL ERRNO INDEX VALUE COMMAND...`: executes a command for which a system call
/// answers ERRNO, if its argument INDEX is VALUE (any, where INDEX is `-`).
pub fn denied(args: &[OsString]) -> i32 {
    let number = |at: usize| args[at].to_str().unwrap().parse::<u32>();
    let argument = number(2).ok().map(|index| Argument {
        index,
        value: number(3).unwrap(),
    });
    seccomp::deny(number(0).unwrap(), argument, number(1).unwrap());
    let error: io::Error = Command::new(&args[4]).args(&args[5..]).exec();
    eprintln!("it: {error}");
    1
}
