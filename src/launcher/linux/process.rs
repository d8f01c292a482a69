//! A captive's process: its pidfd, and how it ended once it has.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
#[cfg(feature = "tokio")]
use tokio::io::Interest;

use super::super::captive::Stuck;
#[cfg(feature = "tokio")]
use super::super::observer::TreeChange;
use super::super::outcome::Outcome;
use super::super::{CaptiveError, Containment, EndedBy, ExitReport, ExitStatus, Usage};
use super::protocol::Message;
use super::spawner::Made;
use super::stuck;
#[cfg(feature = "tokio")]
use super::tree::Cgroup;
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

    /// What holds its tree, if it has one.
    pub(in super::super) fn containment(&self) -> Option<Containment> {
        self.tree.as_ref().map(|tree| tree.containment())
    }

    /// Waits until nothing is left of its tree, or until `deadline`; whether it is so.
    pub(in super::super) fn await_tree(&self, deadline: Option<Instant>) -> bool {
        self.tree
            .as_ref()
            .is_none_or(|tree| tree.wait_empty(deadline))
    }

    /// Whether a look at the tree takes its time: it is a walk over `/proc`.
    #[cfg(feature = "tokio")]
    pub(in super::super) fn has_to_walk(&self) -> bool {
        self.tree.as_ref().is_some_and(|tree| tree.is_marked())
    }

    #[cfg(feature = "tokio")]
    pub(in super::super) fn tree_is_empty(&self) -> bool {
        self.tree.as_ref().is_none_or(|tree| tree.is_empty())
    }

    #[cfg(feature = "tokio")]
    pub(in super::super) fn tree_change(&self) -> Option<TreeChange> {
        let tree = self.tree.as_ref()?;
        if let Some(namespace) = tree.namespace() {
            let fd = namespace.init().as_fd().try_clone_to_owned().ok()?;
            let interest = Interest::READABLE;
            return Some(TreeChange { fd, interest });
        }
        // cgroups(7), `cgroup.events`.
        let fd = tree.cgroup().and_then(Cgroup::events)?.into();
        let interest = Interest::PRIORITY;
        Some(TreeChange { fd, interest })
    }

    pub(in super::super) fn stuck(&self) -> Stuck {
        stuck::look_at(self)
    }

    pub(in super::super) fn resume(&self) {
        let _ = sys::pidfd_send_signal(self.as_fd(), libc::SIGCONT);
    }

    /// What the guard was told of it.
    pub(super) fn message(&self) -> Message {
        self.message
    }

    pub(in super::super) fn has_ended(&self) -> bool {
        self.outcome.is_known()
    }

    pub(in super::super) fn signal(&self, signal: Signal) -> Result<(), CaptiveError> {
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
