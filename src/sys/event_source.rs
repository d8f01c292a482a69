//! What a process waits for, the same on every system: processes' ends, descriptors, signals.
//!
//! One small trait with kqueue (`bsd/queue.rs`), epoll (`linux/epoll.rs`) and, in tests, a script
//! behind it, so that logic which waits is written once and can be run without the system it is for.
//!
//! What every source promises:
//!
//! - A registration that is refused is refused by [`add`](EventSource::add), with the system's errno,
//!   and registers nothing.
//! - Ends are told **once**: [`Exit`](Interest::Exit), [`ProcessDescriptor`](Interest::ProcessDescriptor)
//!   and [`Closed`](Interest::Closed) cannot happen twice, and whoever has been told sleeps again.
//!   What had happened before the registration is told by the next wait, or is `ESRCH` at once.
//! - [`Readable`](Interest::Readable) is told again until it has been read, so none is lost by
//!   whoever looks at something else first.
//! - No method allocates, locks or panics: all can be used in a forked child.
//!
//! An event is taken out by whoever sees it first. Two who both must know have a source each.

// Each system's code waits for a part of what all of them wait for together.
#![allow(dead_code)]

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;

/// What the caller calls an interest; comes back in its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) u32);

/// Something to wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Interest<'fd> {
    /// The end of the process with this pid, told once: when it becomes a zombie, not when it is
    /// reaped. Who passes a pid knows that it cannot be another's by now, or asks afterwards.
    ///
    /// `ESRCH`: it has ended already (a zombie on macOS, NetBSD and OpenBSD; one that was reaped
    /// everywhere), or, on FreeBSD, may not be seen by this user. `EACCES`: NetBSD, another user's.
    Exit(i32),
    /// The end of the process behind this descriptor, told once: a process descriptor of FreeBSD's
    /// pdfork(2), a pidfd of Linux. Elsewhere `ENOSYS`.
    ProcessDescriptor(BorrowedFd<'fd>),
    /// Something can be read, or the end of the file; told for as long as it is so.
    Readable(BorrowedFd<'fd>),
    /// The other end of a pipe or a stream socket is closed; told once. Data in between, read or not,
    /// means nothing.
    Closed(BorrowedFd<'fd>),
    /// This signal, which the caller blocks, has been sent to the process. Several before one wait
    /// may be one event.
    Signal(i32),
}

/// Something has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    /// What the interest was called.
    pub(crate) key: Key,
    /// The end: of the process, or of the file, though there may be something left to be read.
    pub(crate) eof: bool,
}

impl Event {
    /// What a list of events is filled with before a wait.
    pub(crate) const NONE: Self = Self {
        key: Key(u32::MAX),
        eof: false,
    };
}

/// Something that waits for interests.
pub(crate) trait EventSource {
    /// Registers an interest: once this has returned, what happens is told by a wait.
    ///
    /// No two interests of one source are about the same process, descriptor or signal: kqueue takes the
    /// second for a change of the first (EV_ADD), epoll answers EEXIST. A descriptor stays open for as
    /// long as the source is in use; closing it takes its interest away, where nobody else has its file.
    fn add(&self, key: Key, interest: Interest<'_>) -> Result<(), Errno>;

    /// Sleeps until something has happened, for at most `limit` (`None`: for ever), and says how many
    /// of `events` it has written.
    ///
    /// 0 is *not* that the limit is up: a signal handler (EINTR), an event that means nothing to the
    /// caller, or the longest time the system can sleep end a wait early. Whoever has a deadline looks
    /// at the clock. A limit of zero does not sleep, and nothing interrupts it. An error is final: the source is closed, or never was one.
    fn wait(&self, limit: Option<Duration>, events: &mut [Event]) -> Result<usize, Errno>;
}
