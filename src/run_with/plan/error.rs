//! Why a plan could not be made, or at which step it failed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::Step;
use crate::async_teardown::TeardownError;
use crate::exit_with_parent::ArmError;
use crate::privileges::{NotDropped, PrivilegeError};

/// Why a plan could not be made. Nothing has been changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum PrepareError {
    /// The new root cannot be opened as a directory.
    Root {
        /// Its path.
        path: PathBuf,
        /// The errno.
        errno: io::Error,
    },
    /// The user cannot be resolved.
    User(PrivilegeError),
    /// The parent cannot be watched.
    ExitWithParent(ArmError),
    /// There is no async teardown on this system.
    AsyncTeardownUnsupported,
}

impl From<PrivilegeError> for PrepareError {
    fn from(error: PrivilegeError) -> Self {
        Self::User(error)
    }
}

impl From<ArmError> for PrepareError {
    fn from(error: ArmError) -> Self {
        Self::ExitWithParent(error)
    }
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root { path, .. } => {
                write!(
                    f,
                    "opening the new root {} as a directory failed",
                    path.display()
                )
            }
            Self::User(error) => error.fmt(f),
            Self::ExitWithParent(error) => error.fmt(f),
            Self::AsyncTeardownUnsupported => f.write_str("this system has no async teardown"),
        }
    }
}

impl std::error::Error for PrepareError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Root { errno, .. } => Some(errno),
            Self::User(error) => error.source(),
            Self::ExitWithParent(error) => error.source(),
            Self::AsyncTeardownUnsupported => None,
        }
    }
}

/// A step that failed, and what had been done before it.
#[derive(Debug)]
pub struct StepError {
    pub(super) step: Step,
    pub(super) done: Vec<Step>,
    pub(super) cause: StepCause,
}

/// Why a step failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum StepCause {
    /// A system call failed.
    Os(io::Error),
    /// Privileges are still there.
    NotDropped(NotDropped),
    /// The parent is gone, or cannot be watched again.
    ExitWithParent(ArmError),
    /// Async teardown did not start.
    AsyncTeardown(TeardownError),
}

impl From<Errno> for StepCause {
    fn from(errno: Errno) -> Self {
        Self::Os(errno.into())
    }
}

impl StepError {
    /// The step that failed, with its operand.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// The steps that had been made before.
    pub fn done(&self) -> &[Step] {
        &self.done
    }

    /// Why.
    pub fn cause(&self) -> &StepCause {
        &self.cause
    }

    /// Whether something that cannot be undone has been done, so that the process must end: it is
    /// neither what it was nor what was asked for.
    pub fn must_end(&self) -> bool {
        !self.done.is_empty()
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed", self.step)?;
        if self.done.is_empty() {
            return f.write_str("; nothing had been changed");
        }
        f.write_str("; done before: ")?;
        for (n, step) in self.done.iter().enumerate() {
            write!(f, "{}{step}", if n == 0 { "" } else { ", " })?;
        }
        f.write_str("; the process must end")
    }
}

impl std::error::Error for StepError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(match &self.cause {
            StepCause::Os(errno) => errno,
            StepCause::NotDropped(error) => error,
            StepCause::ExitWithParent(error) => error,
            StepCause::AsyncTeardown(error) => error,
        })
    }
}
