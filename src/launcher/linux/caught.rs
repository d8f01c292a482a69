//! Signals of the launcher's that are told as events: a handler that wakes the reaper.
//!
//! The handler is signal-hook's, which never takes it away: others in the process may have actions there, of which nothing
//! can be asked.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use signal_hook::SigId;
use signal_hook::consts::FORBIDDEN;
use signal_hook::low_level;

use super::super::events::Sink;
use super::runtime::Runtime;
use crate::sys::linux::{self as sys, Owner};
use crate::sys::signal::Signal;

/// A signal that is caught as long as this exists.
#[derive(Debug)]
pub(in super::super) struct Caught {
    id: SigId,
    /// Of the thread's interest in it.
    number: u64,
    runtime: &'static Runtime,
}

/// Of a fault, which the handler would return to; signal-hook forbids the others.
const FAULT: i32 = libc::SIGBUS;

impl Caught {
    pub(in super::super) fn new(signal: Signal, sink: Sink) -> io::Result<Self> {
        if signal.number() == FAULT || FORBIDDEN.contains(&signal.number()) {
            return Err(Errno::EINVAL.into());
        }
        let runtime = Runtime::of_this_process();
        let count = Arc::new(sys::eventfd()?);
        let (own, owner) = (Arc::clone(&count), Owner::this_process());
        let tell = move || {
            // A forked child has the handler and the eventfd, and its signals are not ours.
            if owner.is_this_process() {
                let _ = sys::eventfd_wake(own.as_fd());
            }
        };
        // SAFETY: `tell` is async-signal-safe: raw system calls that leave errno alone, and loads from memory that exists
        // already (`owner` has just been asked for). It does not panic.
        let id = unsafe { low_level::register(signal.number(), tell) }?;
        let number = runtime.reaper().take_signal(signal, count, sink);
        Ok(Self {
            id,
            number,
            runtime,
        })
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        low_level::unregister(self.id);
        self.runtime.reaper().leave_signal(self.number);
    }
}

/// A signal that is told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) signal: Signal,
    pub(super) count: Arc<OwnedFd>,
    pub(super) sink: Sink,
}
