//! Where the handle and the watcher thread meet: what has been seen of the parent, and whether anything
//! may still be done about it.
//!
//! - Once [`end`](Binding::end) has returned, nothing is done any more, though the thread may have been
//!   told of the parent's exit before.
//! - Once anybody has been told that the parent is gone, nobody is told otherwise: its exit is an event
//!   that one look takes out, while another may be on its way.
//!
//! In a forked child the lock may be held for ever, by a thread that did not come along: nothing here is
//! for it.

use super::primitive::{Mutex, MutexGuard, PoisonError};

/// Shared by the handle and the thread.
#[derive(Debug)]
pub(super) struct Binding(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Whether the parent's exit has been seen.
    gone: bool,
    /// Whether the thread still waits for it, as far as anybody knows.
    watching: bool,
    /// Whether the binding is no more.
    ended: bool,
}

impl Binding {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            gone: false,
            watching: true,
            ended: false,
        }))
    }

    /// Whether the parent's exit has been seen, by whomever; if not, `look` is asked. A look that fails
    /// is its own answer.
    #[cfg_attr(
        target_os = "linux",
        allow(
            dead_code,
            reason = "the parent is a descriptor there, which can be polled"
        )
    )]
    pub(super) fn is_gone<E>(&self, look: impl FnOnce() -> Result<bool, E>) -> Result<bool, E> {
        // Held while looking: who comes second finds what the first has taken out of the queue.
        let mut state = self.lock();
        if !state.gone {
            state.gone = look()?;
        }
        Ok(state.gone)
    }

    /// Notes that the thread has been told of the parent's exit.
    pub(super) fn note_gone(&self) {
        let mut state = self.lock();
        state.watching = false;
        state.gone = true;
    }

    /// Notes that nobody waits any more.
    pub(super) fn note_unwatched(&self) {
        self.lock().watching = false;
    }

    /// Whether somebody still waits for the parent's exit, and has not seen it.
    pub(super) fn is_watched(&self) -> bool {
        self.lock().watching
    }

    /// Does something to the process, unless the binding has ended; the answer is whether. Short: whoever
    /// ends the binding waits for it.
    pub(super) fn act(&self, act: impl FnOnce()) -> bool {
        let state = self.lock();
        if !state.ended {
            act();
        }
        !state.ended
    }

    /// Ends it.
    pub(super) fn end(&self) {
        self.lock().ended = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every step: a panic in between breaks nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
