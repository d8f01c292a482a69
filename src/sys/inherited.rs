//! Descriptors that a program was given by number.

#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Takes over a descriptor that was inherited, and marks it close-on-exec; fcntl(2). EBADF: it is not open.
///
/// Nothing else in the process owns it: for a program that has opened nothing yet.
pub(crate) fn take_inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; what is not open is an error.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: open, as the call has just shown, and owned by nobody, as the caller sees to.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
