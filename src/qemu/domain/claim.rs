//! What every job guard is: a ticket that is given up when the guard goes.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use super::error::{Died, EnterError, Revoked};
use super::inner::Inner;
use super::job::core::{Run, Ticket};
use super::model::Model;
use super::object::{Object, ObjectMut, is_locked_here};

/// A held job of a domain. Its end is that of the guard, on every path.
pub(super) struct Claim<'d, M: Model> {
    pub(super) inner: &'d Inner<M>,
    pub(super) ticket: Ticket,
}

impl<M: Model> Claim<'_, M> {
    pub(super) fn object(&self) -> Object<'_, M> {
        self.inner.object()
    }

    pub(super) fn object_mut(&self) -> Result<ObjectMut<'_, M>, Revoked> {
        let object = self.inner.object();
        // Under the object's lock: who takes the job away afterwards comes after this change.
        if self.inner.gate.look().holds(self.ticket) {
            Ok(ObjectMut::new(object))
        } else {
            Err(Revoked)
        }
    }

    pub(super) fn adopt(&self) {
        let _ = self.inner.gate.move_here(self.ticket);
    }

    /// The run to talk to, and what `choose` takes of the machine; the job is this thread's from now on.
    pub(super) fn enter<T>(
        &self,
        choose: impl FnOnce(&super::Machine<M>) -> Option<Arc<T>>,
    ) -> Result<Inside<'_, M, T>, EnterError> {
        if is_locked_here() {
            return Err(EnterError::ObjectLocked);
        }
        let object = self.inner.object();
        let held = self.inner.gate.move_here(self.ticket);
        let run = held.ok_or(EnterError::Revoked)?.run();
        let (Some(machine), Some(run)) = (&object.machine, run) else {
            return Err(EnterError::Inactive(object.reason().clone()));
        };
        let channel = choose(machine).ok_or(EnterError::AgentUnavailable)?;
        Ok(Inside {
            inner: self.inner,
            run,
            channel,
            _here: PhantomData,
        })
    }
}

impl<M: Model> Drop for Claim<'_, M> {
    fn drop(&mut self) {
        self.inner.gate.end(self.ticket);
    }
}

impl<M: Model> fmt::Debug for Claim<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("domain", &self.inner.name)
            .finish_non_exhaustive()
    }
}

/// In the monitor or the agent: what may wait for an answer. The domain's state is not locked, and cannot be touched
/// by the job that is in here.
///
/// Stays in its thread. Leaving it ([`exit`](Self::exit), or a drop) is what says whether the domain still lives.
pub struct Inside<'j, M: Model, T> {
    inner: &'j Inner<M>,
    run: Run,
    channel: Arc<T>,
    _here: PhantomData<(&'j mut (), *const ())>,
}

impl<M: Model, T> Inside<'_, M, T> {
    /// Leaves.
    ///
    /// # Errors
    ///
    /// The domain died meanwhile: what is in hand of its state is of the past.
    pub fn exit(self) -> Result<(), Died> {
        self.inner.lives(self.run)
    }
}

impl<M: Model, T> Deref for Inside<'_, M, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.channel
    }
}

impl<M: Model, T> fmt::Debug for Inside<'_, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside")
            .field("domain", &self.inner.name)
            .finish_non_exhaustive()
    }
}

/// In a remote call, whose answer may take long: the job is kept, the state unlocked.
pub struct Remote<'j, M: Model> {
    pub(super) inner: &'j Inner<M>,
    pub(super) run: Option<Run>,
    pub(super) _job: PhantomData<&'j mut ()>,
}

impl<M: Model> Remote<'_, M> {
    /// Comes back from it.
    ///
    /// # Errors
    ///
    /// The domain died meanwhile, or did not run before.
    pub fn exit(self) -> Result<(), Died> {
        match self.run {
            Some(run) => self.inner.lives(run),
            None => Err(self.inner.death()),
        }
    }
}

impl<M: Model> fmt::Debug for Remote<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("domain", &self.inner.name)
            .finish_non_exhaustive()
    }
}
