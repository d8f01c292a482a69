//! Domains and their jobs: the threading rules of libvirt's QEMU driver, held by the compiler where it can, and by errors
//! where it cannot.
//!
//! A manager of virtual machines has many threads, machines that hang or die, and guests that lie. The rules are there so
//! that
//!
//! - nothing is locked for any length of time: a domain's state is, for as long as one looks at it;
//! - everything that waits can time out, and says for whom it waited;
//! - a machine may die at any moment, and whoever has to do with it learns it at once.
//!
//! # What there is
//!
//! A [`Driver`] has [`Domain`]s, found by name, uuid or number without waiting for anybody who adds or removes one. A
//! domain's [`State`] has a persistent definition, and while the machine runs a live one, which is freed when it dies. Its
//! types are the manager's own: a [`Model`].
//!
//! Who wants to do something needs a job, of which a domain has three conditions:
//!
//! | | excludes | is refused by | may |
//! |---|---|---|---|
//! | [`Domain::begin_query`]: a [`QueryJob`] | other normal jobs | the async job's mask | enter the monitor |
//! | [`Domain::begin_job`]: a [`Job`] | other normal jobs | the async job's mask | change the state, enter the monitor |
//! | [`Domain::begin_agent_job`]: an [`AgentJob`] | other agent jobs | nothing | change the state, enter the agent |
//! | [`Domain::begin_async_job`]: an [`AsyncJob`] | other async jobs; begins when no normal job is held | nothing | change the state, set its mask, sleep, begin a nested job |
//! | [`AsyncJob::begin_nested`]: a [`NestedJob`] | other normal jobs | nothing | change the state, enter the monitor |
//! | [`Domain::destroy`]: a [`DestroyJob`] | takes all of them away | nothing | wait for the end |
//!
//! Jobs are handed from one to the next in the order in which they were asked for. Only an abort overtakes, and of those
//! whom an async job's mask refuses nobody stands in another's way. An agent that does not answer delays those who want an
//! agent job, and nobody else.
//!
//! # Design patterns
//!
//! ## Accessing something directly to do with a domain
//!
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (driver, _domain, _lifeline) = running();
//! let domain = driver.find_by_name("guest").ok_or("no such domain")?;
//! let memory = domain.object().definition().map(|definition| definition.memory_mib);
//! assert_eq!(memory, Some(512));
//! // The domain's reference goes with `domain`.
//! # Ok(())
//! # }
//! ```
//!
//! ## Updating something directly to do with a domain
//!
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! use captive::qemu::domain::{ModifyAccess, Modification};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (driver, _domain, _lifeline) = running();
//! let mut domain = driver.find_by_name("guest").ok_or("no such domain")?;
//! let mut job = domain.begin_job(Modification::Modify)?;
//! if let Some(definition) = job.object_mut()?.definition_mut() {
//!     definition.memory_mib = 1024;
//! }
//! // The job ends with `job`, on every path.
//! # Ok(())
//! # }
//! ```
//!
//! ## Invoking a monitor command on a domain
//!
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! use captive::qemu::domain::MonitorAccess;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (driver, _domain, _lifeline) = running();
//! let mut domain = driver.find_by_name("guest").ok_or("no such domain")?;
//! let mut job = domain.begin_query()?;
//! // While the job was waited for the domain may have died: this says so.
//! let monitor = job.enter_monitor()?;
//! let answer = monitor.ask();
//! // While the answer was waited for as well.
//! monitor.exit()?;
//! assert!(answer.is_ok());
//! # Ok(())
//! # }
//! ```
//!
//! ## Invoking an agent command on a domain
//!
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! use captive::qemu::domain::AgentJobKind;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (driver, _domain, _lifeline) = running();
//! let mut domain = driver.find_by_name("guest").ok_or("no such domain")?;
//! let mut job = domain.begin_agent_job(AgentJobKind::Query)?;
//! // Without an agent this is an error.
//! let agent = job.enter_agent()?;
//! let answer = agent.ask();
//! agent.exit()?;
//! assert!(answer.is_ok());
//! # Ok(())
//! # }
//! ```
//!
//! ## Running an asynchronous job
//!
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! use std::time::Duration;
//!
//! use captive::qemu::domain::{AsyncJobKind, JobKind, Mask, MonitorAccess};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (driver, _domain, _lifeline) = running();
//! let mut domain = driver.find_by_name("guest").ok_or("no such domain")?;
//! let mut save = domain.begin_async_job(AsyncJobKind::Save)?;
//! save.set_mask(Mask::default().and(JobKind::Suspend))?;
//!
//! save.set_phase("sending memory")?;
//! let mut step = save.begin_nested()?;
//! let monitor = step.enter_monitor()?;
//! // ... start it ...
//! monitor.exit()?;
//! drop(step);
//!
//! for done in 1..=3 {
//!     let mut step = save.begin_nested()?;
//!     let monitor = step.enter_monitor()?;
//!     // ... ask how far it is ...
//!     # let _ = monitor.ask();
//!     monitor.exit()?;
//!     drop(step);
//!     save.set_progress(done, 3)?;
//!     // Others have their turn. An abort, the domain's death and its destruction end the pause at once.
//!     save.pause(Duration::from_millis(1))?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! ## Coordinating with a remote server for migration
//!
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! use captive::qemu::domain::AsyncJobKind;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (driver, _domain, _lifeline) = running();
//! let mut domain = driver.find_by_name("guest").ok_or("no such domain")?;
//! let mut migration = domain.begin_async_job(AsyncJobKind::MigrationOut)?;
//! let remote = migration.enter_remote()?;
//! // ... talk to the other host, for as long as it takes ...
//! // The domain may have died meanwhile.
//! remote.exit()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is held by types
//!
//! By one handle (each thread has its own), these do not compile. Each stands beside what does, one line apart.
//!
//! One job at a time:
//!
//! ```compile_fail,E0499
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let first = domain.begin_job(Modification::Modify);
//! let second = domain.begin_query();
//! drop(first);
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let first = domain.begin_job(Modification::Modify);
//! drop(first);
//! let second = domain.begin_query();
//! ```
//!
//! No agent job beside a normal one:
//!
//! ```compile_fail,E0499
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let normal = domain.begin_query();
//! let agent = domain.begin_agent_job(AgentJobKind::Query);
//! drop(normal);
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let normal = domain.begin_query();
//! drop(normal);
//! let agent = domain.begin_agent_job(AgentJobKind::Query);
//! ```
//!
//! No nested job beside an agent job of the same async job:
//!
//! ```compile_fail,E0499
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let mut snapshot = domain.begin_async_job(AsyncJobKind::Snapshot).unwrap();
//! let freeze = snapshot.begin_agent_job(AgentJobKind::Modify);
//! let step = snapshot.begin_nested();
//! drop(freeze);
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let mut snapshot = domain.begin_async_job(AsyncJobKind::Snapshot).unwrap();
//! let freeze = snapshot.begin_agent_job(AgentJobKind::Modify);
//! drop(freeze);
//! let step = snapshot.begin_nested();
//! ```
//!
//! Nobody waits for a job with the state locked:
//!
//! ```compile_fail,E0502
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let object = domain.object();
//! let job = domain.begin_query();
//! drop(object);
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let object = domain.object();
//! drop(object);
//! let job = domain.begin_query();
//! ```
//!
//! The state is not touched from within the monitor:
//!
//! ```compile_fail,E0499
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! # let mut job = domain.begin_query().unwrap();
//! let monitor = job.enter_monitor().unwrap();
//! let is_active = job.object().is_active();
//! monitor.exit().unwrap();
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! # let mut job = domain.begin_query().unwrap();
//! let monitor = job.enter_monitor().unwrap();
//! monitor.exit().unwrap();
//! let is_active = job.object().is_active();
//! ```
//!
//! Nor while a remote host is asked:
//!
//! ```compile_fail,E0499
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! # let mut migration = domain.begin_async_job(AsyncJobKind::MigrationOut).unwrap();
//! let remote = migration.enter_remote().unwrap();
//! let is_active = migration.object().is_active();
//! remote.exit().unwrap();
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! # let mut migration = domain.begin_async_job(AsyncJobKind::MigrationOut).unwrap();
//! let remote = migration.enter_remote().unwrap();
//! remote.exit().unwrap();
//! let is_active = migration.object().is_active();
//! ```
//!
//! The monitor is reached through a job only, an async one's through a nested job:
//!
//! ```compile_fail,E0599
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
//! let monitor = save.enter_monitor();
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
//! let mut step = save.begin_nested().unwrap();
//! let monitor = step.enter_monitor();
//! ```
//!
//! The state is changed by who has a job, and not by one that only looks:
//!
//! ```compile_fail,E0599
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let mut job = domain.begin_query().unwrap();
//! job.object_mut().unwrap().definition_mut().unwrap().memory_mib = 1024;
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let mut job = domain.begin_job(Modification::Modify).unwrap();
//! job.object_mut().unwrap().definition_mut().unwrap().memory_mib = 1024;
//! ```
//!
//! A destroy that does not kill is no destroy:
//!
//! ```compile_fail,E0308
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let job = domain.begin_job(JobKind::Destroy);
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! let job = domain.destroy();
//! ```
//!
//! A job may be sent to another thread, who is in the monitor may not:
//!
//! ```compile_fail,E0277
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! # let mut job = domain.begin_query().unwrap();
//! std::thread::scope(|scope| {
//!     let monitor = job.enter_monitor().unwrap();
//!     scope.spawn(move || monitor.exit());
//! });
//! ```
//! ```
//! # mod guests { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/qemu/guests.rs")); }
//! # use guests::*;
//! # use captive::qemu::domain::*;
//! # let (driver, mut domain, _lifeline) = running();
//! # let mut job = domain.begin_query().unwrap();
//! std::thread::scope(|scope| {
//!     scope.spawn(move || job.enter_monitor().map(|monitor| monitor.exit()).is_ok());
//! });
//! ```
//!
//! # What is held by errors
//!
//! Across several handles of one thread no compiler sees it; the thread would wait for itself, and is told so instead:
//! [`JobError::OwnJob`], [`JobError::AgentAndNormal`], [`JobError::ObjectLocked`], [`EnterError::ObjectLocked`]. That the
//! machine has died, or was destroyed and the job taken away, is said at every step: [`EnterError`], [`Died`],
//! [`Revoked`], [`Interrupted`].
//!
//! # What is not promised
//!
//! - A guard that is forgotten ([`std::mem::forget`]) keeps its job until the domain is destroyed. Everybody else has a
//!   deadline.
//! - Destroy takes jobs away from those who hold them. They cannot touch the domain any more; what they do outside it, a
//!   file that they write, they may still do, beside who comes next.
//! - A manager that keeps a state locked while it sleeps keeps everybody from that domain. Methods of this crate refuse to
//!   wait in such a thread; others' cannot know.
//! - Jobs are of one process: nothing of them survives it.

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
    CameUpError, DefineError, DestroyError, Died, EnterError, Holder, Holders, Interrupted,
    JobError, Revoked,
};
pub use handle::{Domain, Jobs, Wait};
pub use job::{
    AgentJobKind, AsyncJobKind, Counts, HeldKind, JobKind, Mask, Modification, Progress,
};
pub use jobs::{
    AgentJob, AsyncJob, DestroyJob, InAgent, InMonitor, Job, ModifyAccess, MonitorAccess,
    NestedJob, QueryJob,
};
pub use lifeline::Lifeline;
pub use model::{Channel, Machine, Model, Process, Reason};
pub use object::{Object, ObjectMut, State};
