//! Processes: made, waited for, signalled. **Never run**, see `docs/platforms.md`.

use nix::errno::Errno;

use crate::sys::posix::{Child, OnClose};

/// Whether a child can come with a process descriptor: FreeBSD. Such a child is waited for by its pid alone,
/// never by a wait for any, and sends no SIGCHLD (proc_to_reap() and exit1(), `sys/kern/kern_exit.c`).
pub(crate) fn has_process_descriptors() -> bool {
    cfg!(target_os = "freebsd")
}

/// fork(2), on FreeBSD pdfork(2) unless no descriptor is wanted: `None` in the child.
///
/// FreeBSD's pdfork is the bare system call: no handler of pthread_atfork(3) is run, and no lock of the
/// C library is made good. With fork(2) the handlers are run.
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
        use std::os::fd::{FromRawFd, OwnedFd};

        /// # Safety
        /// As [`fork`].
        unsafe fn make(on_close: OnClose) -> Result<Option<Child>, Errno> {
            let daemon = match on_close {
                OnClose::Kill => 0,
                OnClose::LetLive => libc::PD_DAEMON,
                // SAFETY: the caller's promise.
                OnClose::NoDescriptor => return unsafe { plain() },
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
            unsafe { plain() }
        }
    }
}

/// fork(2).
///
/// # Safety
/// As [`fork`].
unsafe fn plain() -> Result<Option<Child>, Errno> {
    // SAFETY: the caller's promise.
    let pid = unsafe { libc::fork() };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => Ok(Some(Child {
            pid,
            descriptor: None,
        })),
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

/// Our parent's pid. 1 or a reaper's when the parent has ended; on macOS a debugger's while it traces us by
/// ptrace(2), on FreeBSD the parent's all the same (p_oppid, kern_getppid(), `sys/kern/kern_prot.c`).
pub(crate) fn getppid() -> i32 {
    nix::unistd::getppid().as_raw()
}
