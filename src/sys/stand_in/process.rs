//! Processes: made, waited for, signalled.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;

use super::is_freebsd;
use crate::sys::linux as sys;
use crate::sys::posix::{Child, OnClose};

/// Whether this process has another parent by the time at which its parent's children get their signals.
pub(super) static GIVEN_AWAY: AtomicBool = AtomicBool::new(false);

pub(crate) fn has_process_descriptors() -> bool {
    is_freebsd()
}

/// fork(3), and what a process descriptor is here.
///
/// # Safety
/// As that of the BSDs.
pub(crate) unsafe fn fork(on_close: OnClose) -> Result<Option<Child>, Errno> {
    let parent = getpid();
    let has_descriptor = is_freebsd() && on_close != OnClose::NoDescriptor;
    // SAFETY: the caller's promise.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        GIVEN_AWAY.store(has_descriptor && on_close == OnClose::LetLive, Relaxed);
        if has_descriptor && on_close == OnClose::Kill {
            let _ = sys::set_parent_death_signal(libc::SIGKILL);
            if getppid() != parent {
                exit(127);
            }
        }
        return Ok(None);
    }
    // None for one that has ended already, and whose end is thrown away (SIGCHLD ignored).
    let descriptor = has_descriptor.then(|| sys::pidfd_open(pid).ok()).flatten();
    Ok(Some(Child { pid, descriptor }))
}

pub(crate) fn exit(status: i32) -> ! {
    sys::exit_group(status)
}

pub(crate) fn getpid() -> i32 {
    sys::getpid()
}

pub(crate) fn getppid() -> i32 {
    sys::getppid()
}
