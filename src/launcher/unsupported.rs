//! Where captives cannot be launched: the same signatures, and no value of the handle.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::captive::Stuck;
use super::command::{Command, Defaults};
use super::events::Sink;
use super::stdio::Pipes;
use super::{CaptiveError, Containment, ExitReport, Readiness, ReadyError, SpawnError};
use crate::sys::signal::Signal;

/// No signal is told.
#[derive(Debug)]
pub(super) enum Caught {}

impl Caught {
    pub(super) fn new(_signal: Signal, _sink: Sink) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(super) fn start() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The launcher's ends of a captive's pipes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams<'a> {
    pub(super) stdout: Option<BorrowedFd<'a>>,
    pub(super) stderr: Option<BorrowedFd<'a>>,
}

/// There is none.
#[derive(Debug)]
pub(super) enum Handle {}

pub(super) fn is_supported() -> bool {
    false
}

pub(super) fn spawn(
    _command: &Command,
    _defaults: &Defaults,
) -> Result<(Handle, Pipes), SpawnError> {
    Err(SpawnError::Unsupported(
        "the launcher is for Linux on x86-64 and aarch64",
    ))
}

pub(super) fn spawn_std(
    _command: &mut std::process::Command,
) -> Result<std::process::Child, SpawnError> {
    Err(SpawnError::Unsupported(
        "the launcher is for Linux on x86-64 and aarch64",
    ))
}

impl Handle {
    pub(super) fn id(&self) -> u32 {
        match *self {}
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        match *self {}
    }

    pub(super) fn try_wait(&self) -> Result<Option<ExitReport>, CaptiveError> {
        match *self {}
    }

    pub(super) fn wait_until(
        &self,
        _deadline: Option<Instant>,
    ) -> Result<Option<ExitReport>, CaptiveError> {
        match *self {}
    }

    pub(super) fn signal(&self, _signal: Signal) -> Result<(), CaptiveError> {
        match *self {}
    }

    pub(super) fn containment(&self) -> Containment {
        match *self {}
    }

    pub(super) fn wait_tree(&self, _deadline: Option<Instant>) -> bool {
        match *self {}
    }

    pub(super) fn wait_ready(
        &self,
        _streams: Streams<'_>,
        _limit: Duration,
    ) -> Result<Readiness, ReadyError> {
        match *self {}
    }

    pub(super) fn tell(&self, _sink: Sink) -> Result<(), CaptiveError> {
        match *self {}
    }

    #[cfg(feature = "tokio")]
    pub(super) fn observer(&self) -> Result<observer::Observer, CaptiveError> {
        match *self {}
    }

    pub(super) fn resume(&self) {
        match *self {}
    }

    pub(super) fn stuck(&self) -> Stuck {
        match *self {}
    }

    pub(super) fn detach(&self) -> Result<(), CaptiveError> {
        match *self {}
    }
}

#[cfg(feature = "tokio")]
pub(super) use observer::{LAST_WORDS, Look, Observer, PAUSE};

/// What the asynchronous handle asks of the platform.
#[cfg(feature = "tokio")]
mod observer {
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::time::Duration;

    use tokio::io::Interest;

    use super::super::{Readiness, ReadyError, captive::Stuck};
    use super::Streams;

    pub(in super::super) const PAUSE: Duration = Duration::ZERO;
    pub(in super::super) const LAST_WORDS: Duration = Duration::ZERO;

    #[derive(Debug)]
    pub(in super::super) enum Look {
        Ready(Readiness),
        NotYet,
        More,
        Closed,
    }

    #[derive(Debug)]
    pub(in super::super) struct TreeChange {
        pub(in super::super) fd: OwnedFd,
        pub(in super::super) interest: Interest,
    }

    /// There is none.
    #[derive(Debug, Clone)]
    pub(in super::super) enum Observer {}

    impl Observer {
        pub(in super::super) fn stuck(&self) -> Stuck {
            match *self {}
        }

        pub(in super::super) fn has_to_walk(&self) -> bool {
            match *self {}
        }

        pub(in super::super) fn tree_is_empty(&self) -> bool {
            match *self {}
        }

        pub(in super::super) fn tree_change(&self) -> Option<TreeChange> {
            match *self {}
        }

        pub(in super::super) fn words(
            &self,
            _streams: Streams<'_>,
        ) -> Result<Option<OwnedFd>, ReadyError> {
            match *self {}
        }

        pub(in super::super) fn look(
            &self,
            _words: Option<BorrowedFd<'_>>,
        ) -> Result<Look, ReadyError> {
            match *self {}
        }

        pub(in super::super) fn after_closing(&self) -> ReadyError {
            match *self {}
        }

        pub(in super::super) fn after_limit(&self, _limit: Duration) -> ReadyError {
            match *self {}
        }
    }
}
