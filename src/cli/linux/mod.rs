//! run-with on Linux: the supervisor with its guard.

use std::ffi::CStr;

use crate::sys::linux as sys;

mod guard;
mod mechanisms;
mod page;
mod server;
mod signals;
mod spawn;
mod supervisor;
mod tree;

pub(super) use mechanisms::survey;
pub(super) use supervisor::supervise;

/// Why nothing survives an exec here.
pub(super) fn exec_refusal() -> Option<&'static str> {
    None
}

/// What executing a file of this mode would give, for which the kernel clears the parent-death signal.
pub(super) fn gains(mode: u32, path: &CStr) -> Option<&'static str> {
    // Set-group-ID without group execution means nothing; exec ignores it.
    let set_gid = mode & 0o2010 == 0o2010;
    match (
        mode & 0o4000 != 0,
        set_gid,
        sys::has_file_capabilities(path),
    ) {
        (true, _, _) => Some("set-user-ID"),
        (_, true, _) => Some("set-group-ID"),
        (_, _, true) => Some("given capabilities"),
        _ => None,
    }
}
