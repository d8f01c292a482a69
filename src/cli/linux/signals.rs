//! The signal state run-with was started with, and the one it runs with: every signal blocked and
//! read from a descriptor, so that there are no handlers and nothing interrupts anything.

use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::super::Failure;
use crate::sys::linux::{self as sys, Received, SignalFd};

#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
    original: Original,
}

/// What the command gets back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Original {
    mask: u64,
    /// With SIGCHLD ignored the kernel keeps no statuses: run-with cannot have that, and the command
    /// must.
    ignored_children: bool,
}

impl Signals {
    /// Blocks everything. The C program before `main` has changed no disposition; neither do we,
    /// but SIGCHLD's.
    pub(super) fn take() -> Result<Self, Failure> {
        let failed = |errno: Errno| Failure::own(format!("taking over the signals: {errno}"));
        let mask = sys::set_signal_mask(sys::ALL_SIGNALS).map_err(failed)?;
        let ignored_children = sys::disposition(libc::SIGCHLD) == Some(libc::SIG_IGN);
        if ignored_children {
            sys::set_disposition(libc::SIGCHLD, libc::SIG_DFL).map_err(failed)?;
        }
        let fd = SignalFd::new().map_err(failed)?;
        Ok(Self {
            fd,
            original: Original {
                mask,
                ignored_children,
            },
        })
    }

    pub(super) fn original(&self) -> Original {
        self.original
    }

    pub(super) fn next(&self) -> Option<Received> {
        self.fd.read()
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }
}

impl Original {
    /// Gives the original state back, in the command's process before its exec.
    pub(super) fn restore(self) -> Result<(), Errno> {
        if self.ignored_children {
            sys::set_disposition(libc::SIGCHLD, libc::SIG_IGN)?;
        }
        sys::set_signal_mask(self.mask).map(drop)
    }
}
