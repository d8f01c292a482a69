//! A process under `async_teardown` that does what it is told on standard input, a line a command,
//! and answers each with a line. It ends at end of file, so that it never outlives its test.

use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead, Write};
use std::os::unix::net::UnixStream;

use captive::async_teardown::{self, Teardown, TeardownError};
use nix::errno::Errno;

use crate::support::process::close_from;
use crate::support::seccomp;

/// The role `teardown`.
pub(crate) fn run() -> i32 {
    let mut main = Main {
        teardown: None,
        memory: Vec::new(),
    };
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
        if command == "exit" {
            return argument.parse().unwrap();
        }
        let answer = main.obey(command, argument);
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}").unwrap();
        out.flush().unwrap();
    }
    0
}

struct Main {
    teardown: Option<Teardown>,
    memory: Vec<Vec<u8>>,
}

impl Main {
    fn obey(&mut self, command: &str, argument: &str) -> String {
        let number = || argument.parse::<usize>().unwrap();
        match command {
            "start" => match async_teardown::start() {
                Ok(teardown) => {
                    let pid = teardown.pid();
                    self.teardown = Some(teardown);
                    pid.to_string()
                }
                Err(error) => describe(&error),
            },
            "end" => match self.teardown.take().unwrap().end() {
                Ok(()) => "ended".into(),
                Err(error) => describe(&error),
            },
            "drop" => {
                self.teardown = None;
                "dropped".into()
            }
            "running" => self.teardown.as_ref().unwrap().is_running().to_string(),
            "report" => self.teardown.as_ref().unwrap().report().to_string(),
            // In MiB, every page written.
            "touch" => {
                self.memory.push(vec![1; number() << 20]);
                "touched".into()
            }
            // To this uid and gid, as run_with does it.
            "user" => {
                let id = u32::try_from(number()).unwrap();
                nix::unistd::setgroups(&[]).unwrap();
                nix::unistd::setgid(id.into()).unwrap();
                nix::unistd::setuid(id.into()).unwrap();
                "changed".into()
            }
            "wait" => format!("{:?}", nix::sys::wait::wait()),
            "closefrom" => {
                assert_eq!(unsafe { close_from(3) }, 0);
                "closed".into()
            }
            // A descriptor far above the soft limit that comes after it.
            "high-descriptor" => {
                let fd = unsafe { libc::fcntl(0, libc::F_DUPFD, number() as libc::c_int) };
                limit_descriptors(64);
                fd.to_string()
            }
            "limit-descriptors" => {
                limit_descriptors(number() as u64);
                "limited".into()
            }
            "deny" => {
                let (call, errno) = argument.split_once(' ').unwrap();
                seccomp::deny(call.parse().unwrap(), None, errno.parse().unwrap());
                "denied".into()
            }
            "fork-idle" => fork(|| {
                // Until the test's tag finds it.
                loop {
                    unsafe { libc::pause() };
                }
            })
            .to_string(),
            "fork-with-handle" => self.fork_with_handle(),
            // The child takes pid 1 of a new namespace, for whom there is no teardown, and stays.
            "new-pid-namespace" => {
                assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
                fork(|| {
                    loop {
                        unsafe { libc::pause() };
                    }
                })
                .to_string()
            }
            "ignore-children" => {
                unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
                "ignored".into()
            }
            "exec" => exec(),
            "exec-self" => {
                let argv = [c"it", c"--role", c"teardown"].map(CString::from);
                format!("{:?}", nix::unistd::execv(c"/proc/self/exe", &argv))
            }
            "exec-from-thread" => std::thread::spawn(exec).join().unwrap(),
            "cycles" => cycles(number()),
            "errno" => errno_kept(number()).to_string(),
            _ => format!("no command {command}"),
        }
    }

    /// What a forked child sees, as its exit status.
    fn fork_with_handle(&mut self) -> String {
        let teardown = self.teardown.take().unwrap();
        let child = unsafe { libc::fork() };
        if child == 0 {
            let inert = !teardown.is_running()
                && matches!(teardown.end(), Err(TeardownError::Forked { .. }));
            let own = async_teardown::start().and_then(Teardown::end).is_ok();
            unsafe { libc::_exit(i32::from(inert) + 2 * i32::from(own)) };
        }
        let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
        let running = teardown.is_running();
        self.teardown = Some(teardown);
        let nix::sys::wait::WaitStatus::Exited(_, code) = status else {
            return format!("{status:?}");
        };
        format!(
            "inert {} own {} running {running}",
            code & 1 != 0,
            code & 2 != 0
        )
    }
}

/// The variant, and the message with its causes.
fn describe(error: &TeardownError) -> String {
    let mut text = format!("{error:?} | {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}

fn exec() -> String {
    let argv = [c"sleep", c"600"].map(CString::from);
    format!("{:?}", nix::unistd::execvp(c"sleep", &argv))
}

fn fork(child: impl FnOnce()) -> i32 {
    match unsafe { libc::fork() } {
        0 => {
            child();
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}

fn limit_descriptors(soft: u64) {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("a limit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, soft, hard)
        .expect("a lower limit");
}

/// Starts and ends; the answer is what is more afterwards.
fn cycles(count: usize) -> String {
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mappings = || {
        fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let once = || async_teardown::start().unwrap().end().unwrap();
    // What the first time allocates for good is no leak.
    once();
    let before = (descriptors(), mappings());
    for _ in 0..count {
        once();
    }
    let children = Errno::result(unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL) });
    format!(
        "descriptors {} mappings {} children {children:?}",
        descriptors() - before.0,
        mappings().saturating_sub(before.1),
    )
}

/// Whether errno keeps a value no call leaves there, in the starting thread and in others.
fn errno_kept(count: usize) -> bool {
    use std::sync::atomic::{AtomicBool, Ordering};
    const MARK: i32 = 4321;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = || {
            Errno::set_raw(MARK);
            while !done.load(Ordering::Relaxed) {
                if Errno::last_raw() != MARK {
                    return false;
                }
                std::hint::spin_loop();
            }
            true
        };
        let other = scope.spawn(watch);
        let starter = scope.spawn(|| {
            (0..count).all(|_| {
                Errno::set_raw(MARK);
                let teardown = async_teardown::start();
                let kept = Errno::last_raw() == MARK;
                teardown.unwrap().end().unwrap();
                kept
            })
        });
        let kept = starter.join().unwrap();
        done.store(true, Ordering::Relaxed);
        kept && other.join().unwrap()
    })
}

/// The role `teardown-many`: starts `count` processes with helpers one after the other, kills each,
/// and reaps what there is to reap. A subreaper, so that the helpers come here instead of to init.
pub(crate) fn many(count: usize) -> i32 {
    assert_eq!(
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) },
        0
    );
    let mut reaped = 0;
    for _ in 0..count {
        let (mut ready, theirs) = UnixStream::pair().unwrap();
        let child = fork(|| {
            let teardown = async_teardown::start();
            let _ = (&theirs).write_all(if teardown.is_ok() { b"y" } else { b"n" });
            loop {
                unsafe { libc::pause() };
            }
        });
        drop(theirs);
        let mut answer = [0];
        io::Read::read_exact(&mut ready, &mut answer).unwrap();
        assert_eq!(&answer, b"y");
        unsafe { libc::kill(child, libc::SIGKILL) };
        // The process, and its helper once it has become ours: then it is an ordinary child.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {
            reaped += 1;
        }
    }
    println!("{reaped}");
    0
}
