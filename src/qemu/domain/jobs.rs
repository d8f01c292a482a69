//! The jobs as values: what may be done while one is held, and only then.

use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use super::Domain;
use super::claim::{Claim, Inside, Remote};
use super::error::{CameUpError, EnterError, Interrupted, JobError, Revoked};
use super::gate::Caller;
use super::job::core::Want;
use super::job::{AgentJobKind, AsyncJobKind, Mask, Progress};
use super::lifeline::Lifeline;
use super::model::{Machine, Model};
use super::object::{Object, ObjectMut, is_locked_here};
use crate::qemu::deadline::deadline;

/// In the monitor.
pub type InMonitor<'j, M> = Inside<'j, M, <M as Model>::Monitor>;

/// In the agent.
pub type InAgent<'j, M> = Inside<'j, M, <M as Model>::Agent>;

/// A job by which the monitor can be reached: a normal job, or a nested job of an async one. What is written for this
/// is written once for both.
pub trait MonitorAccess<M: Model> {
    /// The domain's state, to be read.
    fn object(&mut self) -> Object<'_, M>;

    /// Enters the monitor. The job is this thread's from now on.
    ///
    /// # Errors
    ///
    /// The domain does not run, or was destroyed and the job taken away; or this thread has locked a state.
    fn enter_monitor(&mut self) -> Result<InMonitor<'_, M>, EnterError>;
}

/// A [`MonitorAccess`] that may also change the domain's state.
pub trait ModifyAccess<M: Model>: MonitorAccess<M> {
    /// The domain's state, to be changed.
    ///
    /// # Errors
    ///
    /// The job was taken away.
    fn object_mut(&mut self) -> Result<ObjectMut<'_, M>, Revoked>;
}

/// A normal job that only looks.
#[must_use = "it ends when it is dropped"]
pub struct QueryJob<'d, M: Model>(pub(super) Claim<'d, M>);

/// A normal job.
#[must_use = "it ends when it is dropped"]
pub struct Job<'d, M: Model>(pub(super) Claim<'d, M>);

/// A step of an async job: a normal job, which no mask refuses.
#[must_use = "it ends when it is dropped"]
pub struct NestedJob<'j, M: Model>(Claim<'j, M>);

/// The job of who has destroyed the domain.
#[must_use = "it ends when it is dropped"]
pub struct DestroyJob<'d, M: Model> {
    pub(super) claim: Claim<'d, M>,
    pub(super) was_active: bool,
}

/// An agent job.
#[must_use = "it ends when it is dropped"]
pub struct AgentJob<'d, M: Model>(pub(super) Claim<'d, M>);

/// An async job: a long work in steps, beside which normal jobs may run as its mask says.
#[must_use = "it ends when it is dropped"]
pub struct AsyncJob<'d, M: Model> {
    pub(super) claim: Claim<'d, M>,
    pub(super) domain: &'d Domain<M>,
    pub(super) kind: AsyncJobKind,
}

macro_rules! adopt {
    ($($of:tt)+) => {
        /// Says that the job is this thread's from now on: it was begun by another, which sent it here. Entering the
        /// monitor says so as well.
        pub fn adopt(&self) {
            self.$($of)+.adopt();
        }
    };
}

macro_rules! debug {
    ($($job:ident $of:tt)+) => {
        $(impl<M: Model> fmt::Debug for $job<'_, M> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($job)).field(&self.$of).finish()
            }
        })+
    };
}

debug!(QueryJob 0 Job 0 NestedJob 0 DestroyJob claim AgentJob 0 AsyncJob claim);

macro_rules! monitor_access {
    ($($job:ident)+) => {
        $(impl<M: Model> MonitorAccess<M> for $job<'_, M> {
            fn object(&mut self) -> Object<'_, M> {
                self.0.object()
            }

            fn enter_monitor(&mut self) -> Result<InMonitor<'_, M>, EnterError> {
                self.0.enter(|machine| Some(machine.monitor.clone()))
            }
        })+
    };
}

macro_rules! modify_access {
    ($($job:ident)+) => {
        $(impl<M: Model> ModifyAccess<M> for $job<'_, M> {
            fn object_mut(&mut self) -> Result<ObjectMut<'_, M>, Revoked> {
                self.0.object_mut()
            }
        })+
    };
}

monitor_access!(QueryJob Job NestedJob);
modify_access!(Job NestedJob);

impl<M: Model> QueryJob<'_, M> {
    adopt!(0);
}

impl<M: Model> Job<'_, M> {
    adopt!(0);

    /// Takes away what the domain will be at its next start: it goes with its machine, or now if that does not run.
    ///
    /// # Errors
    ///
    /// The job was taken away.
    pub fn undefine(self) -> Result<(), Revoked> {
        let mut object = self.0.object_mut()?;
        object.take_persistent();
        let stays = object.is_active();
        drop(object);
        if !stays {
            self.0.inner.leave_registry();
        }
        Ok(())
    }
}

impl<M: Model> NestedJob<'_, M> {
    adopt!(0);
}

impl<M: Model> AgentJob<'_, M> {
    adopt!(0);

    /// The domain's state, to be read.
    pub fn object(&mut self) -> Object<'_, M> {
        self.0.object()
    }

    /// The domain's state, to be changed.
    ///
    /// # Errors
    ///
    /// The job was taken away.
    pub fn object_mut(&mut self) -> Result<ObjectMut<'_, M>, Revoked> {
        self.0.object_mut()
    }

    /// Enters the agent. The job is this thread's from now on.
    ///
    /// # Errors
    ///
    /// There is none, the domain does not run, or was destroyed and the job taken away; or this thread has locked a
    /// state.
    pub fn enter_agent(&mut self) -> Result<InAgent<'_, M>, EnterError> {
        self.0.enter(|machine| machine.agent.clone())
    }
}

impl<M: Model> DestroyJob<'_, M> {
    adopt!(claim);

    /// Whether it ran.
    pub fn was_active(&self) -> bool {
        self.was_active
    }

    /// Waits until the machine is gone, and the persistent definition back in its place. False: not within `limit`; a
    /// process that the kernel cannot end yet (state D) is such a one.
    pub fn wait(&mut self, limit: Duration) -> bool {
        self.claim
            .inner
            .gate
            .wait_death(deadline(Instant::now(), limit))
    }

    /// The domain's state, to be changed.
    ///
    /// # Errors
    ///
    /// Another destroy has taken the job.
    pub fn object_mut(&mut self) -> Result<ObjectMut<'_, M>, Revoked> {
        self.claim.object_mut()
    }
}

impl<M: Model> AsyncJob<'_, M> {
    adopt!(claim);

    /// What it does.
    pub fn kind(&self) -> AsyncJobKind {
        self.kind
    }

    /// The domain's state, to be read.
    pub fn object(&mut self) -> Object<'_, M> {
        self.claim.object()
    }

    /// The domain's state, to be changed.
    ///
    /// # Errors
    ///
    /// The job was taken away.
    pub fn object_mut(&mut self) -> Result<ObjectMut<'_, M>, Revoked> {
        self.claim.object_mut()
    }

    /// Which normal jobs may run beside it from now on; what the new mask allows is let in at once. Those that run keep
    /// running.
    ///
    /// # Errors
    ///
    /// The job was taken away.
    pub fn set_mask(&mut self, mask: Mask) -> Result<(), Revoked> {
        let gate = &self.claim.inner.gate;
        gate.set_mask(self.claim.ticket, mask)
            .then_some(())
            .ok_or(Revoked)
    }

    /// Says what it does now, to those who wait for it.
    ///
    /// # Errors
    ///
    /// The job was taken away.
    pub fn set_phase(&mut self, phase: &'static str) -> Result<(), Revoked> {
        let mut core = self.claim.inner.gate.look();
        core.set_phase(self.claim.ticket, phase)
            .then_some(())
            .ok_or(Revoked)
    }

    /// Says how far it is.
    ///
    /// # Errors
    ///
    /// The job was taken away.
    pub fn set_progress(&mut self, done: u64, total: u64) -> Result<(), Revoked> {
        let mut core = self.claim.inner.gate.look();
        core.set_progress(self.claim.ticket, Progress { done, total })
            .then_some(())
            .ok_or(Revoked)
    }

    /// Whether it is to go on.
    ///
    /// # Errors
    ///
    /// It is to be aborted, the domain died, or was destroyed and the job taken away.
    pub fn proceed(&self) -> Result<(), Interrupted> {
        let interruption = self.claim.inner.gate.look().interruption(self.claim.ticket);
        self.uninterrupted(interruption)
    }

    /// Sleeps between two steps.
    ///
    /// # Errors
    ///
    /// As [`proceed`](Self::proceed), at once when it happens; or this thread has locked a state.
    pub fn pause(&mut self, time: Duration) -> Result<(), Interrupted> {
        if is_locked_here() {
            return Err(Interrupted::ObjectLocked);
        }
        let gate = &self.claim.inner.gate;
        let interruption = gate.pause(self.claim.ticket, deadline(Instant::now(), time));
        self.uninterrupted(interruption)
    }

    fn uninterrupted(
        &self,
        interruption: Option<super::job::core::Interruption>,
    ) -> Result<(), Interrupted> {
        match interruption {
            None => Ok(()),
            Some(what) => Err(Interrupted::new(what, || self.claim.inner.death().reason)),
        }
    }

    /// Begins a step: a nested job, by which the monitor can be reached. Waits for the normal job that is held.
    ///
    /// # Errors
    ///
    /// [`JobError`].
    #[track_caller]
    pub fn begin_nested(&mut self) -> Result<NestedJob<'_, M>, JobError> {
        self.domain
            .begin(Want::Nested(self.claim.ticket), Caller::here())
            .map(NestedJob)
    }

    /// Begins a step that is the agent's, as freezing the guest's file systems before a snapshot. No nested job can be
    /// had meanwhile.
    ///
    /// # Errors
    ///
    /// [`JobError`].
    #[track_caller]
    pub fn begin_agent_job(&mut self, kind: AgentJobKind) -> Result<AgentJob<'_, M>, JobError> {
        self.domain
            .begin(Want::Agent(kind), Caller::here())
            .map(AgentJob)
    }

    /// Keeps the job while something elsewhere is asked, another host perhaps. The state cannot be touched meanwhile.
    ///
    /// # Errors
    ///
    /// As [`proceed`](Self::proceed).
    pub fn enter_remote(&mut self) -> Result<Remote<'_, M>, Interrupted> {
        if is_locked_here() {
            return Err(Interrupted::ObjectLocked);
        }
        self.proceed()?;
        Ok(Remote {
            inner: self.claim.inner,
            run: self.claim.inner.gate.look().run(),
            _job: PhantomData,
        })
    }

    /// The machine runs: the domain is active from now on, and has a number. What comes back must be told of its end.
    ///
    /// # Errors
    ///
    /// This is no job that starts a domain, it was taken away (the domain was destroyed while it started), or this thread has
    /// locked a state. The machine comes back, for the caller to end.
    #[allow(clippy::result_large_err, reason = "the machine comes back")]
    pub fn came_up(&mut self, machine: Machine<M>) -> Result<Lifeline<M>, CameUpError<M>> {
        self.domain.came_up(self.claim.ticket, self.kind, machine)
    }
}
