//! What holds a captive's tree: the table of [`Containment`].

use nix::errno::Errno;

use super::super::command::Command;
use super::super::{Containment, ContainmentError, Missing, SpawnError};
use super::request::Holds;
use super::sys;

/// By what, as the command asks; else what is missing.
pub(super) fn choose(command: &Command) -> Result<Holds, SpawnError> {
    let asked = command.containment;
    let missing = match asked {
        Containment::Process => return Ok(Holds::Nothing),
        Containment::TreeBestEffort => return Ok(Holds::Group),
        Containment::Tree | Containment::Reaper if sys::has_reapers() => return Ok(Holds::Reaper),
        Containment::Tree | Containment::Reaper => Missing {
            containment: Containment::Reaper,
            what: "a reaper that knows its descendants (FreeBSD's PROC_REAP_ACQUIRE)".to_owned(),
            errno: Some(Errno::ENOSYS.into()),
        },
        _ => Missing {
            containment: asked,
            what: "Linux".to_owned(),
            errno: None,
        },
    };
    let mut available = Vec::new();
    if sys::has_reapers() {
        available.push(Containment::Reaper);
    }
    available.push(Containment::TreeBestEffort);
    Err(SpawnError::Containment(ContainmentError {
        program: command.program.clone(),
        asked,
        missing: vec![missing],
        available,
    }))
}
