//! Processes in `/proc`; proc(5).

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// The directory of the process behind a pidfd. `/proc` may be that of another PID namespace, in which the number that
/// we know is another process's: the kernel says the right one in fdinfo (`Pid:`; -1 after the reap, 0 if it is not
/// visible there).
pub(super) fn directory(pidfd: BorrowedFd<'_>) -> Option<PathBuf> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    let number: i32 = number.trim().parse().ok()?;
    (number > 0).then(|| format!("/proc/{number}").into())
}
