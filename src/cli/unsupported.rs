//! Systems for which the supervisor has not been written: asking for it is an error.

use super::Failure;
use super::args::Invocation;

pub(crate) fn supervise(_invocation: &Invocation) -> Result<i32, Failure> {
    Err(Failure::own(
        "run-with has not been written for this system",
    ))
}

pub(crate) fn become_command(invocation: &Invocation) -> Result<i32, Failure> {
    supervise(invocation)
}
