//! What is written in the same way for every system but Linux's own, on which [`stand_in`](super) uses it as well:
//! calls of POSIX, and of the BSDs where Linux has them. All of it may be called in a forked child: sigaction(2).

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

/// What becomes of a child when its process descriptor is closed for the last time, which is at the
/// latest when those who have it have ended, in whatever way. Says nothing where there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnClose {
    /// The kernel sends it SIGKILL, whatever user it has become: procdesc_close(), FreeBSD's
    /// `sys/kern/sys_procdesc.c`.
    Kill,
    /// Nothing but that its parent is the next reaper: PD_DAEMON. The parent's exit closes descriptors before it looks at
    /// its children (exit1(), `sys/kern/kern_exit.c`), so the parent-death signal of this one is never sent.
    LetLive,
    /// There is no descriptor: fork(2). The parent-death signal is sent.
    NoDescriptor,
}

/// A child that has been made.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    /// FreeBSD's process descriptor, close-on-exec. Nobody but the parent has it, not the child either; but
    /// what the parent forks afterwards inherits it (DFLAG_PASSABLE) until it closes it.
    pub(crate) descriptor: Option<OwnedFd>,
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
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
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

/// The signals that a thread blocks, to be put back.
#[derive(Clone, Copy)]
pub(crate) struct SignalMask(libc::sigset_t);

impl std::fmt::Debug for SignalMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalMask")
    }
}

/// Blocks every signal that can be, and says what was blocked; pthread_sigmask(3).
pub(crate) fn block_all_signals() -> Result<SignalMask, Errno> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the whole set is written.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: reads one set, which has been written, and writes the other.
    let answer =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    match answer {
        // SAFETY: written by the call; and all zeroes is a set as well.
        0 => Ok(SignalMask(unsafe { before.assume_init() })),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Blocks what was blocked before.
pub(crate) fn restore_signal_mask(mask: &SignalMask) {
    // SAFETY: reads one set, and writes none.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut()) };
}

/// Writes to a pipe or a socket of the child's; write(2).
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    nix::unistd::write(fd, bytes)
}

/// Reads; read(2).
pub(crate) fn read(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize, Errno> {
    nix::unistd::read(fd, bytes)
}

cfg_if::cfg_if! {
    if #[cfg(feature = "cli")] {
        use super::change::Change;

        /// The next thing that happened to the child with this pid, or to any child (`None`; on FreeBSD but those with a process
        /// descriptor): its pid and what. An ended child is reaped. `None` if nothing has, or there is no such child.
        pub(crate) fn next_change(child: Option<i32>) -> Option<(i32, Change)> {
            let options = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
            let mut status = 0;
            // SAFETY: the kernel writes one int.
            let pid = unsafe { libc::waitpid(child.unwrap_or(-1), &raw mut status, options) };
            // First: on some of them it is like a stop.
            let change = if libc::WIFCONTINUED(status) {
                Change::Continued
            } else if libc::WIFSTOPPED(status) {
                Change::Stopped(libc::WSTOPSIG(status))
            } else if libc::WIFEXITED(status) {
                Change::Exited(libc::WEXITSTATUS(status))
            } else {
                Change::Killed(libc::WTERMSIG(status))
            };
            (pid > 0).then_some((pid, change))
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(feature = "launcher")] {
        use std::os::fd::{AsRawFd, RawFd};
        use std::time::Duration;

        /// One entry for [`poll`].
        pub(crate) fn pollfd(fd: RawFd, events: libc::c_short) -> libc::pollfd {
            libc::pollfd {
                fd,
                events,
                revents: 0,
            }
        }

        /// poll(2), for at most `limit` (a little longer: whole milliseconds). A negative number in `fds` is skipped.
        pub(crate) fn poll(
            fds: &mut [libc::pollfd],
            limit: Option<Duration>,
        ) -> Result<usize, Errno> {
            let limit = limit.map_or(-1, |limit| {
                i32::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
            });
            let count = fds.len().try_into().map_err(|_| Errno::EINVAL)?;
            // SAFETY: the kernel reads and writes `fds`, whose length it is told.
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, limit) };
            Errno::result(ready).map(|ready| ready.unsigned_abs() as usize)
        }

        /// [`poll`] for one descriptor: whether it is ready within the limit.
        pub(crate) fn poll_within(
            fd: BorrowedFd<'_>,
            events: libc::c_short,
            limit: Duration,
        ) -> Result<bool, Errno> {
            let mut fds = [pollfd(fd.as_raw_fd(), events)];
            poll(&mut fds, Some(limit)).map(|ready| ready > 0)
        }

        /// What was leaked by `Box::leak`, by its address; `None` for a null pointer.
        pub(crate) fn leaked<T>(place: *const T) -> Option<&'static T> {
            // SAFETY: the callers store nothing there but null and what `Box::leak` returned, and free nothing.
            unsafe { place.as_ref() }
        }

        /// Whether this process ignores the signal; sigaction(2).
        pub(crate) fn is_ignored(signal: i32) -> bool {
            let mut current = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: changes nothing, and writes one structure.
            let asked = unsafe { libc::sigaction(signal, std::ptr::null(), current.as_mut_ptr()) };
            // SAFETY: all zeroes, or what the kernel has written.
            let current = unsafe { current.assume_init() };
            asked == 0 && current.sa_sigaction == libc::SIG_IGN
        }
    }
}
