//! Making, executing and waiting for processes.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicI32;

use nix::errno::Errno;

use super::{fd_arg, int_arg, plain, syscall};

/// What a child made by [`clone`] shares with us, besides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nothing: a fork; we go on at once.
    Nothing,
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
            Share::Nothing => 0,
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

/// Replaces the calling thread's signal mask; the answer is the old one.
///
/// rt_sigprocmask(2). Not through the C library, which keeps its own signals (32, 33) out of every
/// set it is given. SIGKILL and SIGSTOP stay deliverable whatever the set says.
#[doc(alias = "SYS_rt_sigprocmask")]
pub(crate) fn set_signal_mask(set: u64) -> Result<u64, Errno> {
    let mut old: u64 = 0;
    let (new, place) = (&raw const set as usize, &raw mut old as usize);
    let args = [
        int_arg(libc::SIG_SETMASK),
        new,
        place,
        size_of::<u64>(),
        0,
        0,
    ];
    // SAFETY: reads eight bytes from `new` and writes eight to `place`; both outlive the call.
    unsafe { syscall(libc::SYS_rt_sigprocmask, args)? };
    Ok(old)
}

/// All signals, as the kernel's 64-bit set.
pub(crate) const ALL_SIGNALS: u64 = !0;

/// Sets a disposition that has no handler: SIG_DFL or SIG_IGN; rt_sigaction(2).
pub(crate) fn set_disposition(signal: i32, handler: libc::sighandler_t) -> Result<(), Errno> {
    // struct kernel_sigaction: handler, flags, restorer, mask, each of the machine's word.
    let action: [usize; 4] = [handler, 0, 0, 0];
    let place = &raw const action as usize;
    // SAFETY: the kernel reads the four words; SIG_DFL and SIG_IGN run no code.
    unsafe {
        syscall(
            libc::SYS_rt_sigaction,
            [int_arg(signal), place, 0, size_of::<u64>(), 0, 0],
        )
    }
    .map(drop)
}

/// Makes the calling process the leader of a new session and process group, without a terminal.
pub(crate) fn setsid() -> Result<(), Errno> {
    plain(libc::SYS_setsid, [0; 6]).map(drop)
}

/// Names the calling thread, 15 bytes and a NUL; prctl(PR_SET_NAME).
pub(crate) fn set_name(name: &[u8; 16]) -> Result<(), Errno> {
    let args = [
        int_arg(libc::PR_SET_NAME),
        name.as_ptr() as usize,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads at most 16 bytes.
    unsafe { syscall(libc::SYS_prctl, args) }.map(drop)
}

/// No exec from here on gains privileges; prctl(PR_SET_NO_NEW_PRIVS), of the calling thread.
pub(crate) fn set_no_new_privs() -> Result<(), Errno> {
    plain(
        libc::SYS_prctl,
        [int_arg(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0, 0],
    )
    .map(drop)
}

/// No core dump of this process, whatever core_pattern says; prctl(PR_SET_DUMPABLE).
pub(crate) fn set_not_dumpable() -> Result<(), Errno> {
    plain(
        libc::SYS_prctl,
        [int_arg(libc::PR_SET_DUMPABLE), 0, 0, 0, 0, 0],
    )
    .map(drop)
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

/// Closes the descriptors from `first` to `last`; close_range(2), Linux 5.9.
fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    plain(
        libc::SYS_close_range,
        [first as usize, last as usize, 0, 0, 0, 0],
    )
    .map(drop)
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
        match run() {}
    }
    Ok(pid)
}

/// Closes a descriptor by number, which nobody owns.
pub(crate) fn close(fd: i32) {
    let _ = plain(libc::SYS_close, [int_arg(fd), 0, 0, 0, 0, 0]);
}

/// Whether a descriptor of this number is open; fcntl(F_GETFD).
pub(crate) fn is_open(fd: i32) -> bool {
    plain(
        libc::SYS_fcntl,
        [int_arg(fd), int_arg(libc::F_GETFD), 0, 0, 0, 0],
    )
    .is_ok()
}

/// Takes over a descriptor that somebody gave us by number.
pub(crate) fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the caller has looked that it is open, and nothing else in this process owns it: it
    // was inherited, or made by a clone that only told us its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Closes every descriptor but `keep`, which is sorted; where there is no close_range (Linux 5.9),
/// nothing.
pub(crate) fn close_all_but(keep: &[i32]) {
    let mut first = 0;
    for fd in keep.iter().filter_map(|fd| u32::try_from(*fd).ok()) {
        if fd > first {
            let _ = close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    let _ = close_range(first, u32::MAX);
}

/// Waits for a child to end and reaps it; its status is of no interest.
pub(crate) fn reap_pid(pid: i32) {
    let args = [
        libc::P_PID as usize,
        int_arg(pid),
        0,
        int_arg(libc::WEXITED),
        0,
        0,
    ];
    while plain(libc::SYS_waitid, args) == Err(Errno::EINTR) {}
}
