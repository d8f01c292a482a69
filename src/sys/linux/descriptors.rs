//! Descriptors by number: which are open, and closing all but a few.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{int_arg, plain, syscall};

/// Closes every descriptor of the calling process's table but those in `keep`, which is sorted.
///
/// close_range(2), Linux 5.9; where it is refused, by ENOSYS or an old seccomp profile's EPERM, one
/// by one up to the table's size in /proc/self/status (`FDSize`): RLIMIT_NOFILE can be a thousand
/// million, and lower than a descriptor opened before it was lowered. Without /proc it fails.
///
/// # Safety
/// No descriptor but those in `keep` may be used by anyone who shares the table.
#[doc(alias = "SYS_close_range")]
pub(crate) unsafe fn close_all_but(keep: &[RawFd]) -> Result<(), Errno> {
    let mut first: u32 = 0;
    for fd in keep {
        let fd = u32::try_from(*fd).map_err(|_| Errno::EBADF)?;
        if first < fd {
            close_between(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_between(first, u32::MAX)
}

/// Closes the descriptors `first` to `last`, both included, of the calling process's table.
fn close_between(first: u32, last: u32) -> Result<(), Errno> {
    match close_range(first, last) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            for fd in first..descriptor_table_size()?.min(last.saturating_add(1)) {
                // EBADF: was not open. On Linux an error of close leaves nothing open.
                let _ = plain(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
            }
            Ok(())
        }
        answer => answer,
    }
}

/// close_range(2) without flags; callers see to who uses the descriptors.
fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    plain(
        libc::SYS_close_range,
        [first as usize, last as usize, 0, 0, 0, 0],
    )
    .map(drop)
}

/// Whether close_range(2) can be used: asks it to close the one number that no descriptor has.
pub(crate) fn probe_close_range() -> Result<(), Errno> {
    close_range(u32::MAX, u32::MAX)
}

/// One more than the highest descriptor the calling process can have open now, or a little higher.
fn descriptor_table_size() -> Result<u32, Errno> {
    const FIELD: &[u8] = b"\nFDSize:\t";
    let path = c"/proc/self/status".as_ptr() as usize;
    let flags = int_arg(libc::O_RDONLY | libc::O_CLOEXEC);
    // SAFETY: the kernel reads a NUL-terminated string.
    let fd = unsafe {
        syscall(
            libc::SYS_openat,
            [int_arg(libc::AT_FDCWD), path, flags, 0, 0, 0],
        )
    }?;
    let mut text = [0_u8; 2048];
    let place = text.as_mut_ptr() as usize;
    // SAFETY: the kernel writes at most `text.len()` bytes to it.
    let read = unsafe { syscall(libc::SYS_read, [fd, place, text.len(), 0, 0, 0]) };
    let _ = plain(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
    let text = text.get(..read?).unwrap_or_default();
    let mut windows = text.windows(FIELD.len());
    let at = windows.position(|w| w == FIELD).ok_or(Errno::ENOTSUP)?;
    let digits = text.get(at + FIELD.len()..).unwrap_or_default();
    Ok(digits
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .fold(0_u32, |size, b| {
            size.saturating_mul(10).saturating_add(u32::from(b - b'0'))
        }))
}

/// Gives the calling *thread* a descriptor table of its own in which only `low` and `high` are open.
///
/// close_range(2) with CLOSE_RANGE_UNSHARE (Linux 5.9): the other threads' table is untouched, also
/// their POSIX record locks, whose owner is their table.
#[doc(alias = "CLOSE_RANGE_UNSHARE")]
pub(crate) fn unshare_descriptors_except(low: RawFd, high: RawFd) -> Result<(), Errno> {
    let close = |first: usize, last: usize| {
        let flags = libc::CLOSE_RANGE_UNSHARE as usize;
        plain(libc::SYS_close_range, [first, last, flags, 0, 0, 0]).map(drop)
    };
    let (low, high) = (low as usize, high as usize);
    // The first call decides whether there is a table of our own; it always covers something.
    close(high + 1, u32::MAX as usize)?;
    if low + 1 < high {
        close(low + 1, high - 1)?;
    }
    if low > 0 {
        close(0, low - 1)?;
    }
    Ok(())
}

/// Looks at a descriptor that this process holds by number.
pub(crate) fn with_raw_fd<R>(fd: RawFd, look: impl FnOnce(BorrowedFd<'_>) -> R) -> R {
    // SAFETY: -1 is the one forbidden value, and no caller has it: the numbers come from
    // descriptors that are open in this thread's table, or from /proc/self/fd. The borrow does not
    // leave this call; a number closed meanwhile by others gives EBADF, not undefined behaviour.
    look(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Takes over a descriptor that somebody gave us by number.
pub(crate) fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the caller has looked that it is open, and nothing else in this process owns it: it
    // was inherited, or made by a clone that only told us its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether the number `fd` means the same open file in the calling thread's table and in that of
/// another thread of this process.
///
/// kcmp(2), KCMP_FILE. EBADF if it is closed in either, ESRCH once the thread has ended; ENOSYS without
/// CONFIG_KCMP, EPERM under old container seccomp profiles.
#[doc(alias = "SYS_kcmp")]
pub(crate) fn is_same_file_in(thread: i32, fd: RawFd) -> Result<bool, Errno> {
    const KCMP_FILE: usize = 0;
    let (own, fd) = (int_arg(super::gettid()), int_arg(fd));
    let args = [own, int_arg(thread), KCMP_FILE, fd, fd, 0];
    plain(libc::SYS_kcmp, args).map(|order| order == 0)
}

/// Whether a descriptor of this number is open; fcntl(F_GETFD).
pub(crate) fn is_open(fd: i32) -> bool {
    plain(
        libc::SYS_fcntl,
        [int_arg(fd), int_arg(libc::F_GETFD), 0, 0, 0, 0],
    )
    .is_ok()
}

/// A pipe, close-on-exec: reading end, writing end. Not for a child that may touch no errno.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC)
}
