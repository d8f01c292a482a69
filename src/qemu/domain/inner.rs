//! A domain, as all its handles share it.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use uuid::Uuid;

use super::driver::Shared;
use super::error::Died;
use super::gate::{Caller, Gate};
use super::job::core::{Run, Ticket};
use super::model::{Machine, Model, Reason};
use super::object::{Object, State};
use crate::sync::{Published, RefCount};

pub(super) struct Inner<M: Model> {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    /// One of the registry's, one of each handle's: who finds it in an old snapshot takes none when there is none left.
    pub(super) references: RefCount,
    pub(super) gate: Gate,
    pub(super) driver: Weak<Shared<M>>,
    pub(super) statistics: Published<Option<Arc<M::Statistics>>>,
    state: Mutex<State<M>>,
}

impl<M: Model> Inner<M> {
    pub(super) fn new(
        name: String,
        uuid: Uuid,
        persistent: Option<M::Definition>,
        driver: &Arc<Shared<M>>,
    ) -> Self {
        Self {
            name,
            uuid,
            references: RefCount::new(),
            gate: Gate::new(driver.limits.queue),
            driver: Arc::downgrade(driver),
            statistics: Published::new(None),
            state: Mutex::new(State::new(persistent)),
        }
    }

    /// The state, locked. A panic of who had it leaves it as it was: each change is one assignment.
    pub(super) fn object(&self) -> Object<'_, M> {
        Object::new(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether this run goes on.
    pub(super) fn lives(&self, run: Run) -> Result<(), Died> {
        if self.gate.look().run() == Some(run) {
            return Ok(());
        }
        Err(self.death())
    }

    /// Why it does not run.
    pub(super) fn death(&self) -> Died {
        let reason = self.object().reason().clone();
        Died { reason }
    }

    /// Puts the machine in its place. The machine back: the job is its caller's no more.
    #[allow(clippy::result_large_err, reason = "the machine comes back")]
    pub(super) fn came_up(
        &self,
        ticket: Ticket,
        id: u64,
        machine: Machine<M>,
    ) -> Result<Run, Machine<M>> {
        let mut object = self.object();
        let Some(run) = self.gate.look().came_up(ticket) else {
            return Err(machine);
        };
        let state = object.state_mut();
        state.id = Some(id);
        state.machine = Some(machine);
        state.destroyed = false;
        Ok(run)
    }

    /// Ends this run, if that has not been done: the live definition goes, the persistent one is back in its place, who
    /// waits is woken.
    pub(super) fn died(&self, run: Run, reason: Reason) {
        let mut object = self.object();
        if self.gate.look().run() != Some(run) {
            return;
        }
        let state = object.state_mut();
        state.reason = if state.destroyed {
            Reason::Destroyed
        } else {
            reason
        };
        let machine = state.machine.take();
        let id = state.id.take();
        let is_transient = state.persistent.is_none();
        // The registry forgets it before anybody is woken, so that who starts it again, or another of the same name, finds
        // the place free.
        if let (Some(driver), Some(id)) = (self.driver.upgrade(), id) {
            driver.registry.remove_id(id);
        }
        if is_transient {
            self.leave_registry();
        }
        // Who waits for a job first: else who is in the monitor would hand its job on to them.
        self.gate.died(run);
        if let Some(machine) = &machine {
            machine.shut();
        }
        // What the manager's types do when they are dropped, they do without the lock.
        drop(object);
        drop(machine);
    }

    /// Kills the process, if there is one, and takes the domain from whoever holds a job of it.
    pub(super) fn destroy(&self, caller: Caller) -> io::Result<(Ticket, bool)> {
        let mut object = self.object();
        let state = object.state_mut();
        if let Some(machine) = &state.machine {
            machine.process.kill()?;
            state.destroyed = true;
        }
        let ticket = self.gate.seize(caller);
        // Who is in the monitor has lost the job, and hands it on to nobody.
        if let Some(machine) = &state.machine {
            machine.shut();
        }
        Ok((ticket, object.is_active()))
    }

    /// Kills the process, if there is one: its driver has gone.
    pub(super) fn kill(&self) {
        let mut object = self.object();
        let state = object.state_mut();
        if let Some(machine) = &state.machine {
            // What cannot be killed is nobody's any more.
            state.destroyed = machine.process.kill().is_ok();
        }
    }

    /// Is not found any more.
    pub(super) fn leave_registry(&self) {
        let driver = self.driver.upgrade();
        if driver.is_some_and(|driver| driver.registry.remove(self)) {
            let _last = self.references.unref();
        }
    }
}

impl<M: Model> fmt::Debug for Inner<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("name", &self.name)
            .field("uuid", &self.uuid)
            .finish_non_exhaustive()
    }
}
