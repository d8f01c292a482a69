//! A main process and its descendants.
//!
//! Each says `NAME=PID`, with the pid that it has outside of its PID namespace: `/proc` is the launcher's.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::captives::death::processes::{become_nobody, block, hear_nothing};
use crate::support::cgroups::root_of_version_2;
use crate::support::process::{close_from, state};

/// How many generations `deep` is.
pub const DEPTH: usize = 4;

/// How long what is to be ended runs if nobody does it.
const BOMB: Duration = Duration::from_secs(30);

/// Until it is killed.
pub fn run(parts: &[&str]) -> i32 {
    let said: String = make(parts).iter().map(|(_, said)| said.as_str()).collect();
    ready(&said);
    wait_for_ever()
}

/// On SIGTERM it says how many of its descendants live, after a while again, and ends.
pub fn run_gracefully(file: &str, name: &str, pause: Duration, parts: &[&str]) -> i32 {
    let set = block(Some(libc::SIGTERM));
    let mut file = OpenOptions::new().append(true).open(file).unwrap();
    let made = make(parts);
    let said: String = made.iter().map(|(_, said)| said.as_str()).collect();
    ready(&said);
    let mut signal = 0;
    assert_eq!(unsafe { libc::sigwait(&raw const set, &raw mut signal) }, 0);
    let living = || {
        let lives = |pid: i32| state(pid).is_some_and(|state| state != 'Z');
        made.iter().filter(|(pid, _)| lives(*pid)).count()
    };
    file.write_all(format!("{name} term {}\n", living()).as_bytes())
        .unwrap();
    std::thread::sleep(pause);
    file.write_all(format!("{name} end {}\n", living()).as_bytes())
        .unwrap();
    0
}

fn ready(said: &str) {
    // To nobody, if the launcher has ended meanwhile.
    let _ = writeln!(std::io::stdout(), "ready{said}");
}

fn wait_for_ever() -> ! {
    loop {
        unsafe { libc::pause() };
    }
}

/// What they are, and what each says.
fn make(parts: &[&str]) -> Vec<(i32, String)> {
    let (read, write) = nix::unistd::pipe().unwrap();
    let mut awaited = 0;
    for part in parts {
        match *part {
            // Of the main process itself, below.
            "nobody" | "teardown" => {}
            "deep" => awaited += DEPTH,
            _ => awaited += 1,
        }
        make_one(part, &write);
    }
    drop(write);
    let mut made = Vec::new();
    for line in BufReader::new(fs::File::from(read)).lines().take(awaited) {
        let line = line.unwrap();
        let (_, pid) = line.split_once('=').unwrap();
        made.push((pid.parse().unwrap(), format!(" {line}")));
    }
    assert_eq!(made.len(), awaited, "{parts:?}");
    if parts.contains(&"teardown") {
        let _ = captive::async_teardown::start().unwrap();
        let helper = teardown_helper().unwrap();
        made.push((helper, format!(" teardown={helper}")));
    }
    if parts.contains(&"nobody") {
        become_nobody();
    }
    made
}

/// The child that async_teardown has made, which it knows by another number.
fn teardown_helper() -> Option<i32> {
    let children = fs::read_to_string("/proc/thread-self/children").ok()?;
    let pids = children.split(' ').filter_map(|pid| pid.parse().ok());
    pids.into_iter().find(|pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.starts_with("cleanup/"))
    })
}

fn make_one(part: &str, say: &OwnedFd) {
    match part {
        "nobody" | "teardown" => {}
        "child" => fork(|| stay(part, say)),
        "session" => fork(|| {
            set_session();
            stay(part, say)
        }),
        // As daemon(3) does it, and closes all that it has inherited.
        "daemon" => fork(|| {
            set_session();
            fork(|| {
                std::env::set_current_dir("/").unwrap();
                announce(part, say);
                unsafe { close_from(0) };
                wait_for_ever()
            });
            unsafe { libc::_exit(0) }
        }),
        "deaf" => fork(|| {
            hear_nothing();
            stay(part, say)
        }),
        "stopped" => fork(|| {
            announce(part, say);
            loop {
                unsafe { libc::raise(libc::SIGSTOP) };
            }
        }),
        "user" => fork(|| {
            become_nobody();
            stay(part, say)
        }),
        "deep" => deep(DEPTH, say),
        // Its parent is the main process's.
        "sibling" => {
            let flags = libc::CLONE_PARENT | libc::SIGCHLD;
            // SAFETY: as fork(2).
            match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
                0 => stay(part, say),
                pid => assert!(pid > 0, "clone with CLONE_PARENT"),
            }
        }
        // The init of another PID namespace, below.
        "nested" => fork(|| {
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
            fork(|| stay(part, say));
            wait_for_ever()
        }),
        // Without an environment.
        "bare" => fork(|| {
            let copy = say.try_clone().unwrap().into_raw_fd();
            let kept = unsafe { libc::fcntl(copy, libc::F_DUPFD, 3) };
            let error = Command::new("/proc/self/exe")
                .env_clear()
                .args(["--role", "captives", "death", "captive", "bare", part])
                .arg(kept.to_string())
                .exec();
            panic!("{error}")
        }),
        // Into the root of all cgroups.
        "leaver" => fork(|| {
            let root = root_of_version_2().unwrap();
            fs::write(root.join("cgroup.procs"), "0").unwrap();
            stay(part, say)
        }),
        "bomb" => fork(|| {
            set_session();
            announce(part, say);
            bomb()
        }),
        _ => panic!("{part}?"),
    }
}

fn deep(depth: usize, say: &OwnedFd) {
    if depth > 0 {
        fork(|| {
            set_session();
            announce(&format!("deep{depth}"), say);
            deep(depth - 1, say);
            wait_for_ever()
        });
    }
}

/// The life of what has been executed without an environment.
pub fn bare(part: &str, fd: i32) -> ! {
    // SAFETY: inherited for this.
    let say = unsafe { OwnedFd::from_raw_fd(fd) };
    // It has no tag, by which a failed test would end it.
    unsafe { libc::alarm(60) };
    stay(part, &say)
}

/// All that it makes do the same.
fn bomb() -> ! {
    let began = Instant::now();
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    while began.elapsed() < BOMB {
        if unsafe { libc::fork() } == -1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    unsafe { libc::_exit(0) }
}

fn fork(child: impl FnOnce()) {
    match unsafe { libc::fork() } {
        0 => {
            child();
            unsafe { libc::_exit(1) }
        }
        pid => assert!(pid > 0, "fork"),
    }
}

fn set_session() {
    assert!(unsafe { libc::setsid() } > 0);
}

fn stay(part: &str, say: &OwnedFd) -> ! {
    announce(part, say);
    wait_for_ever()
}

fn announce(part: &str, say: &OwnedFd) {
    let own = fs::read_link("/proc/self").unwrap();
    let line = format!("{part}={}\n", own.display());
    let fd = say.as_raw_fd();
    // SAFETY: the kernel reads the line.
    let written = unsafe { libc::write(fd, line.as_ptr().cast(), line.len()) };
    assert_eq!(written, line.len() as isize);
}
