//! Where captives cannot be launched: the same signatures, and no value of the handle.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::captive::Stuck;
use super::command::{Command, Defaults};
use super::stdio::Pipes;
use super::{CaptiveError, Containment, Event, ExitReport, Readiness, ReadyError, SpawnError};
use crate::sys::signal::Signal;

/// No signal is told.
#[derive(Debug)]
pub(super) enum Caught {}

impl Caught {
    pub(super) fn new(_signal: Signal, _sender: Sender<Event>) -> io::Result<Self> {
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

    pub(super) fn tell(&self, _sender: Sender<Event>) -> Result<(), CaptiveError> {
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
