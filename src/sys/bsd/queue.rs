//! kqueue(2) as a source of events. **Never run**, see `docs/platforms.md`.
//!
//! Where the systems differ, by their kernels' sources (`sys/kern/kern_event.c` of FreeBSD, NetBSD
//! and OpenBSD, `bsd/kern/kern_event.c` of xnu):
//!
//! - **A zombie.** FreeBSD and DragonFly register its exit and tell it with the next wait:
//!   filt_procattach() looks among zombies as well; FreeBSD's also activates the note of a process with
//!   P_WEXIT. macOS (proc_find()), NetBSD (proc_find() takes SACTIVE and SSTOP only) and OpenBSD
//!   (PS_EXITING) find no such process: ESRCH. For a pid that nobody has it is ESRCH everywhere.
//! - **Who may.** NetBSD refuses another user's process and one that gained privileges by exec,
//!   unless we are root: EACCES (KAUTH_PROCESS_KEVENT_FILTER). OpenBSD did, and no longer does since it
//!   has pledge(2): without the promise "proc" the *caller* is stopped there, by a signal or EPERM.
//!   FreeBSD asks whether the process can be seen (p_cansee(): jails, security.bsd.see_other_uids) and
//!   answers ESRCH if not; DragonFly refuses another jail's (EACCES). macOS asks only who wants the
//!   exit *status* as well (NOTE_EXITSTATUS), which nobody wants here.
//! - **Told once.** NOTE_EXIT makes its note EV_ONESHOT and EV_EOF (filt_proc()), on all: the kernel
//!   removes it as it is read. EV_CLEAR is added by the kernel to every EVFILT_PROC.
//! - **A traced process** on macOS: its exit is told to its tracer alone, and to the others when
//!   the tracer has waited for it and given it back (filt_procevent(); by its own comment).
//! - **Data in a pipe.** EVFILT_READ is level-triggered, so unread data would wake a waiter for ever;
//!   with EV_CLEAR it is told once for each change. EV_EOF is set when the writers are gone whatever is
//!   left to be read (filt_piperead()), and registering looks at what is so already.
//! - **Refusals.** With room in the event list a failed change comes back as an event with EV_ERROR
//!   and the call succeeds; without room the call fails with its errno. So changes are made without.
//!   (DragonFly's kern_kevent() does not look at the room: it writes, and fails with the change's errno
//!   where it cannot. An empty list has no address that can be written to.)
//! - **The longest wait.** Times beyond some limit are EINVAL (itimerfix() in older FreeBSD, NetBSD and
//!   OpenBSD) or are cut (to a day, their kqueue_scan()). A day is right everywhere.
//! - **fork** does not pass a queue on (kqueue(2); NetBSD: fd_copy(), kern_descrip.c): in the child the
//!   number is free, or somebody else's by now, so who has a queue from before the fork must not drop it
//!   there. For the same reason there is no race between kqueue(2) and marking it close-on-exec, but
//!   with an exec of this process itself.
//! - **Closed behind our back.** kevent(2) then says EBADF; to who sleeps in it already, as far as
//!   OpenBSD's source says (KQ_DYING). On others the sleeper may sleep on.
//! - The filter's number is an unsigned 32 bits on NetBSD, a signed 16 elsewhere: nix's type is
//!   the system's.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};

use crate::sys::event_source::{Event, EventSource, Interest, Key};

/// The longest single wait; whoever waits longer asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many events one wait can tell: they are on the stack.
const ROOM: usize = 16;

/// A kernel queue, close-on-exec.
#[derive(Debug)]
pub(crate) struct Queue(Kqueue);

impl Queue {
    /// An empty queue; kqueue(2): EMFILE, ENFILE, ENOMEM.
    pub(crate) fn new() -> Result<Self, Errno> {
        let queue = Kqueue::new()?;
        fcntl(&queue, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(Self(queue))
    }

    /// Applies one change, with no room for events.
    fn change(&self, change: KEvent) -> Result<(), Errno> {
        loop {
            match self
                .0
                .kevent(&[change], &mut [], Some(timespec(Duration::ZERO)))
            {
                // The change has been made (kevent(2)), and adding twice is adding once.
                Err(Errno::EINTR) => {}
                changed => return changed.map(drop),
            }
        }
    }

    /// What the event means, if it means anything.
    fn told(&self, event: &KEvent) -> Option<Event> {
        let eof = event.flags().contains(EvFlags::EV_EOF);
        if is_of_closed(event) {
            if !eof {
                return None;
            }
            // A named pipe can be opened for writing again, and closed again.
            let _ = self.change(KEvent::new(
                event.ident(),
                EventFilter::EVFILT_READ,
                EvFlags::EV_DELETE,
                FilterFlag::empty(),
                0,
                0,
            ));
        }
        Some(Event {
            key: key(event),
            eof: eof || is_exit(event),
        })
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl EventSource for Queue {
    fn add(&self, key: Key, interest: Interest<'_>) -> Result<(), Errno> {
        let add = EvFlags::EV_ADD;
        let nothing = FilterFlag::empty();
        let (ident, filter, flags, notes) = match interest {
            Interest::Exit(pid) => {
                let pid = usize::try_from(pid).map_err(|_| Errno::ESRCH)?;
                (pid, EventFilter::EVFILT_PROC, add, FilterFlag::NOTE_EXIT)
            }
            Interest::ProcessDescriptor(fd) => {
                let filter = PROCESS_DESCRIPTOR.ok_or(Errno::ENOSYS)?;
                (ident(fd), filter, add, FilterFlag::NOTE_EXIT)
            }
            Interest::Readable(fd) => (ident(fd), EventFilter::EVFILT_READ, add, nothing),
            Interest::Closed(fd) => {
                let flags = add | EvFlags::EV_CLEAR;
                (ident(fd), EventFilter::EVFILT_READ, flags, nothing)
            }
            Interest::Signal(signal) => {
                let signal = usize::try_from(signal).map_err(|_| Errno::EINVAL)?;
                (signal, EventFilter::EVFILT_SIGNAL, add, nothing)
            }
        };
        self.change(KEvent::new(ident, filter, flags, notes, 0, to_udata(key)))
    }

    fn wait(&self, limit: Option<Duration>, events: &mut [Event]) -> Result<usize, Errno> {
        let nothing = KEvent::new(
            0,
            EventFilter::EVFILT_READ,
            EvFlags::empty(),
            FilterFlag::empty(),
            0,
            0,
        );
        let mut list = [nothing; ROOM];
        let room = events.len().min(ROOM);
        let count = match self.0.kevent(&[], &mut list[..room], limit.map(timespec)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno),
        };
        let told = list.iter().take(count).filter_map(|event| self.told(event));
        let mut written = 0;
        for (place, event) in events.iter_mut().zip(told) {
            *place = event;
            written += 1;
        }
        Ok(written)
    }
}

cfg_if::cfg_if! {
    if #[cfg(target_os = "freebsd")] {
        /// procdesc_kqops_event(), sys/kern/sys_procdesc.c: NOTE_EXIT, which makes the note EV_ONESHOT;
        /// also of one that had exited before.
        const PROCESS_DESCRIPTOR: Option<EventFilter> = Some(EventFilter::EVFILT_PROCDESC);
    } else {
        const PROCESS_DESCRIPTOR: Option<EventFilter> = None;
    }
}

/// Whether it is of an [`Interest::Closed`]: the flags of a registration come back with its events.
fn is_of_closed(event: &KEvent) -> bool {
    event.filter() == Ok(EventFilter::EVFILT_READ) && event.flags().contains(EvFlags::EV_CLEAR)
}

/// Whether it is the end of a process.
fn is_exit(event: &KEvent) -> bool {
    let filter = event.filter().ok();
    let of_process = filter == Some(EventFilter::EVFILT_PROC)
        || (filter.is_some() && filter == PROCESS_DESCRIPTOR);
    of_process && event.fflags().contains(FilterFlag::NOTE_EXIT)
}

/// Descriptors are never negative.
fn ident(fd: BorrowedFd<'_>) -> usize {
    fd.as_raw_fd().unsigned_abs() as usize
}

/// A number that comes back with the event; as many bits as a pointer has, 32 at least.
fn to_udata(key: Key) -> isize {
    i32::from_ne_bytes(key.0.to_ne_bytes()) as isize
}

/// What [`to_udata`] made of it: the lower 32 bits.
fn key(event: &KEvent) -> Key {
    let [a, b, c, d, ..] = event.udata().to_le_bytes();
    Key(u32::from_le_bytes([a, b, c, d]))
}

fn timespec(limit: Duration) -> libc::timespec {
    let limit = limit.min(LONGEST_WAIT);
    // A day fits every `time_t`, the nanoseconds of a second an i32.
    libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(0),
        tv_nsec: i32::try_from(limit.subsec_nanos()).unwrap_or(0).into(),
    }
}
