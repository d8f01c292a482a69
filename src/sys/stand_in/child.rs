//! What a forked child does to itself before it executes a program.

use std::os::fd::{BorrowedFd, RawFd};

use nix::errno::Errno;

use crate::sys::linux as sys;
pub(crate) use crate::sys::linux::{
    chdir, dup_at_least, dup_to, reset_dispositions, set_close_on_exec, set_controlling_terminal,
    set_nice, set_process_group, set_resource_limit, set_signal_mask, set_umask, setsid,
};

/// Closes every descriptor that is not in the list, which is sorted.
///
/// # Safety
/// What is closed is used by nobody in this process any more.
pub(crate) unsafe fn close_all_but(keep: &[RawFd]) {
    // SAFETY: the caller's promise.
    let _ = unsafe { sys::close_all_but(keep) };
}

/// The signals that a thread blocks, to be put back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignalMask(libc::sigset_t);

pub(crate) fn block_all_signals() -> Result<SignalMask, Errno> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the whole set is written.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: reads one set, which has been written, and writes the other.
    let answer =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    match answer {
        // SAFETY: written by the call; and all zeroes is a set as well.
        0 => Ok(SignalMask(unsafe { before.assume_init() })),
        errno => Err(Errno::from_raw(errno)),
    }
}

pub(crate) fn restore_signal_mask(mask: &SignalMask) {
    // SAFETY: reads one set, and writes none.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut()) };
}

pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    nix::unistd::write(fd, bytes)
}

pub(crate) fn read(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize, Errno> {
    nix::unistd::read(fd, bytes)
}
