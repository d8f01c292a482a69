//! The guard: ends the captives when the launcher is gone.
//!
//! One process a launcher, with an address space of its own (one that shared the launcher's would die
//! with it in an OOM kill), in a session of its own, with the launcher's credentials, so that it may
//! signal a captive that has changed its user.
//!
//! | what happens | what the guard does |
//! |---|---|
//! | its start | says that it watches, or why it cannot |
//! | a message | notes the captive, its pidfd and what holds its tree, or forgets it |
//! | a captive ends | ends its tree, and forgets it when that is empty |
//! | the launcher ends, or executes another program (end of file) | reads what was sent, ends the captives in their order, ends itself |
//! | somebody stops the guard | the kernel resumes it when the launcher ends (its parent-death signal is SIGCONT) |
//!
//! A captive is known here before it executes its program: it has told so itself, by a message that
//! is in the socket whatever becomes of the launcher.

use crate::protocol::{
    ADD, FORGET, GUARD_LAUNCHER, GUARD_SOCKET, GUARD_WATCHES, Message, Name, TREE_CGROUP,
    TREE_MARKED, TREE_NAMESPACE,
};
use crate::sys::{self, int, plain, syscall};
use crate::{cgroup, marks};

const EPOLLIN: u32 = 1;
const EPOLLPRI: u32 = 2;
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

/// How often a tree is walked that is found by its marks.
const WALKS: u32 = 100;
/// How long between two walks, or two looks at a cgroup, in milliseconds.
const BETWEEN_LOOKS: i64 = 50;

/// What an event is about: the place in the table, four times, and one of these.
const MAIN: u64 = 0;
const INIT: u64 = 1;
const CGROUP: u64 = 2;

/// A captive. Descriptors are -1 where there is none (any more).
#[derive(Clone, Copy)]
struct Entry {
    message: Message,
    used: bool,
    /// The main process.
    pidfd: i32,
    /// The init of its namespace, and the pipe that keeps that one alive.
    init: i32,
    pipe: i32,
    /// Its cgroup's directory, and what tells of its being empty.
    cgroup: i32,
    events: i32,
    /// How many more walks there may be, and whether the last found nothing.
    walks: u32,
    is_quiet: bool,
    /// Its tree is being ended.
    is_ending: bool,
    /// All that is left has been sent SIGKILL.
    killed: bool,
}

const FREE: Entry = Entry {
    message: NOTHING,
    used: false,
    pidfd: -1,
    init: -1,
    pipe: -1,
    cgroup: -1,
    events: -1,
    walks: 0,
    is_quiet: false,
    is_ending: false,
    killed: false,
};

const NOTHING: Message = Message {
    id: 0,
    grace: 0,
    kind: 0,
    signal: 0,
    order: 0,
    tree: 0,
    name: 0,
};

impl Entry {
    /// Whether nothing of it is left.
    fn is_over(&self) -> bool {
        self.pidfd < 0 && self.init < 0 && self.cgroup < 0 && self.walks == 0
    }
}

/// Closes what is open.
fn close_place(fd: &mut i32) {
    if *fd >= 0 {
        sys::close(core::mem::replace(fd, -1));
    }
}

/// The captives, in memory that grows by mremap(2).
struct Table {
    base: *mut Entry,
    room: usize,
    used: usize,
}

const PAGE: usize = 64 * 1024;

impl Table {
    fn new() -> Result<Self, i32> {
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
        Ok(Self {
            base: base? as *mut Entry,
            room: PAGE / size_of::<Entry>(),
            used: 0,
        })
    }

    fn entries(&mut self) -> &mut [Entry] {
        // SAFETY: `used` entries have been written; the mapping is this table's.
        unsafe { core::slice::from_raw_parts_mut(self.base, self.used) }
    }

    fn add(&mut self, entry: Entry) -> Option<usize> {
        if let Some(free) = self.entries().iter().position(|entry| !entry.used) {
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
    /// The socket has been closed: its number may be another file's.
    refused: bool,
}

pub fn run() -> ! {
    let _ = plain(sys::SETSID, [0; 6]);
    sys::set_name(b"captive-guard\0\0\0");
    // SAFETY: a NUL-terminated string.
    let _ = unsafe { syscall(sys::CHDIR, [b"/\0".as_ptr() as usize, 0, 0, 0, 0, 0]) };
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    let _ = plain(sys::PRCTL, [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0]);
    raise_descriptor_limit();
    let mut guard = match Guard::start() {
        Ok(guard) => guard,
        Err(errno) => {
            say(errno);
            sys::exit(1)
        }
    };
    say(GUARD_WATCHES);
    loop {
        guard.wait(i64::MAX);
        if guard.ending {
            guard.end_all();
            sys::exit(0)
        }
    }
}

/// The launcher waits for it: a guard that cannot do its work (a filter of system calls lets it not) is none.
fn say(word: i32) {
    const MSG_NOSIGNAL: usize = 0x4000;
    let place = (&raw const word) as usize;
    let args = [
        int(GUARD_SOCKET),
        place,
        size_of::<i32>(),
        MSG_NOSIGNAL,
        0,
        0,
    ];
    // SAFETY: the kernel reads one int.
    let _ = unsafe { syscall(sys::SENDTO, args) };
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
    /// One that watches, and has tried all that it needs in order to end somebody.
    fn start() -> Result<Self, i32> {
        let epoll = plain(sys::EPOLL_CREATE1, [0; 6])?;
        let guard = Self {
            epoll: epoll as i32,
            table: Table::new()?,
            ending: false,
            refused: false,
        };
        guard.watch(GUARD_SOCKET, SOCKET)?;
        guard.watch(GUARD_LAUNCHER, LAUNCHER)?;
        guard.await_events(&mut [Event { events: 0, data: 0 }], 0)?;
        // Nobody has sent anything yet: the launcher waits for our word.
        match receive() {
            Ok(_) | Err(sys::EAGAIN) => {}
            Err(errno) => return Err(errno),
        }
        sys::pidfd_send_signal(GUARD_LAUNCHER, 0)?;
        sys::clock()?;
        Ok(guard)
    }

    fn control(&self, operation: usize, fd: i32, events: u32, data: u64) -> Result<(), i32> {
        let event = Event { events, data };
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
        self.control(EPOLL_CTL_ADD, fd, EPOLLIN, data)
    }

    /// Out of the set, and closed. The launcher may have the same open file, so closing it here takes nothing out of
    /// the set.
    fn unwatch(&self, fd: &mut i32) {
        if *fd >= 0 {
            let _ = self.control(EPOLL_CTL_DEL, *fd, 0, 0);
            close_place(fd);
        }
    }

    /// Waits, at most so many milliseconds (rounded up), and notes what has happened.
    fn wait(&mut self, limit: i64) {
        let walking = self.table.entries().iter().any(|entry| entry.walks > 0);
        let is_looked_at = |entry: &Entry| entry.is_ending && entry.cgroup >= 0;
        let looking = self.table.entries().iter().any(is_looked_at);
        let limit = if walking || looking {
            limit.min(BETWEEN_LOOKS)
        } else {
            limit
        };
        let limit = match limit {
            i64::MAX => -1,
            limit => limit.clamp(1, 60_000) as i32,
        };
        self.look(limit);
        if walking {
            self.walk();
        }
        if looking {
            // The kernel does not always tell: not if the launcher removes the cgroup before we have heard of its end.
            for place in 0..self.table.used {
                self.look_at_cgroup(place);
            }
        }
    }

    fn await_events(&self, events: &mut [Event], limit: i32) -> Result<usize, i32> {
        let place = events.as_mut_ptr() as usize;
        // SAFETY: the kernel writes at most as many events as there is room for; no signal mask.
        unsafe {
            syscall(
                sys::EPOLL_PWAIT,
                [int(self.epoll), place, events.len(), int(limit), 0, 0],
            )
        }
    }

    fn look(&mut self, limit: i32) {
        const MOST: usize = 64;
        let mut events = [Event { events: 0, data: 0 }; MOST];
        let count = match self.await_events(&mut events, limit) {
            Ok(count) => count,
            Err(sys::EINTR) => return,
            Err(_) => sys::exit(1),
        };
        // Whose they are, before a message frees a place and another takes it.
        let mut ids = [0; MOST];
        for (id, event) in ids.iter_mut().zip(events.iter().take(count)) {
            *id = self.id_in((event.data / 4) as usize);
        }
        // What was sent before a captive or the launcher ended is read before anything is done about its end: the
        // captive may have been let go.
        let mut launcher = !self.ending && count > 0 && self.read();
        for (id, event) in ids.iter().zip(events.iter().take(count)) {
            let data = event.data;
            match data {
                SOCKET => {}
                LAUNCHER => launcher = true,
                _ if self.id_in((data / 4) as usize) == *id => self.happened(data),
                _ => {}
            }
        }
        if launcher && !self.ending {
            self.read();
            self.ending = true;
            if !self.refused {
                let _ = self.control(EPOLL_CTL_DEL, GUARD_SOCKET, 0, 0);
            }
            let _ = self.control(EPOLL_CTL_DEL, GUARD_LAUNCHER, 0, 0);
        }
    }

    /// Reads all there is; true at the end of file.
    fn read(&mut self) -> bool {
        while !self.refused {
            match receive() {
                Err(_) => return false,
                Ok(Received::End) => return true,
                Ok(Received::Message(message, fds)) => match message.kind {
                    ADD => self.add(message, fds),
                    FORGET => self.forget_id(message.id),
                    _ => {}
                },
            }
        }
        false
    }

    fn add(&mut self, message: Message, fds: Descriptors) {
        let mut given = fds.0.into_iter();
        let mut next = |wanted: bool| {
            if wanted {
                given.next().unwrap_or(-1)
            } else {
                -1
            }
        };
        let in_namespace = message.tree & TREE_NAMESPACE != 0;
        let mut entry = Entry {
            message,
            used: true,
            pidfd: next(true),
            init: next(in_namespace),
            pipe: next(in_namespace),
            cgroup: next(message.tree & TREE_CGROUP != 0),
            ..FREE
        };
        // The limit of descriptors cuts off what would be too many.
        let whole = entry.pidfd >= 0
            && (!in_namespace || entry.pipe >= 0)
            && (message.tree & TREE_CGROUP == 0 || entry.cgroup >= 0);
        let known = self.place_of(message.id).is_some();
        let place = if whole && !known {
            self.table.add(entry)
        } else {
            None
        };
        match place {
            // One that cannot be watched (fs.epoll.max_user_watches) can still be ended.
            Some(place) => {
                let _ = self.watch(entry.pidfd, place as u64 * 4 + MAIN);
            }
            None => {
                for fd in [
                    &mut entry.pidfd,
                    &mut entry.init,
                    &mut entry.pipe,
                    &mut entry.cgroup,
                ] {
                    close_place(fd);
                }
                if !known {
                    self.refuse();
                }
            }
        }
    }

    /// It cannot guard what it is asked to. The launcher sees the socket closed, starts another, tells
    /// that one of all, and ends this one, which guards what it can until then.
    fn refuse(&mut self) {
        let _ = self.control(EPOLL_CTL_DEL, GUARD_SOCKET, 0, 0);
        // Not only closed: a fork of the launcher may have a copy of this end.
        const SHUT_RDWR: usize = 2;
        let _ = plain(sys::SHUTDOWN, [int(GUARD_SOCKET), SHUT_RDWR, 0, 0, 0, 0]);
        sys::close(GUARD_SOCKET);
        self.refused = true;
    }

    fn place_of(&mut self, id: u64) -> Option<usize> {
        let same = |entry: &Entry| entry.used && entry.message.id == id;
        self.table.entries().iter().position(same)
    }

    fn forget_id(&mut self, id: u64) {
        if let Some(place) = self.place_of(id) {
            self.forget(place);
        }
    }

    /// Whatever is left of it is none of our business.
    fn forget(&mut self, place: usize) {
        let Some(mut entry) = self.entry(place) else {
            return;
        };
        self.unwatch(&mut entry.pidfd);
        self.unwatch(&mut entry.init);
        self.unwatch(&mut entry.events);
        close_place(&mut entry.pipe);
        close_place(&mut entry.cgroup);
        self.put(place, FREE);
    }

    /// The number of the captive in a place; 0 if there is none.
    fn id_in(&mut self, place: usize) -> u64 {
        self.entry(place).map_or(0, |entry| entry.message.id)
    }

    /// A copy of what is in a place that is used.
    fn entry(&mut self, place: usize) -> Option<Entry> {
        let entry = self.table.entries().get(place).copied();
        entry.filter(|entry| entry.used)
    }

    /// Puts it back; a place is free when nothing is left of its captive.
    fn put(&mut self, place: usize, entry: Entry) {
        if let Some(own) = self.table.entries().get_mut(place) {
            *own = if entry.is_over() { FREE } else { entry };
        }
    }

    fn happened(&mut self, data: u64) {
        let place = (data / 4) as usize;
        match data % 4 {
            MAIN => self.main_ended(place),
            INIT => self.init_ended(place),
            _ => self.look_at_cgroup(place),
        }
    }

    /// The main process has ended: its tree is to end too.
    fn main_ended(&mut self, place: usize) {
        if let Some(mut entry) = self.entry(place) {
            self.unwatch(&mut entry.pidfd);
            self.end_tree_of(place, entry);
        }
    }

    fn init_ended(&mut self, place: usize) {
        if let Some(mut entry) = self.entry(place) {
            self.unwatch(&mut entry.init);
            close_place(&mut entry.pipe);
            self.put(place, entry);
        }
    }

    fn look_at_cgroup(&mut self, place: usize) {
        let Some(mut entry) = self.entry(place) else {
            return;
        };
        if entry.is_ending && entry.cgroup >= 0 && entry.events < 0 {
            // There was no descriptor free for it before.
            self.end_cgroup(place, &mut entry);
            self.put(place, entry);
        }
        if entry.cgroup >= 0 && entry.events >= 0 && cgroup::is_empty(entry.events) {
            cgroup::remove(entry.cgroup, &Name::of(entry.message.name));
            self.unwatch(&mut entry.events);
            close_place(&mut entry.cgroup);
            self.put(place, entry);
        }
    }

    /// SIGKILL to all that is left of a tree, once.
    fn end_tree(&mut self, place: usize) {
        if let Some(entry) = self.entry(place) {
            self.end_tree_of(place, entry);
        }
    }

    /// The entry has not been put back: one that is found by its marks alone would be over before the first walk.
    fn end_tree_of(&mut self, place: usize, mut entry: Entry) {
        let data = place as u64 * 4;
        entry.killed = true;
        entry.is_ending = true;
        if entry.init >= 0 {
            if sys::pidfd_send_signal(entry.init, sys::SIGKILL) == Err(sys::ESRCH) {
                self.unwatch(&mut entry.init);
                close_place(&mut entry.pipe);
            } else {
                let _ = self.watch(entry.init, data + INIT);
            }
        }
        if entry.cgroup >= 0 && entry.events < 0 {
            self.end_cgroup(place, &mut entry);
        }
        if entry.message.tree & TREE_MARKED != 0 {
            entry.walks = WALKS;
        }
        self.put(place, entry);
        self.look_at_cgroup(place);
        self.walk_once(place);
    }

    fn end_cgroup(&mut self, place: usize, entry: &mut Entry) {
        cgroup::kill(entry.cgroup);
        match cgroup::events(entry.cgroup) {
            Ok(events) => {
                entry.events = events;
                let data = place as u64 * 4 + CGROUP;
                let _ = self.control(EPOLL_CTL_ADD, events, EPOLLPRI, data);
            }
            // It has been removed.
            Err(sys::ENOENT | sys::ENODEV) => close_place(&mut entry.cgroup),
            Err(_) => {}
        }
    }

    /// Each tree that is found by its marks, once.
    fn walk(&mut self) {
        for place in 0..self.table.used {
            self.walk_once(place);
        }
    }

    fn walk_once(&mut self, place: usize) {
        if let Some(mut entry) = self.entry(place) {
            if entry.walks > 0 {
                entry.walks -= 1;
                let found = marks::kill(&Name::of(entry.message.name));
                // Twice: one that is just executing a program has no environment to be seen.
                if !found && entry.is_quiet {
                    entry.walks = 0;
                }
                entry.is_quiet = !found;
                self.put(place, entry);
            }
        }
    }

    /// Ends everything, the lower numbers first.
    fn end_all(&mut self) {
        while let Some(order) = self.lowest_order() {
            self.end_order(order);
        }
    }

    fn lowest_order(&mut self) -> Option<u32> {
        let left = self.table.entries().iter().filter(|entry| entry.used);
        left.map(|entry| entry.message.order).min()
    }

    /// A copy of what is in a place, if it is of this order.
    fn of_order(&mut self, place: usize, order: u32) -> Option<Entry> {
        let entry = self.entry(place)?;
        (entry.message.order == order).then_some(entry)
    }

    fn end_order(&mut self, order: u32) {
        let began = sys::now();
        for place in 0..self.table.used {
            // One whose main process has ended is being ended.
            let Some(mut entry) = self.of_order(place, order).filter(|entry| entry.pidfd >= 0)
            else {
                continue;
            };
            let sent = sys::pidfd_send_signal(entry.pidfd, entry.message.signal);
            if sent == Err(sys::ESRCH) {
                // One that could not be watched, and has ended.
                self.main_ended(place);
                continue;
            }
            entry.killed = entry.message.signal == sys::SIGKILL;
            if !entry.killed {
                // A stopped one acts on no other signal.
                let _ = sys::pidfd_send_signal(entry.pidfd, sys::SIGCONT);
            }
            self.put(place, entry);
        }
        let mut kill_began = began;
        let mut second = false;
        loop {
            let now = sys::now();
            let mut next = i64::MAX;
            let mut left = false;
            let mut unkilled = false;
            for place in 0..self.table.used {
                let Some(mut entry) = self.of_order(place, order) else {
                    continue;
                };
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
                    self.put(place, entry);
                } else {
                    unkilled = true;
                    next = next.min(deadline);
                }
            }
            if !left {
                return;
            }
            if !unkilled {
                // SIGKILL has been sent to all that are left, or to their main processes.
                let deadline = kill_began + AFTER_KILL;
                if now >= deadline && second {
                    return self.give_up(order);
                }
                if now >= deadline {
                    // A main process that does not go does not keep its tree.
                    self.end_trees(order);
                    (second, kill_began) = (true, now);
                }
                next = next.min(kill_began + AFTER_KILL);
            }
            self.wait(if next == i64::MAX { next } else { next - now });
        }
    }

    fn end_trees(&mut self, order: u32) {
        for place in 0..self.table.used {
            if self
                .of_order(place, order)
                .is_some_and(|entry| entry.message.tree != 0)
            {
                self.end_tree(place);
            }
        }
    }

    /// What does not go after SIGKILL will when it can (state D), without anybody's help.
    fn give_up(&mut self, order: u32) {
        for place in 0..self.table.used {
            if self.of_order(place, order).is_some() {
                self.forget(place);
            }
        }
    }
}

/// As many descriptors as come with a message.
const MOST_FDS: usize = 4;

/// Descriptors, in their order, then -1.
struct Descriptors([i32; MOST_FDS]);

enum Received {
    Message(Message, Descriptors),
    End,
}

/// One message, with the descriptors that came with it; recvmsg(2). EAGAIN if there is none.
fn receive() -> Result<Received, i32> {
    #[repr(C)]
    struct Control {
        length: usize,
        level: i32,
        kind: i32,
        fds: [i32; MOST_FDS],
    }
    const HEADER: usize = 16;
    const MSG_DONTWAIT: usize = 0x40;
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    let mut message = NOTHING;
    let mut control = Control {
        length: 0,
        level: 0,
        kind: 0,
        fds: [-1; MOST_FDS],
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
            Ok(0) => Ok(Received::End),
            Ok(read) if read == size_of::<Message>() => {
                let are_descriptors = control.level == SOL_SOCKET && control.kind == SCM_RIGHTS;
                let count = control.length.saturating_sub(HEADER) / size_of::<i32>();
                let mut fds = [-1; MOST_FDS];
                if are_descriptors {
                    for (place, fd) in fds.iter_mut().zip(control.fds).take(count) {
                        *place = fd;
                    }
                }
                Ok(Received::Message(message, Descriptors(fds)))
            }
            Ok(_) | Err(sys::EINTR) => continue,
            Err(errno) => Err(errno),
        };
    }
}
