//! The page that run-with, its guard and the command's process see alike.

#![allow(unsafe_code)]

use std::ops::Deref;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;

use super::super::words::Words;
use crate::sys::shared::{Shared, SharedWords};

/// The words. All zeroes is a page in which nothing has happened, but for `command`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Page {
    /// The number of the command's pidfd, written by the kernel; -1 before.
    pub(super) command: AtomicI32,
    words: Words,
}

impl Deref for Page {
    type Target = Words;

    fn deref(&self) -> &Words {
        &self.words
    }
}

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

    pub(super) fn number(self) -> u32 {
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

    pub(super) fn from_number(number: u32) -> Option<Self> {
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
}
