//! The watcher's logic, the same for every system: register, look at the parent again, wait for its
//! exit or for the end of the watch, then act once.
//!
//! What a system gives is a source of events, and what it does to its process. `orderings.rs` puts a
//! script in the place of both, and replays every order in which these can go.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};

use super::binding::Binding;
use super::{Action, ArmError, ArmStep, ParentExited};
use crate::sys::event_source::{Event, EventSource, Interest, Key};
use crate::sys::signal::Signal;

/// What the events of a watch are called. Unlikely numbers: where the program closes our source and makes
/// one of its own of the same number, events with other names are how we notice.
pub(super) const PARENT: Key = Key(0x7061_7265);
const STOP: Key = Key(0x7374_6f70);

/// The process that is bound, and its clock.
pub(super) trait Process {
    /// Sends a signal to this process, so that it ends even where signals are dropped (pid 1).
    fn signal_self(&self, signal: Signal);

    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Lets time pass.
    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }
}

/// Starts the thread that runs a watch. It is born with all signals blocked: it must never run a handler of the
/// program's.
pub(super) fn spawn(run: impl FnOnce() + Send + 'static) -> Result<(), ArmError> {
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(ArmError::os(ArmStep::Thread))?;
    let spawned = thread::Builder::new()
        .name("exit-with-parent".to_owned())
        .spawn(run);
    let restored = before.thread_set_mask();
    spawned.map(drop).map_err(|errno| ArmError::Os {
        step: ArmStep::Thread,
        errno,
    })?;
    restored.map_err(ArmError::os(ArmStep::Thread))
}

/// Which registration was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Parent(Errno),
    Stop(Errno),
}

/// The thread's side of a watch.
#[derive(Debug)]
pub(super) struct Watcher<S> {
    source: S,
    binding: Arc<Binding>,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    /// The parent is gone. Said once.
    ParentExited,
    /// The watch is over. Wins over the parent's exit.
    Over,
    /// Nothing will be told any more: the program has closed the source, and perhaps made another of
    /// the same number.
    Blind,
    /// The time was up, or something woke us for nothing.
    Nothing,
}

impl<S: EventSource> Watcher<S> {
    /// Registers the end of the parent, and that of the watch: `stop` becomes readable.
    pub(super) fn register(
        source: S,
        binding: Arc<Binding>,
        parent: Interest<'_>,
        stop: BorrowedFd<'_>,
    ) -> Result<Self, Refused> {
        let readable = Interest::Readable(stop);
        source.add(STOP, readable).map_err(Refused::Stop)?;
        source.add(PARENT, parent).map_err(Refused::Parent)?;
        Ok(Self { source, binding })
    }

    /// Runs the watch to its end.
    pub(super) fn run(&self, process: &impl Process, action: &Action, event: ParentExited) {
        if self.wait_for_exit() {
            self.act(process, action, event);
        }
        self.binding.note_unwatched();
    }

    /// Whether the parent has exited; if not, the watch is over.
    fn wait_for_exit(&self) -> bool {
        loop {
            match self.wait(None) {
                Wake::ParentExited => return true,
                Wake::Over | Wake::Blind => return false,
                Wake::Nothing => {}
            }
        }
    }

    fn act(&self, process: &impl Process, action: &Action, event: ParentExited) {
        match action {
            Action::Call(tell) => {
                // Not while the lock is held: it is the program's, and may end the binding itself.
                if self.binding.act(|| {}) {
                    tell(event);
                }
            }
            Action::Signal { signal, kill_after } => {
                let signal_self = |signal| self.binding.act(|| process.signal_self(signal));
                if !signal_self(*signal) {
                    return;
                }
                let Some(grace) = kill_after else { return };
                // A grace beyond the clock is none at all.
                let Some(deadline) = process.now().checked_add(*grace) else {
                    return;
                };
                loop {
                    let left = deadline.saturating_duration_since(process.now());
                    if left.is_zero() {
                        signal_self(Signal::KILL);
                        return;
                    }
                    match self.wait(Some(left)) {
                        Wake::Over => return,
                        // Told to end, it has closed all that it has, and still runs.
                        Wake::Blind => process.sleep(left),
                        Wake::ParentExited | Wake::Nothing => {}
                    }
                }
            }
        }
    }

    fn wait(&self, limit: Option<Duration>) -> Wake {
        let mut events = [Event::NONE; 2];
        let Ok(count) = self.source.wait(limit, &mut events) else {
            return Wake::Blind;
        };
        let events = &events[..count];
        let is = |key| events.iter().any(|event| event.key == key);
        if is(STOP) {
            Wake::Over
        } else if is(PARENT) {
            // Perhaps the handle has been told before us: it is the first that we hear of it.
            self.binding.note_gone();
            Wake::ParentExited
        } else if events.is_empty() {
            Wake::Nothing
        } else {
            Wake::Blind
        }
    }
}
