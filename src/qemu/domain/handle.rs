//! A handle to a domain.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::claim::Claim;
use super::error::{CameUpError, DestroyError, Holders, JobError};
use super::gate::Caller;
use super::inner::Inner;
use super::job::core::{Request, Ticket, Want};
use super::job::{AgentJobKind, AsyncJobKind, Counts, JobKind, Mask, Modification, Progress};
use super::jobs::{AgentJob, AsyncJob, DestroyJob, Job, QueryJob};
use super::lifeline::Lifeline;
use super::model::{Machine, Model};
use super::object::{Object, is_locked_here};
use crate::qemu::deadline::deadline;

/// For how long a handle waits for jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: what cannot be had at once is [`JobError::Busy`].
    No,
    /// So long.
    AtMost(Duration),
}

/// A counted reference to a domain. One handle holds one job at a time, which the borrow checker sees to; each thread
/// has its own.
pub struct Domain<M: Model> {
    pub(super) inner: Arc<Inner<M>>,
    pub(super) wait: Wait,
}

/// Who holds a domain's jobs, and what has become of those before: told without a job, to who only watches.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Jobs {
    /// Who holds what.
    pub held_by: Holders,
    /// How many wait that [`Limits::queue`](super::Limits::queue) counts.
    pub waiting: usize,
    /// How far the async job is.
    pub progress: Option<Progress>,
    /// What may run beside it.
    pub mask: Option<Mask>,
    /// What has been so far.
    pub counts: Counts,
}

impl<M: Model> Domain<M> {
    /// Whose reference has been taken.
    pub(super) fn new(inner: Arc<Inner<M>>, wait: Duration) -> Self {
        Self {
            inner,
            wait: Wait::AtMost(wait),
        }
    }

    /// The same, waiting for jobs in another way.
    #[must_use]
    pub fn waiting(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Its name, which never changes.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its uuid, which never changes.
    pub fn uuid(&self) -> &Uuid {
        &self.inner.uuid
    }

    /// Its state, locked, to be read.
    ///
    /// A thread that locks the state of one domain twice, by two handles, waits for itself: as with any lock.
    pub fn object(&self) -> Object<'_, M> {
        self.inner.object()
    }

    /// Begins a normal job that only looks. Waits for the normal job that is held.
    ///
    /// # Errors
    ///
    /// [`JobError`].
    #[track_caller]
    pub fn begin_query(&mut self) -> Result<QueryJob<'_, M>, JobError> {
        self.begin(Want::Normal(JobKind::Query), Caller::here())
            .map(QueryJob)
    }

    /// Begins a normal job. Waits for the normal job that is held, and for the async job if its mask refuses this kind.
    ///
    /// The domain need not run: [`enter_monitor`](super::MonitorAccess::enter_monitor) says whether it does.
    ///
    /// # Errors
    ///
    /// [`JobError`].
    #[doc(alias = "qemuDomainObjBeginJob")]
    #[track_caller]
    pub fn begin_job(&mut self, kind: Modification) -> Result<Job<'_, M>, JobError> {
        self.begin(Want::Normal(kind.into()), Caller::here())
            .map(Job)
    }

    /// Begins an agent job of a domain that runs. Waits for the agent job that is held, and for nothing else.
    ///
    /// # Errors
    ///
    /// [`JobError`].
    #[doc(alias = "qemuDomainObjBeginAgentJob")]
    #[track_caller]
    pub fn begin_agent_job(&mut self, kind: AgentJobKind) -> Result<AgentJob<'_, M>, JobError> {
        self.begin(Want::Agent(kind), Caller::here()).map(AgentJob)
    }

    /// Begins an async job. Waits for the async job and the normal job that are held.
    ///
    /// # Errors
    ///
    /// [`JobError`]. What starts a domain is refused if that runs, everything else if it does not.
    #[doc(alias = "qemuDomainObjBeginAsyncJob")]
    #[track_caller]
    pub fn begin_async_job(&mut self, kind: AsyncJobKind) -> Result<AsyncJob<'_, M>, JobError> {
        let domain = &*self;
        let claim = domain.begin(Want::Async(kind), Caller::here())?;
        // Another may have started it while this one waited.
        if kind.brings_up() && domain.inner.gate.look().run().is_some() {
            return Err(JobError::Active);
        }
        Ok(AsyncJob {
            claim,
            domain,
            kind,
        })
    }

    /// Destroys it: kills its process, fails every call that waits for its monitor or agent, and takes the jobs away from
    /// whoever has them. Nobody is waited for, not for the process either: [`DestroyJob::wait`].
    ///
    /// What does not run loses its jobs all the same: those of a guard that was forgotten, and an async job that starts
    /// it, which finds that out and ends the machine.
    ///
    /// # Errors
    ///
    /// [`DestroyError`].
    #[track_caller]
    pub fn destroy(&mut self) -> Result<DestroyJob<'_, M>, DestroyError> {
        if is_locked_here() {
            return Err(DestroyError::ObjectLocked);
        }
        let kill = |source| DestroyError::Kill {
            name: self.inner.name.clone(),
            source,
        };
        let (ticket, was_active) = self.inner.destroy(Caller::here()).map_err(kill)?;
        Ok(DestroyJob {
            claim: self.claim(ticket),
            was_active,
        })
    }

    /// Sends SIGTERM to its process, without a job: a QEMU ends in order, when it gets to it. Nothing if it does not run.
    ///
    /// # Errors
    ///
    /// It cannot be signalled.
    pub fn terminate(&self) -> io::Result<()> {
        match &self.inner.object().machine {
            Some(machine) => machine.process.terminate(),
            None => Ok(()),
        }
    }

    /// Asks the async job to end, without a job and without waiting: which it is, if there is one. It learns so at its
    /// next [`pause`](AsyncJob::pause) or [`proceed`](AsyncJob::proceed). What it has begun in the machine is cancelled by it,
    /// or by who begins a [`Modification::Abort`] job.
    pub fn abort_async_job(&self) -> Option<AsyncJobKind> {
        self.inner.gate.abort_async()
    }

    /// Waits until it does not run. False: not within `limit`, or this thread has locked the state of a domain.
    pub fn wait_inactive(&self, limit: Duration) -> bool {
        !is_locked_here() && self.inner.gate.wait_death(deadline(Instant::now(), limit))
    }

    /// Who holds its jobs, and what has been.
    pub fn jobs(&self) -> Jobs {
        let core = self.inner.gate.look();
        Jobs {
            held_by: Holders::new(&core.holders(), Instant::now()),
            waiting: core.waiting(),
            progress: core.progress(),
            mask: core.mask(),
            counts: core.counts(),
        }
    }

    /// What was last measured, if anything was. Never waits: neither for a job nor for a lock.
    pub fn statistics(&self) -> Option<Arc<M::Statistics>> {
        self.inner.statistics.load().clone()
    }

    /// Publishes what has been measured.
    pub fn publish_statistics(&self, statistics: M::Statistics) {
        self.inner.statistics.store(Some(Arc::new(statistics)));
    }

    fn claim(&self, ticket: Ticket) -> Claim<'_, M> {
        Claim {
            inner: &self.inner,
            ticket,
        }
    }

    pub(super) fn begin(&self, want: Want, owner: Caller) -> Result<Claim<'_, M>, JobError> {
        if is_locked_here() {
            return Err(JobError::ObjectLocked);
        }
        let now = Instant::now();
        let until = match self.wait {
            Wait::No => now,
            Wait::AtMost(limit) => deadline(now, limit),
        };
        let request = Request { want, owner, until };
        match self.inner.gate.begin(request, now) {
            Ok(ticket) => Ok(self.claim(ticket)),
            Err(refusal) => {
                let reason = || self.inner.death().reason;
                Err(JobError::new(&refusal, reason, now))
            }
        }
    }

    #[allow(clippy::result_large_err, reason = "the machine comes back")]
    pub(super) fn came_up(
        &self,
        ticket: Ticket,
        kind: AsyncJobKind,
        machine: Machine<M>,
    ) -> Result<Lifeline<M>, CameUpError<M>> {
        let refuse = |machine, cause| CameUpError { machine, cause };
        if !kind.brings_up() {
            return Err(refuse(machine, JobError::NotAStart(kind)));
        }
        if is_locked_here() {
            return Err(refuse(machine, JobError::ObjectLocked));
        }
        let Some(driver) = self.inner.driver.upgrade() else {
            return Err(refuse(machine, JobError::Revoked));
        };
        let id = driver.next_id();
        let run = match self.inner.came_up(ticket, id, machine) {
            Ok(run) => run,
            Err(machine) if self.inner.gate.look().run().is_some() => {
                return Err(refuse(machine, JobError::Active));
            }
            Err(machine) => return Err(refuse(machine, JobError::Revoked)),
        };
        driver.registry.add_id(id, &self.inner);
        Ok(Lifeline {
            domain: self.clone(),
            run,
            told: false,
        })
    }
}

impl<M: Model> Clone for Domain<M> {
    fn clone(&self) -> Self {
        // There is one: this handle's.
        let _taken = self.inner.references.try_ref();
        Self {
            inner: self.inner.clone(),
            wait: self.wait,
        }
    }
}

impl<M: Model> Drop for Domain<M> {
    fn drop(&mut self) {
        let _last = self.inner.references.unref();
    }
}

/// The same domain, by whatever handle.
impl<M: Model> PartialEq for Domain<M> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl<M: Model> Eq for Domain<M> {}

impl<M: Model> fmt::Debug for Domain<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("name", &self.inner.name)
            .field("uuid", &self.inner.uuid)
            .finish_non_exhaustive()
    }
}
