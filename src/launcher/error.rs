//! Why a captive could not be launched, or not be dealt with.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::captive::Stuck;
use super::command::Resource;
use super::containment::ContainmentError;
use crate::run_with::{PrepareError, Step};

/// Why there is no captive. Nothing of it is left: a child that was made has been killed and reaped
/// (or, if it cannot die yet, will be).
#[derive(Debug)]
#[non_exhaustive]
pub enum SpawnError {
    /// This system, or this build of the crate, cannot launch captives: why.
    Unsupported(&'static str),
    /// What was asked for contradicts itself or cannot be said to the system: what.
    Invalid {
        /// The program that was to be launched.
        program: OsString,
        /// What is wrong.
        what: String,
    },
    /// It cannot be contained as asked.
    Containment(ContainmentError),
    /// The options of [`run_with`](super::Command::run_with) cannot be prepared.
    Prepare(PrepareError),
    /// A step failed.
    Step {
        /// The program that was to be launched.
        program: OsString,
        /// Which step, with its operand.
        step: SpawnStep,
        /// The errno.
        errno: io::Error,
    },
    /// A step did not end in time.
    Stalled {
        /// The program that was to be launched.
        program: OsString,
        /// Which step, with its operand.
        step: SpawnStep,
        /// How long it was given.
        after: Duration,
    },
}

impl SpawnError {
    /// The step that failed or stalled.
    pub fn step(&self) -> Option<&SpawnStep> {
        match self {
            Self::Step { step, .. } | Self::Stalled { step, .. } => Some(step),
            _ => None,
        }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(why) => write!(f, "captives cannot be launched here: {why}"),
            Self::Invalid { program, what } => {
                write!(f, "launching {}: {what}", Path::new(program).display())
            }
            Self::Containment(error) => error.fmt(f),
            Self::Prepare(error) => error.fmt(f),
            Self::Step { program, step, .. } => {
                write!(
                    f,
                    "launching {}: {step} failed",
                    Path::new(program).display()
                )
            }
            Self::Stalled {
                program,
                step,
                after,
            } => write!(
                f,
                "launching {}: {step} did not end within {after:?}",
                Path::new(program).display()
            ),
        }
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Step { errno, .. } => Some(errno),
            Self::Containment(error) => error.source(),
            Self::Prepare(error) => error.source(),
            _ => None,
        }
    }
}

/// A step of a launch, with its operand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnStep {
    /// Opening `/dev/null` or making a pipe for a standard descriptor.
    OpenStdio,
    /// Making the socket for sd_notify(3).
    NotifySocket,
    /// Making the file in memory that holds the crate's helper; memfd_create(2).
    HelperProgram,
    /// Starting the guard.
    StartGuard,
    /// A step of the guard's own launch.
    Guard(Box<SpawnStep>),
    /// Signalling through a pidfd; pidfd_send_signal(2).
    SignalByPidfd,
    /// Starting a thread.
    StartThread,
    /// Starting the captive's supervisor, or what that needs for itself (not on Linux).
    StartSupervisor,
    /// Making the supervisor a reaper; procctl(2), `PROC_REAP_ACQUIRE`.
    BecomeReaper,
    /// clone(2).
    Clone,
    /// fork(2), on FreeBSD pdfork(2).
    Fork,
    /// Entering the PID namespace, and being born there; setns(2).
    EnterNamespace,
    /// Moving into the cgroup; cgroups(7), `cgroup.procs`.
    EnterCgroup,
    /// The parent-death signal, and a look at the parent.
    ParentDeathSignal,
    /// Opening the child's pidfd; pidfd_open(2).
    OpenPidfd,
    /// Telling the guard.
    TellGuard,
    /// setsid(2).
    NewSession,
    /// setpgid(2).
    ProcessGroup(i32),
    /// TIOCSCTTY(2const).
    ControllingTerminal,
    /// setns(2).
    NetworkNamespace,
    /// Giving the child this descriptor.
    Descriptor(i32),
    /// Seeing to it that the other descriptors are closed.
    CloseDescriptors,
    /// setpriority(2).
    Nice(i32),
    /// setrlimit(2).
    ResourceLimit(Resource),
    /// chdir(2).
    ChangeDirectory(PathBuf),
    /// Signal dispositions and the signal mask.
    Signals,
    /// A step of [`run_with`](super::Command::run_with).
    RunWith(Step),
    /// execve(2).
    Exec,
    /// Making the sockets on which a child of std's tells the launcher of itself.
    StdReport,
    /// A look at the parent by a child of std's: it is another's, or the launcher has ended.
    LookAtParent,
    /// What std does: its fork, its part in the child, its exec, hooks of the caller's.
    StdSpawn,
}

impl fmt::Display for SpawnStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenStdio => f.write_str("opening a standard descriptor"),
            Self::NotifySocket => f.write_str("opening the notification socket"),
            Self::HelperProgram => f.write_str("memfd_create for the helper"),
            Self::StartGuard => f.write_str("starting the guard"),
            Self::Guard(step) => write!(f, "starting the guard: {step}"),
            Self::SignalByPidfd => f.write_str("pidfd_send_signal"),
            Self::StartThread => f.write_str("starting a thread"),
            Self::StartSupervisor => f.write_str("starting the supervisor"),
            Self::BecomeReaper => f.write_str("making the supervisor a reaper"),
            Self::Clone => f.write_str("clone"),
            Self::Fork => f.write_str("fork"),
            Self::EnterNamespace => f.write_str("entering the PID namespace"),
            Self::EnterCgroup => f.write_str("entering the cgroup"),
            Self::ParentDeathSignal => f.write_str("arming the parent-death signal"),
            Self::OpenPidfd => f.write_str("pidfd_open"),
            Self::TellGuard => f.write_str("telling the guard"),
            Self::NewSession => f.write_str("setsid"),
            Self::ProcessGroup(group) => write!(f, "setpgid to {group}"),
            Self::ControllingTerminal => f.write_str("taking the controlling terminal"),
            Self::NetworkNamespace => f.write_str("entering the network namespace"),
            Self::Descriptor(fd) => write!(f, "giving it descriptor {fd}"),
            Self::CloseDescriptors => f.write_str("closing the other descriptors"),
            Self::Nice(nice) => write!(f, "setpriority to {nice}"),
            Self::ResourceLimit(resource) => write!(f, "setting the limit {resource}"),
            Self::ChangeDirectory(path) => write!(f, "chdir to {}", path.display()),
            Self::Signals => f.write_str("setting up the signals"),
            Self::RunWith(step) => step.fmt(f),
            Self::Exec => f.write_str("exec"),
            Self::StdReport => f.write_str("making the child's sockets"),
            Self::LookAtParent => f.write_str("looking at the parent"),
            Self::StdSpawn => f.write_str("std's spawn"),
        }
    }
}

/// What could not be done with a captive.
#[derive(Debug)]
#[non_exhaustive]
pub enum CaptiveError {
    /// This is a forked child of the launcher: the captive is not ours.
    Forked {
        /// The launcher's pid.
        launcher: u32,
    },
    /// The launch did not say [`detachable`](super::Command::detachable).
    NotDetachable,
    /// The guard, or the captive's supervisor, could not be told.
    Guard(io::Error),
    /// Sending a signal failed (EPERM: it has become another user's).
    Signal {
        /// The captive's pid.
        pid: u32,
        /// The errno.
        errno: io::Error,
    },
    /// Waiting failed.
    Wait {
        /// The captive's pid.
        pid: u32,
        /// The errno.
        errno: io::Error,
    },
    /// It has not ended in time, though it was sent SIGKILL: what it is doing.
    Stuck(Stuck),
    /// Reading its output failed.
    Read(io::Error),
}

impl fmt::Display for CaptiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forked { launcher } => write!(
                f,
                "the captive belongs to process {launcher}, of which this is a forked child"
            ),
            Self::NotDetachable => f.write_str("the captive was not launched as detachable"),
            Self::Guard(_) => f.write_str("telling the guard or the supervisor failed"),
            Self::Signal { pid, .. } => write!(f, "signalling the captive {pid} failed"),
            Self::Wait { pid, .. } => write!(f, "waiting for the captive {pid} failed"),
            Self::Stuck(stuck) => stuck.fmt(f),
            Self::Read(_) => f.write_str("reading the captive's output failed"),
        }
    }
}

impl std::error::Error for CaptiveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Guard(errno)
            | Self::Read(errno)
            | Self::Signal { errno, .. }
            | Self::Wait { errno, .. } => Some(errno),
            _ => None,
        }
    }
}
