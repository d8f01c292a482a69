//! Processes: made, waited for, signalled. **Never run**, see `docs/platforms.md`.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

/// What becomes of a child when its process descriptor is closed for the last time, which is at the
/// latest when those who have it have ended, in whatever way. Says nothing where there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnClose {
    /// The kernel sends it SIGKILL, whatever user it has become: procdesc_close(), FreeBSD's
    /// `sys/kern/sys_procdesc.c`.
    Kill,
    /// Nothing; PD_DAEMON.
    LetLive,
}

/// A child that has been made.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    /// FreeBSD's process descriptor, close-on-exec. Nobody but the parent has it, not the child either; but
    /// what the parent forks afterwards inherits it (DFLAG_PASSABLE) until it closes it.
    pub(crate) descriptor: Option<OwnedFd>,
}

/// Whether a child comes with a process descriptor: FreeBSD. Such a child is waited for by its pid alone,
/// never by a wait for any, and sends no SIGCHLD (proc_to_reap() and exit1(), `sys/kern/kern_exit.c`).
pub(crate) fn has_process_descriptors() -> bool {
    cfg!(target_os = "freebsd")
}

/// fork(2), on FreeBSD pdfork(2): `None` in the child.
///
/// FreeBSD's pdfork is the bare system call: no handler of pthread_atfork(3) is run, and no lock of the
/// C library is made good. Elsewhere the handlers are run.
///
/// # Safety
/// If the process has other threads, the child calls nothing but what is async-signal-safe until it
/// executes a program or ends by [`exit`]; no destructor of what it has inherited is run.
pub(crate) unsafe fn fork(on_close: OnClose) -> Result<Option<Child>, Errno> {
    // SAFETY: the caller's promise.
    unsafe { make(on_close) }
}

cfg_if::cfg_if! {
    if #[cfg(target_os = "freebsd")] {
        use std::os::fd::FromRawFd;

        /// # Safety
        /// As [`fork`].
        unsafe fn make(on_close: OnClose) -> Result<Option<Child>, Errno> {
            let daemon = match on_close {
                OnClose::Kill => 0,
                OnClose::LetLive => libc::PD_DAEMON,
            };
            let mut descriptor = -1;
            // SAFETY: the kernel writes one int, in the parent; the rest is the caller's promise.
            let pid = unsafe { libc::pdfork(&raw mut descriptor, libc::PD_CLOEXEC | daemon) };
            match Errno::result(pid)? {
                0 => Ok(None),
                pid => Ok(Some(Child {
                    pid,
                    // SAFETY: just made by the kernel for us.
                    descriptor: Some(unsafe { OwnedFd::from_raw_fd(descriptor) }),
                })),
            }
        }
    } else {
        /// # Safety
        /// As [`fork`].
        unsafe fn make(_on_close: OnClose) -> Result<Option<Child>, Errno> {
            // SAFETY: the caller's promise.
            let pid = unsafe { libc::fork() };
            match Errno::result(pid)? {
                0 => Ok(None),
                pid => Ok(Some(Child { pid, descriptor: None })),
            }
        }
    }
}

/// Ends the process without running anything more of it; _exit(2).
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: it does not return, and runs nothing of the program's.
    unsafe { libc::_exit(status) }
}

/// Our own pid.
pub(crate) fn getpid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// Our parent's pid. 1 or a reaper's when the parent has ended; on macOS and FreeBSD a debugger's while it
/// traces us by ptrace(2).
pub(crate) fn getppid() -> i32 {
    nix::unistd::getppid().as_raw()
}

/// kill(2). The number must still be the right process's: a child that has not been waited for, or one whose
/// end has not been told. Never a group: 0 and negative numbers are ESRCH.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    if pid <= 0 {
        return Err(Errno::ESRCH);
    }
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// kill(2) of a process group. macOS: EPERM as well where there are only zombies in it.
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
    /// As wait(2) has it: the same bits on all of these systems and on Linux for what has exited (second
    /// byte), or was killed (lowest seven bits, and the eighth for a core dump).
    pub(crate) status: i32,
    /// User and system time, each as seconds and microseconds, with those of children it had waited for.
    pub(crate) times: [(i64, i64); 2],
    /// The largest resident set, in bytes.
    pub(crate) max_rss: i64,
}

/// Whom a wait is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Any child, on FreeBSD but those with a process descriptor.
    Any,
    /// The child with this pid.
    Pid(i32),
}

/// Waits for a child that has ended, without waiting for its end; wait4(2). `None` if it runs. ECHILD: no such
/// child, any more.
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
    Ok(Some(Waited {
        pid,
        status,
        times: [usage.ru_utime, usage.ru_stime].map(time),
        max_rss: wide(usage.ru_maxrss).saturating_mul(UNIT_OF_MAX_RSS),
    }))
}

/// getrusage(2): bytes on macOS, kilobytes elsewhere.
const UNIT_OF_MAX_RSS: i64 = if cfg!(target_os = "macos") { 1 } else { 1024 };

fn time(time: libc::timeval) -> (i64, i64) {
    (wide(time.tv_sec), wide(time.tv_usec))
}

/// Numbers whose types are narrower on some of the systems.
fn wide(number: impl Into<i64>) -> i64 {
    number.into()
}
