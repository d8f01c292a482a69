//! Linux system calls that neither std nor nix has, and those that must be made without errno.
//!
//! Every function here is one system call (or a bounded loop of one), allocates nothing, takes no
//! lock and touches no thread-local storage where [`ERRNO_FREE`] says so: all may be used between
//! `clone` and `exec`, and in a `CLONE_VM` child.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::errno::Errno;

mod syscall;

pub(crate) use syscall::ERRNO_FREE;
use syscall::syscall;

/// All signals, as the kernel's 64-bit set.
pub(crate) const ALL_SIGNALS: u64 = !0;

/// A file descriptor as a system call argument (sign-extended, as the kernel reads an `int`).
fn fd_arg(fd: BorrowedFd<'_>) -> usize {
    int_arg(fd.as_raw_fd())
}

/// An `int` as a system call argument.
fn int_arg(value: i32) -> usize {
    (value as isize).cast_unsigned()
}

/// An id as a system call argument.
fn id_arg(value: u32) -> usize {
    value as usize
}

/// A system call whose arguments are plain numbers.
fn plain(number: libc::c_long, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: only called below, for system calls that take no pointer in the places used, and
    // whose effect is on the calling process as its wrapper says.
    unsafe { syscall(number, args) }
}

/// A descriptor that refers to the process `pid` (its thread group leader), close-on-exec.
///
/// pidfd_open(2), Linux 5.3: works for a zombie; ESRCH if there is no such process, EINVAL for 0.
/// The pid is looked up once: who holds the descriptor is never shown a recycled pid, but the
/// caller must know that `pid` was the right one *at this moment*. Old container seccomp profiles
/// answer EPERM where ENOSYS is meant. In another PID namespace the pid means another process.
#[doc(alias = "SYS_pidfd_open")]
pub(crate) fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    let fd = plain(libc::SYS_pidfd_open, [int_arg(pid), 0, 0, 0, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` (0: only asks whether it could be sent) to the process behind `pidfd`.
///
/// pidfd_send_signal(2), Linux 5.1: ESRCH once the process has been reaped, success for a zombie,
/// EPERM as for kill(2), EINVAL where the process is not in our PID namespace or below, EBADF if it
/// is not a pidfd.
#[doc(alias = "SYS_pidfd_send_signal")]
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    plain(
        libc::SYS_pidfd_send_signal,
        [fd_arg(pidfd), int_arg(signal), 0, 0, 0, 0],
    )
    .map(drop)
}

/// Sets the calling thread's parent-death signal; 0 clears it.
///
/// PR_SET_PDEATHSIG(2const): sent when the *thread* that created us ends; cleared for the child of
/// a fork, on exec of a set-id or capability-bearing program, and by any change of the effective or
/// file-system uid or gid.
#[doc(alias = "PR_SET_PDEATHSIG")]
pub(crate) fn set_parent_death_signal(signal: i32) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, int_arg(signal)).map(drop)
}

/// The calling thread's parent-death signal, 0 for none.
#[doc(alias = "PR_GET_PDEATHSIG")]
pub(crate) fn parent_death_signal() -> Result<i32, Errno> {
    let mut signal: libc::c_int = 0;
    let place = &raw mut signal;
    // SAFETY: PR_GET_PDEATHSIG writes one int to `place`, which lives until after the call.
    unsafe {
        syscall(
            libc::SYS_prctl,
            [int_arg(libc::PR_GET_PDEATHSIG), place as usize, 0, 0, 0, 0],
        )?;
    }
    Ok(signal)
}

/// prctl(2) with one plain argument.
fn prctl(option: i32, arg: usize) -> Result<usize, Errno> {
    plain(libc::SYS_prctl, [int_arg(option), arg, 0, 0, 0, 0])
}

/// The pid of the process that is our parent now; 0 if it is not in our PID namespace or below.
pub(crate) fn getppid() -> i32 {
    plain(libc::SYS_getppid, [0; 6]).map_or(0, |pid| pid as i32)
}

/// Our own pid, asked of the kernel: right in a fresh child, where a cached one may not be.
pub(crate) fn getpid() -> i32 {
    plain(libc::SYS_getpid, [0; 6]).map_or(0, |pid| pid as i32)
}

/// The calling thread's id; equal to the pid for the main thread.
pub(crate) fn gettid() -> i32 {
    plain(libc::SYS_gettid, [0; 6]).map_or(0, |tid| tid as i32)
}

/// Ends the process (every thread) without running anything more of it.
pub(crate) fn exit_group(status: i32) -> ! {
    loop {
        let _ = plain(libc::SYS_exit_group, [int_arg(status), 0, 0, 0, 0, 0]);
    }
}

/// Replaces the calling thread's signal mask with exactly `set`; the answer is the old one.
///
/// `rt_sigprocmask(2)`. Not through the C library, which keeps its own signals (32, 33) out of every
/// set it is given. SIGKILL and SIGSTOP stay deliverable whatever the set says.
#[doc(alias = "SYS_rt_sigprocmask")]
pub(crate) fn set_signal_mask(set: u64) -> Result<u64, Errno> {
    let mut old: u64 = 0;
    let (new, place) = (&raw const set, &raw mut old);
    // SAFETY: reads eight bytes from `new` and writes eight to `place`; both outlive the call.
    unsafe {
        syscall(
            libc::SYS_rt_sigprocmask,
            [
                int_arg(libc::SIG_SETMASK),
                new as usize,
                place as usize,
                size_of::<u64>(),
                0,
                0,
            ],
        )?;
    }
    Ok(old)
}

/// Names the calling thread: up to 15 bytes and a NUL.
///
/// `PR_SET_NAME(2const)`: the thread that calls, nobody else's name, even with shared memory.
#[doc(alias = "PR_SET_NAME")]
pub(crate) fn set_name(name: &[u8; 16]) -> Result<(), Errno> {
    // SAFETY: the kernel reads at most 16 bytes from `name`.
    unsafe {
        syscall(
            libc::SYS_prctl,
            [
                int_arg(libc::PR_SET_NAME),
                name.as_ptr() as usize,
                0,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

/// Makes the calling process the leader of a new session and process group, without a terminal.
///
/// setsid(2): EPERM if it leads a process group already, which a child just made never does.
pub(crate) fn setsid() -> Result<(), Errno> {
    plain(libc::SYS_setsid, [0; 6]).map(drop)
}

/// Changes the working directory.
pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the kernel reads a NUL-terminated string.
    unsafe { syscall(libc::SYS_chdir, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Closes every descriptor of the calling process's table but those in `keep`, which is sorted.
///
/// `close_range(2)`, Linux 5.9; where it is refused, by ENOSYS or an old seccomp profile's EPERM, one
/// by one up to the table's size in /proc/self/status (`FDSize`): `RLIMIT_NOFILE` can be a thousand
/// million, and lower than a descriptor opened before it was lowered. Without /proc it fails.
///
/// # Safety
/// No descriptor but those in `keep` may be used by anyone who shares the table.
#[doc(alias = "SYS_close_range")]
pub(crate) unsafe fn close_all_but(keep: [RawFd; 2]) -> Result<(), Errno> {
    let mut first: u32 = 0;
    for fd in keep {
        let fd = u32::try_from(fd).map_err(|_| Errno::EBADF)?;
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
                let _ = plain(libc::SYS_close, [id_arg(fd), 0, 0, 0, 0, 0]);
            }
            Ok(())
        }
        answer => answer,
    }
}

/// `close_range(2)` without flags; callers see to who uses the descriptors.
fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    plain(
        libc::SYS_close_range,
        [id_arg(first), id_arg(last), 0, 0, 0, 0],
    )
    .map(drop)
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

/// Takes a POSIX write lock on the whole file, waiting for it if `wait` is set.
///
/// `fcntl_locking(2)`: the owner is the table of descriptors, that is the process. Held by another
/// it is EAGAIN (or EACCES), or, waiting, EINTR after a signal handler. *Closing any descriptor* of
/// the file releases the owner's locks; a fork does not pass them on.
#[doc(alias = "F_SETLK")]
#[doc(alias = "F_SETLKW")]
pub(crate) fn lock_file(fd: BorrowedFd<'_>, wait: bool) -> Result<(), Errno> {
    // SAFETY: a plain C struct, for which all zeroes are values: offset 0, length 0 (to the end).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    #[allow(clippy::cast_possible_truncation, reason = "two small constants")]
    {
        lock.l_type = libc::F_WRLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
    }
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    let place = (&raw const lock) as usize;
    // SAFETY: the kernel reads one struct flock from `place`, which outlives the call.
    unsafe {
        syscall(
            libc::SYS_fcntl,
            [fd_arg(fd), int_arg(command), place, 0, 0, 0],
        )
    }
    .map(drop)
}

/// Sleeps while `word` is `expected`, until a wake; also returns for no reason at all.
///
/// futex(2), not private: the kernel's own wake of `CLONE_CHILD_CLEARTID` is not private either.
#[doc(alias = "FUTEX_WAIT")]
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32) {
    let args = [
        word.as_ptr() as usize,
        int_arg(libc::FUTEX_WAIT),
        id_arg(expected),
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads an aligned u32 that is borrowed for the call; no timeout.
    let _ = unsafe { syscall(libc::SYS_futex, args) };
}

/// Wakes all who sleep on `word`.
#[doc(alias = "FUTEX_WAKE")]
pub(crate) fn futex_wake(word: &AtomicU32) {
    let args = [
        word.as_ptr() as usize,
        int_arg(libc::FUTEX_WAKE),
        i32::MAX as usize,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel uses the address as a key; it is borrowed for the call.
    let _ = unsafe { syscall(libc::SYS_futex, args) };
}

/// Waits for the child behind `pidfd` to end and reaps it, whatever its exit signal.
///
/// waitid(2) with `P_PIDFD`, Linux 5.4 (before: EINVAL). ECHILD if it is no child or was reaped,
/// EBADF if there is no such descriptor, EINTR after a signal handler.
#[doc(alias = "P_PIDFD")]
pub(crate) fn reap(pidfd: RawFd) -> Result<(), Errno> {
    let options = int_arg(libc::WEXITED | libc::__WALL);
    plain(
        libc::SYS_waitid,
        [id_arg(libc::P_PIDFD), int_arg(pidfd), 0, options, 0, 0],
    )
    .map(drop)
}

/// Sleeps until one of `events` (or `POLLHUP`, `POLLERR`, which need no asking) holds for `fd`, for
/// at most `limit`; the answer is whether it does.
///
/// ppoll(2): EINTR after a signal handler, EINVAL with an `RLIMIT_NOFILE` of 0. A pidfd is `POLLIN`
/// when the process has ended, and `POLLHUP` when it has been reaped (Linux 6.9; never before).
#[doc(alias = "SYS_ppoll")]
pub(crate) fn poll_within(
    fd: BorrowedFd<'_>,
    events: libc::c_short,
    limit: Duration,
) -> Result<bool, Errno> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    #[allow(
        clippy::unnecessary_fallible_conversions,
        reason = "c_long has 32 bits elsewhere"
    )]
    let mut timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).map_err(|_| Errno::EINVAL)?,
        tv_nsec: limit.subsec_nanos().try_into().map_err(|_| Errno::EINVAL)?,
    };
    let (poll, timeout) = (&raw mut poll, &raw mut timeout);
    let args = [poll as usize, 1, timeout as usize, 0, 0, 0];
    // SAFETY: one struct pollfd, one struct timespec (both may be written), no signal mask; they
    // outlive the call.
    unsafe { syscall(libc::SYS_ppoll, args) }.map(|ready| ready > 0)
}
