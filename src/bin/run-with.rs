//! run-with: QEMU's `-run-with` for any command. The program itself is `captive::cli`.
//!
//! The entry point is C's, not std's: before a Rust `main`, std ignores SIGPIPE and opens
//! `/dev/null` in place of closed standard descriptors, and what the command should inherit could
//! not be known any more.

#![no_main]
#![allow(unsafe_code, reason = "C's main, and its arguments")]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

// Before the standard library asks for the shared one: see build.rs.
#[cfg(captive_static_unwinder)]
#[link(name = "gcc_eh")]
unsafe extern "C" {}

/// C's `main`.
///
/// # Safety
/// As called by the C library: `strings` holds `count` pointers to NUL-terminated strings.
// SAFETY: the one `main` of this program; the C runtime calls it as C99 5.1.2.2.1 says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(count: c_int, strings: *const *const c_char) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    let mut args: Vec<OsString> = Vec::with_capacity(count);
    for index in 1..count {
        // SAFETY: `index` is below `count`.
        let place = unsafe { strings.add(index) };
        // SAFETY: `place` points into `strings`.
        let arg = unsafe { *place };
        // SAFETY: a NUL-terminated string that lives as long as the process.
        let arg = unsafe { CStr::from_ptr(arg) };
        args.push(OsStr::from_bytes(arg.to_bytes()).to_owned());
    }
    captive::cli::main(args)
}
