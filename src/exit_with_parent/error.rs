//! Why a process could not be bound to its parent.

use std::fmt;
use std::io;

use nix::errno::Errno;

use super::report::Mechanism;
use crate::sys::signal::Signal;

/// Why arming failed. Nothing is armed after an error.
#[derive(Debug)]
#[non_exhaustive]
pub enum ArmError {
    /// This system has no such mechanism.
    Unsupported(Option<Mechanism>),
    /// The parent ended before it could be watched.
    ParentGone {
        /// Who it was, where a pid was given.
        expected: Option<u32>,
        /// Who is our parent now; `None` for a process outside our PID namespace.
        found: Option<u32>,
    },
    /// Our parent is pid 1 and nobody said that this is the launcher: most likely the launcher has
    /// died and init adopted us. A launcher that *is* pid 1 passes `expect_parent(1)`.
    ParentIsInit,
    /// Our parent is outside our PID namespace, where no pid can name it: pass a descriptor.
    ParentOutside,
    /// The descriptor given is neither a pidfd nor the read end of a pipe.
    NotAParentFd {
        /// Its number.
        fd: i32,
        /// What is wrong with it.
        found: &'static str,
    },
    /// This process holds a write end of the pipe itself, so its end of file would never come.
    WriterHeldHere {
        /// The read end that was given.
        fd: i32,
        /// The write end of the same pipe.
        writer: i32,
    },
    /// The parent-death signal belongs to a thread and must be set from the main thread: that of a
    /// thread which ends is gone.
    NotMainThread,
    /// What was asked for (a grace, a channel, a callback, a descriptor, a binding across fork) needs
    /// a watcher, and the mechanism has none.
    NeedsWatcher(Mechanism),
    /// In a forked child the original parent has only a pid, which may mean anybody by now: pass a
    /// pipe as the parent's descriptor. (kqueue; a pidfd is inherited.)
    ForkedChild(Mechanism),
    /// A system call failed.
    Os {
        /// Which step.
        step: ArmStep,
        /// The errno.
        errno: io::Error,
    },
}

/// A step of arming, with what it was done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArmStep {
    /// Opening a pidfd on the process with this pid.
    OpenPidfd(u32),
    /// Looking at, or marking close-on-exec, the descriptor given.
    ParentFd(i32),
    /// Setting the parent-death signal.
    ParentDeathSignal(Signal),
    /// Making the descriptor that ends the watcher.
    Wakeup,
    /// Starting the watcher thread.
    Thread,
    /// Registering the parent's exit with the kernel (kqueue).
    Register(u32),
}

impl ArmError {
    /// The constructor for failed system calls.
    pub(crate) fn os(step: ArmStep) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Os {
            step,
            errno: errno.into(),
        }
    }

    /// Whether the reason is that the parent has ended already, so that the process should end too.
    pub fn is_parent_gone(&self) -> bool {
        matches!(self, Self::ParentGone { .. } | Self::ParentIsInit)
    }
}

impl fmt::Display for ArmStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenPidfd(pid) => write!(f, "opening a pidfd on the parent {pid}"),
            Self::ParentFd(fd) => write!(f, "looking at the parent's descriptor {fd}"),
            Self::ParentDeathSignal(signal) => {
                write!(f, "setting the parent-death signal {signal}")
            }
            Self::Wakeup => f.write_str("making the watcher's wake-up descriptor"),
            Self::Thread => f.write_str("starting the watcher thread"),
            Self::Register(pid) => write!(f, "registering for the exit of the parent {pid}"),
        }
    }
}

impl fmt::Display for ArmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(None) => {
                f.write_str("this system cannot tie a process to its parent")
            }
            Self::Unsupported(Some(mechanism)) => write!(f, "this system has no {mechanism}"),
            Self::ParentGone { expected, found } => {
                f.write_str("the parent process")?;
                if let Some(pid) = expected {
                    write!(f, " {pid}")?;
                }
                f.write_str(" is gone")?;
                match found {
                    Some(pid) if *expected != Some(*pid) => write!(f, " (the parent is {pid} now)"),
                    _ => Ok(()),
                }
            }
            Self::ParentIsInit => f.write_str(
                "the parent is pid 1: the launcher is gone, or is pid 1 itself and must say so \
                 by expecting parent 1 or passing a descriptor",
            ),
            Self::ParentOutside => f.write_str(
                "the parent is outside this PID namespace, where no pid names it: \
                 pass a pidfd or a pipe as the parent's descriptor",
            ),
            Self::NotAParentFd { fd, found } => write!(
                f,
                "descriptor {fd} is {found}; the parent's descriptor is a pidfd or the read end of a pipe"
            ),
            Self::WriterHeldHere { fd, writer } => write!(
                f,
                "descriptor {writer} is a write end of the pipe behind the parent's descriptor {fd}: \
                 while this process holds it, the pipe never ends"
            ),
            Self::NotMainThread => {
                f.write_str("the parent-death signal must be armed from the main thread")
            }
            Self::NeedsWatcher(mechanism) => write!(
                f,
                "the {mechanism} has no watcher, and a grace, a channel, a callback, a parent's \
                 descriptor or a forked child needs one"
            ),
            Self::ForkedChild(mechanism) => write!(
                f,
                "in a forked child the {mechanism} cannot tell who the parent's pid is now: \
                 bind it by a pipe as the parent's descriptor"
            ),
            // The errno is the source: printed once, by whoever walks the chain.
            Self::Os { step, .. } => write!(f, "{step} failed"),
        }
    }
}

impl std::error::Error for ArmError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Os { errno, .. } => Some(errno),
            _ => None,
        }
    }
}
