//! Making, executing and waiting for processes.

use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicI32;

use nix::errno::Errno;

use super::{fd_arg, int_arg, plain, syscall};

/// What a child made by [`clone`] shares with us, besides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nothing, and we are held until the child has exec'ed or ended (CLONE_VFORK without CLONE_VM:
    /// its memory is a copy, so whatever it does to its credentials concerns nobody else).
    NothingUntilExec,
    /// The descriptor table: what either opens or closes, the other has open or closed.
    Descriptors,
}

/// Makes a child: 0 in the child, its pid in the caller. The pidfd's number is in `pidfd` (close-on-
/// exec, in the caller's table) *before* the child exists for anybody: clone(2), CLONE_PIDFD, Linux
/// 5.2. The exit signal is SIGCHLD.
///
/// # Safety
/// The child is a copy of the calling thread alone, made behind the C library's back: in it only raw
/// system calls may be made, and it must end by `exec` or [`exit_group`](super::exit_group).
pub(crate) unsafe fn clone(share: Share, pidfd: &AtomicI32) -> Result<i32, Errno> {
    let flags = libc::CLONE_PIDFD
        | libc::SIGCHLD
        | match share {
            Share::NothingUntilExec => libc::CLONE_VFORK,
            Share::Descriptors => libc::CLONE_FILES,
        };
    // Stack 0: the child goes on with its copy of ours. The third argument is parent_tid on every
    // architecture, and takes the pidfd with CLONE_PIDFD.
    let args = [int_arg(flags), 0, pidfd.as_ptr() as usize, 0, 0, 0];
    // SAFETY: the kernel writes one int to `pidfd`, an atomic borrowed for the call; memory is not
    // shared with the child; what the child may do is the caller's promise.
    unsafe { syscall(libc::SYS_clone, args) }.map(|pid| pid as i32)
}

/// Sends `signal` to the process group that the process behind `pidfd` leads, which may have ended:
/// the group is the pidfd's, whoever has the number since.
///
/// pidfd_send_signal(2) with PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9 (EINVAL before). ESRCH if it
/// leads no group.
pub(crate) fn pidfd_send_signal_to_group(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    const PIDFD_SIGNAL_PROCESS_GROUP: i32 = 1 << 2;
    let args = [
        fd_arg(pidfd),
        int_arg(signal),
        0,
        int_arg(PIDFD_SIGNAL_PROCESS_GROUP),
        0,
        0,
    ];
    plain(libc::SYS_pidfd_send_signal, args).map(drop)
}

/// The process group of `pid`; getpgid(2).
pub(crate) fn getpgid(pid: i32) -> Result<i32, Errno> {
    plain(libc::SYS_getpgid, [int_arg(pid), 0, 0, 0, 0, 0]).map(|group| group as i32)
}

/// The session of `pid`; getsid(2).
pub(crate) fn getsid(pid: i32) -> Result<i32, Errno> {
    plain(libc::SYS_getsid, [int_arg(pid), 0, 0, 0, 0, 0]).map(|session| session as i32)
}

/// What happened to a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// This signal stopped it.
    Stopped(i32),
    /// SIGCONT resumed it.
    Continued,
}

/// The next thing that happened to any child: its pid and what. `None` if nothing has; ECHILD if
/// there is no child. Ended children are reaped.
///
/// waitid(2), by hand because nix's statuses know no real-time signal. With SIGCHLD ignored there is
/// nothing to be had: the caller sees to that.
pub(crate) fn next_change() -> Result<Option<(i32, Change)>, Errno> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG;
    let place = info.as_mut_ptr() as usize;
    let args = [libc::P_ALL as usize, 0, place, int_arg(options), 0, 0];
    // SAFETY: the kernel writes one siginfo_t, for which there is room; no rusage is asked for.
    unsafe { syscall(libc::SYS_waitid, args)? };
    // SAFETY: a plain C structure that was all zeroes before the kernel wrote to it.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills in the SIGCHLD fields, or leaves them zero with WNOHANG.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Ok(Some((
        pid,
        match info.si_code {
            libc::CLD_EXITED => Change::Exited(status),
            libc::CLD_STOPPED | libc::CLD_TRAPPED => Change::Stopped(status),
            libc::CLD_CONTINUED => Change::Continued,
            // CLD_KILLED, CLD_DUMPED
            _ => Change::Killed(status),
        },
    )))
}

/// What a child that ends by exec or exit returns.
pub(crate) type Never = std::convert::Infallible;

/// As [`clone`], with what the child does and ends with.
///
/// The child must be a fork in all but name: `run` makes raw system calls only, allocates nothing
/// and takes no lock, which holds for everything in this module and for plain loads and stores.
pub(crate) fn clone_running(
    share: Share,
    pidfd: &AtomicI32,
    run: impl FnOnce() -> Never,
) -> Result<i32, Errno> {
    // SAFETY: the child runs `run` alone, whose author has read the rule above, and cannot come back.
    let pid = unsafe { clone(share, pidfd) }?;
    if pid == 0 {
        run();
    }
    Ok(pid)
}
