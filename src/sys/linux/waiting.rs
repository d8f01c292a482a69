//! Waiting: for descriptors, for a word to change, for a lock, for a child.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::errno::Errno;

use super::{fd_arg, int_arg, plain, syscall};

/// What the system calls without `time64` in their names take: two of the machine's words, whatever
/// the C library's `time_t` is.
type Timespec = [isize; 2];

/// What poll(2) is asked of one descriptor.
pub(crate) fn pollfd(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// poll(2) by way of ppoll: like everything here, for a child that may touch no errno. A negative
/// number in `fds` is skipped.
pub(crate) fn poll(fds: &mut [libc::pollfd], limit: Option<Duration>) -> Result<usize, Errno> {
    // ppoll's system call writes the time left back.
    let mut limit = limit.map(|limit| -> Timespec {
        [
            limit.as_secs().try_into().unwrap_or(isize::MAX),
            limit.subsec_nanos() as isize,
        ]
    });
    let place = limit.as_mut().map_or(0, |limit| &raw mut *limit as usize);
    let args = [
        fds.as_mut_ptr() as usize,
        fds.len(),
        place,
        0,
        size_of::<u64>(),
        0,
    ];
    // SAFETY: the kernel reads and writes `fds`, whose length it is told, and one timespec.
    unsafe { syscall(libc::SYS_ppoll, args) }
}

/// An empty set of descriptors to wait for, close-on-exec; epoll_create1(2).
///
/// epoll_wait(2) has no limit on descriptors to check: poll(2) answers EINVAL for more of them than
/// RLIMIT_NOFILE is *now*, also when a wait is begun again after SIGSTOP and SIGCONT. What is in the
/// set stays there, under its number, until nobody has the *file* open any more, so a table copied
/// from another waits on when the number is closed in that other.
#[doc(alias = "epoll_create1")]
pub(crate) fn epoll() -> Result<OwnedFd, Errno> {
    let flags = int_arg(libc::EPOLL_CLOEXEC);
    let fd = plain(libc::SYS_epoll_create1, [flags, 0, 0, 0, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// As [`epoll_add_event`], when it is readable.
#[cfg(captive_helper)]
pub(crate) fn epoll_add_as(set: BorrowedFd<'_>, fd: BorrowedFd<'_>, id: u64) -> Result<(), Errno> {
    epoll_add_event(set, fd.as_raw_fd(), libc::EPOLLIN, id)
}

/// The same for a file of the kernel's that says when its contents have changed (EPOLLPRI).
#[cfg(captive_helper)]
pub(crate) fn epoll_add_changes(
    set: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    id: u64,
) -> Result<(), Errno> {
    epoll_add_event(set, fd.as_raw_fd(), libc::EPOLLPRI, id)
}

/// Adds a descriptor to the set, for `events` and what needs no asking (EPOLLHUP, EPOLLERR), to be told
/// with a number of the caller's choice.
///
/// epoll_ctl(2): ENOSPC at fs.epoll.max_user_watches, EPERM for a file that cannot be waited for.
#[doc(alias = "epoll_ctl")]
pub(crate) fn epoll_add_event(
    set: BorrowedFd<'_>,
    fd: RawFd,
    events: i32,
    id: u64,
) -> Result<(), Errno> {
    let event = libc::epoll_event {
        events: events as u32,
        u64: id,
    };
    let place = &raw const event as usize;
    let add = int_arg(libc::EPOLL_CTL_ADD);
    // SAFETY: the kernel reads one epoll_event, which outlives the call.
    unsafe {
        syscall(
            libc::SYS_epoll_ctl,
            [fd_arg(set), add, int_arg(fd), place, 0, 0],
        )
    }
    .map(drop)
}

/// Waits for a set, at most `limit`; how many `events` were written.
///
/// epoll_pwait(2): EINTR after a signal handler, and after SIGSTOP and SIGCONT; EINVAL where there is
/// no room for an event.
pub(crate) fn epoll_wait(
    set: BorrowedFd<'_>,
    limit: Option<Duration>,
    events: &mut [libc::epoll_event],
) -> Result<usize, Errno> {
    // Rounded up, so that a wait is never a busy loop; one that is longer than can be said ends
    // early.
    let limit = limit.map_or(-1, |limit| {
        let millis = limit.as_nanos().div_ceil(1_000_000);
        i32::try_from(millis).unwrap_or(i32::MAX)
    });
    epoll_pwait(set, limit, events)
}

/// The same with a limit in milliseconds, negative for none.
fn epoll_pwait(
    set: BorrowedFd<'_>,
    limit: i32,
    events: &mut [libc::epoll_event],
) -> Result<usize, Errno> {
    let place = events.as_mut_ptr() as usize;
    let args = [fd_arg(set), place, events.len(), int_arg(limit), 0, 0];
    // SAFETY: the kernel writes at most as many epoll_events as there is room for; no signal mask.
    unsafe { syscall(libc::SYS_epoll_pwait, args) }
}

/// CLOCK_MONOTONIC, for a child that may not use the C library's.
pub(crate) fn now() -> Duration {
    let mut time: Timespec = [0, 0];
    let place = &raw mut time as usize;
    // SAFETY: the kernel writes one timespec.
    let _ = unsafe {
        syscall(
            libc::SYS_clock_gettime,
            [int_arg(libc::CLOCK_MONOTONIC), place, 0, 0, 0, 0],
        )
    };
    let [seconds, nanoseconds] = time;
    Duration::new(
        seconds.try_into().unwrap_or(0),
        nanoseconds.try_into().unwrap_or(0),
    )
}

/// An eventfd(2) at zero, close-on-exec, that is never waited for by a read or a write.
pub(crate) fn eventfd() -> Result<OwnedFd, Errno> {
    let fd = plain(
        libc::SYS_eventfd2,
        [
            0,
            int_arg(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK),
            0,
            0,
            0,
            0,
        ],
    )?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes an eventfd readable.
pub(crate) fn eventfd_wake(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let one = 1_u64;
    let place = &raw const one;
    // SAFETY: write(2) reads the eight bytes of `one`, which outlives the call.
    unsafe { syscall(libc::SYS_write, [fd_arg(fd), place as usize, 8, 0, 0, 0]) }.map(drop)
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

/// Reaps a child that has ended, if it has and nobody traces it.
pub(crate) fn reap_ended(pidfd: BorrowedFd<'_>) {
    let options = int_arg(libc::WEXITED | libc::WNOHANG);
    let _ = plain(
        libc::SYS_waitid,
        [libc::P_PIDFD as usize, fd_arg(pidfd), 0, options, 0, 0],
    );
}

/// Takes a POSIX write lock on the whole file, waiting for it if `wait` is set.
///
/// fcntl_locking(2): the owner is the table of descriptors, that is the process. Held by another
/// it is EAGAIN (or EACCES), or, waiting, EINTR after a signal handler. *Closing any descriptor* of
/// the file releases the owner's locks; a fork does not pass them on.
#[doc(alias = "F_SETLK")]
#[doc(alias = "F_SETLKW")]
pub(crate) fn lock_file(fd: BorrowedFd<'_>, wait: bool) -> Result<(), Errno> {
    // SAFETY: a plain C struct, for which all zeroes are values: offset 0, length 0 (to the end).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    let place = (&raw const lock) as usize;
    // SAFETY: the kernel reads one struct flock from `place`, which outlives the call.
    unsafe {
        syscall(
            libc::SYS_fcntl,
            [fd_arg(fd), int_arg(command), place, 0, 0, 0],
        )
    }
    .map(drop)
}

/// Sleeps while `word` is `expected`, until a wake; also returns for no reason at all.
///
/// futex(2), not private: the kernel's own wake of CLONE_CHILD_CLEARTID is not private either.
#[doc(alias = "FUTEX_WAIT")]
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32) {
    let args = [
        word.as_ptr() as usize,
        int_arg(libc::FUTEX_WAIT),
        expected as usize,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads an aligned u32 that is borrowed for the call; no timeout.
    let _ = unsafe { syscall(libc::SYS_futex, args) };
}

/// Wakes all who sleep on `word`.
#[doc(alias = "FUTEX_WAKE")]
pub(crate) fn futex_wake(word: &AtomicU32) {
    let args = [
        word.as_ptr() as usize,
        int_arg(libc::FUTEX_WAKE),
        i32::MAX as usize,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel uses the address as a key; it is borrowed for the call.
    let _ = unsafe { syscall(libc::SYS_futex, args) };
}

/// Waits for the child behind `pidfd` to end and reaps it, whatever its exit signal.
///
/// waitid(2) with P_PIDFD, Linux 5.4 (before: EINVAL). ECHILD if it is no child or was reaped,
/// EBADF if there is no such descriptor, EINTR after a signal handler.
#[doc(alias = "P_PIDFD")]
pub(crate) fn reap(pidfd: RawFd) -> Result<(), Errno> {
    let options = int_arg(libc::WEXITED | libc::__WALL);
    plain(
        libc::SYS_waitid,
        [libc::P_PIDFD as usize, int_arg(pidfd), 0, options, 0, 0],
    )
    .map(drop)
}

/// As [`reap`], to the child's end whatever interrupts it; one that others have reaped is gone as well.
#[cfg(feature = "launcher")]
pub(crate) fn reap_pidfd(pidfd: BorrowedFd<'_>) {
    while reap(pidfd.as_raw_fd()) == Err(Errno::EINTR) {}
}

/// Sleeps until one of `events` (or POLLHUP, POLLERR, which need no asking) holds for `fd`, for at
/// most `limit`; the answer is whether it does.
///
/// A pidfd is POLLIN when the process has ended, and POLLHUP when it has been reaped (Linux 6.9;
/// never before).
pub(crate) fn poll_within(
    fd: BorrowedFd<'_>,
    events: libc::c_short,
    limit: Duration,
) -> Result<bool, Errno> {
    let mut fds = [pollfd(fd.as_raw_fd(), events)];
    poll(&mut fds, Some(limit)).map(|ready| ready > 0)
}

/// Lets time pass; nanosleep(2), without the C library's errno.
#[cfg(feature = "cli")]
pub(crate) fn sleep(time: Duration) {
    let time: Timespec = [time.as_secs() as isize, time.subsec_nanos() as isize];
    let place = &raw const time as usize;
    // SAFETY: the kernel reads one timespec, which outlives the call.
    let _ = unsafe { syscall(libc::SYS_nanosleep, [place, 0, 0, 0, 0, 0]) };
}

/// Takes a descriptor out of a set; epoll_ctl(2).
pub(crate) fn epoll_remove(set: BorrowedFd<'_>, fd: RawFd) {
    let delete = int_arg(libc::EPOLL_CTL_DEL);
    let _ = plain(
        libc::SYS_epoll_ctl,
        [fd_arg(set), delete, int_arg(fd), 0, 0, 0],
    );
}

cfg_if::cfg_if! {
    if #[cfg(captive_helper)] {
        /// Waits for a set without limit; the numbers of what is ready, at most as many as there is room for.
        pub(crate) fn epoll_wait_ids<const N: usize>(
            set: BorrowedFd<'_>,
            limit: i32,
        ) -> Result<impl Iterator<Item = u64> + use<N>, Errno> {
            let mut events = [libc::epoll_event { events: 0, u64: 0 }; N];
            let count = epoll_pwait(set, limit, &mut events)?;
            Ok(events.into_iter().take(count).map(|event| event.u64))
        }

        /// Reads an eventfd back to zero: how often it was woken since.
        pub(crate) fn eventfd_take(fd: BorrowedFd<'_>) -> u64 {
            let mut value = 0_u64;
            let place = (&raw mut value) as usize;
            // SAFETY: the kernel writes eight bytes, or nothing.
            let _ = unsafe { syscall(libc::SYS_read, [fd_arg(fd), place, 8, 0, 0, 0]) };
            value
        }
    }
}
