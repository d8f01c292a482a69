//! What a forked child does to itself before it executes a program.

use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::sys::linux as sys;
pub(crate) use crate::sys::linux::{
    chdir, dup_at_least, dup_to, reset_dispositions, set_controlling_terminal, set_nice,
    set_process_group, set_resource_limit, set_signal_mask, set_umask,
};

/// As Linux's. Who does not execute a program afterwards, which would name it, is a guard: tests find that by its name.
pub(crate) fn setsid() -> Result<(), Errno> {
    let _ = sys::set_name(b"run-with-guard\0\0");
    sys::setsid()
}

/// Closes every descriptor that is not in the list, which is sorted.
///
/// # Safety
/// What is closed is used by nobody in this process any more.
pub(crate) unsafe fn close_all_but(keep: &[RawFd]) {
    // SAFETY: the caller's promise.
    let _ = unsafe { sys::close_all_but(keep) };
}
