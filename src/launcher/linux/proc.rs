//! Processes in `/proc`; proc(5).

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use super::process::Process;
use crate::sys::linux as sys;

/// The directory of a process. `/proc` may be that of another PID namespace, in which the number that we know is another
/// process's: the kernel says the right one of a pidfd.
pub(super) fn directory(process: &Process) -> Option<PathBuf> {
    let number = match fdinfo(process.as_fd()) {
        Some(info) => number_in(&info, "Pid:")?,
        None if is_of_our_namespace() => own_number(process)?,
        None => return None,
    };
    (number > 0).then(|| format!("/proc/{number}").into())
}

/// What the kernel says of a pidfd, with the number (`Pid:`; -1 after the reap, 0 if it is not visible there).
///
/// Before Linux 5.14 (commit 7bc3fa0172a4, "procfs: allow reading fdinfo with PTRACE_MODE_READ") the directory and its
/// files are for their owner alone, which for a process that is not dumpable is root (task_dump_owner in fs/proc/base.c):
/// such a one may not read its own.
fn fdinfo(pidfd: BorrowedFd<'_>) -> Option<String> {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()
}

/// Whether `/proc` has the numbers that we know. `NSpid:` has ours in its PID namespace first, and in our own last; anybody
/// may read it.
fn is_of_our_namespace() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.is_some_and(|numbers| numbers.split_whitespace().count() == 1)
    })
}

/// The number that we know, as long as it has not been reaped.
fn own_number(process: &Process) -> Option<i32> {
    let is_there = sys::pidfd_send_signal(process.as_fd(), 0) != Err(nix::errno::Errno::ESRCH);
    is_there.then(|| process.pid())
}

fn number_in(text: &str, name: &str) -> Option<i32> {
    let number = text.lines().find_map(|line| line.strip_prefix(name))?;
    number.trim().parse().ok()
}
