//! Signals of the launcher's that are told as events: a handler that wakes the reaper.
//!
//! The handler is signal-hook's, which never takes it away. So that a signal does again what it did when nobody wants it
//! told any more, one more action is there for good: it does what the signal would do by default, if that is what it did
//! before, and if nobody wants it.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
    signal: Signal,
    id: SigId,
    /// Of the thread's interest in it.
    number: u64,
    runtime: &'static Runtime,
}

/// Who wants one signal.
struct Interest {
    /// How many, in the process of this [`Owner::word`]: a forked child has a copy.
    wanted: AtomicU32,
    owner: AtomicU32,
    /// The last action is there.
    is_installed: AtomicBool,
}

static INTERESTS: [Interest; 65] = [const {
    Interest {
        wanted: AtomicU32::new(0),
        owner: AtomicU32::new(0),
        is_installed: AtomicBool::new(false),
    }
}; 65];

/// For changes; the handler only reads.
static CHANGES: Mutex<()> = Mutex::new(());

impl Interest {
    fn of(signal: Signal) -> Option<&'static Self> {
        INTERESTS.get(usize::try_from(signal.number()).ok()?)
    }

    /// Whether somebody of this process wants it; for the handler too.
    fn is_wanted(&self) -> bool {
        self.owner.load(Ordering::Acquire) == Owner::this_process().word()
            && self.wanted.load(Ordering::Acquire) > 0
    }

    /// Sees to it that the signal does what it did before when nobody wants it.
    fn install(&'static self, signal: Signal) -> io::Result<()> {
        let number = signal.number();
        if self.is_installed.load(Ordering::Acquire) {
            return Ok(());
        }
        // One that was ignored is so without this; a handler that was there is called by signal-hook.
        if sys::is_at_default(number) {
            let otherwise = move || {
                if !self.is_wanted() {
                    // SIGTERM and the like end the process here.
                    let _ = low_level::emulate_default_handler(number);
                }
            };
            // SAFETY: `otherwise` is async-signal-safe: loads from statics, raw system calls that leave errno alone, and
            // what signal-hook says is so. It does not panic.
            unsafe { low_level::register(number, otherwise) }?;
        }
        self.is_installed.store(true, Ordering::Release);
        Ok(())
    }

    fn enter(&self) {
        let own = Owner::this_process().word();
        if self.owner.swap(own, Ordering::AcqRel) != own {
            self.wanted.store(0, Ordering::Release);
        }
        self.wanted.fetch_add(1, Ordering::AcqRel);
    }

    fn leave(&self) {
        if self.is_wanted() {
            self.wanted.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Of a fault, which the handler would return to.
const FAULT: i32 = libc::SIGBUS;

impl Caught {
    pub(in super::super) fn new(signal: Signal, sink: Sink) -> io::Result<Self> {
        let interest = Interest::of(signal)
            .filter(|_| signal.number() != FAULT && !FORBIDDEN.contains(&signal.number()))
            .ok_or(Errno::EINVAL)?;
        let runtime = Runtime::of_this_process();
        let count = Arc::new(sys::eventfd()?);
        let (own, owner) = (Arc::clone(&count), Owner::this_process());
        let tell = move || {
            // A forked child has the handler and the eventfd, and its signals are not ours.
            if owner.is_this_process() {
                let _ = sys::eventfd_wake(own.as_fd());
            }
        };
        let changing = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        interest.install(signal)?;
        interest.enter();
        // SAFETY: `tell` is async-signal-safe: raw system calls that leave errno alone, and loads from memory that exists
        // already (`owner` has just been asked for). It does not panic.
        let registered = unsafe { low_level::register(signal.number(), tell) };
        let id = registered.inspect_err(|_| interest.leave())?;
        drop(changing);
        let number = runtime.reaper().take_signal(signal, count, sink);
        Ok(Self {
            signal,
            id,
            number,
            runtime,
        })
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        let changing = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        low_level::unregister(self.id);
        if let Some(interest) = Interest::of(self.signal) {
            interest.leave();
        }
        drop(changing);
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
