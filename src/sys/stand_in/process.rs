//! Processes: made, waited for, signalled.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::is_freebsd;
use crate::sys::linux as sys;

/// What becomes of a child when its process descriptor is closed for the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnClose {
    Kill,
    LetLive,
}

/// A child that has been made.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) descriptor: Option<OwnedFd>,
}

pub(crate) fn has_process_descriptors() -> bool {
    is_freebsd()
}

/// fork(3), and what a process descriptor is here.
///
/// # Safety
/// As that of the BSDs.
pub(crate) unsafe fn fork(on_close: OnClose) -> Result<Option<Child>, Errno> {
    let parent = getpid();
    let is_freebsd = is_freebsd();
    // SAFETY: the caller's promise.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        if is_freebsd && on_close == OnClose::Kill {
            let _ = sys::set_parent_death_signal(libc::SIGKILL);
            if getppid() != parent {
                exit(127);
            }
        }
        return Ok(None);
    }
    let descriptor = is_freebsd.then(|| sys::pidfd_open(pid)).transpose()?;
    Ok(Some(Child { pid, descriptor }))
}

pub(crate) fn exit(status: i32) -> ! {
    sys::exit_group(status)
}

pub(crate) fn getpid() -> i32 {
    sys::getpid()
}

pub(crate) fn getppid() -> i32 {
    sys::getppid()
}

pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    if pid <= 0 {
        return Err(Errno::ESRCH);
    }
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

pub(crate) fn kill_group(group: i32, signal: i32) -> Result<(), Errno> {
    if group <= 1 {
        return Err(Errno::ESRCH);
    }
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::kill(-group, signal) }).map(drop)
}

/// A child that has been waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waited {
    pub(crate) pid: i32,
    pub(crate) status: i32,
    pub(crate) times: [(i64, i64); 2],
    pub(crate) max_rss: i64,
}

/// Whom a wait is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Any,
    Pid(i32),
}

pub(crate) fn try_wait(which: Which) -> Result<Option<Waited>, Errno> {
    let pid = match which {
        Which::Any => -1,
        Which::Pid(pid) if pid > 0 => pid,
        Which::Pid(_) => return Err(Errno::ECHILD),
    };
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one int and one rusage.
    let answer = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    let pid = Errno::result(answer)?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: a plain C structure that was all zeroes before the kernel wrote to it.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| (time.tv_sec, time.tv_usec);
    Ok(Some(Waited {
        pid,
        status,
        times: [usage.ru_utime, usage.ru_stime].map(time),
        max_rss: usage.ru_maxrss.saturating_mul(1024),
    }))
}
