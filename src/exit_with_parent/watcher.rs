//! The watcher thread's logic, the same for every system: wait for the parent's exit or for the end
//! of the watch, then act once.

use std::time::{Duration, Instant};

use super::{Action, ParentExited};
use crate::sys::signal::Signal;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// The parent is gone. Said once.
    ParentExited,
    /// The watch is over. Wins over the parent's exit: after `disarm` nothing happens any more.
    Disarmed,
    /// The time was up, or something woke us for nothing.
    Nothing,
}

/// What a platform gives the watcher.
pub(super) trait Watched {
    /// Waits for the parent's exit or the end of the watch, at most `limit`.
    fn wait(&self, limit: Option<Duration>) -> Wake;
    /// Waits for the end of the watch alone, at most `limit`, once the parent is gone.
    fn wait_disarmed(&self, limit: Duration) -> Wake;
    /// Sends a signal to this process, so that it ends even where signals are dropped (pid 1).
    fn signal_self(&self, signal: Signal);
}

/// Runs the watch to its end.
pub(super) fn run(watched: &impl Watched, action: &Action, event: ParentExited) {
    loop {
        match watched.wait(None) {
            Wake::ParentExited => break,
            Wake::Disarmed => return,
            Wake::Nothing => {}
        }
    }
    match action {
        Action::Call(tell) => tell(event),
        Action::Signal { signal, kill_after } => {
            watched.signal_self(*signal);
            let Some(grace) = kill_after else { return };
            // A grace beyond the clock is none at all.
            let Some(deadline) = Instant::now().checked_add(*grace) else {
                return;
            };
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    watched.signal_self(Signal::KILL);
                    return;
                }
                if watched.wait_disarmed(left) == Wake::Disarmed {
                    return;
                }
            }
        }
    }
}
