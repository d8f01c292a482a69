//! What run-with, its guard and the command's process before its exec tell each other: words in a
//! page that all three see.

#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use nix::errno::Errno;

use crate::sys::linux::{Shared, SharedWords};

/// The words. All zeroes is a page in which nothing has happened, but for `command`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Page {
    /// The number of the command's pidfd, written by the kernel; -1 before.
    pub(super) command: AtomicI32,
    /// The command's pid, written by itself before its exec, or by the process that made it in a namespace.
    pid: AtomicI32,
    /// The signal for the parent's exit: 0, then [`CLAIMED`], then [`SENT`].
    signalled: AtomicU32,
    /// 1 once the command has ended and been reaped.
    done: AtomicU32,
    /// Where the command's process failed before its exec: a [`FailedAt`] as a number.
    failed_at: AtomicU32,
    /// With which errno.
    errno: AtomicI32,
}

/// Somebody has undertaken to send it.
const CLAIMED: u32 = 1;
/// It has been sent.
const SENT: u32 = 2;

// SAFETY: atomics of integers only, for which all zeroes are values.
unsafe impl SharedWords for Page {}

/// Where the command's process failed before its exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailedAt {
    /// A step of the plan, by its index.
    Step(usize),
    /// Entering the tree's namespace, and being made there.
    Namespace,
    /// Moving into the tree's cgroup.
    Cgroup,
    /// Setting the parent-death signal.
    ParentDeathSignal,
    /// Giving back the dispositions and the signal mask.
    Signals,
    /// exec.
    Exec,
}

impl FailedAt {
    const FIRST_STEP: u32 = 6;

    fn number(self) -> u32 {
        match self {
            Self::ParentDeathSignal => 1,
            Self::Signals => 2,
            Self::Exec => 3,
            Self::Namespace => 4,
            Self::Cgroup => 5,
            // A plan has fewer than ten steps.
            Self::Step(at) => Self::FIRST_STEP + u32::try_from(at).unwrap_or(0),
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Self::ParentDeathSignal),
            2 => Some(Self::Signals),
            3 => Some(Self::Exec),
            4 => Some(Self::Namespace),
            5 => Some(Self::Cgroup),
            step => Some(Self::Step((step - Self::FIRST_STEP) as usize)),
        }
    }
}

impl Page {
    /// A new page, in which there is no command.
    pub(super) fn map() -> Result<Shared<Self>, Errno> {
        let page: Shared<Self> = Shared::new()?;
        page.command.store(-1, Ordering::SeqCst);
        Ok(page)
    }

    /// The number of the command's pidfd in the shared table, once there is a command.
    pub(super) fn command(&self) -> Option<RawFd> {
        Some(self.command.load(Ordering::SeqCst)).filter(|fd| *fd >= 0)
    }

    /// There is none, whatever the number.
    pub(super) fn forget_command(&self) {
        self.command.store(-1, Ordering::SeqCst);
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.load(Ordering::SeqCst)
    }

    pub(super) fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Ordering::SeqCst);
    }

    /// Whether the caller is the one to send the signal for the parent's exit: true for one caller
    /// only, ever.
    pub(super) fn claim_signal(&self) -> bool {
        self.signalled
            .compare_exchange(0, CLAIMED, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Whether the signal has been sent: one who claimed it may have been stopped or killed since.
    pub(super) fn is_signalled(&self) -> bool {
        self.signalled.load(Ordering::SeqCst) == SENT
    }

    /// The signal has been sent.
    pub(super) fn set_signalled(&self) {
        self.signalled.store(SENT, Ordering::SeqCst);
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst) != 0
    }

    pub(super) fn set_done(&self) {
        self.done.store(1, Ordering::SeqCst);
    }

    /// Says where and why there will be no exec.
    pub(super) fn fail(&self, at: FailedAt, errno: Errno) {
        self.errno.store(errno as i32, Ordering::SeqCst);
        self.failed_at.store(at.number(), Ordering::SeqCst);
    }

    /// Where and why there was no exec.
    pub(super) fn failure(&self) -> Option<(FailedAt, Errno)> {
        let at = FailedAt::from_number(self.failed_at.load(Ordering::SeqCst))?;
        Some((at, Errno::from_raw(self.errno.load(Ordering::SeqCst))))
    }
}
