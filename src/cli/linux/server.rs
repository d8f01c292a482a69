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
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use nix::fcntl::OFlag;
use nix::unistd::ForkResult;

use super::super::server::{ReadyWhen, expand};
use super::super::{Failure, say, server};
use super::signals::{Original, Signals};
use crate::exit_with_parent::{ExitWithParent, Parent, Signal};
use crate::launcher::{
    self, Captive, Command, Containment, Event, Readiness, Ready, ReadyError, Stdio, Stream,
};
use crate::sys::linux as sys;

/// How long the server's tree may take to go after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much longer a server that is to end may take when run-with itself is told to.
const HURRY: Duration = Duration::from_secs(2);

/// How long nobody may read of the output of a server that has ended; what is left of it is lost then.
const UNREAD: Duration = Duration::from_secs(1);

/// How much of its output is read at once.
const PIECE: usize = 64 << 10;

/// By which run-with is told to end.
const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// The server, as run-with knows it. Dropped, it is ended with all that is of it.
#[derive(Debug)]
pub(super) struct Server {
    launcher: OwnedFd,
    directory: Directory,
    /// For its command and for the client.
    variables: Vec<(&'static str, String)>,
    grace: Duration,
    signals: Rc<Signals>,
}

impl Server {
    /// Starts it, and waits until it is ready. `user`: who the client will be. The calling process has one thread.
    pub(super) fn start(
        server: &server::Server,
        grace: Duration,
        user: Option<u32>,
        parent: Option<&Parent>,
        signals: &Rc<Signals>,
    ) -> Result<Self, Failure> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |errno: nix::errno::Errno| Failure::own(format!("{what}: {errno}"))
        };
        let directory = Directory::make(user)?;
        let variables = variables(server, &directory.0)?;
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
                    directory: &directory.0,
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
            signals: Rc::clone(signals),
        };
        itself.wait_until_ready(pipe, parent)?;
        Ok(itself)
    }

    pub(super) fn variables(&self) -> &[(&'static str, String)] {
        &self.variables
    }

    /// What must stay open.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.launcher.as_raw_fd()
    }

    fn wait_until_ready(&self, pipe: OwnedFd, parent: Option<&Parent>) -> Result<(), Failure> {
        let parent_fd = parent.map(Parent::poll_fd);
        let mut fds = [
            sys::pollfd(pipe.as_raw_fd(), libc::POLLIN),
            match &parent_fd {
                Some(fd) => sys::pollfd(fd.as_fd().as_raw_fd(), fd.events().bits()),
                None => sys::pollfd(-1, 0),
            },
            sys::pollfd(self.signals.raw_fd(), libc::POLLIN),
        ];
        loop {
            if sys::poll(&mut fds, None).is_err() {
                sys::sleep(Duration::from_millis(10));
            }
            if parent.is_some_and(Parent::is_gone) {
                return Err(Failure::own("the parent is gone"));
            }
            if let Some(signal) = self.told_to_end() {
                self.end();
                sys::die_of(signal);
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

    /// The signal, if one has come. Others (a window's size, a stop that is resumed) have nobody to go to.
    fn told_to_end(&self) -> Option<i32> {
        std::iter::from_fn(|| self.signals.next())
            .map(|received| received.signal)
            .find(|signal| ENDING.contains(signal))
    }

    /// Ends the server and all that is of it.
    fn end(&self) {
        let _ = sys::pidfd_send_signal(self.launcher.as_fd(), libc::SIGTERM);
        let limit = self.grace.saturating_add(2 * PATIENCE);
        if !self.ends_before(Instant::now().checked_add(limit)) {
            say("the server does not end: its guard is left to end it");
            let _ = sys::pidfd_send_signal(self.launcher.as_fd(), libc::SIGKILL);
            let _ = sys::poll_within(self.launcher.as_fd(), libc::POLLIN, PATIENCE);
        }
        sys::reap_ended(self.launcher.as_fd());
        self.directory.remove();
    }

    /// Whether its launcher ends in time. Who tells run-with to end shortens that, whatever the grace is.
    fn ends_before(&self, mut deadline: Option<Instant>) -> bool {
        let mut fds = [
            sys::pollfd(self.launcher.as_raw_fd(), libc::POLLIN),
            sys::pollfd(self.signals.raw_fd(), libc::POLLIN),
        ];
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if sys::poll(&mut fds, left).is_err() {
                sys::sleep(Duration::from_millis(10));
            }
            let [ended, _] = fds;
            if ended.revents != 0 {
                return true;
            }
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            if self.told_to_end().is_some() {
                let soon = Instant::now() + HURRY;
                deadline = Some(deadline.map_or(soon, |at| at.min(soon)));
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the launcher says when the server is ready; anything else is why it is not.
const READY: &str = "ready";

/// A directory for the server's socket that only we, or the client's user, can enter; removed when it is dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn make(user: Option<u32>) -> Result<Self, Failure> {
        let template = std::env::temp_dir().join("run-with-XXXXXX");
        let failed = |errno| Failure::own(format!("a directory {}: {errno}", template.display()));
        let directory = Self(nix::unistd::mkdtemp(&template).map_err(failed)?);
        if let Some(user) = user {
            nix::unistd::chown(&directory.0, Some(user.into()), None).map_err(failed)?;
        }
        Ok(directory)
    }

    fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.remove();
    }
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
struct Word(Option<File>);

impl Word {
    fn say(&mut self, word: &str) {
        if let Some(mut pipe) = self.0.take() {
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
        let mut word = Word(Some(pipe.into()));
        if let Err(why) = self.serve(run_with, original, &mut word) {
            word.say(&why);
        }
        let _ = fs::remove_dir_all(self.directory);
        sys::exit_group(0)
    }

    /// To the server's end.
    fn serve(&self, run_with: u32, original: Original, word: &mut Word) -> Result<(), String> {
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
        let mut captive = Arc::new(captive);
        let ready = wait_ready(&captive, self.server.ready_timeout)
            .map_err(|error| failed("a thread: ", &error))?;
        let mut ready = Some(ready);
        let mut output = None;
        let mut announce = |waited, captive: &mut Arc<Captive>| {
            let passed_on = match waited {
                Ok(ready) => pass_on(captive, ready).map_err(|error| failed("a thread: ", &error)),
                Err(error) => Err(failed("the server: ", &error)),
            };
            match passed_on {
                Ok(progress) => {
                    output = progress;
                    word.say(READY);
                }
                Err(why) => word.say(&why),
            }
        };
        loop {
            let waiting = ready.clone().unwrap_or_else(crossbeam_channel::never);
            select! {
                recv(waiting) -> waited => {
                    ready = None;
                    if let Ok(waited) = waited {
                        announce(waited, &mut captive);
                    }
                }
                recv(events.receiver()) -> event => match event {
                    Ok(Event::Exited { .. }) | Err(_) => break,
                    // run-with is done with it, or gone.
                    Ok(_) => drop(captive.terminate(self.grace)),
                }
            }
        }
        // The wait ends with the server.
        if let Some(Ok(waited)) = ready.map(|ready| ready.recv()) {
            announce(waited, &mut captive);
        }
        // What nobody can add to any more is passed on as long as somebody reads.
        if let (Ok(true), Some(progress)) = (captive.wait_tree(PATIENCE), output) {
            while progress.recv_timeout(UNREAD).is_ok() {}
        }
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

/// Waits until it is ready, on a thread of its own: the limit may be long, and run-with be done with it before. With the
/// answer the captive is the caller's alone again.
fn wait_ready(
    captive: &Arc<Captive>,
    limit: Duration,
) -> io::Result<Receiver<Result<Readiness, ReadyError>>> {
    let (tell, ready) = crossbeam_channel::bounded(1);
    let captive = Arc::clone(captive);
    thread::Builder::new().spawn(move || {
        let waited = captive.wait_ready(limit);
        drop(captive);
        let _ = tell.send(waited);
    })?;
    Ok(ready)
}

/// Passes its output on, if that is a pipe: what has been read, and what comes. Nobody waits for the thread, which a
/// reader who does not read holds up. The channel tells of progress, and is closed at the end.
fn pass_on(captive: &mut Arc<Captive>, ready: Readiness) -> io::Result<Option<Receiver<()>>> {
    let output = Arc::get_mut(captive).and_then(|captive| captive.stdout.take());
    let Some(mut output) = output else {
        return Ok(None);
    };
    // Not std's, which keeps what is no whole line.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (tell, progress) = crossbeam_channel::bounded(1);
    thread::Builder::new().spawn(move || {
        let mut text = ready.output;
        // With the end of this the server's end is closed: where nobody reads any more, it is to be told.
        while out.write_all(&text).is_ok() {
            let _ = tell.try_send(());
            text.resize(PIECE, 0);
            match output.read(&mut text) {
                Ok(0) | Err(_) => break,
                Ok(count) => text.truncate(count),
            }
        }
    })?;
    Ok(Some(progress))
}
