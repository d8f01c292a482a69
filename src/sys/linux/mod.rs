//! Linux system calls that neither std nor nix has, and those that must be made without errno.
//!
//! Every function here is one system call (or a bounded loop of one), allocates nothing, takes no
//! lock and touches no thread-local storage where [`ERRNO_FREE`] says so: all may be used between
//! `clone` and `exec`, and in a `CLONE_VM` child.

#![allow(unsafe_code)]
// The small crate uses a part of what the program uses.
#![cfg_attr(
    any(captive_stand_in, not(all(feature = "cli", feature = "launcher"))),
    allow(dead_code, unused_imports)
)]
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "system call arguments and answers are registers; an int comes back as an int"
)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

mod syscall;

mod clone_onto;
mod credentials;
mod descriptors;
mod epoll;
mod owner;
mod signalfd;
mod stack;
mod thread;
mod waiting;

pub(crate) use clone_onto::clone_onto;
pub(crate) use credentials::*;
pub(crate) use descriptors::*;
pub(crate) use epoll::Epoll;
pub(crate) use owner::Owner;
pub(crate) use stack::{GuardedStack, StackError};
pub(crate) use syscall::ERRNO_FREE;
pub(crate) use thread::*;
pub(crate) use waiting::*;

cfg_if::cfg_if! {
    if #[cfg(any(feature = "cli", feature = "launcher"))] {
        mod exec;
        mod process;

        pub(crate) use crate::sys::exec::*;
        pub(crate) use exec::*;
        pub(crate) use process::*;
    }
}

cfg_if::cfg_if! {
    if #[cfg(any(captive_helper, captive_stand_in))] {
        mod child;

        pub(crate) use child::*;
    }
}

cfg_if::cfg_if! {
    if #[cfg(captive_helper)] {
        mod cgroup;
        mod clone;

        pub(crate) use cgroup::*;
        pub(crate) use clone::*;
    }
}

cfg_if::cfg_if! {
    if #[cfg(feature = "cli")] {
        mod itself;

        pub(crate) use crate::sys::shared::Shared;
        pub(crate) use itself::*;
        pub(crate) use signalfd::{Received, SignalFd};
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
