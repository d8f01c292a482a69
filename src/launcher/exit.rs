//! How a captive ended.

use std::fmt;
use std::time::Duration;

use crate::sys::signal::Signal;

/// How a captive ended, with what it had used, and what was needed to end it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExitReport {
    pub(super) status: ExitStatus,
    pub(super) usage: Option<Usage>,
    pub(super) ended_by: EndedBy,
}

impl ExitReport {
    /// The exit status or the signal.
    pub fn status(&self) -> ExitStatus {
        self.status
    }

    /// What it used, with its own children that it had waited for; `None` if somebody else reaped it.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// What the launcher had sent before it ended. It may have ended for another reason.
    pub fn ended_by(&self) -> EndedBy {
        self.ended_by
    }

    /// Whether it exited with status 0.
    pub fn success(&self) -> bool {
        self.status == ExitStatus::Exited(0)
    }
}

/// An exit status, or a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It exited, with this status (0 to 255).
    Exited(i32),
    /// A signal killed it.
    Killed {
        /// Which.
        signal: Signal,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
    /// It has ended, and its status is lost: somebody else waited for it, or SIGCHLD is ignored, and
    /// this kernel does not keep it (Linux before 6.15); elsewhere than on Linux its supervisor was killed.
    Unknown,
}

impl ExitStatus {
    /// The status it exited with, if it exited.
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            _ => None,
        }
    }

    /// The signal that killed it, if one did.
    pub fn signal(self) -> Option<Signal> {
        match self {
            Self::Killed { signal, .. } => Some(signal),
            _ => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Killed {
                signal,
                core_dumped,
            } => {
                let core = if *core_dumped { " (core dumped)" } else { "" };
                write!(f, "killed by {signal}{core}")
            }
            Self::Unknown => f.write_str("ended, status unknown"),
        }
    }
}

/// What a process used; getrusage(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Time spent in its own code.
    pub user: Duration,
    /// Time the kernel spent on it.
    pub system: Duration,
    /// The most memory it had resident at once, in bytes; on Linux at least what the *launcher* had when it
    /// launched it, whose memory the child shared until its exec (so does the kernel count for every
    /// vfork).
    pub max_rss: u64,
}

/// What the launcher sent to end a captive, at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EndedBy {
    /// Nothing: it ended by itself, or by others.
    Itself,
    /// A signal other than SIGKILL.
    Signal,
    /// SIGKILL.
    Kill,
}
