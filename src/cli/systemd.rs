//! Under systemd: whose child we are, and the variables that name a pid.

use std::ffi::OsStr;

/// Whether systemd itself started this very process: since version 248 it says so in
/// `SYSTEMD_EXEC_PID` (systemd.exec(5)). A child of a unit's process inherits the variable, but has
/// another pid.
pub(super) fn is_our_parent(exec_pid: Option<&OsStr>, pid: u32) -> bool {
    names(exec_pid, pid)
}

/// Variables whose value is the pid they are meant for: sd_listen_fds(3), sd_watchdog_enabled(3).
/// When they name run-with, the command they were meant for is its child.
pub(super) const PID_VARIABLES: [&str; 2] = ["LISTEN_PID", "WATCHDOG_PID"];

/// Whether a variable's value is this pid.
pub(super) fn names(value: Option<&OsStr>, pid: u32) -> bool {
    value
        .and_then(OsStr::to_str)
        .and_then(|text| text.parse().ok())
        == Some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pid_counts() {
        assert!(is_our_parent(Some(OsStr::new("42")), 42));
        assert!(!is_our_parent(Some(OsStr::new("41")), 42));
        assert!(!is_our_parent(Some(OsStr::new("")), 42));
        assert!(!is_our_parent(None, 42));
    }
}
