//! The parent as getppid names it, the same on every Unix.

use std::os::unix::process::parent_id;

use nix::errno::Errno;

use super::watcher::Refused;
use super::{ArmError, ArmStep, Known};

/// The pid in what is known.
pub(super) fn pid_of(known: Known) -> Option<u32> {
    match known {
        Known::Expected(pid) | Known::Unsaid(pid) => Some(pid),
        Known::Descriptor => None,
    }
}

/// Our parent's pid as the kernel gives it, if it is in our PID namespace.
pub(super) fn current() -> Option<u32> {
    Some(parent_id()).filter(|pid| *pid != 0)
}

/// The parent that nobody named; the cases in which the answer means nothing are errors.
pub(super) fn unsaid_parent() -> Result<u32, ArmError> {
    match current() {
        None => Err(ArmError::ParentOutside),
        Some(1) => Err(ArmError::ParentIsInit),
        Some(pid) => Ok(pid),
    }
}

/// An error if our parent is not, or no longer, the one we know.
pub(super) fn still_parent(known: Known) -> Result<(), ArmError> {
    compare(known, current())
}

/// The error that says that the one we know is gone.
pub(super) fn gone(known: Known, found: Option<u32>) -> ArmError {
    let (expected, found) = match known {
        Known::Expected(pid) => (Some(pid), found),
        Known::Unsaid(_) => (None, found),
        Known::Descriptor => (None, None),
    };
    ArmError::ParentGone { expected, found }
}

fn compare(known: Known, found: Option<u32>) -> Result<(), ArmError> {
    match known {
        Known::Descriptor => Ok(()),
        Known::Expected(pid) | Known::Unsaid(pid) if found == Some(pid) => Ok(()),
        Known::Expected(_) if found.is_none() => Err(ArmError::ParentOutside),
        _ => Err(gone(known, found)),
    }
}

/// Who is to be held, and what a refusal means.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) known: Known,
    /// What the parent's registration is called.
    pub(super) step: ArmStep,
    /// Whether ESRCH may also mean a process that lives and may not be seen by us.
    pub(super) may_be_hidden: bool,
}

/// Looks at the parent, takes hold of it, and looks again.
///
/// Before, so that a stranger's pid is never held; after, because that proves that it was the right
/// one: a child is given to another parent before its parent's pid can be free, so a pid that is still
/// our parent's was our parent's in between. `current` says who is our parent now.
pub(super) fn hold<T>(
    who: Who,
    current: impl Fn() -> Option<u32>,
    register: impl FnOnce() -> Result<T, Refused>,
) -> Result<T, ArmError> {
    compare(who.known, current())?;
    let held = match register() {
        Ok(held) => held,
        Err(Refused::Stop(errno)) => return Err(ArmError::os(ArmStep::Wakeup)(errno)),
        Err(Refused::Parent(Errno::ESRCH)) => {
            let found = current();
            let error = match compare(who.known, found) {
                Ok(()) if who.may_be_hidden => ArmError::os(who.step)(Errno::ESRCH),
                // It exits at this moment, and has not given us away yet.
                _ => gone(who.known, found),
            };
            return Err(error);
        }
        Err(Refused::Parent(errno)) => return Err(ArmError::os(who.step)(errno)),
    };
    compare(who.known, current())?;
    Ok(held)
}
