//! A captive as its launcher knows it: the way to its supervisor, and how it ended once it has.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
#[cfg(feature = "tokio")]
use tokio::io::Interest;

use super::super::captive::Stuck;
#[cfg(feature = "tokio")]
use super::super::observer::TreeChange;
use super::super::outcome::Outcome;
use super::super::{CaptiveError, Containment, EndedBy, ExitReport, ExitStatus};
use super::request::Holds;
use super::supervisor::Made;
use super::sys::{self, Child, Which};
use super::words::{Launch, Order, Page, Wish};
use crate::sys::signal::Signal;

/// How long a supervisor may take to answer before it is taken for stopped, and resumed.
const RESUME: Duration = Duration::from_millis(100);

/// How long it may take in all.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(in super::super) struct Process {
    page: Page,
    line: OwnedFd,
    ended: OwnedFd,
    holds: Holds,
    /// The kernel ends the captive when its supervisor ends.
    is_tied: bool,
    /// One order at a time waits for an answer, by number.
    last_order: Mutex<u8>,
    /// None once it has been waited for: its number may be another's.
    supervisor: Mutex<Option<Child>>,
    let_go: AtomicBool,
    /// What is known of its end. What was sent before, the supervisor knows.
    outcome: Outcome<(), ExitReport>,
}

/// Readable when it has ended, or its supervisor has.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// How a supervisor has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    NotYet,
    /// Its work was done.
    Done,
    /// Somebody has ended it, and its captive has to be ended.
    Lost,
}

impl Process {
    pub(super) fn new(made: Made, page: Page, holds: Holds, detachable: bool) -> Self {
        let Made { child, line, ended } = made;
        Self {
            page,
            line,
            ended,
            holds,
            is_tied: sys::has_process_descriptors() && !detachable,
            last_order: Mutex::new(0),
            supervisor: Mutex::new(Some(child)),
            let_go: AtomicBool::new(false),
            outcome: Outcome::new(()),
        }
    }

    pub(in super::super) fn pid(&self) -> i32 {
        self.page.pid()
    }

    /// What holds its tree, if it has one by another name than was asked for.
    pub(in super::super) fn containment(&self) -> Option<Containment> {
        (self.holds == Holds::Reaper).then_some(Containment::Reaper)
    }

    /// What is readable when its supervisor has ended, as it does when nothing is left of the tree.
    pub(super) fn line(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }

    pub(in super::super) fn has_ended(&self) -> bool {
        self.outcome.is_known()
    }

    /// Whether a look at the tree takes its time.
    #[cfg(feature = "tokio")]
    #[allow(clippy::unused_self, reason = "where it is a walk, it is this tree's")]
    pub(in super::super) fn has_to_walk(&self) -> bool {
        false
    }

    #[cfg(feature = "tokio")]
    pub(in super::super) fn tree_is_empty(&self) -> bool {
        self.holds == Holds::Nothing || self.page.is_empty()
    }

    #[cfg(feature = "tokio")]
    pub(in super::super) fn tree_change(&self) -> Option<TreeChange> {
        let fd = self.line().try_clone_to_owned().ok()?;
        let interest = Interest::READABLE;
        Some(TreeChange { fd, interest })
    }

    /// What is known of one that does not end: its pid.
    pub(in super::super) fn stuck(&self) -> Stuck {
        Stuck {
            pid: self.pid().unsigned_abs(),
            state: None,
            wchan: String::new(),
            descendants: Vec::new(),
        }
    }

    /// How the launch has gone; [`Launch::UnderWay`] if it has not ended by then.
    pub(super) fn await_launch(&self, deadline: Option<Instant>) -> Launch {
        let launch = self.await_word(deadline, || match self.page.launch() {
            Launch::UnderWay => None,
            launch => Some(launch),
        });
        match launch {
            Some(launch) => launch,
            // Its supervisor was killed on the way.
            None if self.is_closed() => Launch::Failed(self.page.step(), Errno::ECANCELED),
            None => Launch::UnderWay,
        }
    }

    /// The step that the launch has come to.
    pub(super) fn step(&self) -> u32 {
        self.page.step()
    }

    /// Whether the supervisor has closed its end.
    fn is_closed(&self) -> bool {
        let mut byte = [0; 64];
        loop {
            match sys::read(self.line(), &mut byte) {
                Ok(0) => return true,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Waits until there is what `find` looks for in the page; `None` at the deadline, or when nobody will write there.
    fn await_word<T>(&self, deadline: Option<Instant>, find: impl Fn() -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = find() {
                return Some(found);
            }
            // What was written before the end of the file is there now.
            if self.is_closed() {
                return find();
            }
            // What has come before this look wakes nobody any more.
            if let Some(found) = find() {
                return Some(found);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let limit = left.unwrap_or(Duration::from_secs(3600));
            if sys::poll_within(self.line(), libc::POLLIN, limit)
                .is_err_and(|errno| errno != Errno::EINTR)
            {
                std::thread::sleep(Duration::from_millis(1).min(limit));
            }
        }
    }

    /// Has the supervisor do something, and waits for its answer. `None`: it has ended.
    fn ask(&self, wish: Wish) -> Result<Option<i32>, Errno> {
        let mut last = lock(&self.last_order);
        let number = if *last == u8::MAX { 1 } else { *last + 1 };
        *last = number;
        let since = Instant::now();
        let mut sent = false;
        loop {
            if !sent {
                match self.order(wish, number) {
                    Ok(()) => sent = true,
                    // No room: it is stopped.
                    Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                    Err(_) => return Ok(None),
                }
            }
            let resume = since + RESUME;
            let limit = Some(if Instant::now() < resume {
                resume
            } else {
                (Instant::now() + RESUME).min(since + ANSWER)
            });
            if let Some(errno) = self.await_word(limit, || self.page.answer(number)) {
                return Ok(Some(errno));
            }
            if self.is_closed() {
                return Ok(None);
            }
            if since.elapsed() >= ANSWER {
                return Err(Errno::ETIMEDOUT);
            }
            self.resume_supervisor();
        }
    }

    /// Sends an order, and waits for nothing.
    fn order(&self, wish: Wish, number: u8) -> Result<(), Errno> {
        let order = Order { wish, number };
        sys::send(self.line(), &order.to_bytes()).map(drop)
    }

    /// In case somebody has stopped it.
    fn resume_supervisor(&self) {
        if let Some(child) = &*lock(&self.supervisor) {
            let _ = sys::kill(child.pid, libc::SIGCONT);
        }
    }

    /// As whoever does not want to know how it went.
    fn send(&self, signal: i32) {
        let _ = self.order(Wish::Signal(signal), 0);
    }

    pub(in super::super) fn resume(&self) {
        self.send(libc::SIGCONT);
    }

    /// SIGKILL, whatever the supervisor is doing.
    pub(super) fn abandon(&self) {
        self.send(libc::SIGKILL);
        self.resume_supervisor();
    }

    pub(in super::super) fn signal(&self, signal: Signal) -> Result<(), CaptiveError> {
        // One that has ended is ended by nothing more.
        if sys::poll_within(self.as_fd(), libc::POLLIN, Duration::ZERO) == Ok(true) {
            return Ok(());
        }
        let failed = |errno: Errno| CaptiveError::Signal {
            pid: self.pid().unsigned_abs(),
            errno: errno.into(),
        };
        match self.ask(Wish::Signal(signal.number())) {
            // It has ended; or its supervisor has, and it is being ended.
            Ok(None | Some(0 | libc::ESRCH)) => Ok(()),
            Ok(Some(errno)) => Err(failed(Errno::from_raw(errno))),
            Err(errno) => Err(failed(errno)),
        }
    }

    pub(super) fn let_go(&self) -> Result<(), CaptiveError> {
        // First: who finds the supervisor dead is not to end the captive.
        self.let_go.store(true, Ordering::SeqCst);
        match self.ask(Wish::LetGo) {
            // Without its supervisor nothing ties it to the launcher.
            Ok(_) => Ok(()),
            Err(errno) => {
                self.let_go.store(false, Ordering::SeqCst);
                Err(CaptiveError::Guard(errno.into()))
            }
        }
    }

    /// How it ended, if that is known by now.
    pub(super) fn report(&self) -> Option<ExitReport> {
        let report = self
            .outcome
            .get(|()| Ok::<_, std::convert::Infallible>(self.page.report()));
        match report {
            Ok(report) => report,
            Err(never) => match never {},
        }
    }

    /// Waits until nothing is left of its tree, or until `deadline`; whether it is so.
    pub(in super::super) fn await_tree(&self, deadline: Option<Instant>) -> bool {
        if self.holds == Holds::Nothing {
            return true;
        }
        self.await_word(deadline, || self.page.is_empty().then_some(()))
            .is_some()
    }

    /// None once it has been waited for.
    pub(super) fn supervisor_pid(&self) -> Option<i32> {
        lock(&self.supervisor).as_ref().map(|child| child.pid)
    }

    /// Waits for the supervisor, if it has ended. By the reaper alone.
    pub(super) fn reap_supervisor(&self) -> Gone {
        let mut supervisor = lock(&self.supervisor);
        let Some(child) = &*supervisor else {
            return Gone::NotYet;
        };
        match sys::try_wait(Which::Pid(child.pid)) {
            Ok(None) | Err(Errno::EINTR) => return Gone::NotYet,
            // By us, or by somebody else.
            Ok(Some(_)) | Err(_) => *supervisor = None,
        }
        if self.page.is_reaping() || self.page.pid() == 0 {
            Gone::Done
        } else {
            Gone::Lost
        }
    }

    /// SIGKILL by its number: a captive whose supervisor has been killed, and which has been told to nobody as ended.
    ///
    /// It is nobody's child that we know, so the number is another's if it has ended meanwhile and the system has given it
    /// again since. Where the kernel does it, it is left to the kernel.
    pub(super) fn end_lost(&self) {
        if self.let_go.load(Ordering::SeqCst) {
            return;
        }
        if self.holds == Holds::Group {
            let _ = sys::kill_group(self.pid(), libc::SIGKILL);
        }
        if !self.is_tied {
            let _ = sys::kill(self.pid(), libc::SIGKILL);
        }
    }

    /// It has ended, and nobody knows how. Wakes all who wait for it.
    pub(super) fn set_unknown(&self) {
        let unknown = ExitReport {
            status: ExitStatus::Unknown,
            usage: None,
            ended_by: EndedBy::Itself,
        };
        let _ = self.outcome.get(|()| {
            Ok::<_, std::convert::Infallible>(Some(self.page.report().unwrap_or(unknown)))
        });
        self.hang_up();
    }

    /// The supervisor has ended: others may have copies of its ends, by a fork in the wrong moment.
    pub(super) fn hang_up(&self) {
        for fd in [&self.ended, &self.line] {
            let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(fd), Shutdown::Both);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
