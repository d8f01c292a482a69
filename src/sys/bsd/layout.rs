//! What the crate libc lacks of FreeBSD: `sys/sys/procctl.h`, `sys/sys/syscall.h`. Held against the headers
//! by `.ci/constants`, which compiles this file.

use core::ffi::{c_int, c_uint};

/// sigaction(2)
pub(crate) const SYS_SIGACTION: c_int = 416;

/// What PROC_REAP_STATUS writes.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct ReaperStatus {
    pub(crate) flags: c_uint,
    pub(crate) children: c_uint,
    pub(crate) descendants: c_uint,
    pub(crate) reaper: c_int,
    pub(crate) pid: c_int,
    pub(crate) pad: [c_uint; 15],
}

/// What PROC_REAP_KILL reads and writes.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct ReaperKill {
    pub(crate) signal: c_int,
    pub(crate) flags: c_uint,
    pub(crate) subtree: c_int,
    pub(crate) killed: c_uint,
    pub(crate) first_failed: c_int,
    pub(crate) pad: [c_uint; 15],
}
