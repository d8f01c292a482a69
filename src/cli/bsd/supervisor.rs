//! The supervisor: waits with one queue, tells the machine what has happened, and does what that decides.
//!
//! One thread, one loop; every signal stays blocked.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::args::{Invocation, TreeBy};
use super::super::facts::{Now, give_terminal_to};
use super::super::given::{Given, expected_parent};
use super::super::machine::{Action, End, Ending, Input, Machine, Sender, Setup, Time};
use super::super::program::Program;
use super::super::status::{Event as Told, Pidfile, StatusFd};
use super::super::words::Words;
use super::super::{Failure, say};
use super::guard::{self, Guard};
use super::spawn::{Command, Starting, spawn};
use super::sys::{self, Change, Queue, Received, Signals};
use crate::exit_with_parent::{ArmError, Parent};
use crate::run_with::Plan;
use crate::sys::event_source::{Event, EventSource, Interest, Key};
use crate::sys::shared::{Shared, SharedWords};

/// The page that run-with, its guard and the command's process see alike.
pub(super) type Page = Shared<Words>;

#[expect(unsafe_code, reason = "what the trait asks for")]
// SAFETY: atomics of integers only, for which all zeroes are values.
unsafe impl SharedWords for Words {}

/// Runs the command to its end; the answer is the exit status.
pub(crate) fn supervise(invocation: &Invocation) -> Result<i32, Failure> {
    let given = Given::take(invocation)?;
    let signals = Signals::take().map_err(|errno| failed("taking over the signals", errno))?;
    let mut supervisor = Supervisor::start(invocation, given, signals)?;
    let end = supervisor.run();
    supervisor.finish(end.as_ref().ok());
    Ok(match end? {
        End::Exited(status) => status,
        End::Killed(signal) => {
            // As init no signal of our own ends us.
            if sys::getpid() != 1 {
                sys::die_of(signal);
            }
            128 + signal
        }
    })
}

fn failed(what: &str, errno: Errno) -> Failure {
    Failure::own(format!("{what}: {errno}"))
}

const SIGNALS: Key = Key(0);
const PARENT: Key = Key(1);
const COMMAND: Key = Key(2);
const EXEC: Key = Key(3);

/// The guard with this pid: what is told of one that has been replaced means nothing.
fn key_of_guard(pid: i32) -> Key {
    Key(0x8000_0000 | pid.unsigned_abs())
}

/// How long a tree may take to end after SIGKILL.
const TREE_PATIENCE: Duration = Duration::from_secs(5);

/// How often to look where the system refuses to wait.
const BLIND: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Supervisor {
    since: Instant,
    signals: Signals,
    page: Page,
    /// None only while it is made anew, or if that failed.
    queue: Option<Queue>,
    machine: Machine,
    parent: Option<Parent>,
    ending: Ending,
    guard: Option<Guard>,
    command: Command,
    /// Whether run-with reaps what descends from the command, and ends it.
    tree: bool,
    /// Until the command has exec'ed.
    starting: Option<Starting>,
    /// Why it has not, or could not be announced.
    failed: Option<Failure>,
    /// How the command has ended, once it has been waited for.
    end: Option<End>,
    status: StatusFd,
    pidfile: Option<Pidfile>,
}

impl Supervisor {
    fn start(invocation: &Invocation, given: Given, signals: Signals) -> Result<Self, Failure> {
        if invocation.server.is_some() {
            return Err(Failure::own("--server: not on this system"));
        }
        let queue = Queue::new().map_err(|errno| failed("kqueue", errno))?;
        let parent = expected_parent(invocation, given.parent)?
            .map(Parent::find)
            .transpose()
            .map_err(|error| Failure::caused(&error))?;
        let plan = Plan::resolve(&invocation.options).map_err(|error| Failure::caused(&error))?;
        let program = Program::new(&invocation.command, std::process::id(), &[])?;
        let pidfile = invocation
            .pidfile
            .as_deref()
            .map(Pidfile::prepare)
            .transpose()?;
        let page = Page::new().map_err(|errno| failed("mmap", errno))?;
        let ending = Ending {
            signal: invocation.signal,
            kill_after: invocation.kill_after,
        };
        let bound = parent.is_some() || invocation.tree.is_some();
        // Before run-with reaps what is forked from here on: the guard is not of the tree on FreeBSD.
        let guard = bound
            .then(|| Guard::start(&page, parent.as_ref(), ending))
            .transpose()
            .map_err(|errno| failed("starting the guard", errno))?;
        let launch = || {
            if let Some(by) = invocation.tree {
                hold_tree(by)?;
            }
            if let Some(parent) = &parent {
                watch_parent(parent, &queue)?;
            }
            spawn(plan, program, &page, &signals, bound)
        };
        let (command, starting) = launch().inspect_err(|_| {
            if let Some(guard) = &guard {
                page.set_done();
                guard.end();
            }
        })?;
        if let Some(guard) = &guard {
            guard.tell();
        }
        let since = Instant::now();
        let machine = Machine::new(Setup {
            own_pid: sys::getpid(),
            command: command.pid,
            forward: invocation.forward,
            guarded: guard.is_some(),
            kill_after: invocation.kill_after,
            now: Time::ZERO,
        });
        let mut supervisor = Self {
            since,
            signals,
            page,
            queue: Some(queue),
            machine,
            parent,
            ending,
            guard,
            command,
            tree: invocation.tree.is_some(),
            starting: Some(starting),
            failed: None,
            end: None,
            status: StatusFd::new(given.status),
            pidfile,
        };
        // The parent is watched already.
        if let Err(errno) = supervisor.watch() {
            supervisor.give_up(failed("kevent", errno));
        }
        Ok(supervisor)
    }

    /// Registers everything but the parent.
    fn watch(&mut self) -> Result<(), Errno> {
        let Some(queue) = &self.queue else {
            return Err(Errno::EBADF);
        };
        self.signals.watch(queue, SIGNALS)?;
        if let Some(starting) = &self.starting {
            queue.add(EXEC, Interest::Readable(starting.exec()))?;
        }
        let command = queue.add(COMMAND, Interest::Exit(self.command.pid));
        self.watch_guard();
        match command {
            // A zombie, which some systems do not register: it has not been waited for.
            Err(Errno::ESRCH) => self.tell(Input::Ending),
            // NetBSD, of a command that has gained privileges by its exec. SIGCHLD tells its end.
            Err(Errno::EACCES) if self.command.raw_fd().is_none() => {}
            registered => return registered,
        }
        Ok(())
    }

    fn watch_guard(&mut self) {
        if let (Some(guard), Some(queue)) = (&self.guard, &self.queue) {
            let pid = guard.pid();
            if queue.add(key_of_guard(pid), Interest::Exit(pid)).is_err() {
                self.guard_ended();
            }
        }
    }

    /// The guard has ended, or cannot be watched.
    fn guard_ended(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.end();
            self.tell(Input::GuardEnded);
        }
    }

    /// There is no going on: the command is ended, and why is said when it has.
    fn give_up(&mut self, why: Failure) {
        self.command.kill();
        self.failed = Some(why);
        self.tell(Input::Ending);
    }

    /// Tells the machine that something has happened, and does what that decides.
    fn tell(&mut self, input: Input) {
        let now = Now {
            since: self.since,
            command: self.command.pid,
        };
        for action in self.machine.step(input, &now) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let pid = self.command.pid;
        match action {
            Action::Send(signal) => self.command.send(signal),
            Action::ResumeGroup => {
                let _ = sys::kill_group(pid, libc::SIGCONT);
            }
            Action::GiveTerminal => give_terminal_to(pid),
            Action::StopSelf => {
                // A command that stops at once is announced before run-with stops with it.
                self.look_at_the_start(false);
                sys::stop_self();
            }
            Action::TellParentGone => self.status.tell(Told::ParentExited),
            Action::SignalUnlessClaimed => {
                if self.page.claim_signal() {
                    self.signal_parents_exit();
                }
            }
            Action::SignalUnlessSent => {
                if !self.page.is_signalled() {
                    self.signal_parents_exit();
                }
            }
            Action::Kill => self.command.kill(),
            Action::StartGuard => self.start_guard(),
            Action::LookAtCommand => self.look_at_the_children(),
            Action::Finish(end) => self.end = Some(end),
        }
    }

    fn signal_parents_exit(&self) {
        let signal = self.ending.signal;
        if let Err(errno @ Errno::EPERM) = guard::send(self.command.pid, signal) {
            let pid = self.command.pid;
            say(&format!(
                "the parent is gone: {signal} to the command (pid {pid}): {errno}"
            ));
        }
        self.page.set_signalled();
    }

    /// Starts another guard where one has ended.
    fn start_guard(&mut self) {
        match Guard::start(&self.page, self.parent.as_ref(), self.ending) {
            Ok(guard) => {
                self.guard = Some(guard);
                self.tell(Input::GuardStarted);
                self.watch_guard();
            }
            Err(errno) => {
                say(&format!(
                    "the guard has ended and cannot be replaced yet: {errno}"
                ));
                self.tell(Input::GuardFailed);
            }
        }
    }

    /// To the command's end. The error is why it was never executed, or could not be announced; it has
    /// ended then as well.
    fn run(&mut self) -> Result<End, Failure> {
        loop {
            self.read_signals();
            if self.look_at_the_start(self.end.is_some()) {
                // A queue that was made anew does not tell of a signal that came before it.
                self.read_signals();
            }
            self.tell(Input::Tick);
            if let Some(end) = self.end {
                self.look_at_the_start(true);
                return self.failed.take().map_or(Ok(end), Err);
            }
            self.wait();
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self) {
        let now = self.since.elapsed();
        let limit = self.machine.due().map(|at| at.saturating_sub(now));
        let mut events = [Event::NONE; 8];
        let queue = self.queue.as_ref().ok_or(Errno::EBADF);
        let count = match queue.and_then(|queue| queue.wait(limit, &mut events)) {
            Ok(count) => count,
            Err(errno) => {
                self.give_up(failed("kevent", errno));
                std::thread::sleep(BLIND);
                0
            }
        };
        for event in events.iter().take(count) {
            let guard = self.guard.as_ref().map(|guard| key_of_guard(guard.pid()));
            match event.key {
                PARENT => self.tell(Input::ParentGone),
                COMMAND => self.tell(Input::Ending),
                key if Some(key) == guard => self.guard_ended(),
                // Signals and the exec are looked at each time.
                _ => {}
            }
        }
    }

    /// Acts on every signal that has come. The command's end is the last thing looked at, so that a
    /// stop or a signal before it is not lost.
    fn read_signals(&mut self) {
        while self.end.is_none() {
            let Some(received) = self.signals.next() else {
                return;
            };
            // What SIGCONT means depends on whether the command is stopped *now*.
            if [libc::SIGCHLD, libc::SIGCONT].contains(&received.signal) {
                self.look_at_the_children();
            }
            self.tell(Input::Signal(received.signal, sender(received)));
        }
    }

    /// Tells the machine what has happened to the command; reaps everybody else.
    fn look_at_the_children(&mut self) {
        // Who has a process descriptor is waited for by its pid alone.
        let by_pid = self.command.raw_fd().map(|_| Some(self.command.pid));
        for child in std::iter::once(None).chain(by_pid) {
            while self.end.is_none() {
                let Some((pid, change)) = sys::next_change(child) else {
                    break;
                };
                if pid == self.command.pid {
                    self.tell(match change {
                        Change::Exited(status) => Input::Ended(End::Exited(status)),
                        Change::Killed(signal) => Input::Ended(End::Killed(signal)),
                        Change::Stopped(signal) => Input::Stopped(signal),
                        Change::Continued => Input::Continued,
                    });
                } else if matches!(change, Change::Exited(_) | Change::Killed(_)) {
                    self.reaped(pid);
                }
            }
        }
    }

    /// Somebody else has ended: the guard, or an orphan that came to run-with as init or as a reaper.
    fn reaped(&mut self, pid: i32) {
        if self.guard.take_if(|guard| guard.pid() == pid).is_some() {
            self.tell(Input::GuardEnded);
        }
    }

    /// Looks whether the command has exec'ed, or never will: the latter too if it has `ended`. Whether that was
    /// so, and had not been seen.
    fn look_at_the_start(&mut self, ended: bool) -> bool {
        let Some(starting) = self
            .starting
            .take_if(|starting| ended || starting.is_over())
        else {
            return false;
        };
        if let Err(failure) = self.started(starting, ended) {
            self.failed = Some(failure);
        }
        true
    }

    /// The command has exec'ed, or it never will.
    fn started(&mut self, starting: Starting, ended: bool) -> Result<(), Failure> {
        if let Some(failure) = starting.failure(&self.page) {
            return Err(failure);
        }
        drop(starting);
        if !ended {
            self.settle();
        }
        let announced = self.announce();
        if announced.is_err() {
            self.command.kill();
        }
        announced
    }

    /// Closes what others passed to this process and may wait for the end of. The queue as well, which is made
    /// again: what is told of descriptors and what a queue is made of is the system's.
    fn settle(&mut self) {
        let mut keep = vec![2];
        keep.extend(self.signals.raw_fd());
        keep.extend(self.parent.as_ref().and_then(Parent::raw_fd));
        keep.extend(self.guard.iter().flat_map(Guard::raw_fds));
        keep.extend(self.command.raw_fd());
        keep.extend(self.status.raw_fd());
        keep.extend(self.pidfile.as_ref().and_then(Pidfile::raw_fd));
        keep.sort_unstable();
        self.queue = None;
        // SAFETY: every descriptor of ours is in `keep`; the others were inherited, and are owned by nothing in
        // this process.
        #[expect(unsafe_code, reason = "closing what others passed to this process")]
        unsafe {
            sys::close_all_but(&keep);
        }
        match Queue::new() {
            Ok(queue) => self.queue = Some(queue),
            Err(errno) => return self.give_up(failed("kqueue", errno)),
        }
        if let Err(errno) = self.watch() {
            return self.give_up(failed("kevent", errno));
        }
        if let (Some(parent), Some(queue)) = (&self.parent, &self.queue) {
            match parent.register(queue, PARENT) {
                Ok(()) => {}
                Err(ArmError::Os { errno, .. }) => {
                    self.give_up(Failure::own(format!("watching the parent: {errno}")));
                }
                // It has exited meanwhile.
                Err(_) => self.tell(Input::ParentGone),
            }
        }
    }

    fn announce(&mut self) -> Result<(), Failure> {
        let pid = self.command.pid;
        if let Some(pidfile) = &mut self.pidfile {
            pidfile.write(pid)?;
        }
        self.status.tell(Told::Started(pid));
        Ok(())
    }

    /// Leaves nothing behind. `end`: how the command ended, if there was one.
    fn finish(&mut self, end: Option<&End>) {
        if self.tree && !clear_tree(&mut self.guard) {
            say("processes of the command's tree do not end after SIGKILL");
        }
        self.page.set_done();
        if let Some(guard) = &self.guard {
            guard.end();
        }
        self.pidfile = None;
        match end {
            Some(End::Exited(status)) => self.status.tell(Told::Exited(*status)),
            Some(End::Killed(signal)) => self.status.tell(Told::Killed(*signal)),
            None => {}
        }
    }
}

/// Who sent a signal, as far as the system says.
fn sender(received: Received) -> Sender {
    match received {
        Received {
            from_kernel: true, ..
        } => Sender::Kernel,
        Received { sender: 0, .. } => Sender::Unknown,
        Received { sender, .. } => Sender::Process(sender),
    }
}

/// Registers the parent; refused if it is gone already.
fn watch_parent(parent: &Parent, queue: &Queue) -> Result<(), Failure> {
    parent
        .register(queue, PARENT)
        .map_err(|error| match error {
            ArmError::Os { .. } => {
                let failure = Failure::caused(&error);
                Failure::own(format!(
                    "{}; a pipe can be watched in any case: --parent-fd",
                    failure.message
                ))
            }
            error => Failure::caused(&error),
        })?;
    // A pipe whose writers are gone can be registered, and some systems' zombies.
    let mut events = [Event::NONE];
    let told = queue.wait(Some(Time::ZERO), &mut events);
    if told.is_ok_and(|count| count > 0) {
        return Err(Failure::own("the parent is gone"));
    }
    Ok(())
}

/// Makes run-with the reaper of what it forks from here on.
fn hold_tree(by: TreeBy) -> Result<(), Failure> {
    if by != TreeBy::Any {
        return Err(Failure::own(
            "--tree-by: there are no namespaces and no cgroups on this system",
        ));
    }
    if !sys::has_reapers() {
        return Err(Failure::own(
            "--tree: this system has nothing that holds a process and all its descendants \
             (FreeBSD has reapers, Linux has namespaces and cgroups)",
        ));
    }
    match sys::become_reaper() {
        // It is one: it was so before an exec.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(failed("--tree: PROC_REAP_ACQUIRE", errno)),
    }
}

/// Ends everything that descends from run-with, and reaps it; the guard too, if it is of the tree, which it is not unless it has
/// replaced another. Whether all has ended in time.
fn clear_tree(guard: &mut Option<Guard>) -> bool {
    let since = Instant::now();
    loop {
        let _ = sys::kill_descendants(libc::SIGKILL);
        while let Some((pid, change)) = sys::next_change(None) {
            if matches!(change, Change::Exited(_) | Change::Killed(_)) {
                guard.take_if(|guard| guard.pid() == pid);
            }
        }
        if sys::count_descendants() == Ok(0) {
            return true;
        }
        if since.elapsed() > TREE_PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
