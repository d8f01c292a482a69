//! What is armed, as types, and what it does not cover.

use std::fmt;
use std::time::Duration;

use crate::sys::signal::Signal;

/// A way for a process to notice its parent's exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mechanism {
    /// A descriptor on the parent, polled by a watcher thread: a pidfd (Linux 5.3) or, if the caller
    /// passed one, a pipe.
    #[doc(alias = "pidfd_open")]
    Pidfd,
    /// A signal from the kernel: prctl(PR_SET_PDEATHSIG) on Linux, procctl(PROC_PDEATHSIG_CTL) on
    /// FreeBSD and DragonFly.
    #[doc(alias = "PR_SET_PDEATHSIG")]
    #[doc(alias = "PROC_PDEATHSIG_CTL")]
    ParentDeathSignal,
    /// EVFILT_PROC with NOTE_EXIT, waited for by a watcher thread (BSD, macOS).
    #[doc(alias = "EVFILT_PROC")]
    Kqueue,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pidfd => "pidfd",
            Self::ParentDeathSignal => "parent-death signal",
            Self::Kqueue => "kqueue",
        })
    }
}

/// Whose end it is that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// The parent process: all its threads.
    Process,
    /// The thread that created us, and any later thread that is made our parent in its place: the
    /// signal comes when that thread ends, though the process lives.
    Thread,
}

/// How the parent was known when it was armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Known {
    /// The caller named its pid, and it was our parent after arming.
    Expected(u32),
    /// The caller passed a descriptor.
    Descriptor,
    /// Nobody said: it is whoever was our parent then. If the launcher had died before and a
    /// subreaper adopted us, this is the subreaper.
    Unsaid(u32),
}

/// Something that is not covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// A stopped, frozen or traced process acts only when it is resumed.
    Stopped,
    /// The parent counts as gone only after its memory has been given back: with gigabytes in small
    /// pages, hundreds of milliseconds.
    ParentsMemory,
    /// A parent that execs another program has not exited.
    ParentsExec,
    /// A child forked by this process is not bound: see [`Armed::rearm`](super::Armed::rearm).
    Fork,
    /// exec in this process ends it.
    Exec,
    /// The end of one thread of the parent counts, though the process lives.
    ThreadScope,
    /// A change of this process's credentials takes it away until it is armed again (Linux's
    /// parent-death signal).
    Credentials,
    /// exec of a program that is set-user-ID or set-group-ID to others takes it away (FreeBSD's
    /// parent-death signal; a plain exec keeps it).
    SetIdExec,
    /// The parent may have been replaced by a subreaper before it was armed.
    AdoptedBefore,
    /// A copy of the pipe's write end in another process keeps the parent alive for us.
    OtherWriters,
    /// A process without the right to signal us (another user's) sends nothing when it dies.
    SendersPermission,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "a stopped, frozen or traced process acts only when it is resumed",
            Self::ParentsMemory => "the parent counts as gone only after its memory was given back",
            Self::ParentsExec => "a parent that execs another program has not exited",
            Self::Fork => "a forked child is not bound",
            Self::Exec => "exec in this process ends it",
            Self::ThreadScope => "the end of the thread that created this process counts",
            Self::Credentials => "a change of credentials takes it away until it is armed again",
            Self::SetIdExec => "exec of a set-user-ID or set-group-ID program takes it away",
            Self::AdoptedBefore => "a parent that died before cannot be told from a subreaper",
            Self::OtherWriters => "another process that holds the pipe's write end keeps it open",
            Self::SendersPermission => "a parent that may not signal this process sends nothing",
        })
    }
}

/// What is armed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The mechanism that acts.
    pub mechanism: Mechanism,
    /// A second mechanism behind it.
    pub second_line: Option<Mechanism>,
    /// Whose end counts.
    pub scope: Scope,
    /// How the parent was known.
    pub parent: Known,
    /// The signal this process gets; `None` if it is told instead (channel, callback).
    pub signal: Option<Signal>,
    /// After how long SIGKILL follows.
    pub kill_after: Option<Duration>,
    /// What is not covered.
    pub limits: Vec<Limit>,
}

impl fmt::Display for Report {
    /// One line: the mechanism, the parent, what happens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mechanism)?;
        if let Some(second) = self.second_line {
            write!(f, " and {second}")?;
        }
        match self.parent {
            Known::Expected(pid) => write!(f, " on the expected parent {pid}")?,
            Known::Descriptor => f.write_str(" on the parent's descriptor")?,
            Known::Unsaid(pid) => write!(f, " on the parent {pid}")?,
        }
        f.write_str(match self.scope {
            Scope::Process => ", process-scoped",
            Scope::Thread => ", thread-scoped",
        })?;
        if let Some(signal) = self.signal {
            write!(f, ": {signal}")?;
        }
        if let Some(grace) = self.kill_after {
            write!(f, ", KILL after {grace:?}")?;
        }
        Ok(())
    }
}
