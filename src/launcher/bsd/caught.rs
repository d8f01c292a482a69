//! Signals of the launcher's that are told as events: a handler that counts, and wakes the reaper.
//!
//! The handler is signal-hook's, which never takes it away: others in the process may have actions there, of which nothing
//! can be asked.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use signal_hook::SigId;
use signal_hook::consts::FORBIDDEN;
use signal_hook::low_level;

use super::super::Event;
use super::super::events::Sink;
use super::runtime::Runtime;
use super::sys;
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
        runtime.reaper().start(runtime)?;
        let wake = runtime.reaper().waker().ok_or(Errno::EBADF)?;
        let count = Arc::new(AtomicU32::new(0));
        let own = Arc::clone(&count);
        let tell = move || {
            // A forked child has the handler and the pipe, and its signals are not ours.
            if runtime.is_ours() {
                let before = Errno::last_raw();
                own.fetch_add(1, Ordering::SeqCst);
                // No room: it will wake.
                let _ = sys::write(wake.as_fd(), &[0]);
                Errno::set_raw(before);
            }
        };
        // SAFETY: `tell` is async-signal-safe: getpid(2) and write(2), whose errno is put back, and loads from memory that
        // exists already. It does not panic.
        let id = unsafe { low_level::register(signal.number(), tell) }?;
        let number = runtime.reaper().take_signal(Told {
            signal,
            count,
            sink,
        });
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
    signal: Signal,
    count: Arc<AtomicU32>,
    sink: Sink,
}

impl Told {
    /// As often as it has come since.
    pub(super) fn tell(&self) {
        for _ in 0..self.count.swap(0, Ordering::SeqCst) {
            self.sink.send(Event::Signal(self.signal));
        }
    }
}
