//! A launcher with one thread, for the examples.

use std::ffi::OsString;
use std::process::Command;

/// Starts the program with the arguments given, on its own standard streams, and waits for it; the
/// test kills the launcher meanwhile.
pub fn launcher(command: &[OsString]) -> i32 {
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .spawn()
        .expect("the example");
    let status = child.wait().expect("the example's status");
    status.code().unwrap_or(128)
}
