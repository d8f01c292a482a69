//! What is known of a domain, behind its lock.

#![allow(
    clippy::missing_const_for_thread_local,
    reason = "it is const; clippy does not see it where thread-local storage is not the system's own (OpenBSD)"
)]

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::MutexGuard;

use super::model::{Machine, Model, Reason};

/// What is known of a domain: its definitions, and its machine while that runs.
pub struct State<M: Model> {
    pub(super) id: Option<u64>,
    pub(super) persistent: Option<M::Definition>,
    pub(super) machine: Option<Machine<M>>,
    pub(super) reason: Reason,
    /// Its process has been killed by destroy.
    pub(super) destroyed: bool,
}

impl<M: Model> State<M> {
    pub(super) fn new(persistent: Option<M::Definition>) -> Self {
        Self {
            id: None,
            persistent,
            machine: None,
            reason: Reason::NeverStarted,
            destroyed: false,
        }
    }

    /// Whether it runs.
    pub fn is_active(&self) -> bool {
        self.machine.is_some()
    }

    /// Its number, while it runs. Never given to another.
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// What it is made of: while it runs the live definition, else the persistent one. One of them is there.
    pub fn definition(&self) -> Option<&M::Definition> {
        match &self.machine {
            Some(machine) => Some(&machine.definition),
            None => self.persistent.as_ref(),
        }
    }

    /// What it will be made of at its next start. `None`: it is transient, and goes with its machine.
    pub fn persistent(&self) -> Option<&M::Definition> {
        self.persistent.as_ref()
    }

    /// What is known of the running machine.
    pub fn live(&self) -> Option<&M::Live> {
        self.machine.as_ref().map(|machine| &machine.live)
    }

    /// Why it does not run; of while it runs, why it did not before.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

impl<M: Model> fmt::Debug for State<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("id", &self.id)
            .field("active", &self.is_active())
            .field("persistent", &self.persistent.is_some())
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// How many objects this thread has locked: while it has, it must not wait.
    static LOCKED: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread has locked an object of any domain.
pub(super) fn is_locked_here() -> bool {
    LOCKED.get() > 0
}

/// Counts while it is there; it stays in its thread.
#[derive(Debug)]
struct Count(PhantomData<*const ()>);

impl Count {
    fn new() -> Self {
        LOCKED.set(LOCKED.get() + 1);
        Self(PhantomData)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        LOCKED.set(LOCKED.get() - 1);
    }
}

/// A domain's state, locked, to be read. Nobody else can look at it meanwhile: not to be kept while anything is waited
/// for, which no method of this crate does then.
pub struct Object<'a, M: Model> {
    state: MutexGuard<'a, State<M>>,
    _count: Count,
}

impl<'a, M: Model> Object<'a, M> {
    pub(super) fn new(state: MutexGuard<'a, State<M>>) -> Self {
        Self {
            state,
            _count: Count::new(),
        }
    }

    /// For this module's neighbours, who keep the jobs in step.
    pub(super) fn state_mut(&mut self) -> &mut State<M> {
        &mut self.state
    }
}

impl<M: Model> Deref for Object<'_, M> {
    type Target = State<M>;

    fn deref(&self) -> &State<M> {
        &self.state
    }
}

/// A domain's state, locked, to be changed by who has a job.
pub struct ObjectMut<'a, M: Model>(Object<'a, M>);

impl<'a, M: Model> ObjectMut<'a, M> {
    pub(super) fn new(object: Object<'a, M>) -> Self {
        Self(object)
    }

    /// The live definition while it runs, else the persistent one.
    pub fn definition_mut(&mut self) -> Option<&mut M::Definition> {
        let State {
            machine,
            persistent,
            ..
        } = &mut *self.0.state;
        match machine {
            Some(machine) => Some(&mut machine.definition),
            None => persistent.as_mut(),
        }
    }

    /// What it will be made of at its next start.
    pub fn persistent_mut(&mut self) -> Option<&mut M::Definition> {
        self.0.state.persistent.as_mut()
    }

    /// Makes it persistent, or says anew what it will be made of.
    pub fn set_persistent(&mut self, definition: M::Definition) {
        self.0.state.persistent = Some(definition);
    }

    pub(super) fn take_persistent(&mut self) {
        self.0.state.persistent = None;
    }

    /// What is known of the running machine.
    pub fn live_mut(&mut self) -> Option<&mut M::Live> {
        let machine = self.0.state.machine.as_mut();
        machine.map(|machine| &mut machine.live)
    }
}

impl<M: Model> Deref for ObjectMut<'_, M> {
    type Target = State<M>;

    fn deref(&self) -> &State<M> {
        &self.0
    }
}

impl<M: Model> fmt::Debug for Object<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

impl<M: Model> fmt::Debug for ObjectMut<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
