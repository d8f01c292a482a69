//! execve, and what the kernel would give with it.

use std::ffi::{CStr, c_char};

use nix::errno::Errno;

use super::syscall;

/// execve(2); returns only if it fails.
///
/// # Safety
/// `path` and every string are NUL-terminated, both arrays end with a null pointer, and all of it lives
/// for the call.
pub(crate) unsafe fn execve(
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> Errno {
    let registers = [path as usize, argv as usize, envp as usize, 0, 0, 0];
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_execve, registers) }
        .err()
        .unwrap_or(Errno::UnknownErrno)
}

/// Whether the file at `path` has capabilities, which exec would give (capabilities(7)).
pub(crate) fn has_file_capabilities(path: &CStr) -> bool {
    let name = c"security.capability".as_ptr() as usize;
    let args = [path.as_ptr() as usize, name, 0, 0, 0, 0];
    // SAFETY: two NUL-terminated strings; a size of zero writes nothing.
    unsafe { syscall(libc::SYS_getxattr, args) }.is_ok_and(|size| size > 0)
}
