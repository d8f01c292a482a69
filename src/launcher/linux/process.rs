//! A captive's process: its pidfd, and how it ended once it has.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::outcome::Outcome;
use super::super::{CaptiveError, EndedBy, ExitReport, ExitStatus, Usage};
use super::protocol::Message;
use super::spawner::Made;
use super::tree::Tree;
use crate::sys::linux::{self as sys, Reaped};
use crate::sys::signal::Signal;

/// How long the kernel may take from "no child any more" to having its status in the pidfd: it does both
/// in one function (release_task), which another thread can be in the middle of.
const STATUS_PATIENCE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(in super::super) struct Process {
    id: u64,
    pid: i32,
    pidfd: OwnedFd,
    message: Message,
    /// Whoever launched it reaps it.
    is_anothers: bool,
    /// What ends with it.
    tree: Option<Arc<Tree>>,
    /// What has been sent to end it; how it ended.
    outcome: Outcome<EndedBy, ExitReport>,
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Process {
    pub(super) fn new(made: Made, message: Message, tree: Option<Arc<Tree>>) -> Self {
        let Made { pid, pidfd } = made;
        Self {
            id: message.id,
            pid,
            pidfd,
            message,
            is_anothers: false,
            tree,
            outcome: Outcome::new(EndedBy::Itself),
        }
    }

    /// One that no guard knows, and that has only to be reaped.
    pub(super) fn unguarded(made: Made) -> Self {
        // No captive has this number: they count up from 1.
        static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
        let message = Message {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            ..Message::default()
        };
        Self::new(made, message, None)
    }

    /// One that is to be known until its end, and never reaped.
    pub(super) fn of_another(made: Made, message: Message) -> Self {
        Self {
            is_anothers: true,
            ..Self::new(made, message, None)
        }
    }

    pub(super) fn is_anothers(&self) -> bool {
        self.is_anothers
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(in super::super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn tree(&self) -> Option<&Arc<Tree>> {
        self.tree.as_ref()
    }

    /// What the guard was told of it.
    pub(super) fn message(&self) -> Message {
        self.message
    }

    pub(super) fn has_ended(&self) -> bool {
        self.outcome.is_known()
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), CaptiveError> {
        // One that has ended is ended by nothing more.
        if sys::poll_within(self.as_fd(), libc::POLLIN, Duration::ZERO) == Ok(true) {
            return Ok(());
        }
        let by = match signal.number() {
            libc::SIGKILL => EndedBy::Kill,
            libc::SIGCONT => EndedBy::Itself,
            _ => EndedBy::Signal,
        };
        // Sent under the lock, so that who reaps it then knows.
        let mut sent = Ok(());
        self.outcome.note(|ended_by| {
            sent = sys::pidfd_send_signal(self.as_fd(), signal.number());
            if sent.is_ok() {
                *ended_by = by.max(*ended_by);
            }
        });
        match sent {
            // It has ended and been reaped.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(CaptiveError::Signal {
                pid: self.pid.unsigned_abs(),
                errno: errno.into(),
            }),
        }
    }

    /// Reaps it if it has ended.
    pub(super) fn try_wait(&self) -> Result<Option<ExitReport>, CaptiveError> {
        self.outcome.get(|ended_by| {
            let (status, usage) = match sys::try_reap(self.as_fd()) {
                Ok(None) => return Ok(None),
                Ok(Some(reaped)) => (status_of(&reaped), Some(usage_of(&reaped))),
                Err(Errno::ECHILD) => (self.recovered_status(), None),
                Err(errno) => {
                    return Err(CaptiveError::Wait {
                        pid: self.pid.unsigned_abs(),
                        errno: errno.into(),
                    });
                }
            };
            Ok(Some(ExitReport {
                status,
                usage,
                ended_by: *ended_by,
            }))
        })
    }

    /// Waits for its end, or until `deadline`.
    pub(super) fn wait_until(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<ExitReport>, CaptiveError> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(report) = self.try_wait()? {
                return Ok(Some(report));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let limit = left.unwrap_or(Duration::from_secs(3600));
            match sys::poll_within(self.as_fd(), libc::POLLIN, limit) {
                Ok(false) | Err(Errno::EINTR) => {}
                Ok(true) => {
                    if self.try_wait()?.is_none() {
                        // A tracer has not let go of it: nothing tells when it does.
                        std::thread::sleep(pause.min(limit));
                        pause = (pause * 2).min(Duration::from_millis(50));
                    }
                }
                // RLIMIT_NOFILE is 0: nothing can be polled.
                Err(_) => std::thread::sleep(pause.min(limit)),
            }
        }
    }

    /// Somebody else has reaped it: what the kernel still knows. Waits for the kernel a little, under the
    /// outcome's lock.
    fn recovered_status(&self) -> ExitStatus {
        let deadline = Instant::now() + STATUS_PATIENCE;
        loop {
            match sys::status_after_reaping(self.as_fd()) {
                Ok(Some(status)) => {
                    return match status & 0x7f {
                        0 => ExitStatus::Exited(status >> 8 & 0xff),
                        signal => killed(signal, status & 0x80 != 0),
                    };
                }
                // Not yet.
                Ok(None) | Err(Errno::ESRCH) if Instant::now() < deadline => {}
                // This kernel does not keep it.
                _ => return ExitStatus::Unknown,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn killed(signal: i32, core_dumped: bool) -> ExitStatus {
    Signal::try_from(signal).map_or(ExitStatus::Unknown, |signal| ExitStatus::Killed {
        signal,
        core_dumped,
    })
}

fn status_of(reaped: &Reaped) -> ExitStatus {
    match reaped.code {
        libc::CLD_EXITED => ExitStatus::Exited(reaped.status),
        code => killed(reaped.status, code == libc::CLD_DUMPED),
    }
}

fn usage_of(reaped: &Reaped) -> Usage {
    let [user, system] = reaped.times.map(|(seconds, microseconds)| {
        Duration::from_secs(seconds.try_into().unwrap_or(0))
            + Duration::from_micros(microseconds.try_into().unwrap_or(0))
    });
    Usage {
        user,
        system,
        max_rss: u64::try_from(reaped.max_rss).unwrap_or(0) * 1024,
    }
}
