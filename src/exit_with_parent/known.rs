//! The parent as getppid names it, the same on every Unix.

use std::os::unix::process::parent_id;

use super::{ArmError, Known};

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
    let Some(pid) = pid_of(known) else {
        return Ok(());
    };
    let found = current();
    match known {
        Known::Expected(_) if found.is_none() => Err(ArmError::ParentOutside),
        _ if found == Some(pid) => Ok(()),
        Known::Expected(_) => Err(ArmError::ParentGone {
            expected: Some(pid),
            found,
        }),
        _ => Err(ArmError::ParentGone {
            expected: None,
            found,
        }),
    }
}
