//! Linux system calls that neither std nor nix has, and those that must be made without errno.
//!
//! Every function here is one system call (or a bounded loop of one), allocates nothing, takes no
//! lock and touches no thread-local storage where [`ERRNO_FREE`] says so: all may be used between
//! `clone` and `exec`, and in a `CLONE_VM` child.

#![allow(unsafe_code)]
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "system call arguments and answers are registers; an int comes back as an int"
)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

mod syscall;

cfg_if::cfg_if! {
    if #[cfg(feature = "cli")] {
        mod exec;
        mod process;
        mod shared;
        mod signalfd;
        pub(crate) use exec::*;
        pub(crate) use process::*;
        pub(crate) use signalfd::{Received, SignalFd};
        pub(crate) use shared::{Shared, SharedWords};
    }
}

use syscall::syscall;

/// A file descriptor as a system call argument (sign-extended, as the kernel reads an `int`).
fn fd_arg(fd: BorrowedFd<'_>) -> usize {
    int_arg(fd.as_raw_fd())
}

/// An `int` as a system call argument.
fn int_arg(value: i32) -> usize {
    value as isize as usize
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

/// Sends `signal` to the process `pid`, as kill(2); our own process may always be signalled.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    plain(libc::SYS_kill, [int_arg(pid), int_arg(signal), 0, 0, 0, 0]).map(drop)
}

/// An eventfd(2) at zero, close-on-exec.
pub(crate) fn eventfd() -> Result<OwnedFd, Errno> {
    let fd = plain(
        libc::SYS_eventfd2,
        [0, int_arg(libc::EFD_CLOEXEC), 0, 0, 0, 0],
    )?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes an eventfd readable.
pub(crate) fn eventfd_wake(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let one = 1_u64;
    let place = &raw const one;
    // SAFETY: write(2) reads the eight bytes of `one`, which outlives the call.
    unsafe { syscall(libc::SYS_write, [fd_arg(fd), place as usize, 8, 0, 0, 0]) }.map(drop)
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

/// Whether `signal` is at its default disposition; sigaction(2) only asked, of the whole process.
pub(crate) fn is_at_default(signal: i32) -> bool {
    disposition(signal) == Some(libc::SIG_DFL)
}

/// The disposition of `signal` in this process; SIGKILL's and SIGSTOP's is always the default.
pub(crate) fn disposition(signal: i32) -> Option<libc::sighandler_t> {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action changes nothing; the current one is written to `current`.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), current.as_mut_ptr()) };
    if asked != 0 {
        return None;
    }
    // SAFETY: sigaction succeeded, so it has written the structure.
    Some(unsafe { current.assume_init() }.sa_sigaction)
}

/// fchdir(2).
pub(crate) fn fchdir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    plain(libc::SYS_fchdir, [fd_arg(dir), 0, 0, 0, 0, 0]).map(drop)
}

/// A system call whose one argument is a path.
fn with_path(number: libc::c_long, path: &CStr) -> Result<(), Errno> {
    // SAFETY: the path is NUL-terminated and outlives the call, which only reads it.
    unsafe { syscall(number, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// chroot(2): the caller's working directory stays where it is, and is a way out until chdir.
pub(crate) fn chroot(path: &CStr) -> Result<(), Errno> {
    with_path(libc::SYS_chroot, path)
}

/// chdir(2).
pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    with_path(libc::SYS_chdir, path)
}

/// setgroups(2) for the calling *thread* alone: only for a child with one thread.
pub(crate) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many gids as the slice has.
    unsafe {
        syscall(
            SETGROUPS,
            [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0],
        )
    }
    .map(drop)
}

/// setresgid(2) of all three ids, for the calling *thread* alone.
pub(crate) fn set_gid(gid: u32) -> Result<(), Errno> {
    let id = gid as usize;
    plain(SETRESGID, [id, id, id, 0, 0, 0]).map(drop)
}

/// setresuid(2) of all three ids, for the calling *thread* alone. Clears its parent-death signal.
pub(crate) fn set_uid(uid: u32) -> Result<(), Errno> {
    let id = uid as usize;
    plain(SETRESUID, [id, id, id, 0, 0, 0]).map(drop)
}

/// The calling thread's real, effective and saved user ids.
pub(crate) fn uids() -> Result<[u32; 3], Errno> {
    three_ids(GETRESUID)
}

/// The calling thread's real, effective and saved group ids.
pub(crate) fn gids() -> Result<[u32; 3], Errno> {
    three_ids(GETRESGID)
}

fn three_ids(number: libc::c_long) -> Result<[u32; 3], Errno> {
    let mut ids = [u32::MAX; 3];
    let [real, effective, saved] = &mut ids;
    let place = |id: &mut u32| &raw mut *id as usize;
    // SAFETY: the kernel writes one id to each of three places that live in `ids`.
    unsafe {
        syscall(
            number,
            [place(real), place(effective), place(saved), 0, 0, 0],
        )
    }?;
    Ok(ids)
}

/// Whether the calling thread has any permitted capability; capget(2), version 3.
pub(crate) fn has_permitted_capabilities() -> Result<bool, Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    // Two triples: effective, permitted, inheritable, for the low and the high 32 capabilities.
    let mut data = [0_u32; 6];
    let (header, place) = (&raw mut header, &raw mut data);
    // SAFETY: both live until after the call, and have the sizes that version 3 reads and writes.
    unsafe {
        syscall(
            libc::SYS_capget,
            [header as usize, place as usize, 0, 0, 0, 0],
        )
    }?;
    Ok(data[1] != 0 || data[4] != 0)
}

// The 32-bit ABIs of old have 16-bit ids under the plain names.
cfg_if::cfg_if! {
    if #[cfg(any(target_arch = "x86", target_arch = "arm"))] {
        use libc::{
            SYS_getresgid32 as GETRESGID, SYS_getresuid32 as GETRESUID,
            SYS_setgroups32 as SETGROUPS, SYS_setresgid32 as SETRESGID,
            SYS_setresuid32 as SETRESUID,
        };
    } else {
        use libc::{
            SYS_getresgid as GETRESGID, SYS_getresuid as GETRESUID, SYS_setgroups as SETGROUPS,
            SYS_setresgid as SETRESGID, SYS_setresuid as SETRESUID,
        };
    }
}
