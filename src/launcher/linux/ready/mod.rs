//! Waiting until a captive is ready: a look, then a wait for whatever can wake, and again.

use std::ffi::OsString;
use std::fs;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::command::Command;
use super::super::stdio::Stdio;
use super::super::{CaptiveError, ExitReport, Readiness, Ready, ReadyError, SpawnError, Stream};
use super::process::Process;
use crate::sys::linux as sys;

mod members;
mod notify;
mod sockets;

use notify::Notifications;

/// What is to tell that a captive is ready, from before its spawn on.
#[derive(Debug)]
pub(super) struct Watch {
    ready: Ready,
    /// What was at the place of [`Ready::File`].
    before: Option<FileId>,
    notifications: Mutex<Option<Notifications>>,
    /// Once it is.
    known: Mutex<Option<Readiness>>,
}

/// Enough to tell a file from one that is there later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId([u64; 2], [i64; 2]);

impl FileId {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        let modified = [file.mtime(), file.mtime_nsec()];
        Some(Self([file.dev(), file.ino()], modified))
    }
}

/// The launcher's ends of a captive's pipes, as far as they are still in the handle.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Streams<'a> {
    pub(in super::super) stdout: Option<BorrowedFd<'a>>,
    pub(in super::super) stderr: Option<BorrowedFd<'a>>,
}

/// Variables for the captive.
pub(super) type Variables = Vec<(OsString, OsString)>;

/// The longest pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// How long after the end of its output a captive may take to end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(1);

impl Watch {
    /// Prepares what the command asks for; with the variables that the captive needs for it.
    pub(super) fn prepare(command: &Command) -> Result<Option<(Self, Variables)>, SpawnError> {
        let Some(ready) = command.ready.clone() else {
            return Ok(None);
        };
        let mut variables = Vec::new();
        let mut watch = Self {
            before: None,
            notifications: Mutex::new(None),
            known: Mutex::new(None),
            ready,
        };
        match &watch.ready {
            Ready::File(path) => watch.before = FileId::of(path),
            Ready::TcpListener(0) => return Err(command.invalid("port 0 is no port")),
            Ready::Line(stream, _) => {
                let stdio = match stream {
                    Stream::Stdout => &command.stdout,
                    Stream::Stderr => &command.stderr,
                };
                if !matches!(stdio, Some(Stdio::Piped)) {
                    let what = format!("{stream} is to have a line, and is not piped");
                    return Err(command.invalid(what));
                }
            }
            Ready::Notify => {
                if command.network_namespace.is_some() {
                    return Err(command.invalid(
                        "Ready::Notify with a network namespace, in which the abstract socket is not",
                    ));
                }
                let notifications = Notifications::listen().map_err(|errno| SpawnError::Step {
                    program: command.program.clone(),
                    step: super::super::SpawnStep::NotifySocket,
                    errno,
                })?;
                variables.push(("NOTIFY_SOCKET".into(), notifications.address()));
                watch.notifications = Mutex::new(Some(notifications));
            }
            _ => {}
        }
        Ok(Some((watch, variables)))
    }

    /// Waits until it is ready, at most `limit`. `ended` looks whether it has ended.
    pub(super) fn wait(
        &self,
        process: &Process,
        streams: Streams<'_>,
        limit: Duration,
        ended: impl Fn() -> Result<Option<ExitReport>, CaptiveError>,
    ) -> Result<Readiness, ReadyError> {
        // Held: whoever else waits gets what this one finds.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref() {
            return Ok(known.clone());
        }
        let mut search = Search {
            watch: self,
            process,
            stream: self.stream(streams)?,
            found: Readiness::default(),
            instead: None,
            closed: false,
        };
        let deadline = Instant::now().checked_add(limit);
        let mut pause = Duration::from_millis(1);
        loop {
            // What it said before it ended counts for nothing, but is handed over.
            if let Some(report) = ended()? {
                if search.stream.is_some() {
                    search.look()?;
                }
                let (ready, output) = (self.ready.clone(), search.found.output);
                return Err(ReadyError::Ended {
                    ready,
                    report,
                    output,
                });
            }
            if search.look()? {
                *known = Some(search.found.clone());
                // Nobody reads what else it says: its messages fail instead of filling a queue.
                *self.lock_notifications() = None;
                return Ok(search.found);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if search.closed {
                return Err(search.after_closing(ended, left));
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Err(ReadyError::TimedOut {
                    ready: self.ready.clone(),
                    after: limit,
                    instead: search.instead,
                    output: search.found.output,
                });
            }
            search.wait(pause.min(left.unwrap_or(PAUSE)), left);
            pause = (pause * 2).min(PAUSE);
        }
    }

    fn lock_notifications(&self) -> std::sync::MutexGuard<'_, Option<Notifications>> {
        self.notifications
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream on which the line is to come.
    fn stream<'a>(&self, streams: Streams<'a>) -> Result<Option<BorrowedFd<'a>>, ReadyError> {
        let stream = match &self.ready {
            Ready::Line(Stream::Stdout, _) => streams.stdout,
            Ready::Line(Stream::Stderr, _) => streams.stderr,
            _ => return Ok(None),
        };
        match stream {
            Some(stream) => Ok(Some(stream)),
            None => Err(self.failed(
                "its stream, which was taken out of the handle",
                Errno::EBADF,
            )),
        }
    }

    fn failed(&self, what: &str, errno: Errno) -> ReadyError {
        ReadyError::Look {
            ready: self.ready.clone(),
            what: what.to_owned(),
            errno: errno.into(),
        }
    }
}

/// One wait.
struct Search<'a> {
    watch: &'a Watch,
    process: &'a Process,
    stream: Option<BorrowedFd<'a>>,
    found: Readiness,
    /// What there is that is not it.
    instead: Option<String>,
    /// Nothing more will come.
    closed: bool,
}

impl Search<'_> {
    fn look(&mut self) -> Result<bool, ReadyError> {
        match &self.watch.ready {
            Ready::File(path) => {
                let now = FileId::of(path);
                if now.is_some() && now == self.watch.before {
                    self.instead = Some("the one that was there before is".to_owned());
                }
                Ok(now.is_some() && now != self.watch.before)
            }
            Ready::ConnectUnix(path) => Ok(UnixStream::connect(path).is_ok()),
            Ready::ConnectTcp(address) => Ok(TcpStream::connect_timeout(address, CONNECT).is_ok()),
            Ready::UnixListener(path) => self.look_for_socket(|sockets| sockets.on_file(path)),
            Ready::TcpListener(port) => self.look_for_socket(|sockets| sockets.on_port(*port)),
            Ready::Line(_, text) => self.read_line(text),
            Ready::Notify => Ok(self.read_notifications()),
        }
    }

    fn look_for_socket(
        &mut self,
        find: impl FnOnce(&sockets::Sockets) -> Result<Vec<u64>, Errno>,
    ) -> Result<bool, ReadyError> {
        let found = sockets::Sockets::of(self.process).and_then(|sockets| find(&sockets));
        let inodes = match found {
            Ok(inodes) => inodes,
            // It is ending.
            Err(Errno::ESRCH) => return Ok(false),
            Err(errno) => return Err(self.watch.failed("sock_diag(7)", errno)),
        };
        if inodes.is_empty() {
            return Ok(false);
        }
        let owned = members::of(self.process).any(|member| members::has_socket(&member, &inodes));
        if !owned {
            self.instead = Some(
                "there is one, of a process that is not of its tree or may not be looked at"
                    .to_owned(),
            );
        }
        Ok(owned)
    }

    fn read_line(&mut self, text: &str) -> Result<bool, ReadyError> {
        let Some(stream) = self.stream else {
            return Ok(false);
        };
        let has_line = |output: &[u8]| {
            // Only whole lines.
            let lines = output.split_inclusive(|byte| *byte == b'\n');
            lines
                .filter_map(|line| line.strip_suffix(b"\n"))
                .any(|line| contains(line, text.as_bytes()))
        };
        while sys::poll_within(stream, libc::POLLIN, Duration::ZERO) == Ok(true) {
            let mut bytes = [0; 4096];
            match nix::unistd::read(stream, &mut bytes) {
                Ok(0) => {
                    self.closed = true;
                    break;
                }
                Ok(read) => {
                    let new = bytes.get(..read).unwrap_or_default();
                    // Only what is new, and the line that it goes on with, has not been looked at.
                    let from = self.found.output.iter().rposition(|byte| *byte == b'\n');
                    self.found.output.extend_from_slice(new);
                    let unseen = self.found.output.get(from.map_or(0, |at| at + 1)..);
                    if has_line(unseen.unwrap_or_default()) {
                        return Ok(true);
                    }
                }
                Err(Errno::EINTR | Errno::EAGAIN) => break,
                Err(errno) => return Err(self.watch.failed("reading its stream", errno)),
            }
        }
        Ok(false)
    }

    fn read_notifications(&mut self) -> bool {
        let notifications = self.watch.lock_notifications();
        let Some(notifications) = notifications.as_ref() else {
            return false;
        };
        let mut ready = false;
        while let Some((sender, message)) = notifications.next() {
            let of_tree = sender == self.process.pid() || members::is_member(self.process, sender);
            if !of_tree {
                self.instead = Some(format!(
                    "process {sender} said so, which is not of its tree"
                ));
                continue;
            }
            for line in message.lines() {
                ready |= line == "READY=1";
                if let Some(status) = line.strip_prefix("STATUS=") {
                    self.found.status = Some(status.to_owned());
                }
            }
        }
        ready
    }

    /// Waits for the captive's end or its word; for nothing longer than `pause` where nothing else wakes.
    fn wait(&self, pause: Duration, left: Option<Duration>) {
        let notified = self.watch.lock_notifications();
        let notified = notified.as_ref().map(|socket| socket.as_fd().as_raw_fd());
        let words: Option<RawFd> = self.stream.map(|fd| fd.as_raw_fd()).or(notified);
        let limit = if words.is_some() { left } else { Some(pause) };
        let poll = |fd: RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [
            poll(self.process.as_fd().as_raw_fd()),
            poll(words.unwrap_or(-1)),
        ];
        if sys::poll(&mut fds, limit).is_err_and(|errno| errno != Errno::EINTR) {
            // RLIMIT_NOFILE is 0: nothing can be polled.
            std::thread::sleep(pause);
        }
    }

    /// A captive whose stream has ended is most likely about to end.
    fn after_closing(
        self,
        ended: impl Fn() -> Result<Option<ExitReport>, CaptiveError>,
        left: Option<Duration>,
    ) -> ReadyError {
        let limit = left.unwrap_or(LAST_WORDS).min(LAST_WORDS);
        let _ = sys::poll_within(self.process.as_fd(), libc::POLLIN, limit);
        let (ready, output) = (self.watch.ready.clone(), self.found.output);
        match ended() {
            Ok(Some(report)) => ReadyError::Ended {
                ready,
                report,
                output,
            },
            Ok(None) => ReadyError::Closed { ready, output },
            Err(error) => error.into(),
        }
    }
}

fn contains(line: &[u8], text: &[u8]) -> bool {
    text.is_empty() || line.windows(text.len()).any(|words| words == text)
}
