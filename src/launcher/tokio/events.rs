//! What a launcher waits for, as one asynchronous receiver.

use std::future::poll_fn;
use std::task::{Context, Poll};

use ::tokio::sync::mpsc::{self, UnboundedReceiver};

use super::super::events::{Sink, Sources};
use super::super::{Captive, CaptiveError, Event, EventsError};
use crate::exit_with_parent::{ArmError, ExitWithParent, Signal};

/// As [`Events`](super::super::Events), with an asynchronous end: the crate's own threads send straight into the receiver.
/// Dropping it ends the telling and undoes the parent's binding; a signal that was told does nothing then.
///
/// ```no_run
/// use captive::Command;
/// use captive::exit_with_parent::Signal;
/// use captive::launcher::{Event, tokio as captives};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let mut events = captives::events()?;
/// events.signal(Signal::TERM)?;
/// let nbdkit = captives::spawn(Command::new("nbdkit")).await?;
/// events.watch(&nbdkit)?;
/// match events.recv().await {
///     Event::Exited { pid, report } => println!("{pid}: {}", report.status()),
///     Event::Signal(signal) => println!("{signal}: ending in order"),
///     _ => {}
/// }
/// # Ok(())
/// # }
/// ```
///
/// It needs no runtime. What is not received stays there; there is no limit.
///
/// # Platforms
/// As [`launcher`](super::super#platforms).
#[derive(Debug)]
pub struct AsyncEvents {
    sources: Sources,
    receiver: UnboundedReceiver<Event>,
}

/// Makes a receiver to which nothing is sent yet.
///
/// # Errors
/// [`EventsError::Start`]: the thread that sends could not be started.
pub fn events() -> Result<AsyncEvents, EventsError> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let sink = Sink::new(move |event| {
        // Fails when nobody can receive any more.
        let _ = sender.send(event);
    });
    let sources = Sources::new(sink)?;
    Ok(AsyncEvents { sources, receiver })
}

impl AsyncEvents {
    /// The next event.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn recv(&mut self) -> Event {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// The next event, for a future or a stream of the caller's own; the last task that asked is woken.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        match self.receiver.poll_recv(context) {
            Poll::Ready(Some(event)) => Poll::Ready(event),
            // `sources` has a sender: there is no end.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// The next event, if there is one.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.receiver.try_recv().ok()
    }

    /// As [`Events::watch`](super::super::Events::watch): of a [`Captive`] or an [`AsyncCaptive`](super::AsyncCaptive).
    ///
    /// # Errors
    /// [`CaptiveError::Forked`].
    pub fn watch(&self, captive: &impl AsRef<Captive>) -> Result<(), CaptiveError> {
        self.sources.watch(captive.as_ref())
    }

    /// As [`Events::signal`](super::super::Events::signal).
    ///
    /// # Errors
    /// [`EventsError::Signal`].
    pub fn signal(&mut self, signal: Signal) -> Result<(), EventsError> {
        self.sources.signal(signal)
    }

    /// As [`Events::parent`](super::super::Events::parent).
    ///
    /// # Errors
    /// [`ArmError`].
    pub fn parent(&mut self, how: ExitWithParent) -> Result<(), ArmError> {
        self.sources.parent(how)
    }
}
