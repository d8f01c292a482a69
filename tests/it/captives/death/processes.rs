//! What the captives of these tests do.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use crate::captives::trees::processes as trees;

/// Says that it is ready, then waits for its end.
pub fn run(args: &[&str]) -> i32 {
    match args {
        ["self"] => become_nobody(),
        ["deaf"] => hear_nothing(),
        ["line", file, name, millis] => {
            let pause = Duration::from_millis(millis.parse().unwrap());
            return write_on_term(file, name, pause);
        }
        ["tree", parts @ ..] => return trees::run(parts),
        ["graceful", file, name, millis, parts @ ..] => {
            let pause = Duration::from_millis(millis.parse().unwrap());
            return trees::run_gracefully(file, name, pause, parts);
        }
        ["bare", part, fd] => trees::bare(part, fd.parse().unwrap()),
        _ => return 2,
    }
    ready();
    loop {
        unsafe { libc::pause() };
    }
}

/// To nobody, if the launcher has ended meanwhile.
fn ready() {
    let _ = writeln!(std::io::stdout(), "ready");
}

/// Which clears the parent-death signal.
pub fn become_nobody() {
    const NOBODY: u32 = 65534;
    assert_eq!(unsafe { libc::setgroups(0, std::ptr::null()) }, 0);
    assert_eq!(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) }, 0);
    assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0);
}

pub fn hear_nothing() {
    for signal in 1..=libc::SIGRTMAX() {
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    block(None);
}

/// Blocks one signal, or all.
pub fn block(signal: Option<i32>) -> libc::sigset_t {
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    match signal {
        Some(signal) => unsafe { libc::sigaddset(&raw mut set, signal) },
        None => unsafe { libc::sigfillset(&raw mut set) },
    };
    let answer =
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    assert_eq!(answer, 0);
    set
}

/// On SIGTERM a line, some time later another, then the end. Blocked, since it may come twice.
fn write_on_term(file: &str, name: &str, pause: Duration) -> i32 {
    let set = block(Some(libc::SIGTERM));
    let mut file = OpenOptions::new().append(true).open(file).unwrap();
    ready();
    let mut signal = 0;
    assert_eq!(unsafe { libc::sigwait(&raw const set, &raw mut signal) }, 0);
    file.write_all(format!("{name} term\n").as_bytes()).unwrap();
    std::thread::sleep(pause);
    file.write_all(format!("{name} end\n").as_bytes()).unwrap();
    0
}
