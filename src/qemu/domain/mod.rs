//! Domains and their jobs.

mod claim;
mod driver;
mod error;
mod gate;
mod handle;
mod inner;
mod job;
mod jobs;
mod lifeline;
mod model;
mod object;
mod primitive;
mod registry;

pub use claim::{Inside, Remote};
pub use driver::{Driver, Limits};
pub use error::{
    CameUpError, DefineError, DestroyError, Died, EnterError, HeldKind, Holder, Holders,
    Interrupted, JobError, Revoked,
};
pub use handle::{Domain, Jobs, Wait};
pub use job::{AgentJobKind, AsyncJobKind, Counts, JobKind, Mask, Modification, Progress};
pub use jobs::{
    AgentJob, AsyncJob, DestroyJob, InAgent, InMonitor, Job, ModifyAccess, MonitorAccess,
    NestedJob, QueryJob,
};
pub use lifeline::Lifeline;
pub use model::{Channel, Machine, Model, Process, Reason};
pub use object::{Object, ObjectMut, State};
