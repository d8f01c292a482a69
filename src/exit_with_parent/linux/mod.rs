//! Linux: a pidfd on the parent and a thread that waits for it; the parent-death signal by name, or
//! where there is no pidfd.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use super::known;
use super::{
    Action, ArmError, ArmStep, Expected, Known, Limit, Mechanism, Report, Request, Scope, Signal,
};
use crate::sys::linux as sys;

mod parent;
mod watch;

pub(crate) use parent::Parent;
use watch::Watch;

pub(super) fn is_supported() -> bool {
    true
}

/// What was armed, and by which process.
#[derive(Debug)]
pub(super) struct Armed {
    /// The process that armed: in any other (a forked child) this handle is inert.
    owner: sys::Owner,
    action: Action,
    watch: Option<Watch>,
    signal: Option<KernelSignal>,
}

/// The parent-death signal, as it was set.
#[derive(Debug, Clone, Copy)]
struct KernelSignal {
    signal: Signal,
    known: Known,
}

/// Of a parent that was armed, whoever is our parent now.
const PARENT_GONE: ArmError = ArmError::ParentGone {
    expected: None,
    found: None,
};

impl Armed {
    pub(super) fn arm(request: Request) -> Result<Self, ArmError> {
        let Request {
            expected,
            mechanism,
            second_line,
            action,
        } = request;
        let mut armed = Self {
            owner: sys::Owner::this_process(),
            action,
            watch: None,
            signal: None,
        };
        let said = matches!(expected, Expected::Pid(_));
        match mechanism {
            Some(Mechanism::Kqueue) => return Err(ArmError::Unsupported(mechanism)),
            Some(Mechanism::ParentDeathSignal) => {
                let known = match expected {
                    Expected::Fd(_) => {
                        return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
                    }
                    Expected::Pid(pid) => Known::Expected(pid),
                    Expected::Unsaid => Known::Unsaid(known::unsaid_parent()?),
                };
                armed.arm_signal_only(known)?;
            }
            Some(Mechanism::Pidfd) => armed.arm_watch(Parent::open(expected)?)?,
            None => match Parent::open(expected) {
                Ok(parent) => armed.arm_watch(parent)?,
                Err(ArmError::Os {
                    step: ArmStep::OpenPidfd(pid),
                    errno,
                }) if pidfd_is_missing(&errno) => {
                    let known = if said { Known::Expected } else { Known::Unsaid };
                    armed.arm_signal_only(known(pid))?;
                }
                Err(error) => return Err(error),
            },
        }
        if second_line {
            if let Err(error) = armed.arm_second_line() {
                armed.disarm()?;
                return Err(error);
            }
        }
        Ok(armed)
    }

    fn arm_watch(&mut self, parent: Parent) -> Result<(), ArmError> {
        self.watch = Some(Watch::start(parent, self.action.clone())?);
        Ok(())
    }

    fn arm_signal_only(&mut self, known: Known) -> Result<(), ArmError> {
        let Action::Signal {
            signal,
            kill_after: None,
        } = self.action
        else {
            return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
        };
        self.signal = Some(KernelSignal::set(signal, known)?);
        Ok(())
    }

    fn arm_second_line(&mut self) -> Result<(), ArmError> {
        let (Action::Signal { signal, .. }, Some(watch)) = (&self.action, &self.watch) else {
            return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
        };
        self.signal = Some(KernelSignal::set(*signal, watch.parent.known())?);
        Ok(())
    }

    pub(super) fn report(&self) -> Report {
        let (signal, kill_after) = match &self.action {
            Action::Signal { signal, kill_after } => (Some(*signal), *kill_after),
            Action::Call(_) => (None, None),
        };
        let mut limits = vec![Limit::Stopped, Limit::ParentsMemory, Limit::Fork];
        let (mechanism, known) = match (&self.watch, self.signal) {
            (Some(watch), _) => {
                limits.extend([Limit::ParentsExec, Limit::Exec]);
                if watch.parent.is_pipe() {
                    limits.push(Limit::OtherWriters);
                }
                (Mechanism::Pidfd, watch.parent.known())
            }
            (None, Some(set)) => (Mechanism::ParentDeathSignal, set.known),
            // Every way through `arm` sets one of the two.
            (None, None) => (Mechanism::Pidfd, Known::Descriptor),
        };
        if matches!(known, Known::Unsaid(_)) {
            limits.push(Limit::AdoptedBefore);
        }
        if self.signal.is_some() {
            limits.extend([
                Limit::ThreadScope,
                Limit::Credentials,
                Limit::SendersPermission,
            ]);
        }
        let both = self.watch.is_some() && self.signal.is_some();
        Report {
            mechanism,
            second_line: both.then_some(Mechanism::ParentDeathSignal),
            scope: if self.signal.is_some() {
                Scope::Thread
            } else {
                Scope::Process
            },
            parent: known,
            signal,
            kill_after,
            limits,
        }
    }

    pub(super) fn parent_is_alive(&self) -> bool {
        match (&self.watch, self.signal) {
            // The thread watches on; what can be said here is what it has seen and who our parent is.
            (Some(watch), _) if self.is_ours() && watch.is_closed_here() => watch.sees_the_parent(),
            (Some(watch), _) => match watch.parent.has_ended() {
                Ok(ended) => !ended,
                // RLIMIT_NOFILE is 0. In a fork of its process there is no thread that could look.
                Err(_) => self.is_ours() && watch.sees_the_parent(),
            },
            (None, Some(set)) => self.is_ours() && known::still_parent(set.known).is_ok(),
            (None, None) => false,
        }
    }

    fn is_ours(&self) -> bool {
        self.owner.is_this_process()
    }

    pub(super) fn rearm(&mut self) -> Result<(), ArmError> {
        if self.is_ours() {
            if let Some(set) = self.signal {
                self.signal = Some(KernelSignal::set(set.signal, set.known)?);
            }
        } else {
            if let Some(watch) = self
                .watch
                .as_ref()
                .filter(|watch| !watch.has_parent_in_child())
            {
                let fd = watch.parent.poll_fd().as_fd().as_raw_fd();
                return Err(ArmError::os(ArmStep::ParentFd(fd))(Errno::EBADF));
            }
            // Looked at first: a watcher would end this process before the error could be read.
            if self.watch.is_some() && !self.parent_is_alive() {
                return Err(PARENT_GONE);
            }
            let Some(watch) = self.watch.take() else {
                return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
            };
            self.watch = Some(Watch::start(watch.into_parent(), self.action.clone())?);
            self.signal = None;
            self.owner = sys::Owner::this_process();
        }
        if self.parent_is_alive() {
            Ok(())
        } else {
            Err(PARENT_GONE)
        }
    }

    pub(super) fn disarm(self) -> Result<(), ArmError> {
        if !self.is_ours() {
            return Ok(());
        }
        if let Some(set) = self.signal {
            let step = ArmStep::ParentDeathSignal(set.signal);
            if sys::gettid() != self.owner.pid() {
                return Err(ArmError::NotMainThread);
            }
            sys::set_parent_death_signal(0).map_err(ArmError::os(step))?;
        }
        self.watch.map_or(Ok(()), Watch::stop)
    }
}

/// Whether pidfd_open does not exist here: ENOSYS before Linux 5.3, and EPERM from seccomp profiles
/// older than the system call (pidfd_open itself never answers EPERM).
fn pidfd_is_missing(errno: &std::io::Error) -> bool {
    matches!(errno.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

impl KernelSignal {
    /// Sets the parent-death signal of the main thread, reads it back, and looks at the parent again:
    /// one that died in between has sent nothing.
    ///
    /// It is a setting of the calling *thread*, and that of a thread which ends is gone.
    fn set(signal: Signal, known: Known) -> Result<Self, ArmError> {
        let step = ArmStep::ParentDeathSignal(signal);
        if sys::gettid() != sys::getpid() {
            return Err(ArmError::NotMainThread);
        }
        sys::set_parent_death_signal(signal.number()).map_err(ArmError::os(step))?;
        let set = sys::parent_death_signal().map_err(ArmError::os(step))?;
        if set != signal.number() {
            return Err(ArmError::os(step)(Errno::EINVAL));
        }
        known::still_parent(known).inspect_err(|_| {
            let _ = sys::set_parent_death_signal(0);
        })?;
        Ok(Self { signal, known })
    }
}
