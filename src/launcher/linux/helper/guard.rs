//! The guard: ends the captives when the launcher is gone.
//!
//! One process a launcher, with an address space of its own (one that shared the launcher's would die
//! with it in an OOM kill), in a session of its own, with the launcher's credentials, so that it may
//! signal a captive that has changed its user.
//!
//! | what happens | what the guard does |
//! |---|---|
//! | a message | notes the captive and its pidfd, or forgets it |
//! | a captive ends | forgets it |
//! | the launcher ends, or executes another program (end of file) | reads what was sent, ends the captives in their order, ends itself |
//! | somebody stops the guard | the kernel resumes it when the launcher ends (its parent-death signal is SIGCONT) |
//!
//! A captive is known here before it executes its program: it has told so itself, by a message that
//! is in the socket whatever becomes of the launcher.

use crate::protocol::{ADD, FORGET, GUARD_LAUNCHER, GUARD_SOCKET, Message};
use crate::sys::{self, int, plain, syscall};

const EPOLLIN: u32 = 1;
const EPOLL_CTL_ADD: usize = 1;
const EPOLL_CTL_DEL: usize = 2;
const SOCKET: u64 = u64::MAX;
const LAUNCHER: u64 = u64::MAX - 1;

/// How long a captive may take to go after SIGKILL before those after it have their turn.
const AFTER_KILL: i64 = 5_000;

#[cfg_attr(target_arch = "x86_64", repr(C, packed))]
#[cfg_attr(not(target_arch = "x86_64"), repr(C))]
#[derive(Clone, Copy)]
struct Event {
    events: u32,
    data: u64,
}

/// A captive; `pidfd` is -1 in a free place.
#[derive(Clone, Copy)]
struct Entry {
    message: Message,
    pidfd: i32,
    killed: bool,
}

/// The captives, in memory that grows by mremap(2).
struct Table {
    base: *mut Entry,
    room: usize,
    used: usize,
}

const PAGE: usize = 64 * 1024;

impl Table {
    fn new() -> Self {
        const PROT_READ_WRITE: usize = 3;
        const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe {
            syscall(
                sys::MMAP,
                [
                    0,
                    PAGE,
                    PROT_READ_WRITE,
                    MAP_PRIVATE_ANONYMOUS,
                    usize::MAX,
                    0,
                ],
            )
        };
        match base {
            Ok(base) => Self {
                base: base as *mut Entry,
                room: PAGE / size_of::<Entry>(),
                used: 0,
            },
            // The launcher sees it end, and tries again.
            Err(_) => sys::exit(1),
        }
    }

    fn entries(&mut self) -> &mut [Entry] {
        // SAFETY: `used` entries have been written; the mapping is this table's.
        unsafe { core::slice::from_raw_parts_mut(self.base, self.used) }
    }

    fn add(&mut self, entry: Entry) -> Option<usize> {
        if let Some(free) = self.entries().iter().position(|entry| entry.pidfd < 0) {
            *self.entries().get_mut(free)? = entry;
            return Some(free);
        }
        if self.used == self.room {
            const MREMAP_MAYMOVE: usize = 1;
            let old = (self.room * size_of::<Entry>()).next_multiple_of(PAGE);
            // SAFETY: this table's own mapping, to which nothing refers just now.
            let base = unsafe {
                syscall(
                    sys::MREMAP,
                    [self.base as usize, old, 2 * old, MREMAP_MAYMOVE, 0, 0],
                )
            };
            self.base = base.ok()? as *mut Entry;
            self.room = 2 * old / size_of::<Entry>();
        }
        // SAFETY: below `room`.
        unsafe { self.base.add(self.used).write(entry) };
        self.used += 1;
        Some(self.used - 1)
    }
}

struct Guard {
    epoll: i32,
    table: Table,
    /// The launcher is gone: nothing more is read.
    ending: bool,
}

pub fn run() -> ! {
    let _ = plain(sys::SETSID, [0; 6]);
    sys::set_name(b"captive-guard\0\0\0");
    // SAFETY: a NUL-terminated string.
    let _ = unsafe { syscall(sys::CHDIR, [b"/\0".as_ptr() as usize, 0, 0, 0, 0, 0]) };
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    let _ = plain(sys::PRCTL, [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0]);
    raise_descriptor_limit();
    let Ok(epoll) = plain(sys::EPOLL_CREATE1, [0; 6]) else {
        sys::exit(1)
    };
    let mut guard = Guard {
        epoll: epoll as i32,
        table: Table::new(),
        ending: false,
    };
    if guard.watch(GUARD_SOCKET, SOCKET).is_err() || guard.watch(GUARD_LAUNCHER, LAUNCHER).is_err()
    {
        sys::exit(1)
    }
    loop {
        guard.wait(-1);
        if guard.ending {
            guard.end_all();
            sys::exit(0)
        }
    }
}

/// A captive costs a descriptor here as it does in the launcher, whose hard limit is ours.
fn raise_descriptor_limit() {
    const RLIMIT_NOFILE: usize = 7;
    let mut limit = [0_u64; 2];
    let place = (&raw mut limit) as usize;
    // SAFETY: the kernel writes one struct rlimit64.
    let asked = unsafe { syscall(sys::PRLIMIT64, [0, RLIMIT_NOFILE, 0, place, 0, 0]) };
    if asked.is_ok() {
        let [soft, hard] = &mut limit;
        *soft = *hard;
        // SAFETY: the kernel reads one struct rlimit64.
        let _ = unsafe { syscall(sys::PRLIMIT64, [0, RLIMIT_NOFILE, place, 0, 0, 0]) };
    }
}

impl Guard {
    fn control(&self, operation: usize, fd: i32, data: u64) -> Result<(), i32> {
        let event = Event {
            events: EPOLLIN,
            data,
        };
        let place = (&raw const event) as usize;
        // SAFETY: the kernel reads one event.
        unsafe {
            syscall(
                sys::EPOLL_CTL,
                [int(self.epoll), operation, int(fd), place, 0, 0],
            )
        }
        .map(drop)
    }

    fn watch(&self, fd: i32, data: u64) -> Result<(), i32> {
        self.control(EPOLL_CTL_ADD, fd, data)
    }

    /// Waits, at most so many milliseconds (-1: for ever), and notes what has happened.
    fn wait(&mut self, limit: i32) {
        const MOST: usize = 64;
        let mut events = [Event { events: 0, data: 0 }; MOST];
        let place = events.as_mut_ptr() as usize;
        // SAFETY: the kernel writes at most MOST events; no signal mask.
        let answer = unsafe {
            syscall(
                sys::EPOLL_PWAIT,
                [int(self.epoll), place, MOST, int(limit), 0, 0],
            )
        };
        let count = match answer {
            Ok(count) => count,
            Err(sys::EINTR) => return,
            Err(_) => sys::exit(1),
        };
        // What was sent before the launcher ended is read before anything is done about its end.
        let mut launcher = false;
        // Captives first: a place that a message frees and another takes would be forgotten for the other.
        for event in events.iter().take(count) {
            match event.data {
                SOCKET | LAUNCHER => {}
                place => self.forget(place as usize),
            }
        }
        for event in events.iter().take(count) {
            match event.data {
                SOCKET | LAUNCHER => launcher |= event.data == LAUNCHER || self.read(),
                _ => {}
            }
        }
        if launcher && !self.ending {
            self.read();
            self.ending = true;
            let _ = self.control(EPOLL_CTL_DEL, GUARD_SOCKET, 0);
            let _ = self.control(EPOLL_CTL_DEL, GUARD_LAUNCHER, 0);
        }
    }

    /// Reads all there is; true at the end of file.
    fn read(&mut self) -> bool {
        loop {
            match receive() {
                Received::Nothing => return false,
                Received::End => return true,
                Received::Message(message, pidfd) => match message.kind {
                    ADD => self.add(message, pidfd),
                    FORGET => self.forget_id(message.id),
                    _ => {}
                },
            }
        }
    }

    fn add(&mut self, message: Message, pidfd: i32) {
        // The limit of descriptors cuts off what would be one too many.
        if pidfd < 0 {
            return self.refuse();
        }
        if self.place_of(message.id).is_some() {
            return sys::close(pidfd);
        }
        let entry = Entry {
            message,
            pidfd,
            killed: false,
        };
        match self.table.add(entry) {
            // One that cannot be watched (fs.epoll.max_user_watches) can still be ended.
            Some(place) => {
                let _ = self.watch(pidfd, place as u64);
            }
            None => {
                sys::close(pidfd);
                self.refuse();
            }
        }
    }

    /// It cannot guard what it is asked to. The launcher sees the socket closed, starts another, tells
    /// that one of all, and ends this one, which guards what it can until then.
    fn refuse(&mut self) {
        let _ = self.control(EPOLL_CTL_DEL, GUARD_SOCKET, 0);
        // Not only closed: a fork of the launcher may have a copy of this end.
        const SHUT_RDWR: usize = 2;
        let _ = plain(sys::SHUTDOWN, [int(GUARD_SOCKET), SHUT_RDWR, 0, 0, 0, 0]);
        sys::close(GUARD_SOCKET);
    }

    fn place_of(&mut self, id: u64) -> Option<usize> {
        let same = |entry: &Entry| entry.pidfd >= 0 && entry.message.id == id;
        self.table.entries().iter().position(same)
    }

    fn forget_id(&mut self, id: u64) {
        if let Some(place) = self.place_of(id) {
            self.forget(place);
        }
    }

    fn forget(&mut self, place: usize) {
        let Some(entry) = self.table.entries().get_mut(place) else {
            return;
        };
        let fd = core::mem::replace(&mut entry.pidfd, -1);
        if fd >= 0 {
            // The launcher may have the same open file, so closing it here takes nothing out of the set.
            let _ = self.control(EPOLL_CTL_DEL, fd, 0);
            sys::close(fd);
        }
    }

    /// Ends everything, the lower numbers first.
    fn end_all(&mut self) {
        while let Some(order) = self.lowest_order() {
            self.end_order(order);
        }
    }

    fn lowest_order(&mut self) -> Option<u32> {
        let left = self.table.entries().iter().filter(|entry| entry.pidfd >= 0);
        left.map(|entry| entry.message.order).min()
    }

    fn end_order(&mut self, order: u32) {
        let began = sys::now();
        for entry in self.table.entries() {
            if entry.pidfd >= 0 && entry.message.order == order {
                let sent = sys::pidfd_send_signal(entry.pidfd, entry.message.signal);
                if sent == Err(sys::ESRCH) {
                    // One that could not be watched, and has ended.
                    sys::close(core::mem::replace(&mut entry.pidfd, -1));
                    continue;
                }
                entry.killed = entry.message.signal == sys::SIGKILL;
                if !entry.killed {
                    // A stopped one acts on no other signal.
                    let _ = sys::pidfd_send_signal(entry.pidfd, sys::SIGCONT);
                }
            }
        }
        let mut kill_began = began;
        loop {
            let now = sys::now();
            let mut next = i64::MAX;
            let mut left = false;
            let mut unkilled = false;
            for entry in self.table.entries() {
                if entry.pidfd < 0 || entry.message.order != order {
                    continue;
                }
                left = true;
                if entry.killed || entry.message.grace < 0 {
                    unkilled |= !entry.killed;
                    continue;
                }
                let deadline = began.saturating_add(entry.message.grace);
                if now >= deadline {
                    let _ = sys::pidfd_send_signal(entry.pidfd, sys::SIGKILL);
                    entry.killed = true;
                    kill_began = now;
                } else {
                    unkilled = true;
                    next = next.min(deadline);
                }
            }
            if !left {
                return;
            }
            if !unkilled {
                // SIGKILL has been sent to all that are left.
                let deadline = kill_began + AFTER_KILL;
                if now >= deadline {
                    return self.give_up(order);
                }
                next = next.min(deadline);
            }
            let limit = if next == i64::MAX {
                -1
            } else {
                (next - now).clamp(1, 60_000) as i32
            };
            self.wait(limit);
        }
    }

    /// What does not go after SIGKILL will when it can (state D), without anybody's help.
    fn give_up(&mut self, order: u32) {
        let same = |entry: &Entry| entry.pidfd >= 0 && entry.message.order == order;
        while let Some(place) = self.table.entries().iter().position(same) {
            self.forget(place);
        }
    }
}

enum Received {
    Message(Message, i32),
    Nothing,
    End,
}

/// One message, with the descriptor that came with it, or -1; recvmsg(2).
fn receive() -> Received {
    #[repr(C)]
    struct Control {
        length: usize,
        level: i32,
        kind: i32,
        fd: i32,
        padding: i32,
    }
    const MSG_DONTWAIT: usize = 0x40;
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    let mut message = Message {
        id: 0,
        grace: 0,
        kind: 0,
        signal: 0,
        order: 0,
        reserved: 0,
    };
    let mut control = Control {
        length: 0,
        level: 0,
        kind: 0,
        fd: -1,
        padding: 0,
    };
    let buffer = [(&raw mut message) as usize, size_of::<Message>()];
    // struct msghdr of a 64-bit system: name, its length, buffers, their count, control, its length,
    // flags.
    let mut header = [
        0_usize,
        0,
        (&raw const buffer) as usize,
        1,
        (&raw mut control) as usize,
        size_of::<Control>(),
        0,
    ];
    let place = (&raw mut header) as usize;
    loop {
        // SAFETY: the kernel writes to the header, the message and the control buffer, whose lengths
        // it is told.
        let answer = unsafe {
            syscall(
                sys::RECVMSG,
                [
                    int(GUARD_SOCKET),
                    place,
                    MSG_DONTWAIT | MSG_CMSG_CLOEXEC,
                    0,
                    0,
                    0,
                ],
            )
        };
        return match answer {
            Ok(0) => Received::End,
            Ok(read) if read == size_of::<Message>() => {
                let is_descriptor = control.level == SOL_SOCKET && control.kind == SCM_RIGHTS;
                Received::Message(message, if is_descriptor { control.fd } else { -1 })
            }
            Ok(_) => continue,
            Err(sys::EINTR) => continue,
            Err(_) => Received::Nothing,
        };
    }
}
