//! What a forked child does to itself before it executes a program. **Never run**, see
//! `docs/platforms.md`.
//!
//! All of it is for a child with one thread, and async-signal-safe. Where libc's function takes a lock of its
//! own the system call is made instead: FreeBSD's threads library keeps a table of handlers under locks
//! (`lib/libthr/thread/thr_sig.c`), which pdfork(2) does not make good.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use nix::errno::Errno;

/// A copy of `fd` with a number of at least `lowest`, close-on-exec; fcntl(F_DUPFD_CLOEXEC).
pub(crate) fn dup_at_least(fd: RawFd, lowest: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) })
}

/// Makes `to` mean what `from` does, not close-on-exec; dup2(2). The two must differ.
pub(crate) fn dup_to(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: no pointers; what `to` was is given up by the caller.
    Errno::result(unsafe { libc::dup2(from, to) }).map(drop)
}

/// Closes every descriptor that is not in the list, which is sorted.
///
/// Those above the highest by closefrom(2); on macOS, which has none, up to getdtablesize(3): what is above a
/// limit that was lowered afterwards stays open there, and is left to close-on-exec.
///
/// # Safety
/// What is closed is used by nobody in this process any more.
pub(crate) unsafe fn close_all_but(keep: &[RawFd]) {
    let mut next = 0;
    for fd in keep.iter().copied() {
        while next < fd {
            // SAFETY: the caller's promise.
            let _ = unsafe { libc::close(next) };
            next += 1;
        }
        next = next.max(fd.saturating_add(1));
    }
    // SAFETY: the caller's promise.
    unsafe { close_from(next) };
}

cfg_if::cfg_if! {
    if #[cfg(target_os = "macos")] {
        /// # Safety
        /// As [`close_all_but`].
        unsafe fn close_from(lowest: RawFd) {
            // SAFETY: no arguments.
            let end = unsafe { libc::getdtablesize() };
            for fd in lowest..end {
                // SAFETY: the caller's promise.
                let _ = unsafe { libc::close(fd) };
            }
        }
    } else {
        /// # Safety
        /// As [`close_all_but`].
        unsafe fn close_from(lowest: RawFd) {
            // SAFETY: the caller's promise. What it answers on some of them is that there was nothing to close.
            unsafe { libc::closefrom(lowest) };
        }
    }
}

/// setsid(2).
pub(crate) fn setsid() -> Result<(), Errno> {
    nix::unistd::setsid().map(drop)
}

/// setpgid(2) of the calling process; 0 for a group of its own.
pub(crate) fn set_process_group(group: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::setpgid(0, group) }).map(drop)
}

/// Makes the terminal `fd` the controlling one of the calling process, which must lead a session without
/// one; TIOCSCTTY of tty(4).
pub(crate) fn set_controlling_terminal(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes no argument; the third is there for those who look at it, and is null.
    Errno::result(unsafe { libc::ioctl(fd, TERMINAL_REQUEST, 0) }).map(drop)
}

#[allow(
    clippy::useless_conversion,
    clippy::cast_lossless,
    reason = "the constant's type is not the parameter's everywhere"
)]
const TERMINAL_REQUEST: libc::c_ulong = libc::TIOCSCTTY as libc::c_ulong;

/// umask(2).
#[allow(
    clippy::cast_possible_truncation,
    reason = "mode_t is 16 bits, of which nine count"
)]
pub(crate) fn set_umask(mask: u32) {
    // SAFETY: no pointers.
    unsafe { libc::umask((mask & 0o777) as libc::mode_t) };
}

/// setpriority(2) of the calling process.
pub(crate) fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// setrlimit(2): soft, then hard; `u64::MAX` for none.
pub(crate) fn set_resource_limit(resource: i32, limit: &[u64; 2]) -> Result<(), Errno> {
    let [rlim_cur, rlim_max] = limit.map(to_rlimit);
    let limit = libc::rlimit { rlim_cur, rlim_max };
    // SAFETY: the kernel reads one structure.
    Errno::result(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// RLIM_INFINITY is half of 2^64 on all of these systems, and more is no limit.
#[allow(
    clippy::useless_conversion,
    irrefutable_let_patterns,
    reason = "rlim_t is signed on FreeBSD and DragonFly"
)]
fn to_rlimit(limit: u64) -> libc::rlim_t {
    let infinity = libc::RLIM_INFINITY;
    libc::rlim_t::try_from(limit).map_or(infinity, |limit| limit.min(infinity))
}

/// chdir(2).
pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: a NUL-terminated string.
    Errno::result(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Blocks the signals of the set, bit n-1 for signal n, and no other.
pub(crate) fn set_signal_mask(set: u64) -> Result<(), Errno> {
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the whole set is written.
    unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
    for signal in (1..=64).filter(|signal| set >> (signal - 1) & 1 != 0) {
        // SAFETY: a set that has been written; a number that is no signal's is an error.
        unsafe { libc::sigaddset(mask.as_mut_ptr(), signal) };
    }
    // SAFETY: reads one set, which has been written, and writes none.
    let answer =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), std::ptr::null_mut()) };
    if answer == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(answer))
    }
}

/// No system has a signal above this: FreeBSD, `_SIG_MAXSIG`.
const LAST_SIGNAL: i32 = 128;

/// Gives every signal that has a handler, and those in `default`, the default disposition, and ignores
/// those in `ignore`. Sets as [`set_signal_mask`] has them.
pub(crate) fn reset_dispositions(default: u64, ignore: u64) -> Result<(), Errno> {
    for signal in 1..=LAST_SIGNAL {
        let is_in = |set: u64| signal <= 64 && set >> (signal - 1) & 1 != 0;
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        if is_in(ignore) {
            disposition(signal, Some(libc::SIG_IGN))?;
            continue;
        }
        let handler = match disposition(signal, None) {
            Ok(handler) => handler,
            // No signal.
            Err(Errno::EINVAL) => continue,
            Err(errno) => return Err(errno),
        };
        let has_handler = handler != libc::SIG_DFL && handler != libc::SIG_IGN;
        // Though it is the default already: SA_NOCLDWAIT, which fork inherits, goes with it.
        if has_handler || is_in(default) {
            disposition(signal, Some(libc::SIG_DFL))?;
        }
    }
    Ok(())
}

/// Asks for a disposition, or changes it; sigaction(2). What it was.
fn disposition(signal: i32, new: Option<libc::sighandler_t>) -> Result<libc::sighandler_t, Errno> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    let place = match new {
        Some(handler) => {
            // SAFETY: a plain C structure, for which all zeroes are a value: no flags, an empty mask.
            unsafe { (*action.as_mut_ptr()).sa_sigaction = handler };
            action.as_ptr()
        }
        None => std::ptr::null(),
    };
    // SAFETY: reads at most one structure and writes one; SIG_DFL and SIG_IGN are no code of ours.
    Errno::result(unsafe { sigaction(signal, place, before.as_mut_ptr()) })?;
    // SAFETY: written by the kernel, and all zeroes before.
    Ok(unsafe { before.assume_init() }.sa_sigaction)
}

cfg_if::cfg_if! {
    if #[cfg(target_os = "freebsd")] {
        /// The system call: libthr's function takes a lock, see above.
        ///
        /// # Safety
        /// As sigaction(2).
        unsafe fn sigaction(
            signal: i32,
            new: *const libc::sigaction,
            old: *mut libc::sigaction,
        ) -> i32 {
            // SAFETY: the caller's promise.
            unsafe { libc::syscall(super::layout::SYS_SIGACTION, signal, new, old) }
        }
    } else {
        use libc::sigaction;
    }
}

/// execve(2); returns only if it fails.
///
/// # Safety
/// `path` and every string are NUL-terminated, both arrays end with a null pointer, and all of it lives
/// for the call.
pub(crate) unsafe fn execve(
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> Errno {
    // SAFETY: the caller's promise.
    unsafe { libc::execve(path, argv, envp) };
    Errno::last()
}
