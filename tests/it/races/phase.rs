//! How far run-with has come, as /proc shows it: nothing is asked of run-with itself.

use std::fs;

use super::variant::{Command, Variant};
use crate::support::process::status_field;

/// How far run-with has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The launcher's child has not executed run-with yet.
    BeforeExec,
    /// run-with holds no pidfd yet: neither its parent's nor its own, which is the guard's.
    BeforeArming,
    /// The command's process does not exist yet.
    BeforeFork,
    /// The command's process has not executed the command yet.
    BeforeItsExec,
    /// The command runs.
    Running,
    /// The command runs, and has changed its user by itself.
    OtherUser,
}

/// Where the launcher's child `pid` is now; `None` if it is gone. With `--exec` arming cannot be seen
/// from outside, and the command has run-with's pid.
pub fn seen(pid: i32, variant: &Variant) -> Option<Phase> {
    let name = comm(pid)?;
    if name == comm(std::process::id().cast_signed())? {
        return Some(Phase::BeforeExec);
    }
    if variant.execs() {
        return Some(if name == "run-with" {
            Phase::BeforeArming
        } else {
            Phase::Running
        });
    }
    // The guard is made first.
    let names = children(pid);
    if let Some((command, _)) = names.iter().find(|(_, name)| !name.starts_with("run-with")) {
        let uid = status_field(*command, "Uid").unwrap_or_default();
        let itself = variant.command == Command::OtherUser && uid.starts_with("65534");
        return Some(if itself {
            Phase::OtherUser
        } else {
            Phase::Running
        });
    }
    if names.len() >= 2 {
        return Some(Phase::BeforeItsExec);
    }
    if names.len() == 1 || has_pidfd(pid) {
        return Some(Phase::BeforeFork);
    }
    Some(Phase::BeforeArming)
}

/// run-with's guard, once there is one: its first child, until it has been replaced.
pub fn guard(run_with: i32) -> Option<i32> {
    let children = children(run_with).into_iter();
    children
        .filter(|(_, name)| name.starts_with("run-with"))
        .map(|(pid, _)| pid)
        .next()
}

/// The children of `pid` with their names, in the order in which they were made.
pub fn children(pid: i32) -> Vec<(i32, String)> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter_map(|pid| Some((pid, comm(pid)?)))
        .collect()
}

/// The name exec gave a process.
pub fn comm(pid: i32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&comm).trim_end().to_owned())
}

fn has_pidfd(pid: i32) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    entries.flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("pidfd"))
    })
}
