//! Children that share our memory until their exec, and are born where they belong: in namespaces, in a
//! cgroup, as children of our own parent.
//!
//! The C library's wrapper of clone(2) writes errno, which in a child is a variable of the process it shares memory with.

use std::ffi::c_void;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicI32;

use nix::errno::Errno;

use super::{GuardedStack, Never, clone_onto, int_arg, plain};

/// The child's death when the last descriptor of the open pidfd that clone3 made is closed; Linux 7.1, from its
/// source: with CLONE_AUTOREAP, an exit signal of 0, and CAP_SYS_ADMIN or CLONE_NNP. Never run.
#[doc(alias = "CLONE_PIDFD_AUTOKILL")]
pub(crate) const CLONE_AUTOKILL: u64 = 1 << 36 | 1 << 34;

const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// struct clone_args, its third size (Linux 5.7).
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Where a child runs on a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// At the top: one that may make another child.
    Upper,
    /// Half way down: one that is made by a child on the upper half, which is held meanwhile.
    Lower,
}

/// Makes a child that does `run` on `stack`, with our memory; we are held until it has executed a program
/// or ended (vfork), unless we are killed. The answer is its pid in our PID namespace. Its pidfd's number is in
/// `pidfd` before it exists for anybody (clone(2), CLONE_PIDFD; in our table, which is the caller's too with
/// CLONE_FILES). The exit signal is SIGCHLD, or our own with CLONE_PARENT.
///
/// `cgroup`: a directory of cgroup version 2 to be born in; clone3(2), Linux 5.7. EACCES: not allowed to move
/// processes there; EBUSY: it has controllers enabled for cgroups below it; ENODEV: it has been removed; ENOSYS or
/// EPERM from a filter that does not know clone3.
///
/// `pid`: where the kernel writes the child's pid once there is one, and before it runs (CLONE_PARENT_SETTID): for a caller
/// that may be killed before it knows the answer. With clone3 only.
///
/// `flags`: CLONE_NEWPID: ENOSPC if a limit of user.max_pid_namespaces or the depth of 32 is reached, EPERM without
/// CAP_SYS_ADMIN; ENOMEM if the namespace for our children has lost its init. CLONE_NEWUSER: EPERM in a chroot.
///
/// `run` makes raw system calls only, allocates nothing, takes no lock and drops nothing.
#[doc(alias = "clone3")]
pub(crate) fn clone_child<F: FnOnce() -> Never>(
    stack: &GuardedStack,
    half: Half,
    flags: u64,
    cgroup: Option<RawFd>,
    pidfd: &AtomicI32,
    pid: Option<&AtomicI32>,
    run: F,
) -> Result<i32, Errno> {
    extern "C" fn child<F: FnOnce() -> Never>(run: *mut c_void) -> ! {
        // SAFETY: `run` below, which outlives the child's use of our memory: we are held until its exec or end,
        // or do not come back.
        let run = unsafe { &mut *run.cast::<Option<F>>() };
        match run.take() {
            Some(run) => match run() {},
            None => super::exit_group(0),
        }
    }
    let mut run = Some(run);
    let flags = flags | (libc::CLONE_PIDFD | libc::CLONE_VFORK | libc::CLONE_VM) as u64;
    let (lowest, top) = stack.half(half == Half::Upper);
    // The kernel does not want one for a sibling, which has ours, nor for one that reaps itself.
    let exit_signal = if flags & (libc::CLONE_PARENT as u64 | CLONE_AUTOKILL) == 0 {
        libc::SIGCHLD as u64
    } else {
        0
    };
    let argument = (&raw mut run).cast();
    if cgroup.is_none() && pid.is_none() && flags < 1 << 32 {
        let pidfd = pidfd.as_ptr() as usize;
        let args = [(flags | exit_signal) as usize, top, pidfd, 0, 0];
        // SAFETY: clone(2): a stack of its own, page-aligned and mapped until after the call, which nobody else
        // uses meanwhile; the kernel writes one int to `pidfd`; `child` takes what it is given.
        return unsafe { clone_onto(libc::SYS_clone, args, child::<F>, argument) };
    }
    let into = cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
    let clone_args = CloneArgs {
        flags: flags | into | pid.map_or(0, |_| libc::CLONE_PARENT_SETTID as u64),
        pidfd: pidfd.as_ptr() as u64,
        parent_tid: pid.map_or(0, |pid| pid.as_ptr() as u64),
        exit_signal,
        stack: lowest as u64,
        stack_size: (top - lowest) as u64,
        cgroup: cgroup.map_or(0, |fd| fd as u64),
        ..CloneArgs::default()
    };
    let place = (&raw const clone_args) as usize;
    let args = [place, size_of::<CloneArgs>(), 0, 0, 0];
    // SAFETY: as above; the kernel reads the structure.
    unsafe { clone_onto(libc::SYS_clone3, args, child::<F>, argument) }
}

/// Puts the calling *thread's* future children into the PID namespace of the process behind `pidfd`, and, if
/// `user`, the calling process into its user namespace; setns(2) of a pidfd, Linux 5.8. EPERM without
/// CAP_SYS_ADMIN over the namespace; ESRCH if the process has ended; EINVAL if it is not ours or below.
///
/// The user namespace's owner is our own user: in it this process has every capability until it executes a
/// program, and its user, and whoever may signal or trace it, stay the same.
pub(crate) fn enter_namespaces(pidfd: RawFd, user: bool) -> Result<(), Errno> {
    let kinds = libc::CLONE_NEWPID | if user { libc::CLONE_NEWUSER } else { 0 };
    plain(
        libc::SYS_setns,
        [int_arg(pidfd), int_arg(kinds), 0, 0, 0, 0],
    )
    .map(drop)
}
