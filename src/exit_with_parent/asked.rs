//! What a handle asks where the parent is a number and not a descriptor that can be polled: a source of
//! its own, because an event is taken out by whoever sees it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::ArmError;
use super::binding::Binding;
use super::known::{Who, gone, hold};
use super::watcher::{PARENT, Refused, Watcher};
use crate::sys::event_source::{Event, EventSource, Interest};

/// The handle's side of a watch.
#[derive(Debug)]
pub(super) struct Asked<S> {
    source: S,
    binding: Arc<Binding>,
}

impl<S: EventSource> Asked<S> {
    /// Registers the end of the parent.
    pub(super) fn register(
        source: S,
        binding: Arc<Binding>,
        parent: Interest<'_>,
    ) -> Result<Self, Refused> {
        source.add(PARENT, parent).map_err(Refused::Parent)?;
        Ok(Self { source, binding })
    }

    /// Whether the parent has exited, as far as the system has said. An error: the program has closed
    /// the source, or has made another of the same number.
    pub(super) fn is_gone(&self) -> Result<bool, Errno> {
        self.binding.is_gone(|| {
            let mut events = [Event::NONE];
            let count = self.source.wait(Some(Duration::ZERO), &mut events)?;
            match events.iter().take(count).next() {
                None => Ok(false),
                Some(event) if event.key == PARENT => Ok(true),
                Some(_) => Err(Errno::EBADF),
            }
        })
    }

    /// What it meets the thread by.
    pub(super) fn binding(&self) -> &Binding {
        &self.binding
    }
}

/// Registers for the thread and for the handle, between two looks at the parent, and then asks what the
/// system has said already: a pipe whose writers are gone and, on FreeBSD, a zombie can be registered.
pub(super) fn arm<S: EventSource>(
    who: Who,
    current: impl Fn() -> Option<u32>,
    [threads, handles]: [S; 2],
    parent: Interest<'_>,
    stop: BorrowedFd<'_>,
) -> Result<(Watcher<S>, Asked<S>), ArmError> {
    let binding = Arc::new(Binding::new());
    let (watcher, asked) = hold(who, &current, || {
        let watcher = Watcher::register(threads, Arc::clone(&binding), parent, stop)?;
        let asked = Asked::register(handles, binding, parent)?;
        Ok((watcher, asked))
    })?;
    if asked.is_gone().map_err(ArmError::os(who.step))? {
        return Err(gone(who.known, current()));
    }
    Ok((watcher, asked))
}
