//! The supervisor: a process between launcher and captive, which is the captive's parent.
//!
//! It is a fork of the launcher's, with its credentials and without its descriptors. It blocks every signal. Nothing of it runs but
//! what is here: system calls, no allocation, no lock, since the launcher may have had other threads.
//!
//! It is in a session of its own, so that neither what is sent to the launcher's group nor the terminal reaches it, and *not* only in
//! a group of its own: a captive in the launcher's group would have its parent in another group of that session, so that the
//! group became an orphan each time a captive ends, and if anybody in it is stopped then (another captive, perhaps) the
//! kernel sends SIGHUP to all of it, the launcher included (POSIX, exit(3p); orphanpg() in `kern_proc.c` of the BSDs and
//! xnu). Two things come of that:
//!
//! - A captive that leads a group has no parent in its session: job control takes such a group for an orphan, and the
//!   terminal's stop character does not stop it.
//! - A *stopped* supervisor (SIGSTOP; all else is blocked) does nothing until it is resumed. An order that is not answered resumes
//!   it; the launcher's end does not.
//!
//! | what happens | what the supervisor does |
//! |---|---|
//! | the captive has executed its program, or cannot | says so |
//! | the captive ends | waits for it, reports, ends what is left of its tree, ends |
//! | an order | carries it out, and answers |
//! | the launcher ends, or executes another program | what [`LauncherExit`](super::super::LauncherExit) says; SIGKILL before the captive's exec; ends if the captive has been let go |
//!
//! That the launcher has ended it knows by kqueue's NOTE_EXIT, registered by pid and good if the launcher is still the parent
//! afterwards; that it has executed another program by the end of the socket, which is close-on-exec.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::EndedBy;
use super::child;
use super::request::{Holds, OnExit, Request};
use super::sys::{self, Child, OnClose, Queue, Waited, Which};
use super::words::{CLEAR, FORK, Order, Page, REAPER, WATCH, Wish};
use crate::run_with::InChild;
use crate::sys::event_source::{Event, EventSource, Interest, Key};

const LAUNCHER: Key = Key(0);
const CAPTIVE: Key = Key(1);
const ORDERS: Key = Key(2);
const START: Key = Key(3);
const CHILDREN: Key = Key(4);

/// How long after the word of an end the kernel may take to have the status.
const SOON: Duration = Duration::from_millis(1);

/// How often to look at what is left of a tree.
const LOOK: Duration = Duration::from_millis(10);

/// The same after a while: somebody who cannot be signalled, or does not die.
const LONG_LOOK: Duration = Duration::from_millis(200);

/// How long a process group is looked at after its SIGKILL.
const GROUP_PATIENCE: Duration = Duration::from_secs(5);

/// The supervisor as the launcher knows it.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) child: Child,
    /// Orders, and what wakes when there is something new in the page. Its end is the supervisor's.
    pub(super) line: OwnedFd,
    /// Its end is the captive's.
    pub(super) ended: OwnedFd,
}

/// Makes one, which goes on to make the captive.
#[expect(unsafe_code, reason = "fork")]
pub(super) fn make(request: &mut Request, plan: &InChild<'_>, page: &Page) -> Result<Made, Errno> {
    let sockets = || {
        sys::stream_sockets().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    };
    let (line, their_line) = sockets()?;
    let (ended, their_ended) = sockets()?;
    for fd in [&line, &their_line] {
        sys::set_nonblocking(fd.as_fd())?;
    }
    // A signal of the launcher's handlers would run them there.
    let mask = sys::block_all_signals()?;
    // SAFETY: the child calls nothing of ours but `run`, which is system calls, never returns, and drops nothing but its two
    // descriptors.
    let forked = unsafe { sys::fork(OnClose::LetLive) };
    if matches!(forked, Ok(None)) {
        run(request, plan, page, their_line, their_ended);
    }
    sys::restore_signal_mask(&mask);
    match forked? {
        Some(child) => Ok(Made { child, line, ended }),
        // Not here.
        None => Err(Errno::ECANCELED),
    }
}

/// The supervisor's life.
fn run(request: &mut Request, plan: &InChild<'_>, page: &Page, line: OwnedFd, ended: OwnedFd) -> ! {
    let made = make_captive(request, plan, page, line.as_fd(), &ended);
    let (captive, start, queue) = match made {
        Ok(made) => made,
        Err(errno) => give_up(page, line.as_fd(), errno),
    };
    Supervisor {
        page,
        line: Some(line),
        ended: Some(ended),
        captive,
        start: Some(start),
        queue,
        holds: request.holds,
        on_exit: request.on_exit,
        launched: false,
        is_ending: false,
        is_tied: on_close(request) == OnClose::Kill,
        launcher_gone: false,
        let_go: false,
        kill_at: None,
        ended_by: EndedBy::Itself,
    }
    .watch()
}

/// What becomes of the captive without us, where there are process descriptors.
fn on_close(request: &Request) -> OnClose {
    if request.detachable {
        OnClose::LetLive
    } else {
        OnClose::Kill
    }
}

/// There is no captive.
fn give_up(page: &Page, line: BorrowedFd<'_>, errno: Errno) -> ! {
    page.fail(errno);
    page.set_launch(false);
    page.set_reaping();
    page.set_empty();
    wake(line);
    sys::exit(1)
}

fn wake(line: BorrowedFd<'_>) {
    // A launcher that has let as many pile up as there is room for is awake.
    let _ = sys::send(line, &[0]);
}

/// Forks the captive, which waits; clears up after the fork of ourselves; watches launcher and captive; has the captive
/// go on.
#[expect(unsafe_code, reason = "fork, and closing what was inherited")]
fn make_captive(
    request: &mut Request,
    plan: &InChild<'_>,
    page: &Page,
    line: BorrowedFd<'_>,
    ended: &OwnedFd,
) -> Result<(Child, OwnedFd, Queue), Errno> {
    page.at(FORK);
    // Ignored, it would have the kernel throw the captive's status away.
    sys::reset_dispositions(1 << (libc::SIGCHLD - 1), 0)?;
    if request.holds == Holds::Reaper {
        page.at(REAPER);
        sys::become_reaper()?;
    }
    page.at(FORK);
    let (start, theirs) = sys::stream_sockets()
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let supervisor = sys::getpid();
    let on_close = on_close(request);
    // SAFETY: one thread; the child executes or ends, and drops nothing.
    let Some(captive) = unsafe { sys::fork(on_close) }? else {
        // With a copy of our end it would never see the end of the file.
        drop(start);
        child::run(request, plan, page, theirs.as_fd(), supervisor)
    };
    // Before it can say so itself: it may be all that is known when we have been killed.
    page.set_pid(captive.pid);
    drop(theirs);
    // Away from the terminal, and from what is sent to the launcher's group.
    let _ = sys::setsid();
    page.at(CLEAR);
    let descriptor = captive.descriptor.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let mut keep = [
        line.as_raw_fd(),
        ended.as_raw_fd(),
        start.as_raw_fd(),
        descriptor,
    ];
    keep.sort_unstable();
    let keep = if descriptor < 0 {
        &keep[1..]
    } else {
        &keep[..]
    };
    // SAFETY: a copy of the launcher, which ends without using or dropping what that has open.
    unsafe { sys::close_all_but(keep) };
    page.at(WATCH);
    let queue = begin(request, line, &start, &captive);
    if queue.is_err() {
        // It waits for a word, and nobody else waits for it.
        let _ = sys::kill(captive.pid, libc::SIGKILL);
        while sys::try_wait(Which::Pid(captive.pid)) == Ok(None) {
            std::thread::sleep(SOON);
        }
    }
    Ok((captive, start, queue?))
}

/// Watches them all.
fn begin(
    request: &Request,
    line: BorrowedFd<'_>,
    start: &OwnedFd,
    captive: &Child,
) -> Result<Queue, Errno> {
    let queue = Queue::new()?;
    queue.add(LAUNCHER, Interest::Exit(request.launcher))?;
    // What was registered is the right process if that is still our parent.
    if sys::getppid() != request.launcher {
        return Err(Errno::ESRCH);
    }
    queue.add(ORDERS, Interest::Readable(line))?;
    // Before it changes its user: NetBSD would refuse it then.
    queue.add(CAPTIVE, Interest::Exit(captive.pid))?;
    if request.holds == Holds::Reaper {
        queue.add(CHILDREN, Interest::Signal(libc::SIGCHLD))?;
    }
    queue.add(START, Interest::Readable(start.as_fd()))?;
    sys::send(start.as_fd(), &[0])?;
    Ok(queue)
}

#[allow(
    clippy::struct_excessive_bools,
    reason = "things that happen, in any order"
)]
struct Supervisor<'a> {
    page: &'a Page,
    /// Closed when nobody has the other end.
    line: Option<OwnedFd>,
    /// Closed when the captive's end has been reported.
    ended: Option<OwnedFd>,
    captive: Child,
    /// Closed when the captive has executed its program, or ended.
    start: Option<OwnedFd>,
    queue: Queue,
    holds: Holds,
    on_exit: OnExit,
    launched: bool,
    /// The captive's end has been told.
    is_ending: bool,
    /// Its descriptor, if there is one, is its life.
    is_tied: bool,
    launcher_gone: bool,
    let_go: bool,
    kill_at: Option<Instant>,
    ended_by: EndedBy,
}

impl Supervisor<'_> {
    fn watch(mut self) -> ! {
        loop {
            if self.is_ending {
                self.reap();
            }
            if let Some(at) = self.kill_at {
                if at <= Instant::now() {
                    self.kill_at = None;
                    let _ = self.send(libc::SIGKILL);
                }
            }
            let left = self
                .kill_at
                .map(|at| at.saturating_duration_since(Instant::now()));
            let limit = if self.is_ending { Some(SOON) } else { left };
            self.look(limit);
        }
    }

    fn wake(&self) {
        if let Some(line) = &self.line {
            wake(line.as_fd());
        }
    }

    /// Waits for something to happen, once, and does what is to be done about it.
    fn look(&mut self, limit: Option<Duration>) {
        let mut events = [Event::NONE; 8];
        let count = self.queue.wait(limit, &mut events).unwrap_or_else(|_| {
            self.go_blind();
            0
        });
        // The captive's end first: an order for one that has ended comes too late.
        let told = &events[..count];
        self.is_ending |= told.iter().any(|event| event.key == CAPTIVE);
        for event in told {
            match event.key {
                LAUNCHER => self.launcher_is_gone(),
                ORDERS => self.take_orders(),
                START => self.look_at_the_start(),
                CHILDREN if self.ended.is_some() => self.reap_others(),
                // Which is looked at each time.
                _ => {}
            }
        }
    }

    /// The queue has been lost, which it cannot be. Who cannot see the launcher's end lets nobody live on.
    fn go_blind(&mut self) {
        std::thread::sleep(LOOK);
        if self.let_go {
            sys::exit(0);
        }
        let _ = self.send(libc::SIGKILL);
        // From now on it is waited for, as after the word of its end.
        self.is_ending = true;
    }

    /// Whether the captive has executed its program is decided when the file has ended.
    fn look_at_the_start(&mut self) {
        let Some(start) = self.start.take() else {
            return;
        };
        match sys::read(start.as_fd(), &mut [0]) {
            Err(Errno::EINTR | Errno::EAGAIN) => self.start = Some(start),
            _ if self.page.has_executed() => {
                self.launched = true;
                self.page.set_launch(true);
                self.wake();
            }
            // It is ending.
            _ => {}
        }
    }

    /// Waits for the captive, if it has ended by now.
    fn reap(&mut self) {
        // Its number is its own until it is waited for, and so is its group's.
        if self.holds == Holds::Group && !self.let_go {
            let _ = sys::kill_group(self.captive.pid, libc::SIGKILL);
        }
        self.page.set_reaping();
        match sys::try_wait(Which::Pid(self.captive.pid)) {
            Ok(Some(waited)) => self.finish(Some(&waited)),
            Ok(None) | Err(Errno::EINTR) => {}
            // It has been waited for, and not by us: there is no such thing.
            Err(_) => self.finish(None),
        }
    }

    /// Waits for everybody else that has ended, as whoever adopts orphans must.
    fn reap_others(&mut self) {
        while let Ok(Some(waited)) = sys::try_wait(Which::Any) {
            // The stand-in's wait returns also who has a descriptor.
            if waited.pid == self.captive.pid {
                self.page.set_reaping();
                self.finish(Some(&waited));
            }
        }
    }

    /// The captive has been waited for.
    fn finish(&mut self, waited: Option<&Waited>) -> ! {
        self.look_at_the_start();
        if let Some(waited) = waited {
            self.page.set_report(waited, self.ended_by);
        }
        let was_launched = self.launched;
        // The captive's end is told by this.
        self.ended = None;
        self.end_tree();
        if !was_launched {
            self.page.set_launch(false);
            self.wake();
        }
        sys::exit(0)
    }

    fn end_tree(&mut self) {
        if self.let_go {
            return;
        }
        match self.holds {
            Holds::Nothing => self.page.set_empty(),
            Holds::Reaper => self.end_descendants(),
            Holds::Group => self.await_group(),
        }
    }

    /// SIGKILL to every descendant, until there is none.
    fn end_descendants(&mut self) {
        let mut pause = SOON;
        loop {
            let _ = sys::kill_descendants(libc::SIGKILL);
            while let Ok(Some(_)) = sys::try_wait(Which::Any) {}
            if sys::count_descendants() == Ok(0) {
                return self.page.set_empty();
            }
            self.look(Some(pause));
            pause = (pause * 2).min(LONG_LOOK);
        }
    }

    /// The group has had its SIGKILL. It is only asked about: by now the number may be another's.
    fn await_group(&mut self) {
        let deadline = Instant::now() + GROUP_PATIENCE;
        while Instant::now() < deadline {
            if sys::kill_group(self.captive.pid, 0) == Err(Errno::ESRCH) {
                return self.page.set_empty();
            }
            self.look(Some(SOON));
        }
    }

    /// The launcher has ended, or is another program.
    fn launcher_is_gone(&mut self) {
        if self.launcher_gone {
            return;
        }
        self.launcher_gone = true;
        if self.let_go {
            sys::exit(0);
        }
        if !self.launched || self.on_exit.signal == libc::SIGKILL {
            let _ = self.send(libc::SIGKILL);
            return;
        }
        let _ = self.send(self.on_exit.signal);
        // A stopped captive acts on no signal but SIGKILL.
        let _ = self.send(libc::SIGCONT);
        // One beyond the clock has no end.
        let grace = self.on_exit.kill_after.unwrap_or_default();
        self.kill_at = Instant::now().checked_add(grace);
    }

    /// A signal to the captive, unless it is known to have ended.
    fn send(&mut self, signal: i32) -> Result<(), Errno> {
        if self.is_ending || self.ended.is_none() {
            return Ok(());
        }
        let sent = sys::kill(self.captive.pid, signal);
        let is_tied = self.is_tied && !self.let_go && self.captive.descriptor.is_some();
        if sent == Err(Errno::EPERM) && signal == libc::SIGKILL && is_tied {
            // A set-user-ID program that has become another user. The kernel asks nobody: procdesc_close(). The captive is
            // another's child then; its end is told by its number all the same.
            self.captive.descriptor = None;
            return Ok(());
        }
        sent
    }

    fn take_orders(&mut self) {
        let mut bytes = [0; Order::SIZE];
        while let Some(line) = &self.line {
            match sys::read(line.as_fd(), &mut bytes) {
                Ok(Order::SIZE) => {
                    if let Some(order) = Order::of(bytes) {
                        self.carry_out(order);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // The end of the file, which would be told for ever; or half an order, which nobody sends.
                Ok(_) | Err(_) => {
                    self.line = None;
                    self.launcher_is_gone();
                }
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        let done = match order.wish {
            Wish::LetGo => {
                self.let_go = true;
                Ok(())
            }
            Wish::Signal(signal) => {
                let by = match signal {
                    libc::SIGKILL => EndedBy::Kill,
                    libc::SIGCONT => EndedBy::Itself,
                    _ => EndedBy::Signal,
                };
                let has_ended = self.is_ending || self.ended.is_none();
                let sent = self.send(signal);
                if sent.is_ok() && !has_ended {
                    self.ended_by = by.max(self.ended_by);
                }
                sent
            }
        };
        if order.number != 0 {
            let errno = done.err().map_or(0, |errno| errno as i32);
            self.page.set_answer(order.number, errno);
            self.wake();
        }
    }
}
