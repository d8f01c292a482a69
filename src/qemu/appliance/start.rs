//! A domain's machine: started by an async job, ended in order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::ApplianceError;
use super::launch::Appliance;
use super::running::Running;
use super::stop::{StopPlan, Stoppable, StoppedBy};
use crate::qemu::domain::{
    AsyncJob, Domain, Interrupted, JobError, Machine, Model, Modification, MonitorAccess, Process,
    Wait,
};
use crate::qemu::monitor::{Agent, Qmp, QmpEvents};

/// A [`Model`] whose monitor and agent are this crate's.
pub trait Machines: Model<Monitor = Qmp, Agent = Agent> {}

impl<M: Model<Monitor = Qmp, Agent = Agent>> Machines for M {}

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

/// What keeps a QEMU alive, and ends it: the domain's.
struct Held(Running);

impl Process for Held {
    fn kill(&self) -> std::io::Result<()> {
        Process::kill(&**self.0.captive())
    }

    fn terminate(&self) -> std::io::Result<()> {
        Process::terminate(&**self.0.captive())
    }
}

impl Appliance {
    /// Starts a domain's machine, as the steps of the async job that starts it, and has the domain told of its end. What
    /// comes back are its events.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing of it is left.
    pub fn start<M: Machines>(
        self,
        job: &mut AsyncJob<'_, M>,
        definition: M::Definition,
        live: M::Live,
    ) -> Result<Option<QmpEvents>, StartError> {
        job.proceed().map_err(StartError::Interrupted)?;
        // Destroyed or aborted meanwhile: that is seen when it has come up, within QEMU's own deadline.
        let _ = job.set_phase("launching");
        let mut running = self.spawn().map_err(StartError::Appliance)?;
        job.proceed().map_err(StartError::Interrupted)?;
        let events = running.take_events();
        let (monitor, agent) = (running.qmp().clone(), running.agent().cloned());
        let process = Arc::new(Held(running));
        let machine = Machine {
            definition,
            live,
            monitor,
            agent,
            process: process.clone(),
        };
        let lifeline = job
            .came_up(machine)
            .map_err(|error| StartError::Job(error.cause))?;
        process.0.at_end(move |reason| lifeline.died(reason));
        Ok(events)
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
