//! Making, executing and waiting for processes.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicI32;

use nix::errno::Errno;

pub(crate) use crate::sys::change::Change;

use super::{ERRNO_FREE, GuardedStack, StackError, fd_arg, int_arg, plain, syscall};

/// What a child made by [`clone_running`] shares with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nothing: a fork. We go on at once.
    Nothing,
    /// The memory, and we are held until the child has exec'ed or ended: a vfork, on a stack of its
    /// own. Not for a child that changes its credentials, as the new user could hold it up, and us;
    /// nor where a terminal could stop it before its exec; nor where system calls write errno
    /// ([`ERRNO_FREE`]).
    MemoryUntilExec,
    /// The descriptor table: what either opens or closes, the other has open or closed.
    Descriptors,
}

/// What a child that ends by exec or exit returns.
pub(crate) type Never = std::convert::Infallible;

/// How much stack a child that shares our memory gets, and another that it makes; they make system calls only.
const STACK: usize = 2 * 64 * 1024;

impl GuardedStack {
    /// A stack for a child that shares our memory until its exec.
    pub(crate) fn for_child() -> Result<Self, Errno> {
        Self::new(STACK).map_err(|error| match error {
            StackError::Map(errno) | StackError::Guard(errno) => errno,
        })
    }
}

/// Makes a child that does `run`; the answer is its pid. The pidfd's number is in `pidfd` (close-on-
/// exec, in the caller's table) *before* the child exists for anybody: clone(2), CLONE_PIDFD, Linux
/// 5.2. The exit signal is SIGCHLD.
///
/// The child is made behind the C library's back: `run` makes raw system calls only, allocates
/// nothing, takes no lock and drops nothing, which holds for everything in this module and for plain
/// loads and stores.
pub(crate) fn clone_running<F: FnOnce() -> Never>(
    share: Share,
    pidfd: &AtomicI32,
    run: F,
) -> Result<i32, Errno> {
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    match share {
        Share::Nothing => clone(flags, pidfd, run),
        Share::Descriptors => clone(flags | libc::CLONE_FILES, pidfd, run),
        Share::MemoryUntilExec if !ERRNO_FREE => Err(Errno::ENOSYS),
        Share::MemoryUntilExec => {
            let stack = GuardedStack::for_child()?;
            clone_until_exec(&stack, pidfd, run)
        }
    }
}

/// A child whose memory and descriptors are copies, and whose parent is ours; clone(2), CLONE_PARENT: not by the init of
/// a PID namespace (EINVAL). Its exit signal is ours. Otherwise as [`clone_running`].
pub(crate) fn clone_sibling<F: FnOnce() -> Never>(pidfd: &AtomicI32, run: F) -> Result<i32, Errno> {
    clone(libc::CLONE_PIDFD | libc::CLONE_PARENT, pidfd, run)
}

/// A child whose memory is a copy.
#[allow(unreachable_code, reason = "the child does not come back")]
fn clone<F: FnOnce() -> Never>(flags: i32, pidfd: &AtomicI32, run: F) -> Result<i32, Errno> {
    // Stack 0: the child goes on with its copy of ours. Flags, stack, parent_tid: so on every
    // architecture that run-with is for (not on s390x, whose stack is first, nor on microblaze), and
    // parent_tid takes the pidfd with CLONE_PIDFD.
    let args = [int_arg(flags), 0, pidfd.as_ptr() as usize, 0, 0, 0];
    // SAFETY: the kernel writes one int to `pidfd`, an atomic borrowed for the call; memory is not
    // shared with the child, which does `run` alone and cannot come back.
    let pid = unsafe { syscall(libc::SYS_clone, args) }? as i32;
    if pid == 0 {
        run();
    }
    Ok(pid)
}

/// A child that shares our memory, while we are held: [`Share::MemoryUntilExec`] on a stack that can
/// be used again.
fn clone_until_exec<F: FnOnce() -> Never>(
    stack: &GuardedStack,
    pidfd: &AtomicI32,
    run: F,
) -> Result<i32, Errno> {
    extern "C" fn child<F: FnOnce() -> Never>(run: *mut c_void) -> libc::c_int {
        // SAFETY: `run` below, which outlives the child's use of our memory: we are held until its
        // exec or end.
        let run = unsafe { &mut *run.cast::<Option<F>>() };
        run.take().map_or(0, |run| match run() {})
    }
    if !ERRNO_FREE {
        return Err(Errno::ENOSYS);
    }
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD | libc::CLONE_VFORK | libc::CLONE_VM;
    let mut run = Some(run);
    // SAFETY: a stack of its own, page-aligned and mapped until after the call; `child` takes what
    // it is given; the kernel writes one int to `pidfd`. clone(2) as the C library wraps it touches
    // errno in the caller only.
    let pid = unsafe {
        libc::clone(
            child::<F>,
            stack.top(),
            flags,
            (&raw mut run).cast(),
            pidfd.as_ptr(),
            std::ptr::null_mut::<c_void>(),
            std::ptr::null_mut::<libc::pid_t>(),
        )
    };
    Errno::result(pid)
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
