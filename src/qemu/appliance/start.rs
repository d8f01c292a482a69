//! A domain's machine: started by an async job, ended in order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::ApplianceError;
use super::launch::Appliance;
use super::log::Log;
use super::stop::{StopPlan, Stoppable, StoppedBy};
use crate::Captive;
use crate::qemu::domain::{
    AsyncJob, Domain, Interrupted, JobError, Machine, Model, Modification, MonitorAccess, Process,
    Wait,
};
use crate::qemu::monitor::{Agent, Qmp, QmpEvents};

/// A [`Model`] whose monitor and agent are this crate's.
pub trait Machines: Model<Monitor = Qmp, Agent = Agent> {}

impl<M: Model<Monitor = Qmp, Agent = Agent>> Machines for M {}

/// What is known of a domain's machine that has been started, beside the domain.
#[derive(Debug)]
#[non_exhaustive]
pub struct Started {
    /// Its pid, while it runs.
    pub pid: u32,
    /// Its events. For a worker that takes jobs to do what they ask for; who drops them has none.
    pub events: QmpEvents,
    /// The end of what it writes.
    pub log: Log,
}

/// Why a domain was not started. Nothing of it is left.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// QEMU could not be started.
    Appliance(ApplianceError),
    /// The job was taken away meanwhile, is to be aborted, or starts nothing.
    Job(JobError),
    /// The job is not to go on.
    Interrupted(Interrupted),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Appliance(_) => "the domain's QEMU could not be started",
            Self::Job(_) | Self::Interrupted(_) => "the domain is not to be started",
        })
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Appliance(cause) => Some(cause),
            Self::Job(cause) => Some(cause),
            Self::Interrupted(cause) => Some(cause),
        }
    }
}

/// The domain's hold on its QEMU: without it that ends.
struct Held(Arc<Captive>);

impl Process for Held {
    fn kill(&self) -> std::io::Result<()> {
        Process::kill(&*self.0)
    }

    fn terminate(&self) -> std::io::Result<()> {
        Process::terminate(&*self.0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The watcher has a handle as well, so nobody else's drop does it.
        let _ = Process::kill(self);
    }
}

impl Appliance {
    /// Starts a domain's machine, as the steps of the async job that starts it, and has the domain told of its end.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing of it is left.
    pub fn start<M: Machines>(
        self,
        job: &mut AsyncJob<'_, M>,
        definition: M::Definition,
        live: M::Live,
    ) -> Result<Started, StartError> {
        job.proceed().map_err(StartError::Interrupted)?;
        // Destroyed or aborted meanwhile: that is seen when it has come up, within QEMU's own deadline.
        let _ = job.set_phase("launching");
        let (running, events) = self.launch().map_err(StartError::Appliance)?;
        job.proceed().map_err(StartError::Interrupted)?;
        let started = Started {
            pid: running.captive().id(),
            events,
            log: running.log().clone(),
        };
        let parts = running.into_parts();
        let machine = Machine {
            definition,
            live,
            monitor: parts.qmp,
            agent: parts.agent,
            process: Arc::new(Held(parts.captive)),
        };
        let lifeline = job
            .came_up(machine)
            .map_err(|error| StartError::Job(error.cause))?;
        parts.at_end.tell(move |reason| lifeline.died(reason));
        Ok(started)
    }
}

impl<M: Machines> Domain<M> {
    /// Ends its machine, as the plan says: with a job for each question, and none while it is waited for. The kill is a
    /// [`destroy`](Self::destroy).
    pub fn stop(&mut self, plan: &StopPlan) -> StoppedBy {
        plan.carry_out(&mut Stopping(self))
    }
}

struct Stopping<'a, M: Model>(&'a mut Domain<M>);

impl<M: Machines> Stoppable for Stopping<'_, M> {
    fn ask(&mut self, command: &str, limit: Duration) -> bool {
        let mut domain = self.0.clone().waiting(Wait::AtMost(limit));
        let Ok(mut job) = domain.begin_job(Modification::Modify) else {
            return false;
        };
        let Ok(monitor) = job.enter_monitor() else {
            return false;
        };
        let asked: Result<serde_json::Value, _> = monitor.execute_within(command, &(), limit);
        asked.is_ok()
    }

    fn terminate(&mut self) -> bool {
        self.0.terminate().is_ok()
    }

    fn kill(&mut self) {
        let _ = self.0.destroy();
    }

    fn wait(&mut self, limit: Duration) -> bool {
        self.0.wait_inactive(limit)
    }
}
