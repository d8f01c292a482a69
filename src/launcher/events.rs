//! One channel for what a launcher waits for: captives' ends, its own parent's end, signals.
//!
//! ```no_run
//! use captive::exit_with_parent::{ExitWithParent, Signal};
//! use captive::launcher::{Event, events};
//!
//! let mut events = events()?;
//! events.signal(Signal::TERM)?;
//! events.parent(ExitWithParent::new())?;
//! let qemu = captive::Command::new("qemu-system-x86_64").args(["-nodefaults", "-S"]).spawn()?;
//! events.watch(&qemu)?;
//! match events.receiver().recv()? {
//!     Event::Exited { pid, report } => println!("{pid}: {}", report.status()),
//!     Event::ParentExited(_) => println!("our own launcher is gone"),
//!     Event::Signal(signal) => println!("{signal}: ending in order"),
//!     _ => {}
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It costs no thread beside those that the launcher has (and the watcher of
//! [`exit_with_parent`](mod@crate::exit_with_parent), if the parent is asked for). The channel has no limit: what is not received stays there.

use std::fmt;
use std::io;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::{Captive, CaptiveError, ExitReport, platform};
use crate::exit_with_parent::{ArmError, Armed, ExitWithParent, ParentExited, Signal};

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A captive has ended, and has been reaped; its handle has the same report.
    Exited {
        /// Its pid.
        pid: u32,
        /// How.
        report: ExitReport,
    },
    /// The launcher's own parent is gone.
    ParentExited(ParentExited),
    /// This signal came for the launcher, which did nothing else about it. Of several that came together one may be told.
    Signal(Signal),
}

/// Where events go: called by the threads that see them, which it must not hold up.
#[derive(Clone)]
pub(super) struct Sink(Arc<dyn Fn(Event) + Send + Sync>);

impl Sink {
    pub(super) fn new(tell: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(super) fn send(&self, event: Event) {
        (self.0)(event);
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

/// What sends events to one place.
#[derive(Debug)]
pub(super) struct Sources {
    sink: Sink,
    signals: Vec<platform::Caught>,
    parent: Option<Armed>,
}

impl Sources {
    pub(super) fn new(sink: Sink) -> Result<Self, EventsError> {
        platform::start().map_err(EventsError::Start)?;
        Ok(Self {
            sink,
            signals: Vec::new(),
            parent: None,
        })
    }

    pub(super) fn watch(&self, captive: &Captive) -> Result<(), CaptiveError> {
        captive.handle().tell(self.sink.clone())
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<(), EventsError> {
        let caught = platform::Caught::new(signal, self.sink.clone());
        self.signals
            .push(caught.map_err(|errno| EventsError::Signal { signal, errno })?);
        Ok(())
    }

    pub(super) fn parent(&mut self, how: ExitWithParent) -> Result<(), ArmError> {
        let sink = self.sink.clone();
        let armed = how.callback(move |exited| sink.send(Event::ParentExited(exited)))?;
        if let Some(before) = self.parent.replace(armed) {
            let _ = before.disarm();
        }
        Ok(())
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        // A binding stays when its handle is dropped.
        if let Some(armed) = self.parent.take() {
            let _ = armed.disarm();
        }
    }
}

/// The channel. Dropping it ends the telling and undoes the parent's binding; a signal that was told does nothing then.
#[derive(Debug)]
pub struct Events {
    sources: Sources,
    receiver: Receiver<Event>,
}

/// Makes a channel to which nothing is sent yet.
///
/// # Errors
/// [`EventsError::Start`]: the thread that sends could not be started.
pub fn events() -> Result<Events, EventsError> {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let sink = Sink::new(move |event| {
        // Fails when nobody can receive any more.
        let _ = sender.send(event);
    });
    let sources = Sources::new(sink)?;
    Ok(Events { sources, receiver })
}

impl Events {
    /// The receiving end; for `recv`, `recv_timeout`, `iter` and crossbeam's `select!`.
    pub fn receiver(&self) -> &Receiver<Event> {
        &self.receiver
    }

    /// Has the captive's end told, at once if it has ended. Its handle may be dropped (which ends it) or waited for as well.
    ///
    /// # Errors
    /// [`CaptiveError::Forked`].
    pub fn watch(&self, captive: &Captive) -> Result<(), CaptiveError> {
        self.sources.watch(captive)
    }

    /// Has a signal told instead of what it does by default. The handler is the whole process's, by the crate signal-hook:
    /// one that was there before runs as well, and a captive does not inherit it. When this is dropped the signal is not told
    /// any more, but *the handler stays* (others may use it): the signal does nothing then, as in a child that the
    /// launcher forks without exec. A program that ends in order after SIGTERM keeps its events until it has.
    /// A signal that every thread blocks does not come.
    ///
    /// # Errors
    /// [`EventsError::Signal`]: SIGKILL, SIGSTOP and those of faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL) cannot be told.
    pub fn signal(&mut self, signal: Signal) -> Result<(), EventsError> {
        self.sources.signal(signal)
    }

    /// Has the end of the launcher's own parent told, instead of what `how` would do about it.
    ///
    /// # Errors
    /// [`ArmError`].
    pub fn parent(&mut self, how: ExitWithParent) -> Result<(), ArmError> {
        self.sources.parent(how)
    }
}

/// Why something cannot be told.
#[derive(Debug)]
#[non_exhaustive]
pub enum EventsError {
    /// The thread that tells could not be started.
    Start(io::Error),
    /// This signal cannot be caught.
    Signal {
        /// Which.
        signal: Signal,
        /// Why.
        errno: io::Error,
    },
}

impl fmt::Display for EventsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(_) => f.write_str("starting the thread that tells of events failed"),
            Self::Signal { signal, .. } => write!(f, "catching {signal} failed"),
        }
    }
}

impl std::error::Error for EventsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start(errno) | Self::Signal { errno, .. } => Some(errno),
        }
    }
}
