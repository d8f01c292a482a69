//! Why there is no job, or no use in having it.

use std::fmt;
use std::io;
use std::panic::Location;
use std::time::{Duration, Instant};

use super::gate::Caller;
use super::job::core::{self, Held, Interruption, Refusal};
use super::job::{AsyncJobKind, HeldKind};
use super::model::Reason;

/// A job that somebody holds.
#[derive(Debug, Clone)]
pub struct Holder {
    kind: HeldKind,
    owner: String,
    place: &'static Location<'static>,
    held: Duration,
}

impl Holder {
    pub(super) fn new(held: &Held<Caller>, now: Instant) -> Self {
        let thread = &held.owner.thread;
        let owner = match thread.name() {
            Some(name) => format!("thread {name}"),
            None => format!("{:?}", thread.id()),
        };
        Self {
            kind: held.kind,
            owner,
            place: held.owner.place,
            held: now.saturating_duration_since(held.since),
        }
    }

    /// Which job.
    pub fn kind(&self) -> HeldKind {
        self.kind
    }

    /// Who: the thread's name, or its id.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Where in the program it was begun.
    pub fn place(&self) -> &'static Location<'static> {
        self.place
    }

    /// For how long.
    pub fn held(&self) -> Duration {
        self.held
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            owner,
            place,
            held,
        } = self;
        write!(f, "{kind} of {owner}, from {place}, for {held:.1?}")
    }
}

/// All who hold a job of a domain.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Holders {
    /// The normal job, or the step of an async job.
    pub normal: Option<Holder>,
    /// The agent job.
    pub agent: Option<Holder>,
    /// The async job.
    pub r#async: Option<Holder>,
}

impl Holders {
    pub(super) fn new(holders: &core::Holders<Caller>, now: Instant) -> Self {
        let tell = |held: &Option<Held<Caller>>| held.as_ref().map(|held| Holder::new(held, now));
        Self {
            normal: tell(&holders.normal),
            agent: tell(&holders.agent),
            r#async: tell(&holders.r#async),
        }
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut held = [&self.normal, &self.r#async, &self.agent]
            .into_iter()
            .flatten();
        match held.next() {
            None => return f.write_str("nobody"),
            Some(holder) => holder.fmt(f)?,
        }
        held.try_for_each(|holder| write!(f, "; {holder}"))
    }
}

/// Why there is no job. Nothing has changed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum JobError {
    /// The deadline passed.
    Timeout {
        /// Who holds what was waited for.
        held_by: Box<Holders>,
        /// For how long it was waited.
        waited: Duration,
    },
    /// It would have to be waited for, and was not to be.
    Busy {
        /// Who holds it.
        held_by: Box<Holders>,
    },
    /// Too many wait already.
    QueueFull {
        /// How many may.
        limit: usize,
        /// Who holds what they wait for.
        held_by: Box<Holders>,
    },
    /// The domain does not run.
    Inactive(Reason),
    /// The domain runs already.
    Active,
    /// The domain died while the job was waited for.
    Died(Reason),
    /// This thread holds what it would wait for, by another handle.
    OwnJob(Holder),
    /// This thread holds a normal job and asks for an agent job, or the other way round. Who held both would let a
    /// guest that does not answer stop everybody.
    AgentAndNormal(Holder),
    /// This thread has locked the state of a domain, so it must not wait.
    ObjectLocked,
    /// The domain was destroyed meanwhile, and the async job taken away.
    Revoked,
    /// This async job does not start domains.
    NotAStart(AsyncJobKind),
}

impl JobError {
    pub(super) fn new(
        refusal: &Refusal<Caller>,
        reason: impl FnOnce() -> Reason,
        since: Instant,
    ) -> Self {
        let now = Instant::now();
        match refusal {
            Refusal::Timeout(holders) => Self::Timeout {
                held_by: Holders::new(holders, now).into(),
                waited: now.saturating_duration_since(since),
            },
            Refusal::Busy(holders) => Self::Busy {
                held_by: Holders::new(holders, now).into(),
            },
            Refusal::QueueFull(limit, holders) => Self::QueueFull {
                limit: *limit,
                held_by: Holders::new(holders, now).into(),
            },
            Refusal::Inactive => Self::Inactive(reason()),
            Refusal::Active => Self::Active,
            Refusal::Died => Self::Died(reason()),
            Refusal::OwnJob(held) => Self::OwnJob(Holder::new(held, now)),
            Refusal::AgentAndNormal(held) => Self::AgentAndNormal(Holder::new(held, now)),
            Refusal::Revoked => Self::Revoked,
        }
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { held_by, waited } => {
                write!(f, "no job within {waited:.1?}: held by {held_by}")
            }
            Self::Busy { held_by } => write!(f, "no job without waiting: held by {held_by}"),
            Self::QueueFull { limit, held_by } => {
                write!(f, "no job: {limit} wait already for {held_by}")
            }
            Self::Inactive(reason) => write!(f, "the domain does not run: {reason}"),
            Self::Active => f.write_str("the domain runs already"),
            Self::Died(reason) => write!(f, "the domain died: {reason}"),
            Self::OwnJob(holder) => write!(f, "no job: this thread holds it itself: {holder}"),
            Self::AgentAndNormal(holder) => {
                write!(f, "no agent job together with a normal one: {holder}")
            }
            Self::ObjectLocked => {
                f.write_str("no job: this thread has locked the state of a domain")
            }
            Self::Revoked => Revoked.fmt(f),
            Self::NotAStart(kind) => write!(f, "an async {kind} job starts no domain"),
        }
    }
}

impl std::error::Error for JobError {}

/// The job was taken away: the domain has been destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked;

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the domain has been destroyed, and the job taken away")
    }
}

impl std::error::Error for Revoked {}

/// Why the monitor, or the agent, cannot be talked to, though there is a job.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum EnterError {
    /// The domain does not run, any more perhaps.
    Inactive(Reason),
    /// There is no agent.
    AgentUnavailable,
    /// The job was taken away.
    Revoked,
    /// This thread has locked the state of a domain.
    ObjectLocked,
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inactive(reason) => write!(f, "the domain does not run: {reason}"),
            Self::AgentUnavailable => f.write_str("the domain has no agent"),
            Self::Revoked => Revoked.fmt(f),
            Self::ObjectLocked => {
                f.write_str("the monitor cannot be entered by who has locked the state of a domain")
            }
        }
    }
}

impl std::error::Error for EnterError {}

/// Said when the monitor, the agent or a remote call is left: the domain died meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Died {
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Died {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the domain died: {}", self.reason)
    }
}

impl std::error::Error for Died {}

/// What keeps an async job from going on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interrupted {
    /// It is to be aborted.
    Aborted,
    /// The domain died.
    Died(Reason),
    /// The domain has been destroyed, and the job taken away.
    Revoked,
    /// This thread has locked the state of a domain, so it must not wait.
    ObjectLocked,
}

impl Interrupted {
    pub(super) fn new(interruption: Interruption, reason: impl FnOnce() -> Reason) -> Self {
        match interruption {
            Interruption::Aborted => Self::Aborted,
            Interruption::Died => Self::Died(reason()),
            Interruption::Revoked => Self::Revoked,
        }
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("the job is to be aborted"),
            Self::Died(reason) => write!(f, "the domain died: {reason}"),
            Self::Revoked => Revoked.fmt(f),
            Self::ObjectLocked => {
                f.write_str("no pause: this thread has locked the state of a domain")
            }
        }
    }
}

impl std::error::Error for Interrupted {}

/// Why a domain is not destroyed. Nothing has changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum DestroyError {
    /// Its process cannot be signalled.
    Kill {
        /// Which domain.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// This thread has locked the state of a domain.
    ObjectLocked,
}

impl fmt::Display for DestroyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { name, .. } => {
                write!(f, "the process of domain {name} cannot be killed")
            }
            Self::ObjectLocked => {
                f.write_str("not destroyed: this thread has locked the state of a domain")
            }
        }
    }
}

impl std::error::Error for DestroyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Kill { source, .. } => Some(source),
            Self::ObjectLocked => None,
        }
    }
}

/// Why there is no such new domain.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DefineError {
    /// Another has this name.
    NameTaken(String),
    /// Another has this uuid.
    UuidTaken(uuid::Uuid),
}

impl fmt::Display for DefineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTaken(name) => write!(f, "there is a domain with the name {name}"),
            Self::UuidTaken(uuid) => write!(f, "there is a domain with the uuid {uuid}"),
        }
    }
}

impl std::error::Error for DefineError {}

/// Why a machine did not become a domain's. It is handed back, for who has started it to end it.
pub struct CameUpError<M: super::Model> {
    /// The machine.
    pub machine: super::Machine<M>,
    /// The job was taken away, or is not one that starts a domain, or the domain runs.
    pub cause: JobError,
}

impl<M: super::Model> fmt::Debug for CameUpError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CameUpError")
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

impl<M: super::Model> fmt::Display for CameUpError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the machine cannot become the domain's")
    }
}

impl<M: super::Model> std::error::Error for CameUpError<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}
