//! Server mode: a process of run-with's own that launches the server as a captive, says when it is ready, and ends it.
//!
//! ```text
//! run-with ──┬── run-with-server (own session) ──┬── server, in a tree
//!            │                                   └── captive-guard
//!            └── command (the client)
//! ```
//!
//! A process of its own, because run-with has one thread and closes what it does not know, and a launcher has
//! threads. Whoever of the two is killed, the server ends: run-with's end is told to the other by a pidfd, and that one's end
//! by its guard.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::ForkResult;

use super::super::server::{ReadyWhen, expand};
use super::super::{Failure, say, server};
use super::signals::{Original, Signals};
use crate::exit_with_parent::{ExitWithParent, Parent, Signal};
use crate::launcher::{self, Command, Containment, Event, Ready, Stdio, Stream};
use crate::sys::linux as sys;

/// How long the server's tree may take to go after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server, as run-with knows it.
#[derive(Debug)]
pub(super) struct Server {
    launcher: OwnedFd,
    directory: PathBuf,
    /// For its command and for the client.
    variables: Vec<(&'static str, String)>,
    grace: Duration,
}

impl Server {
    /// Starts it, and waits until it is ready. `user`: who the client will be. The calling process has one thread.
    pub(super) fn start(
        server: &server::Server,
        grace: Duration,
        user: Option<u32>,
        parent: Option<&Parent>,
        signals: &Signals,
    ) -> Result<Self, Failure> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |errno: nix::errno::Errno| Failure::own(format!("{what}: {errno}"))
        };
        let directory = directory(user)?;
        let variables = variables(server, &directory)?;
        let (pipe, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe2"))?;
        let run_with = std::process::id();
        // SAFETY: this process has one thread, so that the child's copy of its memory has no lock that is held.
        let forked = unsafe { nix::unistd::fork() }.map_err(failed("fork"))?;
        let child = match forked {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                drop(pipe);
                let launch = Launch {
                    server,
                    directory: &directory,
                    variables: &variables,
                    grace,
                };
                launch.run(run_with, signals.original(), theirs);
            }
        };
        drop(theirs);
        let launcher = sys::pidfd_open(child.as_raw()).map_err(failed("pidfd_open"))?;
        let itself = Self {
            launcher,
            directory,
            variables,
            grace,
        };
        match itself.wait_until_ready(pipe, parent, signals) {
            Ok(()) => Ok(itself),
            Err(failure) => {
                itself.end();
                Err(failure)
            }
        }
    }

    pub(super) fn variables(&self) -> &[(&'static str, String)] {
        &self.variables
    }

    /// What must stay open.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.launcher.as_raw_fd()
    }

    fn wait_until_ready(
        &self,
        pipe: OwnedFd,
        parent: Option<&Parent>,
        signals: &Signals,
    ) -> Result<(), Failure> {
        let poll = |fd: RawFd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let parent_fd = parent.map(Parent::poll_fd);
        let mut fds = [
            poll(pipe.as_raw_fd(), libc::POLLIN),
            match &parent_fd {
                Some(fd) => poll(fd.as_fd().as_raw_fd(), fd.events().bits()),
                None => poll(-1, 0),
            },
            poll(signals.raw_fd(), libc::POLLIN),
        ];
        loop {
            if sys::poll(&mut fds, None).is_err() {
                sys::sleep(Duration::from_millis(10));
            }
            if parent.is_some_and(Parent::is_gone) {
                return Err(Failure::own("the parent is gone"));
            }
            // Others (a window's size, a stop that is resumed) have nobody to go to yet.
            while let Some(received) = signals.next() {
                let signal = received.signal;
                if [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT].contains(&signal) {
                    self.end();
                    super::signals::die_of(signal);
                }
            }
            let [said, ..] = fds;
            if said.revents != 0 {
                break;
            }
        }
        let mut word = String::new();
        let _ = File::from(pipe).read_to_string(&mut word);
        match word.as_str() {
            READY => Ok(()),
            "" => Err(Failure::own("the server's launcher has ended")),
            why => Err(Failure::own(why)),
        }
    }

    /// Ends the server and all that is of it.
    pub(super) fn end(&self) {
        let _ = sys::pidfd_send_signal(self.launcher.as_fd(), libc::SIGTERM);
        let limit = self.grace.saturating_add(2 * PATIENCE);
        if sys::poll_within(self.launcher.as_fd(), libc::POLLIN, limit) != Ok(true) {
            say("the server does not end: its guard is left to end it");
            let _ = sys::pidfd_send_signal(self.launcher.as_fd(), libc::SIGKILL);
            let _ = sys::poll_within(self.launcher.as_fd(), libc::POLLIN, PATIENCE);
        }
        sys::reap_ended(self.launcher.as_fd());
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What the launcher says when the server is ready; anything else is why it is not.
const READY: &str = "ready";

/// A directory for the server's socket that only we, or the client's user, can enter.
fn directory(user: Option<u32>) -> Result<PathBuf, Failure> {
    let template = std::env::temp_dir().join("run-with-XXXXXX");
    let failed = |errno| Failure::own(format!("a directory {}: {errno}", template.display()));
    let directory = nix::unistd::mkdtemp(&template).map_err(failed)?;
    if let Some(user) = user {
        nix::unistd::chown(&directory, Some(user.into()), None).map_err(failed)?;
    }
    Ok(directory)
}

fn variables(
    server: &server::Server,
    directory: &Path,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let socket = directory.join("socket").display().to_string();
    let mut variables = vec![("unixsocket", socket)];
    let port = match server.ready {
        // Free now; whoever takes it meanwhile makes the server fail.
        ReadyWhen::Tcp(0) => Some(
            TcpListener::bind("localhost:0")
                .and_then(|listener| listener.local_addr())
                .map_err(|error| Failure::own(format!("a free TCP port: {error}")))?
                .port(),
        ),
        ReadyWhen::Tcp(port) => Some(port),
        _ => None,
    };
    variables.extend(port.map(|port| ("port", port.to_string())));
    if let Some(template) = &server.uri {
        variables.push(("uri", expand(template, &variables)));
    }
    Ok(variables)
}

/// What run-with waits for: said once, and ended by the end of the pipe.
struct Word(Mutex<Option<File>>);

impl Word {
    fn say(&self, word: &str) {
        let pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut pipe) = pipe {
            let _ = pipe.write_all(word.as_bytes());
        }
    }
}

/// In the process that launches the server.
struct Launch<'a> {
    server: &'a server::Server,
    directory: &'a Path,
    variables: &'a [(&'static str, String)],
    grace: Duration,
}

impl Launch<'_> {
    fn run(&self, run_with: u32, original: Original, pipe: OwnedFd) -> ! {
        // A session of its own: what the terminal sends is for the client.
        let _ = sys::setsid();
        let _ = sys::set_name(b"run-with-server\0");
        // run-with may be gone when it is told, and whoever reads the server's output.
        let _ = sys::set_disposition(libc::SIGPIPE, libc::SIG_IGN);
        // Nor is its input ours, or what it was given by others.
        if let Ok(null) = File::open("/dev/null") {
            let _ = nix::unistd::dup2_stdin(&null);
        }
        // SAFETY: this process is a copy that ends without running what run-with has on its stack, so that none of the
        // closed descriptors' owners is used or dropped.
        let _ = unsafe { sys::close_all_but(&[0, 1, 2, pipe.as_raw_fd()]) };
        let word = Word(Mutex::new(Some(pipe.into())));
        if let Err(why) = self.serve(run_with, original, &word) {
            word.say(&why);
        }
        let _ = fs::remove_dir_all(self.directory);
        sys::exit_group(0)
    }

    /// To the server's end.
    fn serve(&self, run_with: u32, original: Original, word: &Word) -> Result<(), String> {
        let failed = |what: &str, error: &dyn std::error::Error| {
            let failure = Failure::caused(error);
            format!("{what}{}", failure.message)
        };
        let mut events = launcher::events().map_err(|error| failed("", &error))?;
        events
            .signal(Signal::TERM)
            .map_err(|error| failed("", &error))?;
        original
            .restore()
            .and_then(|()| {
                // SIGTERM is how run-with ends this process, blocked or not when it was started.
                let mask = sys::set_signal_mask(sys::ALL_SIGNALS)?;
                sys::set_signal_mask(mask & !(1 << (libc::SIGTERM - 1)))
            })
            .map_err(|errno| format!("giving back the signals: {errno}"))?;
        events
            .parent(ExitWithParent::new().expect_parent(run_with))
            .map_err(|error| failed("", &error))?;
        let captive = self
            .command()
            .spawn()
            .map_err(|error| failed("the server: ", &error))?;
        events
            .watch(&captive)
            .map_err(|error| failed("the server: ", &error))?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let ready = captive.wait_ready(self.server.ready_timeout);
                match &ready {
                    Ok(_) => word.say(READY),
                    Err(error) => word.say(&failed("the server: ", error)),
                }
                if let (Some(output), Ok(ready)) = (&captive.stdout, ready) {
                    let mut out = std::io::stdout();
                    let _ = out.write_all(&ready.output).and_then(|()| out.flush());
                    if let Ok(output) = output.as_fd().try_clone_to_owned() {
                        let _ = std::io::copy(&mut File::from(output), &mut out);
                    }
                }
            });
            for event in events.receiver() {
                if let Event::Exited { .. } = event {
                    break;
                }
                // run-with is done with it, or gone.
                let _ = captive.terminate(self.grace);
            }
            let _ = captive.wait_tree(PATIENCE);
        });
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(&self.server.command)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::Null)
            .containment(Containment::Tree);
        let socket = self.directory.join("socket");
        let ready = match &self.server.ready {
            ReadyWhen::Unix => Ready::UnixListener(socket),
            ReadyWhen::Tcp(_) => {
                let port = self.variables.iter().find(|(name, _)| *name == "port");
                Ready::TcpListener(port.and_then(|(_, port)| port.parse().ok()).unwrap_or(0))
            }
            ReadyWhen::File(path) => Ready::File(path.clone()),
            ReadyWhen::Line(text) => {
                command.stdout(Stdio::Piped);
                Ready::Line(Stream::Stdout, text.clone())
            }
            ReadyWhen::Notify => Ready::Notify,
        };
        command.ready(ready);
        command
    }
}
