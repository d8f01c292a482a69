//! run-with on FreeBSD, macOS, NetBSD, OpenBSD and DragonFly. **Never run there**, see `docs/platforms.md`:
//! what is here is run on Linux, on real processes, against the stand-in for those systems' calls.
//!
//! What to do is decided by [`machine`](super::machine); here it is done.
//!
//! What is not as on Linux:
//!
//! - A process is named by its pid. The command's is its own until run-with has waited for it; the guard, which
//!   has no such hold, watches its end, and what is left is the moment between a look and a signal.
//! - On FreeBSD a command that is bound is made by pdfork: whoever ends run-with has the kernel end the command. Elsewhere
//!   the guard alone does it, so both killed in one instant leave the command alive.
//! - There are trees on FreeBSD alone, by its reaper. Nobody holds them but run-with: if *it* is killed, what descends
//!   from the command, but for the command and the group it leads, goes to the next reaper and lives.
//! - Who sent a signal is not known everywhere: see `Sender::Unknown`.
//! - run-with does not give up the right to gain privileges.

use std::ffi::CStr;

use crate::sys::bsd as sys;

mod guard;
mod mechanisms;
mod spawn;
mod supervisor;

pub(super) use mechanisms::survey;
pub(super) use supervisor::supervise;

/// Why nothing survives an exec here.
pub(super) fn exec_refusal() -> Option<&'static str> {
    (!sys::has_parent_death_signal()).then_some(
        "exit-with-parent=on: nothing that watches the parent survives an exec on this system; leave \
         out --exec",
    )
}

/// What executing a file of this mode would give, for which FreeBSD's kernel clears the parent-death signal:
/// set-group-ID counts whoever may execute it (do_execve(), `sys/kern/kern_exec.c`).
pub(super) fn gains(mode: u32, _path: &CStr) -> Option<&'static str> {
    match (mode & 0o4000 != 0, mode & 0o2000 != 0) {
        (true, _) => Some("set-user-ID"),
        (_, true) => Some("set-group-ID"),
        _ => None,
    }
}
