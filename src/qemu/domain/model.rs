//! What a manager says of its machines: the types that a domain is made of.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::sys::signal::Signal;

/// The types of one manager's driver and domains.
pub trait Model: Sized + Send + Sync + 'static {
    /// The driver's configuration, which never changes.
    type Config: Send + Sync;
    /// What a machine is made of: once as it is to be started next (persistent), once as it runs (live).
    type Definition: Clone + Send + Sync;
    /// What is known of a machine only while it runs.
    type Live: Send + Sync;
    /// The connection to its monitor.
    type Monitor: Channel;
    /// The connection to the agent in it.
    type Agent: Channel;
    /// What was last measured of it, for who asks without a job.
    type Statistics: Send + Sync;
}

/// A connection that another thread can end.
pub trait Channel: Send + Sync + 'static {
    /// Makes every call that waits for an answer fail, now and from now on. Must not wait, and may be called twice.
    fn shut(&self);
}

/// Nothing to talk to: for a machine without an agent, or tests.
impl Channel for () {
    fn shut(&self) {}
}

/// The process that a machine is.
pub trait Process: Send + Sync + 'static {
    /// Sends SIGKILL, by a pidfd: to this process or to none. Must not wait. That it has ended already is no error.
    ///
    /// # Errors
    ///
    /// It cannot be signalled; nothing has changed.
    fn kill(&self) -> io::Result<()>;

    /// Sends SIGTERM, in the same way.
    ///
    /// # Errors
    ///
    /// It cannot be signalled.
    fn terminate(&self) -> io::Result<()>;
}

impl Process for crate::Captive {
    fn kill(&self) -> io::Result<()> {
        Self::kill(self).map_err(io::Error::other)
    }

    fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM).map_err(io::Error::other)
    }
}

/// A machine that runs, as the domain gets it from who has started it.
pub struct Machine<M: Model> {
    /// What it is made of.
    pub definition: M::Definition,
    /// What is known of it.
    pub live: M::Live,
    /// Its monitor.
    pub monitor: Arc<M::Monitor>,
    /// The agent in it, if there may be one.
    pub agent: Option<Arc<M::Agent>>,
    /// Its process.
    pub process: Arc<dyn Process>,
}

impl<M: Model> Machine<M> {
    /// Fails every call that waits for it.
    pub(super) fn shut(&self) {
        self.monitor.shut();
        if let Some(agent) = &self.agent {
            agent.shut();
        }
    }
}

impl<M: Model> fmt::Debug for Machine<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("agent", &self.agent.is_some())
            .finish_non_exhaustive()
    }
}

/// Why a domain does not run; libvirt's `virDomainShutoffReason`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It has not been started.
    NeverStarted,
    /// It ended by itself, in order.
    Shutdown,
    /// It was destroyed.
    Destroyed,
    /// It ended by itself, not in order: how, and what it said last.
    Crashed(String),
    /// It was saved to a file.
    Saved,
    /// It runs elsewhere.
    Migrated,
    /// It could not be started: why.
    Failed(String),
    /// Who was to tell of its end ended first; it was killed.
    Unwatched,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverStarted => f.write_str("it has not been started"),
            Self::Shutdown => f.write_str("it has shut down"),
            Self::Destroyed => f.write_str("it was destroyed"),
            Self::Crashed(how) => write!(f, "it crashed: {how}"),
            Self::Saved => f.write_str("it was saved"),
            Self::Migrated => f.write_str("it runs elsewhere"),
            Self::Failed(why) => write!(f, "it could not be started: {why}"),
            Self::Unwatched => f.write_str("nobody watched it any more"),
        }
    }
}
