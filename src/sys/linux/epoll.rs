//! epoll(7) as a source of events: a process by its pidfd, a signal by its signalfd.
//!
//! Where it is not as kqueue (`bsd/queue.rs`) is:
//!
//! - A zombie is registered, and told with the next wait: pidfd_open(2) takes it.
//! - An exit is told once because its entry is EPOLLONESHOT: a pidfd stays readable.
//! - A pipe's end is EPOLLHUP, a stream socket's EPOLLRDHUP; unread data hides neither.
//! - A signal that was told has been taken (signalfd(2)): it is not pending any more.
//! - The set is inherited by fork, and what is in it are *files*: a number that is closed here goes on
//!   being told as long as another process has the file open (epoll(7), Q6).
//! - Processes by their pid and signals need a descriptor each, which the set owns: at most 128.

use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use super::signalfd::{SignalFd, drain};
use super::{epoll, epoll_add_event, epoll_remove, epoll_wait, pidfd_open};
use crate::sys::event_source::{Event, EventSource, Interest, Key};

/// How many events one wait can tell: they are on the stack.
const ROOM: usize = 16;

/// How many descriptors of its own a set can hold.
const OWN: usize = 128;

/// An empty place.
const NOTHING: RawFd = -1;

/// A set of what is waited for, close-on-exec.
#[derive(Debug)]
pub(crate) struct Epoll {
    set: OwnedFd,
    /// Descriptors that nobody but the set has.
    own: [AtomicI32; OWN],
}

/// What stands beside the key in an entry: how its event is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// A descriptor of the caller's.
    Fd,
    /// A process of the caller's, behind its descriptor.
    Process,
    /// A pidfd at this place of `own`.
    OwnProcess(usize),
    /// A signalfd at this place of `own`.
    OwnSignal(usize),
}

impl Epoll {
    /// An empty set; epoll_create1(2): EMFILE, ENFILE, ENOMEM.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            set: epoll()?,
            own: [const { AtomicI32::new(NOTHING) }; OWN],
        })
    }

    fn register(&self, fd: RawFd, events: i32, key: Key, entry: Entry) -> Result<(), Errno> {
        epoll_add_event(self.set.as_fd(), fd, events, entry.with(key))
    }

    /// Registers a descriptor that the set keeps; `ENOSPC` where there is no place.
    fn register_own(
        &self,
        fd: OwnedFd,
        events: i32,
        key: Key,
        entry: fn(usize) -> Entry,
    ) -> Result<(), Errno> {
        let fd = fd.into_raw_fd();
        let place = self.own.iter().position(|place| {
            place
                .compare_exchange(NOTHING, fd, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        let Some(place) = place else {
            close(fd);
            return Err(Errno::ENOSPC);
        };
        self.register(fd, events, key, entry(place))
            .inspect_err(|_| self.give_up(place))
    }

    /// Closes what is at this place. It is taken out of the set before: by a fork another process may have the file, and its
    /// entry would be told again, as that of whoever has the place next.
    fn give_up(&self, place: usize) {
        if let Some(own) = self.own.get(place) {
            let fd = own.load(Ordering::Acquire);
            if fd != NOTHING {
                epoll_remove(self.set.as_fd(), fd);
            }
            close(own.swap(NOTHING, Ordering::AcqRel));
        }
    }

    /// What an entry that is ready means.
    fn told(&self, ready: libc::epoll_event) -> Event {
        let (entry, key) = Entry::of(ready.u64);
        let ended = ready.events & (libc::EPOLLHUP | libc::EPOLLRDHUP | libc::EPOLLERR) as u32 != 0;
        let eof = match entry {
            Entry::Fd => ended,
            Entry::Process => true,
            Entry::OwnProcess(place) => {
                self.give_up(place);
                true
            }
            Entry::OwnSignal(place) => {
                if let Some(own) = self.own.get(place) {
                    drain(own.load(Ordering::Acquire));
                }
                false
            }
        };
        Event { key, eof }
    }
}

impl EventSource for Epoll {
    fn add(&self, key: Key, interest: Interest<'_>) -> Result<(), Errno> {
        // Whatever is asked for, EPOLLHUP comes.
        let once = libc::EPOLLONESHOT;
        match interest {
            Interest::Exit(pid) => {
                let process = pidfd_open(pid)?;
                self.register_own(process, libc::EPOLLIN, key, Entry::OwnProcess)
            }
            Interest::ProcessDescriptor(fd) => {
                self.register(fd.as_raw_fd(), libc::EPOLLIN | once, key, Entry::Process)
            }
            Interest::Readable(fd) => {
                let events = libc::EPOLLIN | libc::EPOLLRDHUP;
                self.register(fd.as_raw_fd(), events, key, Entry::Fd)
            }
            Interest::Closed(fd) => {
                self.register(fd.as_raw_fd(), libc::EPOLLRDHUP | once, key, Entry::Fd)
            }
            Interest::Signal(signal) => {
                let number = u32::try_from(signal - 1).map_err(|_| Errno::EINVAL)?;
                let set = 1_u64.checked_shl(number).ok_or(Errno::EINVAL)?;
                let signals = SignalFd::of(set)?;
                self.register_own(signals.into(), libc::EPOLLIN, key, Entry::OwnSignal)
            }
        }
    }

    fn wait(&self, limit: Option<Duration>, events: &mut [Event]) -> Result<usize, Errno> {
        let mut list = [libc::epoll_event { events: 0, u64: 0 }; ROOM];
        let room = events.len().min(ROOM);
        let count = match epoll_wait(self.set.as_fd(), limit, &mut list[..room]) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno),
        };
        for (place, ready) in events.iter_mut().zip(list.iter().take(count)) {
            *place = self.told(*ready);
        }
        Ok(count)
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        for place in 0..OWN {
            self.give_up(place);
        }
    }
}

impl Entry {
    /// The 64 bits of an entry: what it is, its place, and the key.
    fn with(self, key: Key) -> u64 {
        let (what, place) = match self {
            Self::Fd => (0, 0),
            Self::Process => (1, 0),
            Self::OwnProcess(place) => (2, place),
            Self::OwnSignal(place) => (3, place),
        };
        what << 62 | (place as u64) << 32 | u64::from(key.0)
    }

    fn of(bits: u64) -> (Self, Key) {
        let place = (bits >> 32) as usize & 0xffff;
        let entry = match bits >> 62 {
            0 => Self::Fd,
            1 => Self::Process,
            2 => Self::OwnProcess(place),
            _ => Self::OwnSignal(place),
        };
        (entry, Key(bits as u32))
    }
}

/// Closes a number that is the set's own, if it is one.
fn close(fd: RawFd) {
    if fd != NOTHING {
        // SAFETY: out of an OwnedFd that was given up for it, and taken out of its place by us alone.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    const KEY: Key = Key(0xfedc_ba98);

    fn wait(set: &Epoll, millis: u64) -> Vec<Event> {
        let mut events = [Event::NONE; 4];
        let limit = Some(Duration::from_millis(millis));
        let count = set.wait(limit, &mut events).expect("a set");
        events[..count].to_vec()
    }

    const END: Event = Event {
        key: KEY,
        eof: true,
    };

    #[test]
    fn an_exit_is_told_once() {
        let set = Epoll::new().expect("a set");
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("cat");
        let pid = child.id() as i32;
        set.add(KEY, Interest::Exit(pid)).expect("registered");
        assert_eq!(wait(&set, 0), []);
        drop(child.stdin.take());
        assert_eq!(wait(&set, 60_000), [END]);
        assert_eq!(wait(&set, 0), []);
        // A zombie can still be registered; who has been reaped cannot.
        set.add(KEY, Interest::Exit(pid)).expect("registered");
        assert_eq!(wait(&set, 60_000), [END]);
        child.wait().expect("cat's end");
        assert_eq!(set.add(KEY, Interest::Exit(pid)), Err(Errno::ESRCH));
    }

    #[test]
    fn data_is_no_end() {
        let set = Epoll::new().expect("a set");
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        let closed = Interest::Closed(reader.as_fd());
        set.add(KEY, closed).expect("registered");
        std::fs::File::from(writer.try_clone().expect("a copy"))
            .write_all(b"unread")
            .expect("written");
        assert_eq!(wait(&set, 0), []);
        drop(writer);
        assert_eq!(wait(&set, 60_000), [END]);
        assert_eq!(wait(&set, 0), []);
        // Readable goes on until the data have been read, and says that there will be no more.
        let both = Epoll::new().expect("a set");
        let readable = Interest::Readable(reader.as_fd());
        both.add(KEY, readable).expect("registered");
        assert_eq!(wait(&both, 0), [END]);
        assert_eq!(wait(&both, 0), [END]);
    }

    #[test]
    fn a_copy_of_what_was_told_is_not_told_again() {
        let set = Epoll::new().expect("a set");
        let mut child = Command::new("true").spawn().expect("true");
        let pid = child.id() as i32;
        set.add(KEY, Interest::Exit(pid)).expect("registered");
        // As a forked process would have it.
        let number = set.own[0].load(Ordering::Relaxed);
        // SAFETY: the set's own, which is open until the exit is told.
        let copy = unsafe { BorrowedFd::borrow_raw(number) }
            .try_clone_to_owned()
            .expect("a copy");
        assert_eq!(wait(&set, 60_000), [END]);
        assert_eq!(wait(&set, 0), []);
        drop(copy);
        child.wait().expect("true's end");
    }

    #[test]
    fn places_are_given_back() {
        let set = Epoll::new().expect("a set");
        let own = std::process::id() as i32;
        for _ in 0..OWN {
            set.add(KEY, Interest::Exit(own)).expect("registered");
        }
        assert_eq!(set.add(KEY, Interest::Exit(own)), Err(Errno::ENOSPC));
        let number = set.own[0].load(Ordering::Relaxed);
        set.give_up(0);
        assert_eq!(set.own[0].load(Ordering::Relaxed), NOTHING);
        set.add(KEY, Interest::Exit(own)).expect("registered");
        // The lowest number: the one that was closed, if no other thread was faster.
        assert!(set.own[0].load(Ordering::Relaxed) >= number);
    }

    /// A handler that does nothing.
    extern "C" fn interrupted(_: libc::c_int) {}

    #[test]
    fn a_signal_handler_ends_a_wait() {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

        let handler = SigHandler::Handler(interrupted);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler touches nothing; no other test uses the signal.
        unsafe { sigaction(Signal::SIGUSR2, &action) }.expect("a handler");
        let (tell, told) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            tell.send(super::super::gettid()).expect("told");
            wait(&Epoll::new().expect("a set"), 60_000)
        });
        let thread = told.recv().expect("told");
        let start = std::time::Instant::now();
        while !waiter.is_finished() {
            assert!(start.elapsed() < Duration::from_secs(30), "it sleeps on");
            // SAFETY: no pointers. If the thread has ended nobody is signalled, or another thread of ours.
            unsafe {
                libc::syscall(
                    libc::SYS_tgkill,
                    super::super::getpid(),
                    thread,
                    libc::SIGUSR2,
                )
            };
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(waiter.join().expect("no panic"), []);
    }

    #[test]
    fn a_signal_is_told_and_taken() {
        use nix::sys::signal::{SigSet, Signal, raise};

        std::thread::spawn(|| {
            let mut blocked = SigSet::empty();
            blocked.add(Signal::SIGUSR1);
            blocked.thread_block().expect("blocked");
            let set = Epoll::new().expect("a set");
            let signal = Interest::Signal(libc::SIGUSR1);
            set.add(KEY, signal).expect("registered");
            assert_eq!(wait(&set, 0), []);
            // pthread_kill(3) to ourselves: no other thread gets it.
            raise(Signal::SIGUSR1).expect("sent");
            let once = Event {
                key: KEY,
                eof: false,
            };
            assert_eq!(wait(&set, 60_000), [once]);
            assert_eq!(wait(&set, 0), []);
            let invalid = set.add(KEY, Interest::Signal(0));
            assert_eq!(invalid, Err(Errno::EINVAL));
        })
        .join()
        .expect("no panic");
    }
}
