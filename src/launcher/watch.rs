//! Waiting until a captive is ready: a look, then a wait for whatever can wake, and again.

use std::ffi::OsString;
use std::fs;
#[cfg(feature = "tokio")]
use std::os::fd::OwnedFd;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockaddrLike, SockaddrStorage, UnixAddr, connect, getpeername, getsockname,
    getsockopt, sockopt,
};

use super::command::Command;
use super::platform::probe::{self, Notifications, Sought};
use super::platform::{Process, sys};
use super::stdio::Stdio;
use super::{CaptiveError, ExitReport, Readiness, Ready, ReadyError, SpawnError, Stream};

/// What is to tell that a captive is ready, from before its spawn on.
#[derive(Debug)]
pub(super) struct Watch {
    ready: Ready,
    /// What was at the place of [`Ready::File`].
    before: Option<FileId>,
    /// Shared with who waits for it, without the lock.
    notifications: Mutex<Option<Arc<Notifications>>>,
    /// What all waits have found so far: what one has read and given up is not lost for the next.
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    readiness: Readiness,
    is_ready: bool,
    /// What there is that is not it.
    instead: Option<String>,
    /// How much of the output has been looked at: whole lines.
    seen: usize,
    /// Nothing more will come.
    closed: bool,
}

/// What one look says.
#[derive(Debug)]
pub(super) enum Look {
    Ready(Readiness),
    NotYet,
    /// Not yet, and there is more to be looked at right now.
    More,
    /// The stream has ended; the captive is most likely about to.
    Closed,
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
pub(super) struct Streams<'a> {
    pub(super) stdout: Option<BorrowedFd<'a>>,
    pub(super) stderr: Option<BorrowedFd<'a>>,
}

/// Variables for the captive.
pub(super) type Variables = Vec<(OsString, OsString)>;

/// The longest pause between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// How long after the end of its output a captive may take to end.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(200);

/// How often one look reads: a captive that writes without end is not to keep it from its deadline.
const READS: usize = 16;

/// How many looks may follow the captive's end: others may still write.
const LAST_LOOKS: usize = 256;

/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(1);

impl Watch {
    /// Prepares what the command asks for; with the variables that the captive needs for it.
    pub(super) fn prepare(command: &Command) -> Result<Option<(Self, Variables)>, SpawnError> {
        let Some(ready) = command.ready.clone() else {
            return Ok(None);
        };
        if let Some(missing) = probe::missing(&ready) {
            return Err(command.invalid(format!("waiting for {ready}: {missing}")));
        }
        let mut variables = Vec::new();
        let mut watch = Self {
            before: None,
            notifications: Mutex::new(None),
            found: Mutex::default(),
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
                    step: super::SpawnStep::NotifySocket,
                    errno,
                })?;
                variables.push(("NOTIFY_SOCKET".into(), notifications.address()));
                watch.notifications = Mutex::new(Some(Arc::new(notifications)));
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
        let stream = self.stream(streams);
        let deadline = Instant::now().checked_add(limit);
        let mut pause = Duration::from_millis(1);
        loop {
            let left = || deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let longest = left().unwrap_or(CONNECT).min(CONNECT);
            // Locked for a look alone: whoever else waits has a limit of its own.
            let look = self.look(&mut self.lock_found(), process, stream, longest, &ended)?;
            let left = left();
            match look {
                Look::Ready(readiness) => return Ok(readiness),
                Look::Closed => {
                    let limit = left.unwrap_or(LAST_WORDS).min(LAST_WORDS);
                    let _ = sys::poll_within(process.as_fd(), libc::POLLIN, limit);
                    return Err(self.after_closing(&self.lock_found(), ended));
                }
                Look::NotYet | Look::More => {}
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Err(self.timed_out(&self.lock_found(), limit));
            }
            self.wait_for_more(process, stream, pause.min(left.unwrap_or(PAUSE)), left);
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// One look, by whom it suits. `words` is what [`words`](Self::words) gave.
    #[cfg(feature = "tokio")]
    pub(super) fn look_once(
        &self,
        process: &Process,
        words: Option<BorrowedFd<'_>>,
        ended: impl Fn() -> Result<Option<ExitReport>, CaptiveError>,
    ) -> Result<Look, ReadyError> {
        let stream = words.filter(|_| matches!(self.ready, Ready::Line(..)));
        self.look(&mut self.lock_found(), process, stream, CONNECT, &ended)
    }

    /// A descriptor that is readable when there is something new to look at; without one there is nothing but to look again.
    #[cfg(feature = "tokio")]
    pub(super) fn words(&self, streams: Streams<'_>) -> Result<Option<OwnedFd>, ReadyError> {
        // Without the lock of what has been found, which a look on another thread may hold.
        let stream = self.stream(streams);
        let notified = self.notifications();
        let fd = stream.or(notified.as_ref().map(|socket| socket.as_fd()));
        fd.map(|fd| fd.try_clone_to_owned())
            .transpose()
            .map_err(|errno| ReadyError::Look {
                ready: self.ready.clone(),
                what: "a copy of its descriptor".to_owned(),
                errno,
            })
    }

    #[cfg(feature = "tokio")]
    pub(super) fn error_after_closing(
        &self,
        ended: impl Fn() -> Result<Option<ExitReport>, CaptiveError>,
    ) -> ReadyError {
        self.after_closing(&self.lock_found(), ended)
    }

    #[cfg(feature = "tokio")]
    pub(super) fn error_after_limit(&self, limit: Duration) -> ReadyError {
        self.timed_out(&self.lock_found(), limit)
    }

    fn look(
        &self,
        found: &mut Found,
        process: &Process,
        stream: Option<BorrowedFd<'_>>,
        longest: Duration,
        ended: &impl Fn() -> Result<Option<ExitReport>, CaptiveError>,
    ) -> Result<Look, ReadyError> {
        if found.is_ready {
            return Ok(Look::Ready(found.readiness.clone()));
        }
        let report = ended()?;
        let mut search = Search {
            watch: self,
            process,
            stream,
            found,
            longest,
            more: false,
        };
        // What it said before it ended counts for nothing, but is handed over.
        if let Some(report) = report {
            for _ in 0..LAST_LOOKS {
                search.more = false;
                if search.stream.is_some() {
                    search.look()?;
                }
                if !search.more {
                    break;
                }
            }
            let (ready, output) = (self.ready.clone(), found.readiness.output.clone());
            return Err(ReadyError::Ended {
                ready,
                report,
                output,
            });
        }
        let is_ready = search.look()?;
        let more = search.more;
        if is_ready {
            found.is_ready = true;
            // Nobody reads what else it says: its messages fail instead of filling a queue.
            *self.lock_notifications() = None;
            return Ok(Look::Ready(found.readiness.clone()));
        }
        Ok(match (found.closed, more) {
            (true, _) => Look::Closed,
            (false, true) => Look::More,
            (false, false) => Look::NotYet,
        })
    }

    fn timed_out(&self, found: &Found, after: Duration) -> ReadyError {
        ReadyError::TimedOut {
            ready: self.ready.clone(),
            after,
            instead: found.instead.clone(),
            output: found.readiness.output.clone(),
        }
    }

    /// A captive whose stream has ended, and that may have ended since.
    fn after_closing(
        &self,
        found: &Found,
        ended: impl Fn() -> Result<Option<ExitReport>, CaptiveError>,
    ) -> ReadyError {
        let (ready, output) = (self.ready.clone(), found.readiness.output.clone());
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

    fn lock_found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notifications(&self) -> Option<Arc<Notifications>> {
        self.lock_notifications().clone()
    }

    fn lock_notifications(&self) -> std::sync::MutexGuard<'_, Option<Arc<Notifications>>> {
        self.notifications
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream on which the line is to come, if it has not been taken out of the handle.
    fn stream<'a>(&self, streams: Streams<'a>) -> Option<BorrowedFd<'a>> {
        match &self.ready {
            Ready::Line(Stream::Stdout, _) => streams.stdout,
            Ready::Line(Stream::Stderr, _) => streams.stderr,
            _ => None,
        }
    }

    /// Waits for the captive's end or its word; for nothing longer than `pause` where nothing else wakes.
    fn wait_for_more(
        &self,
        process: &Process,
        stream: Option<BorrowedFd<'_>>,
        pause: Duration,
        left: Option<Duration>,
    ) {
        let notified = self.notifications();
        let words = stream.or(notified.as_ref().map(|socket| socket.as_fd()));
        let words: Option<RawFd> = words.map(|fd| fd.as_raw_fd());
        // What another thread that waits has read wakes nobody.
        let limit = match words {
            Some(_) => left.unwrap_or(PAUSE).min(PAUSE),
            None => pause,
        };
        let mut fds = [process.as_fd().as_raw_fd(), words.unwrap_or(-1)]
            .map(|fd| sys::pollfd(fd, libc::POLLIN));
        if sys::poll(&mut fds, Some(limit)).is_err_and(|errno| errno != Errno::EINTR) {
            // RLIMIT_NOFILE is 0: nothing can be polled.
            std::thread::sleep(pause);
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

/// One look.
struct Search<'a> {
    watch: &'a Watch,
    process: &'a Process,
    stream: Option<BorrowedFd<'a>>,
    found: &'a mut Found,
    /// How long a connection may take.
    longest: Duration,
    /// Not everything has been read.
    more: bool,
}

impl Search<'_> {
    fn look(&mut self) -> Result<bool, ReadyError> {
        match &self.watch.ready {
            Ready::File(path) => {
                let now = FileId::of(path);
                if now.is_some() && now == self.watch.before {
                    self.found.instead = Some("the one that was there before is".to_owned());
                }
                Ok(now.is_some() && now != self.watch.before)
            }
            Ready::ConnectUnix(path) => {
                Ok(UnixAddr::new(path).is_ok_and(|address| self.connects(&address)))
            }
            Ready::ConnectTcp(address) => Ok(self.connects(&SockaddrStorage::from(*address))),
            Ready::UnixListener(_) | Ready::TcpListener(_) => self.look_for_socket(),
            Ready::Line(_, text) => self.read_line(text),
            Ready::Notify => Ok(self.read_notifications()),
        }
    }

    /// Whether a connection to this address comes about. Neither a full queue nor a peer that does not answer holds it up
    /// for longer than the captive lives.
    fn connects(&self, address: &impl SockaddrLike) -> bool {
        let Some(family) = address.family() else {
            return false;
        };
        let Ok(client) = probe::client(family) else {
            return false;
        };
        match connect(client.as_raw_fd(), address) {
            Ok(()) => {}
            Err(Errno::EINPROGRESS) => {
                let mut fds = [
                    sys::pollfd(self.process.as_fd().as_raw_fd(), libc::POLLIN),
                    sys::pollfd(client.as_raw_fd(), libc::POLLOUT),
                ];
                let answered =
                    sys::poll(&mut fds, Some(self.longest)).is_ok() && fds[1].revents != 0;
                if !answered || getsockopt(&client, sockopt::SocketError) != Ok(0) {
                    return false;
                }
            }
            Err(_) => return false,
        }
        // TCP lets a socket connect to itself, if its own port happens to be that one.
        let own = getsockname::<SockaddrStorage>(client.as_raw_fd());
        let peer = getpeername::<SockaddrStorage>(client.as_raw_fd());
        family == AddressFamily::Unix || own != peer
    }

    fn look_for_socket(&mut self) -> Result<bool, ReadyError> {
        match probe::listener(self.process, &self.watch.ready) {
            Ok(Sought::Found) => Ok(true),
            Ok(Sought::NotThere) => Ok(false),
            Ok(Sought::Anothers) => {
                self.found.instead = Some(
                    "there is one, of a process that is not of its tree or may not be looked at"
                        .to_owned(),
                );
                Ok(false)
            }
            Err(errno) => Err(self.watch.failed(probe::LIST_OF_SOCKETS, errno)),
        }
    }

    fn read_line(&mut self, text: &str) -> Result<bool, ReadyError> {
        let Some(stream) = self.stream else {
            let what = "its stream, which was taken out of the handle";
            return Err(self.watch.failed(what, Errno::EBADF));
        };
        let has_line = |output: &[u8]| {
            // Only whole lines.
            let lines = output.split_inclusive(|byte| *byte == b'\n');
            lines
                .filter_map(|line| line.strip_suffix(b"\n"))
                .any(|line| contains(line, text.as_bytes()))
        };
        for _ in 0..READS {
            if sys::poll_within(stream, libc::POLLIN, Duration::ZERO) != Ok(true) {
                return Ok(false);
            }
            let mut bytes = [0; 4096];
            match nix::unistd::read(stream, &mut bytes) {
                Ok(0) => {
                    self.found.closed = true;
                    return Ok(false);
                }
                Ok(read) => {
                    let new = bytes.get(..read).unwrap_or_default();
                    let output = &mut self.found.readiness.output;
                    output.extend_from_slice(new);
                    if !new.contains(&b'\n') {
                        continue;
                    }
                    // Only lines that have not been looked at.
                    let unseen = output.get(self.found.seen..);
                    self.found.seen = output.len() - read + last_end(new);
                    if has_line(unseen.unwrap_or_default()) {
                        return Ok(true);
                    }
                }
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(self.watch.failed("reading its stream", errno)),
            }
        }
        self.more = true;
        Ok(false)
    }

    fn read_notifications(&mut self) -> bool {
        let Some(notifications) = self.watch.notifications() else {
            return false;
        };
        let mut ready = false;
        for _ in 0..READS {
            let Some(said) = notifications.next(self.process) else {
                return ready;
            };
            match said {
                Ok(text) => {
                    for line in text.lines() {
                        ready |= line == "READY=1";
                        if let Some(status) = line.strip_prefix("STATUS=") {
                            self.found.readiness.status = Some(status.to_owned());
                        }
                    }
                }
                Err(instead) => self.found.instead = Some(instead),
            }
        }
        self.more = true;
        ready
    }
}

/// Where the last line ends.
fn last_end(text: &[u8]) -> usize {
    let newline = text.iter().rposition(|byte| *byte == b'\n');
    newline.map_or(0, |place| place + 1)
}

fn contains(line: &[u8], text: &[u8]) -> bool {
    text.is_empty() || line.windows(text.len()).any(|words| words == text)
}
