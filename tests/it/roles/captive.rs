//! A process that binds itself to its parent, makes plans and tells what it is, as the test says: a
//! line a command on standard input, a line an answer on standard output. It ends at end of file.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use captive::RunWith;
use captive::exit_with_parent::{ArmError, Armed, ExitWithParent, Mechanism, ParentExited, Signal};
use captive::run_with::{Applied, PrepareError, Prepared, StepError};
use nix::errno::Errno;

use super::crowd;
use crate::support::HANG;
use crate::support::process::close_from;
use crate::support::seccomp::{self, Argument};

/// How the program hears of the parent's exit.
type Event = Box<dyn Fn(Duration) -> Option<ParentExited>>;

#[derive(Default)]
struct Captive {
    /// The last is the one that commands are about.
    armed: Vec<Armed>,
    event: Option<Event>,
    prepared: Option<Prepared>,
    applied: Option<Applied>,
    pipe: Option<(OwnedFd, OwnedFd)>,
}

/// The role.
pub fn run() -> i32 {
    let mut captive = Captive::default();
    loop {
        let mut line = String::new();
        if io::stdin().read_line(&mut line).unwrap() == 0 {
            return 0;
        }
        let line = line.trim_end();
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        if command == "exit" {
            return argument.parse().unwrap();
        }
        let answer = captive.obey(command, argument).replace('\n', " ");
        say(&answer);
    }
}

fn say(answer: &str) {
    let mut out = io::stdout();
    writeln!(out, "{answer}").unwrap();
    out.flush().unwrap();
}

impl Captive {
    fn obey(&mut self, command: &str, argument: &str) -> String {
        let mut words = argument.split_whitespace();
        let number = || argument.parse::<i32>().unwrap();
        match command {
            "pid" => std::process::id().to_string(),
            // Binding.
            "arm" => self.arm(words),
            "arm-in-thread" => {
                std::thread::scope(|scope| match scope.spawn(|| arm(words).0).join().unwrap() {
                    Ok(armed) => self.keep(armed),
                    Err(error) => describe(&error),
                })
            }
            "report" => self.last().report().to_string(),
            "limits" => format!("{:?}", self.last().report().limits),
            "alive" => self.last().parent_is_alive().to_string(),
            "rearm" => done(self.last().rearm()),
            "disarm" => done(self.armed.pop().unwrap().disarm()),
            "drop" => {
                self.armed.clear();
                "dropped".into()
            }
            "event" => format!("{:?}", self.event.as_ref().unwrap()(HANG)),
            "event-now" => format!("{:?}", self.event.as_ref().unwrap()(Duration::ZERO)),
            "pdeathsig" => parent_death_signal().to_string(),
            // Descriptors.
            "pipe" => {
                self.pipe = Some(nix::unistd::pipe().unwrap());
                "made".into()
            }
            "pipe-ends" => {
                let (reader, writer) = self.pipe.take().unwrap();
                drop(writer);
                crate::support::process::readable_within(std::os::fd::AsFd::as_fd(&reader), HANG)
                    .to_string()
            }
            "closefrom" => {
                let closed = unsafe { close_from(3) };
                closed.to_string()
            }
            // The numbers that are free now mean this file.
            "reuse" => {
                for _ in 0..16 {
                    let file = fs::OpenOptions::new().append(true).open(argument).unwrap();
                    let _ = std::os::fd::IntoRawFd::into_raw_fd(file);
                }
                "reused".into()
            }
            "file-size" => {
                let sizes = (3..16).map(|fd| {
                    nix::sys::stat::fstat(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) })
                        .map(|stat| stat.st_size)
                });
                format!(
                    "{:?}",
                    sizes
                        .collect::<Result<Vec<_>, _>>()
                        .map(|sizes| sizes.into_iter().max())
                )
            }
            "limit-descriptors" => {
                let limit = argument.parse().unwrap();
                let resource = nix::sys::resource::Resource::RLIMIT_NOFILE;
                nix::sys::resource::setrlimit(resource, limit, limit).unwrap();
                "limited".into()
            }
            // Signals.
            "ignore" => {
                unsafe { libc::signal(number(), libc::SIG_IGN) };
                "ignored".into()
            }
            "block" => mask(libc::SIG_BLOCK, number()),
            "unblock" => mask(libc::SIG_UNBLOCK, number()),
            "handle" => {
                let handler: extern "C" fn(i32) = caught;
                unsafe { libc::signal(number(), handler as libc::sighandler_t) };
                "handled".into()
            }
            "raise" => {
                unsafe { libc::kill(libc::getpid(), number()) };
                "raised".into()
            }
            "caught" => format!(
                "{} on the {} thread",
                CAUGHT.swap(0, Ordering::SeqCst),
                match CAUGHT_ON.swap(0, Ordering::SeqCst) {
                    0 => "no",
                    tid if tid == std::process::id() => "main",
                    _ => "other",
                }
            ),
            // Processes and threads.
            "fork" => self.fork(argument),
            // For the children to come.
            "new-pid-namespace" => unsafe { libc::unshare(libc::CLONE_NEWPID) }.to_string(),
            "crowd" => {
                crowd::gather();
                "gathered".into()
            }
            "raw-thread" => {
                crowd::raw_thread(Duration::from_millis(argument.parse().unwrap())).to_string()
            }
            "denying-thread" => {
                let denial = Denial::parse(words);
                crowd::thread_that(move || denial.take_effect()).to_string()
            }
            // Privileges.
            "become" => {
                let id = u32::try_from(number()).unwrap();
                nix::unistd::setgroups(&[]).unwrap();
                nix::unistd::setresgid(id.into(), id.into(), id.into()).unwrap();
                nix::unistd::setresuid(id.into(), id.into(), id.into()).unwrap();
                "changed".into()
            }
            "become-but-keep" => become_but_keep(number()),
            "secure-bits" => {
                let set = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, number()) };
                set.to_string()
            }
            "deny" => {
                Denial::parse(words).take_effect();
                "denied".into()
            }
            // Plans.
            "prepare" => self.prepare(words.next().unwrap_or_default(), words),
            "steps" => format!("{:?}", self.prepared.as_ref().unwrap().steps()),
            "apply" => self.apply(),
            "apply-in-thread" => std::thread::scope(|scope| {
                let prepared = self.prepared.take().unwrap();
                let applied = scope.spawn(|| prepared.apply()).join().unwrap();
                self.applied(applied)
            }),
            "teardown" => {
                let applied = self.applied.as_ref().unwrap();
                applied.teardown().map_or(0, |t| t.pid()).to_string()
            }
            "applied-report" => {
                let applied = self.applied.as_ref().unwrap();
                applied.armed().unwrap().report().to_string()
            }
            "chdir" => done(std::env::set_current_dir(argument)),
            "state" => state(),
            "exists" => fs::exists(argument).unwrap().to_string(),
            _ => format!("no command {command}"),
        }
    }

    fn last(&mut self) -> &mut Armed {
        self.armed.last_mut().unwrap()
    }

    fn keep(&mut self, armed: Armed) -> String {
        let report = armed.report().to_string();
        self.armed.push(armed);
        format!("armed: {report}")
    }

    fn arm<'a>(&mut self, words: impl Iterator<Item = &'a str>) -> String {
        let own_pipe = self.pipe.as_ref().map(|(reader, _)| reader.try_clone());
        let words: Vec<&str> = words.collect();
        let (armed, event) = if words == ["own-pipe"] {
            let fd = own_pipe.unwrap().unwrap();
            (ExitWithParent::new().parent_fd(fd).arm(), None)
        } else {
            arm(words.into_iter())
        };
        match armed {
            Ok(armed) => {
                self.event = event;
                self.keep(armed)
            }
            Err(error) => describe(&error),
        }
    }

    /// The child goes on with the conversation at the socket of this path.
    fn fork(&mut self, path: &str) -> String {
        match unsafe { libc::fork() } {
            0 => {
                let socket = UnixStream::connect(path).unwrap();
                for fd in [0, 1] {
                    use std::os::fd::AsRawFd;
                    assert_eq!(unsafe { libc::dup2(socket.as_raw_fd(), fd) }, fd);
                }
                drop(socket);
                // What was armed before the fork is not ours, but the handle is.
                std::process::id().to_string()
            }
            pid => pid.to_string(),
        }
    }

    fn prepare<'a>(&mut self, options: &str, how: impl Iterator<Item = &'a str>) -> String {
        let options: RunWith = options.parse().unwrap();
        let how: Vec<&str> = how.collect();
        let mut event = None;
        let prepared = if how.is_empty() {
            options.prepare()
        } else {
            options.prepare_with(|| {
                let (armed, heard) = arm(how.into_iter());
                event = heard;
                armed.map_err(PrepareError::from)
            })
        };
        self.event = event;
        match prepared {
            Ok(prepared) => {
                self.prepared = Some(prepared);
                "prepared".into()
            }
            Err(error) => describe(&error),
        }
    }

    fn apply(&mut self) -> String {
        let applied = self.prepared.take().unwrap().apply();
        self.applied(applied)
    }

    fn applied(&mut self, applied: Result<Applied, StepError>) -> String {
        match applied {
            Ok(applied) => {
                self.applied = Some(applied);
                "applied".into()
            }
            Err(error) => format!(
                "step {:?} done {:?} must_end {} | {}",
                error.step(),
                error.done(),
                error.must_end(),
                describe(&error)
            ),
        }
    }
}

/// `KEY=VALUE...` as the builder's methods.
fn arm<'a>(words: impl Iterator<Item = &'a str>) -> (Result<Armed, ArmError>, Option<Event>) {
    let mut builder = ExitWithParent::new();
    let mut form = "signal";
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse::<i32>().unwrap();
        builder = match key {
            "signal" => builder.signal(value.parse::<Signal>().unwrap()),
            "grace" => builder.kill_after(Duration::from_millis(value.parse().unwrap())),
            "expect" => builder.expect_parent(value.parse().unwrap()),
            "fd" => builder.parent_fd(unsafe { OwnedFd::from_raw_fd(number()) }),
            "pidfd" => builder.parent_fd(pidfd_open(number())),
            "mechanism" => builder.mechanism(match value {
                "pidfd" => Mechanism::Pidfd,
                "signal" => Mechanism::ParentDeathSignal,
                _ => Mechanism::Kqueue,
            }),
            "second" => builder.second_line(),
            _ => {
                form = value;
                builder
            }
        };
    }
    match form {
        "channel" => match builder.channel() {
            Ok((armed, receiver)) => {
                let event: Event = Box::new(move |limit| receiver.recv_timeout(limit).ok());
                (Ok(armed), Some(event))
            }
            Err(error) => (Err(error), None),
        },
        "callback" => {
            let (sender, receiver) = mpsc::channel();
            let sender = std::sync::Mutex::new(sender);
            let armed = builder.callback(move |event| sender.lock().unwrap().send(event).unwrap());
            let event: Event = Box::new(move |limit| receiver.recv_timeout(limit).ok());
            (armed, Some(event))
        }
        _ => (builder.arm(), None),
    }
}

/// `CALL ERRNO [INDEX VALUE]`.
#[derive(Clone, Copy)]
struct Denial {
    call: u32,
    errno: u32,
    argument: Option<Argument>,
}

impl Denial {
    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let numbers: Vec<u32> = words.map(|word| word.parse().unwrap()).collect();
        Self {
            call: numbers[0],
            errno: numbers[1],
            argument: numbers.get(2).map(|index| Argument {
                index: *index,
                value: numbers[3],
            }),
        }
    }

    fn take_effect(self) {
        seccomp::deny(self.call, self.argument, self.errno);
    }
}

fn pidfd_open(pid: i32) -> OwnedFd {
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0);
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// The variant, and the message with its causes.
fn describe(error: &(impl std::error::Error + 'static)) -> String {
    let mut text = format!("error {error:?} | {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}

fn done<E: std::error::Error + 'static>(result: Result<(), E>) -> String {
    result.map_or_else(|error| describe(&error), |()| "done".into())
}

fn parent_death_signal() -> i32 {
    let mut signal = 0;
    assert_eq!(
        unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) },
        0
    );
    signal
}

static CAUGHT: AtomicI32 = AtomicI32::new(0);
static CAUGHT_ON: AtomicU32 = AtomicU32::new(0);

extern "C" fn caught(signal: i32) {
    CAUGHT_ON.store(unsafe { libc::gettid() } as u32, Ordering::SeqCst);
    CAUGHT.store(signal, Ordering::SeqCst);
}

/// Of the main thread.
fn mask(how: i32, signal: i32) -> String {
    let mut set = unsafe { std::mem::zeroed() };
    unsafe { libc::sigemptyset(&raw mut set) };
    unsafe { libc::sigaddset(&raw mut set, signal) };
    let changed = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
    changed.to_string()
}

/// Ids, groups, and which directories the working directory and the root are.
fn state() -> String {
    let place = |path: &str| {
        let meta = fs::metadata(path).unwrap();
        (meta.dev(), meta.ino())
    };
    format!(
        "uid {:?} gid {:?} groups {:?} cwd {:?} root {:?}",
        nix::unistd::getresuid().unwrap(),
        nix::unistd::getresgid().unwrap(),
        nix::unistd::getgroups().unwrap(),
        place("."),
        place("/"),
    )
}

/// Another user who has one capability, by its number.
fn become_but_keep(capability: i32) -> String {
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1) }, 0);
    nix::unistd::setgroups(&[]).unwrap();
    nix::unistd::setresgid(4321.into(), 4321.into(), 4321.into()).unwrap();
    nix::unistd::setresuid(4321.into(), 4321.into(), 4321.into()).unwrap();
    let header: [u32; 2] = [0x2008_0522, 0];
    let bit = 1_u32 << capability;
    // Effective, permitted, inheritable, twice.
    let data: [u32; 6] = [bit, bit, 0, 0, 0, 0];
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })
        .unwrap();
    "changed".into()
}
