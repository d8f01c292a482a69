//! The parent for one who waits with a source of events of his own: run-with, where it is written with kqueue.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::known::{current, gone, pid_of, still_parent, unsaid_parent};
use super::{ArmError, ArmStep, Expected, Known, pipe};
use crate::sys::event_source::{EventSource, Interest, Key};

/// The parent: a pid, or the read end of a pipe.
#[derive(Debug)]
pub(crate) struct Parent {
    known: Known,
    pipe: Option<OwnedFd>,
}

impl Parent {
    /// Finds the parent. Nothing is held: only what [`register`](Self::register) has returned for is.
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

    /// Has the source tell the parent's exit, and then looks whether it was the right one, as
    /// [`hold`](super::known::hold) does. The error is `ParentGone` where the parent has exited.
    pub(crate) fn register(&self, source: &impl EventSource, key: Key) -> Result<(), ArmError> {
        still_parent(self.known)?;
        match self.watch(source, key) {
            Ok(()) => still_parent(self.known),
            Err(Errno::ESRCH) => Err(gone(self.known, current())),
            Err(errno) => Err(ArmError::os(self.step())(errno)),
        }
    }

    /// Has the source tell the parent's exit, for a process that is not its child: the parent's child has looked who it is,
    /// and looks again.
    pub(crate) fn watch(&self, source: &impl EventSource, key: Key) -> Result<(), Errno> {
        let interest = match (&self.pipe, pid_of(self.known)) {
            (Some(pipe), _) => Interest::Closed(pipe.as_fd()),
            (None, Some(pid)) => Interest::Exit(i32::try_from(pid).map_err(|_| Errno::ESRCH)?),
            (None, None) => return Err(Errno::ESRCH),
        };
        source.add(key, interest)
    }

    /// The descriptor that must stay open.
    pub(crate) fn raw_fd(&self) -> Option<RawFd> {
        self.pipe.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn step(&self) -> ArmStep {
        match (&self.pipe, pid_of(self.known)) {
            (Some(pipe), _) => ArmStep::ParentFd(pipe.as_raw_fd()),
            (None, pid) => ArmStep::Register(pid.unwrap_or(0)),
        }
    }
}
