//! Trees that are found by their marks: a variable of the environment, which every descendant has that does not clear
//! it; proc_pid_environ(5). The best that can be done where there is neither a namespace nor a cgroup.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::super::protocol::{MARK, Name};
use super::cgroup::Why;
use crate::sys::linux as sys;

/// Whether a walk would find anybody: with a `/proc` that is hidden (none is mounted, another file system over it) it
/// finds nobody, and everybody lives on. That our own environment is there, not that we may read it: it is root's if we
/// are not dumpable, which says nothing of those that have executed a program.
pub(super) fn can_walk() -> Result<(), Why> {
    let readable = fs::read_dir("/proc").and_then(|_| fs::metadata("/proc/self/environ"));
    readable.map(drop).map_err(|error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        ("/proc does not show processes".to_owned(), errno)
    })
}

/// SIGKILL to all that one walk finds.
pub(super) fn kill(name: &Name) {
    each(name, |process| {
        // A directory of /proc is a pidfd to this call: of the process that it was opened for, and no other.
        let _ = sys::pidfd_send_signal(process.as_fd(), libc::SIGKILL);
    });
}

/// How many there are.
pub(super) fn find(name: &Name) -> usize {
    let mut count = 0;
    each(name, |_| count += 1);
    count
}

/// Whether an environment, as proc_pid_environ(5) shows it, has the mark.
pub(in super::super) fn is_in(environment: &[u8], name: &Name) -> bool {
    environment
        .split(|byte| *byte == 0)
        .any(|entry| entry.strip_prefix(MARK) == Some(name.bytes()))
}

fn each(name: &Name, mut act: impl FnMut(&File)) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Ok(process) = File::open(entry.path()) else {
            continue;
        };
        let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
        let environ = nix::fcntl::openat(&process, "environ", flags, nix::sys::stat::Mode::empty());
        let mut text = Vec::new();
        let read = environ.map(|environ| File::from(environ).read_to_end(&mut text));
        // One that has ended, or is another user's.
        if !matches!(read, Ok(Ok(_))) {
            continue;
        }
        if is_in(&text, name) {
            act(&process);
        }
    }
}
