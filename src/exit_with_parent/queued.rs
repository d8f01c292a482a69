//! The parent as a source of events is asked about it, where a process is a number: a pid, or the read end of a
//! pipe. For the watcher thread, and for run-with, which waits with a source of its own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::known::{Who, pid_of, still_parent, unsaid_parent};
use super::{ArmError, ArmStep, Expected, Known, pipe};
use crate::sys::event_source::Interest;

/// ESRCH for who may not be seen: p_cansee() in filt_procattach(), sys/kern/kern_event.c.
const MAY_BE_HIDDEN: bool = cfg!(target_os = "freebsd");

/// Who is watched. Nothing is held: only what has been registered is.
#[derive(Debug)]
pub(crate) struct Parent {
    known: Known,
    /// The read end that the caller gave, in place of a pid.
    pipe: Option<OwnedFd>,
}

impl Parent {
    pub(crate) fn find(expected: Expected) -> Result<Self, ArmError> {
        let (known, pipe) = match expected {
            Expected::Unsaid => (Known::Unsaid(unsaid_parent()?), None),
            Expected::Pid(pid) => (Known::Expected(pid), None),
            Expected::Fd(fd) => {
                pipe::check_read_end(fd.as_fd())?;
                let step = ArmStep::ParentFd(fd.as_raw_fd());
                fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(ArmError::os(step))?;
                (Known::Descriptor, Some(fd))
            }
        };
        still_parent(known)?;
        Ok(Self { known, pipe })
    }

    pub(super) fn known(&self) -> Known {
        self.known
    }

    /// The read end, if it is one.
    pub(super) fn pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    /// What is registered.
    pub(super) fn interest(&self) -> Interest<'_> {
        match &self.pipe {
            Some(pipe) => Interest::Closed(pipe.as_fd()),
            None => Interest::Exit(
                pid_of(self.known)
                    .and_then(|pid| i32::try_from(pid).ok())
                    .unwrap_or(0),
            ),
        }
    }

    pub(super) fn who(&self) -> Who {
        Who {
            known: self.known,
            step: match &self.pipe {
                Some(pipe) => ArmStep::ParentFd(pipe.as_raw_fd()),
                None => ArmStep::Register(pid_of(self.known).unwrap_or(0)),
            },
            may_be_hidden: MAY_BE_HIDDEN,
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(feature = "cli", any(captive_stand_in, not(target_os = "linux"))))] {
        use std::os::fd::RawFd;

        use nix::errno::Errno;

        use super::known::{current, hold};
        use super::watcher::Refused;
        use crate::sys::event_source::{EventSource, Key};

        impl Parent {
            /// Has the source tell the parent's exit, between two looks at it: `ParentGone` where it has exited.
            pub(crate) fn register(&self, source: &impl EventSource, key: Key) -> Result<(), ArmError> {
                hold(self.who(), current, || {
                    self.watch(source, key).map_err(Refused::Parent)
                })
            }

            /// Has the source tell the parent's exit, for a process that is not its child: the parent's child has
            /// looked who it is, and looks again.
            pub(crate) fn watch(&self, source: &impl EventSource, key: Key) -> Result<(), Errno> {
                source.add(key, self.interest())
            }

            /// The descriptor that must stay open.
            pub(crate) fn raw_fd(&self) -> Option<RawFd> {
                self.pipe.as_ref().map(AsRawFd::as_raw_fd)
            }
        }
    }
}
