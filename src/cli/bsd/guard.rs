//! The guard: a small process that outlives run-with just long enough to end the command.
//!
//! It is forked before the command, in a session of its own, so what the terminal or `kill -- -pgid` sends does not
//! reach it. It has the credentials of run-with, so it may signal a command that has changed its user. It says that it
//! watches before run-with goes on. The command's pid is in the page that all three see, written before the command
//! executes anything.
//!
//! | what happens | what the guard does |
//! |---|---|
//! | run-with ends, and has said that all is done | ends |
//! | run-with ends otherwise (SIGKILL, a crash) | SIGKILL to the command and a group it leads; ends |
//! | the parent exits, run-with runs | nothing: run-with does what is to be done |
//! | the parent exits, run-with does not act within [`PATIENCE`] (it is stopped) | the signal, the grace and SIGKILL in its place; SIGCONT to run-with once the command is gone |
//!
//! Who acts on the parent's exit is decided by one atomic exchange, as on Linux: the command gets its signal once. Only if the one
//! who is to send it is stopped or killed between the exchange and the sending, the other sends it after [`PATIENCE`].
//!
//! A guard that is stopped when run-with is killed does not act, where there is no parent-death signal to resume it.
//!
//! Between fork and exit: system calls, no allocation.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::machine::{Ending, PATIENCE};
use super::supervisor::Page;
use super::sys::{self, OnClose, Queue};
use crate::exit_with_parent::{Parent, Signal};
use crate::sys::event_source::{Event, EventSource, Interest, Key};

/// The guard as run-with knows it.
#[derive(Debug)]
pub(super) struct Guard {
    pid: i32,
    /// A stream socket to it: its end is the guard's. What is sent says that there is a command.
    socket: OwnedFd,
}

impl Guard {
    /// Starts a guard for this process, and returns when it watches. The calling process has one thread.
    #[expect(unsafe_code, reason = "fork, and closing what was inherited")]
    pub(super) fn start(
        page: &Page,
        parent: Option<&Parent>,
        ending: Ending,
    ) -> Result<Self, Errno> {
        let supervisor = sys::getpid();
        let (socket, theirs) = sys::stream_sockets()
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        // Without a descriptor, whose closing would give the guard to another parent before it got its signal.
        // SAFETY: one thread; the guard ends by `exit`, and drops nothing.
        let forked = unsafe { sys::fork(OnClose::NoDescriptor) }?;
        let Some(child) = forked else {
            // A new session: away from the terminal's signals and from the group's.
            let _ = sys::setsid();
            let parents = parent.and_then(Parent::raw_fd).unwrap_or(-1);
            let mut keep = [theirs.as_raw_fd(), parents];
            keep.sort_unstable();
            let keep = if parents < 0 { &keep[1..] } else { &keep[..] };
            // SAFETY: a copy of run-with, which ends without using or dropping what that has open.
            unsafe { sys::close_all_but(keep) };
            let watch = Watch {
                page,
                supervisor,
                ending,
                parent,
                socket: theirs.as_fd(),
            };
            watch.run()
        };
        drop(theirs);
        let guard = Self {
            pid: child.pid,
            socket,
        };
        if guard.says_it_watches() {
            return Ok(guard);
        }
        guard.end();
        // It has no descriptors or no memory, or somebody has killed it.
        Err(Errno::ECANCELED)
    }

    /// Waits until it does, or has ended. Signals are blocked.
    fn says_it_watches(&self) -> bool {
        let mut word = [0];
        loop {
            match sys::read(self.socket.as_fd(), &mut word) {
                Err(Errno::EINTR) => {}
                answer => return answer == Ok(1),
            }
        }
    }

    /// Tells it that there is a command.
    pub(super) fn tell(&self) {
        let _ = sys::send(self.socket.as_fd(), &[0]);
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends the guard and reaps it, so that nobody else has to.
    pub(super) fn end(&self) {
        let _ = sys::kill(self.pid, libc::SIGKILL);
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            match sys::next_change(Some(self.pid)) {
                Some((_, sys::Change::Exited(_) | sys::Change::Killed(_))) => return,
                _ => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    /// The descriptors that must stay open.
    pub(super) fn raw_fds(&self) -> impl Iterator<Item = RawFd> {
        std::iter::once(self.socket.as_raw_fd())
    }
}

const SUPERVISOR: Key = Key(0);
const PARENT: Key = Key(1);
const COMMAND: Key = Key(2);
const TOLD: Key = Key(3);

/// What the guard knows.
struct Watch<'a> {
    page: &'a Page,
    supervisor: i32,
    ending: Ending,
    parent: Option<&'a Parent>,
    socket: BorrowedFd<'a>,
}

/// What has been told.
#[derive(Debug, Default, Clone, Copy)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "four things that happen, in any order"
)]
struct Seen {
    supervisor: bool,
    parent: bool,
    command: bool,
    /// The command's end has been registered.
    watched: bool,
}

impl Watch<'_> {
    fn run(&self) -> ! {
        // Where there is one: a guard that somebody stopped is resumed when run-with ends.
        if sys::has_parent_death_signal() {
            let _ = sys::arm_parent_death(libc::SIGCONT);
        }
        let Ok((queue, mut seen)) = self.start() else {
            // Of no use, and run-with is told so by its end; but if that has ended meanwhile there is no other guard.
            if self.is_alone() && !self.page.is_done() {
                self.kill(Seen::default());
            }
            sys::exit(1)
        };
        // A guard that replaces another is not told again.
        self.watch_command(&queue, &mut seen);
        while !seen.parent {
            self.wait(&queue, &mut seen, None);
        }
        self.parent_ended(&queue, &mut seen)
    }

    /// Registers all but the command, and says so to run-with, if that has not ended meanwhile.
    fn start(&self) -> Result<(Queue, Seen), Errno> {
        let (queue, mut seen) = (Queue::new()?, Seen::default());
        match queue.add(SUPERVISOR, Interest::Exit(self.supervisor)) {
            Err(Errno::ESRCH) => seen.supervisor = true,
            registered => registered?,
        }
        // A guard that replaces another, after the parent's exit: the number may be somebody else's by now.
        seen.parent = self.page.is_claimed();
        let parent = self.parent.filter(|_| !seen.parent);
        match parent.map(|parent| parent.watch(&queue, PARENT)) {
            Some(Err(Errno::ESRCH)) => seen.parent = true,
            registered => registered.unwrap_or(Ok(()))?,
        }
        queue.add(TOLD, Interest::Readable(self.socket))?;
        match sys::send(self.socket, &[0]) {
            // Its descriptors are closed first.
            Err(Errno::EPIPE | Errno::ENOTCONN | Errno::ECONNRESET) => seen.supervisor = true,
            sent => drop(sent?),
        }
        // What was registered is the right process if that is still our parent.
        seen.supervisor |= self.is_alone();
        Ok((queue, seen))
    }

    /// Whether run-with has ended.
    fn is_alone(&self) -> bool {
        sys::getppid() != self.supervisor
    }

    /// Waits for something to happen, once. Does not return when run-with has ended.
    fn wait(&self, queue: &Queue, seen: &mut Seen, limit: Option<Duration>) {
        if seen.supervisor {
            self.supervisor_ended(queue, seen);
        }
        self.look(queue, seen, limit);
        if seen.supervisor {
            self.supervisor_ended(queue, seen);
        }
    }

    fn look(&self, queue: &Queue, seen: &mut Seen, limit: Option<Duration>) {
        let mut events = [Event::NONE; 4];
        // Our own queue: there is no error but of a system that has lost it.
        let count = queue.wait(limit, &mut events).unwrap_or_else(|_| {
            std::thread::sleep(Duration::from_millis(10));
            seen.supervisor |= self.is_alone();
            0
        });
        for event in events.iter().take(count) {
            match event.key {
                SUPERVISOR => seen.supervisor = true,
                PARENT => seen.parent = true,
                COMMAND => seen.command = true,
                _ => {
                    let mut word = [0; 8];
                    if sys::read(self.socket, &mut word) == Ok(0) {
                        // Nobody has the other end: run-with has ended, and its fork before the exec.
                        seen.supervisor = true;
                    }
                    self.watch_command(queue, seen);
                }
            }
        }
    }

    /// Registers the command's end, once there is a command.
    fn watch_command(&self, queue: &Queue, seen: &mut Seen) {
        let pid = self.page.pid();
        if pid > 0 && !seen.watched {
            seen.watched = true;
            seen.command |= queue.add(COMMAND, Interest::Exit(pid)) == Err(Errno::ESRCH);
        }
    }

    /// run-with is gone: unless it said that all is done, so must the command be.
    fn supervisor_ended(&self, queue: &Queue, seen: &mut Seen) -> ! {
        let since = Instant::now();
        // A command that has only just been made writes its pid before anything else.
        while self.page.pid() == 0 && !self.page.is_done() && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !self.page.is_done() {
            self.watch_command(queue, seen);
            self.look(queue, seen, Some(Duration::ZERO));
            self.kill(*seen);
        }
        sys::exit(0)
    }

    /// SIGKILL to the command, unless its end has been told, and to the group it leads: the number is no other
    /// process's while there is such a group.
    fn kill(&self, seen: Seen) {
        let pid = self.page.pid();
        let _ = sys::kill_group(pid, libc::SIGKILL);
        if !seen.command {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }

    /// The parent is gone, and run-with has the first word.
    fn parent_ended(&self, queue: &Queue, seen: &mut Seen) -> ! {
        let since = Instant::now();
        self.pause(queue, seen, PATIENCE);
        while self.page.pid() == 0 {
            self.pause(queue, seen, Duration::from_millis(10));
        }
        self.watch_command(queue, seen);
        if !self.page.claim_signal() && !self.page.is_signalled() {
            // Claimed, and not sent: run-with was stopped in between, or a guard before this one was killed.
            self.pause(queue, seen, PATIENCE);
        }
        if !self.page.is_signalled() && !seen.command {
            let _ = send(self.page.pid(), self.ending.signal);
            self.page.set_signalled();
        }
        let grace = self.ending.kill_after;
        let deadline = grace.and_then(|grace| since.checked_add(grace.checked_add(PATIENCE)?));
        let mut killed = false;
        while !seen.command {
            let now = Instant::now();
            let left = deadline
                .filter(|_| !killed)
                .map(|at| at.saturating_duration_since(now));
            if left.is_some_and(|left| left.is_zero()) {
                killed = true;
                self.kill(*seen);
            } else {
                self.wait(queue, seen, left);
            }
        }
        // A stopped run-with can go on and collect the command's status.
        let _ = sys::kill(self.supervisor, libc::SIGCONT);
        loop {
            self.wait(queue, seen, None);
        }
    }

    /// Lets time pass, unless run-with ends.
    fn pause(&self, queue: &Queue, seen: &mut Seen, time: Duration) {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.wait(queue, seen, Some(left));
        }
    }
}

/// The signal for the parent's exit, and SIGCONT after it: a stopped command acts on no signal but
/// SIGKILL.
pub(super) fn send(command: i32, signal: Signal) -> Result<(), Errno> {
    let sent = sys::kill(command, signal.number());
    let _ = sys::kill(command, libc::SIGCONT);
    sent
}
