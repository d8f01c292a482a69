//! Reapers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::Ordering::Relaxed;

use nix::errno::Errno;

use super::is_freebsd;
use super::process::{GIVEN_AWAY, getpid};
use crate::sys::linux as sys;
use crate::sys::posix::kill;

pub(crate) fn has_reapers() -> bool {
    is_freebsd()
}

/// PR_SET_CHILD_SUBREAPER of prctl(2).
pub(crate) fn become_reaper() -> Result<(), Errno> {
    if !is_freebsd() {
        return Err(Errno::ENOSYS);
    }
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Those who have not ended, in one walk; as FreeBSD does, it goes on after a refusal.
pub(crate) fn kill_descendants(signal: i32) -> Result<(), Errno> {
    if !is_freebsd() {
        return Err(Errno::ENOSYS);
    }
    let mut answer = Err(Errno::ESRCH);
    for (pid, has_ended) in descendants() {
        if has_ended {
            continue;
        }
        match kill(pid, signal) {
            Ok(()) => answer = Ok(()),
            Err(errno) if answer == Err(Errno::ESRCH) => answer = Err(errno),
            Err(_) => {}
        }
    }
    answer
}

/// With those who have ended and not been waited for.
pub(crate) fn count_descendants() -> Result<u32, Errno> {
    if !is_freebsd() {
        return Err(Errno::ENOSYS);
    }
    Ok(u32::try_from(descendants().len()).unwrap_or(u32::MAX))
}

/// PR_SET_PDEATHSIG of prctl(2).
pub(crate) fn arm_parent_death(signal: i32) -> Result<(), Errno> {
    if !is_freebsd() {
        return Err(Errno::ENOSYS);
    }
    if GIVEN_AWAY.load(Relaxed) {
        return Ok(());
    }
    sys::set_parent_death_signal(signal)
}

/// Who descends from the calling process, and whether each has ended.
fn descendants() -> Vec<(i32, bool)> {
    let mut children: BTreeMap<i32, Vec<(i32, bool)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name in parentheses: the state, the parent.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, parent) = (fields.next(), fields.next());
        if let (Some(state), Some(Ok(parent))) = (state, parent.map(str::parse)) {
            children
                .entry(parent)
                .or_default()
                .push((pid, "ZX".contains(state)));
        }
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = vec![getpid()];
    while let Some(parent) = next.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if seen.insert(child.0) {
                found.push(*child);
                next.push(child.0);
            }
        }
    }
    found
}
