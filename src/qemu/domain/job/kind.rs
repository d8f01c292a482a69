//! What jobs are for: kinds, and the mask of those that an async job lets in.

use std::fmt;

/// What a normal job is about to do; libvirt's `virDomainJob`.
///
/// A job that only looks is [`JobKind::Query`], which `Domain::begin_query` begins; `Domain::destroy` begins
/// [`JobKind::Destroy`]. The rest is for `Domain::begin_job`, as [`Modification`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobKind {
    /// Looks, and changes nothing.
    Query,
    /// Ends the machine.
    Destroy,
    /// Stops or resumes the machine's processors.
    Suspend,
    /// May change anything.
    Modify,
    /// Ends an async job.
    Abort,
    /// A step of a migration that is not the async job's own.
    MigrationOperation,
    /// May change what a migration in flight can bear.
    ModifyMigrationSafe,
}

/// The kinds of normal jobs that change something: those that `Domain::begin_job` begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Modification {
    /// [`JobKind::Suspend`].
    Suspend,
    /// [`JobKind::Modify`].
    Modify,
    /// [`JobKind::Abort`]: overtakes who waits, and no mask refuses it.
    Abort,
    /// [`JobKind::MigrationOperation`].
    MigrationOperation,
    /// [`JobKind::ModifyMigrationSafe`].
    ModifyMigrationSafe,
}

impl From<Modification> for JobKind {
    fn from(kind: Modification) -> Self {
        match kind {
            Modification::Suspend => Self::Suspend,
            Modification::Modify => Self::Modify,
            Modification::Abort => Self::Abort,
            Modification::MigrationOperation => Self::MigrationOperation,
            Modification::ModifyMigrationSafe => Self::ModifyMigrationSafe,
        }
    }
}

/// What an agent job is about to do; libvirt's `virDomainAgentJob`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AgentJobKind {
    /// Asks the guest.
    Query,
    /// Changes the guest.
    Modify,
}

/// What an async job does; libvirt's `virDomainAsyncJob`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AsyncJobKind {
    /// Starts the machine.
    Start,
    /// Saves it to a file.
    Save,
    /// Dumps its memory.
    Dump,
    /// Takes a snapshot.
    Snapshot,
    /// Sends it elsewhere.
    MigrationOut,
    /// Receives it.
    MigrationIn,
    /// Backs its disks up.
    Backup,
}

impl AsyncJobKind {
    /// Whether it is for a machine that does not run yet.
    pub(crate) fn brings_up(self) -> bool {
        matches!(self, Self::Start | Self::MigrationIn)
    }
}

/// A job that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeldKind {
    /// A normal job.
    Normal(JobKind),
    /// A step of an async job.
    Nested(AsyncJobKind),
    /// An agent job.
    Agent(AgentJobKind),
    /// An async job, and the phase it says it is in.
    Async(AsyncJobKind, &'static str),
}

/// The normal jobs that may run beside an async job. Destroy and abort are in every mask.
///
/// ```
/// use captive::qemu::domain::{JobKind, Mask};
///
/// assert!(Mask::default().allows(JobKind::Query));
/// assert!(!Mask::default().allows(JobKind::Modify));
/// assert!(Mask::default().and(JobKind::Suspend).allows(JobKind::Suspend));
/// assert!(Mask::NONE.allows(JobKind::Destroy));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mask(u8);

const fn bit(kind: JobKind) -> u8 {
    1 << kind as u8
}

impl Mask {
    /// Destroy and abort, nothing else: what ends a job always gets in.
    pub const NONE: Self = Self(bit(JobKind::Destroy) | bit(JobKind::Abort));
    /// Every kind.
    pub const ALL: Self = Self(u8::MAX);

    /// This one and `kind`.
    #[must_use]
    pub const fn and(self, kind: JobKind) -> Self {
        Self(self.0 | bit(kind))
    }

    /// This one without `kind`, which does nothing for destroy and abort.
    #[must_use]
    pub const fn without(self, kind: JobKind) -> Self {
        Self(self.0 & !bit(kind) | Self::NONE.0)
    }

    /// Whether such a job may run.
    pub const fn allows(self, kind: JobKind) -> bool {
        self.0 & bit(kind) != 0
    }
}

impl Default for Mask {
    /// Query, destroy and abort: libvirt's default.
    fn default() -> Self {
        Self::NONE.and(JobKind::Query)
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            JobKind::Query,
            JobKind::Destroy,
            JobKind::Suspend,
            JobKind::Modify,
            JobKind::Abort,
            JobKind::MigrationOperation,
            JobKind::ModifyMigrationSafe,
        ];
        f.debug_set()
            .entries(all.iter().filter(|kind| self.allows(**kind)))
            .finish()
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Query => "query",
            Self::Destroy => "destroy",
            Self::Suspend => "suspend",
            Self::Modify => "modify",
            Self::Abort => "abort",
            Self::MigrationOperation => "migration operation",
            Self::ModifyMigrationSafe => "modify-migration-safe",
        })
    }
}

impl fmt::Display for AgentJobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Query => "query",
            Self::Modify => "modify",
        })
    }
}

impl fmt::Display for AsyncJobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Save => "save",
            Self::Dump => "dump",
            Self::Snapshot => "snapshot",
            Self::MigrationOut => "migration out",
            Self::MigrationIn => "migration in",
            Self::Backup => "backup",
        })
    }
}

impl fmt::Display for HeldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal(kind) => write!(f, "{kind} job"),
            Self::Nested(kind) => write!(f, "step of the async {kind} job"),
            Self::Agent(kind) => write!(f, "agent {kind} job"),
            Self::Async(kind, "") => write!(f, "async {kind} job"),
            Self::Async(kind, phase) => write!(f, "async {kind} job ({phase})"),
        }
    }
}
