//! Systems for which the supervisor has not been written: asking for it is an error.

use super::Failure;
use super::args::Invocation;
use super::mechanisms::Survey;

pub(crate) fn supervise(_invocation: &Invocation) -> Result<i32, Failure> {
    Err(Failure::own(
        "run-with has not been written for this system",
    ))
}

pub(crate) fn become_command(invocation: &Invocation) -> Result<i32, Failure> {
    supervise(invocation)
}

pub(crate) fn survey() -> Survey {
    Survey {
        system: format!(
            "{} (run-with has not been written for it)",
            std::env::consts::OS
        ),
        process: Vec::new(),
        mechanisms: Vec::new(),
        options: Vec::new(),
    }
}
