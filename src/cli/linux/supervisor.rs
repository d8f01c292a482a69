//! The supervisor: starts the command, tells the machine ([`super::super::machine`], which has the table) what has
//! happened, does what that decides, and ends as the command did.
//!
//! One thread, one loop, no handlers: every signal is blocked and read from a descriptor. Before it ends, the rest of the
//! command's tree does (`--tree`).
//!
//! A command that shares run-with's process group gets what a process sends to the group from the
//! sender and from run-with: no process can know that it was not sent to run-with alone.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::args::Invocation;
use super::super::facts::{Now, give_terminal_to};
use super::super::given::{Given, expected_parent};
use super::super::machine::{Action, End, Ending, Input, Machine, Sender, Setup, Time};
use super::super::program::Program;
use super::super::status::{Event, Pidfile, StatusFd};
use super::super::{Failure, say};
use super::guard::{self, Guard, TREE_PATIENCE};
use super::page::Page;
use super::server::Server;
use super::signals::Signals;
use super::spawn::{Command, Starting, spawn};
use super::tree::{self, Tree};
use crate::exit_with_parent::Parent;
use crate::run_with::Plan;
use crate::sys::linux::{self as sys, Change, Received, Shared};

/// Runs the command to its end; the answer is the exit status.
pub(crate) fn supervise(invocation: &Invocation) -> Result<i32, Failure> {
    let given = Given::take(invocation)?;
    let signals = Rc::new(Signals::take()?);
    let mut supervisor = Supervisor::start(invocation, given, signals)?;
    let end = supervisor.run();
    supervisor.finish(end.as_ref().ok());
    Ok(match end? {
        End::Exited(status) => status,
        End::Killed(signal) => {
            // As init of a PID namespace no signal of our own ends us.
            if sys::getpid() != 1 {
                sys::die_of(signal);
            }
            128 + signal
        }
    })
}

/// How often to look where the system refuses to wait.
const BLIND: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Supervisor {
    since: Instant,
    signals: Rc<Signals>,
    page: Shared<Page>,
    machine: Machine,
    parent: Option<Parent>,
    /// The machine has been told.
    parent_gone: bool,
    ending: Ending,
    /// None between one's end and the next one's start, and where the command is bound to nothing.
    guard: Option<Guard>,
    command: Command,
    tree: Option<Arc<Tree>>,
    /// Ended when it is dropped: the command has ended, or was never run.
    server: Option<Server>,
    /// Until the command has exec'ed.
    starting: Option<Starting>,
    /// Why it has not, or could not be announced.
    failed: Option<Failure>,
    /// How the command has ended, once it has.
    end: Option<End>,
    status: StatusFd,
    pidfile: Option<Pidfile>,
}

impl Supervisor {
    fn start(invocation: &Invocation, given: Given, signals: Rc<Signals>) -> Result<Self, Failure> {
        let parent = open_parent(invocation, given.parent)?;
        let plan = Plan::resolve(&invocation.options).map_err(|error| Failure::caused(&error))?;
        let grace = invocation.kill_after.unwrap_or(Duration::MAX);
        let server = match &invocation.server {
            Some(server) => {
                let user = plan.user();
                Some(Server::start(
                    server,
                    grace,
                    user,
                    parent.as_ref(),
                    &signals,
                )?)
            }
            None => None,
        };
        let variables = server.as_ref().map_or(&[][..], Server::variables);
        let program = Program::new(&invocation.command, std::process::id(), variables)?;
        let pidfile = invocation
            .pidfile
            .as_deref()
            .map(Pidfile::prepare)
            .transpose()?;
        let page = Page::map().map_err(|errno| Failure::own(format!("mmap: {errno}")))?;
        let bound = parent.is_some() || invocation.tree.is_some();
        if bound {
            // Before there is a tree, which could not be ended either.
            guard::own_pidfd().map_err(no_guard)?;
        }
        let tree = match (invocation.tree, invocation.command.first()) {
            (Some(by), Some(program)) => Some(tree::contain(by, program, plan.user())?),
            _ => None,
        };
        let holds = tree.as_ref().map(|tree| tree.holds());
        let ending = Ending {
            signal: invocation.signal,
            kill_after: invocation.kill_after,
        };
        let mut guard = None;
        let launch = || {
            if bound {
                let started = Guard::start(&page, parent.as_ref(), ending, holds);
                guard = Some(started.map_err(no_guard)?);
            }
            if parent.as_ref().is_some_and(Parent::is_gone) {
                return Err(Failure::own("the parent is gone"));
            }
            spawn(plan, program, &page, signals.original(), bound, holds)
        };
        let launched = launch();
        let (command, starting) = launched.inspect_err(|_| {
            if let Some(guard) = &guard {
                guard.end();
            }
            if let Some(tree) = &tree {
                tree.clear(TREE_PATIENCE);
            }
        })?;
        let machine = Machine::new(Setup {
            own_pid: sys::getpid(),
            command: command.pid,
            forward: invocation.forward,
            guarded: bound,
            kill_after: invocation.kill_after,
            now: Time::ZERO,
        });
        Ok(Self {
            since: Instant::now(),
            signals,
            page,
            machine,
            parent,
            parent_gone: false,
            ending,
            guard,
            command,
            tree,
            server,
            starting: Some(starting),
            failed: None,
            end: None,
            status: StatusFd::new(given.status),
            pidfile,
        })
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
                // The command has not been reaped: the number is its own.
                let _ = sys::kill(-pid, libc::SIGCONT);
            }
            Action::GiveTerminal => give_terminal_to(pid),
            Action::StopSelf => sys::stop_self(),
            Action::TellParentGone => self.status.tell(Event::ParentExited),
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
            Action::Kill => guard::kill(self.command.pidfd.as_fd(), pid),
            Action::StartGuard => self.start_guard(),
            Action::LookAtCommand => self.look_at_the_children(),
            Action::Finish(end) => self.end = Some(end),
        }
    }

    fn signal_parents_exit(&self) {
        let signal = self.ending.signal;
        if let Err(errno @ Errno::EPERM) = guard::send(self.command.pidfd.as_fd(), signal) {
            let pid = self.command.pid;
            say(&format!(
                "the parent is gone: {signal} to the command (pid {pid}): {errno}"
            ));
        }
        self.page.set_signalled();
    }

    /// Starts another guard where one has ended.
    fn start_guard(&mut self) {
        let holds = self.tree.as_ref().map(|tree| tree.holds());
        match Guard::start(&self.page, self.parent.as_ref(), self.ending, holds) {
            Ok(guard) => {
                self.guard = Some(guard);
                self.tell(Input::GuardStarted);
            }
            Err(errno) => {
                say(&format!(
                    "the guard has ended and cannot be replaced yet: {errno}"
                ));
                self.tell(Input::GuardFailed);
            }
        }
    }

    /// Looks whether the command has exec'ed, or never will: the latter too if it has `ended`.
    fn look_at_the_start(&mut self, ended: bool) {
        if let Some(starting) = self
            .starting
            .take_if(|starting| ended || starting.is_over())
        {
            self.failed = self.started(starting).err();
        }
    }

    /// The command has exec'ed, or it never will.
    fn started(&mut self, starting: Starting) -> Result<(), Failure> {
        if let Some(failure) = starting.failure(&self.page) {
            return Err(failure);
        }
        // Before `settle`: it closes what this owns.
        drop(starting);
        self.settle();
        let announced = self.announce();
        if announced.is_err() {
            guard::kill(self.command.pidfd.as_fd(), self.command.pid);
        }
        announced
    }

    /// Gives away what the supervisor does not need: the right to gain privileges, and descriptors
    /// that others wait for the end of.
    fn settle(&self) {
        let _ = sys::set_no_new_privs();
        let mut keep = vec![2, self.signals.raw_fd(), self.command.pidfd.as_raw_fd()];
        if let Some(parent) = &self.parent {
            keep.push(parent.poll_fd().as_fd().as_raw_fd());
        }
        keep.extend(self.guard.iter().flat_map(Guard::raw_fds));
        if let Some(tree) = &self.tree {
            keep.extend(tree.holds().raw_fds());
        }
        keep.extend(self.server.as_ref().map(Server::raw_fd));
        keep.extend(self.status.raw_fd());
        keep.extend(self.pidfile.as_ref().and_then(Pidfile::raw_fd));
        keep.sort_unstable();
        // SAFETY: every descriptor of ours is in `keep`; the others were inherited, are owned by
        // nothing in this process, and the guard uses only what is in `keep` too.
        #[expect(unsafe_code, reason = "closing what others passed to this process")]
        let closed = unsafe { sys::close_all_but(&keep) };
        // They stay open then, until run-with ends: a nuisance, not a fault.
        let _ = closed;
    }

    fn announce(&mut self) -> Result<(), Failure> {
        let pid = self.command.pid;
        if let Some(pidfile) = &mut self.pidfile {
            pidfile.write(pid)?;
        }
        self.status.tell(Event::Started(pid));
        Ok(())
    }

    /// To the command's end. The error is why it was never executed, or could not be announced; it has
    /// ended then as well.
    fn run(&mut self) -> Result<End, Failure> {
        loop {
            self.read_signals();
            self.look_at_the_start(self.end.is_some());
            if let Some(end) = self.end {
                return self.failed.take().map_or(Ok(end), Err);
            }
            self.look_at_the_parent();
            self.tell(Input::Tick);
            self.wait();
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let exec = self.starting.as_ref().and_then(Starting::raw_fd);
        let mut fds = [
            sys::pollfd(self.signals.raw_fd(), libc::POLLIN),
            sys::pollfd(exec.unwrap_or(-1), 0),
            sys::pollfd(-1, 0),
        ];
        if let (false, Some(parent)) = (self.parent_gone, &self.parent) {
            let parent = parent.poll_fd();
            fds[2] = sys::pollfd(parent.as_fd().as_raw_fd(), parent.events().bits());
        }
        let now = self.since.elapsed();
        let limit = self.machine.due().map(|at| at.saturating_sub(now));
        if sys::poll(&mut fds, limit).is_err() {
            // Somebody has lowered our limit of descriptors (EINVAL): no waiting, but no spinning.
            sys::sleep(BLIND);
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
            if received.signal == libc::SIGCHLD && self.end.is_none() {
                // A command that stops at once is announced before run-with stops with it.
                self.look_at_the_start(false);
            }
            self.tell(Input::Signal(received.signal, sender(received)));
        }
    }

    /// Tells the machine what has happened to the command, and the guard's end.
    fn look_at_the_children(&mut self) {
        while self.end.is_none() {
            let Ok(Some((pid, change))) = sys::next_change() else {
                return;
            };
            if pid == self.command.pid {
                self.tell(match change {
                    Change::Exited(status) => Input::Ended(End::Exited(status)),
                    Change::Killed(signal) => Input::Ended(End::Killed(signal)),
                    Change::Stopped(signal) => Input::Stopped(signal),
                    Change::Continued => Input::Continued,
                });
            } else if matches!(change, Change::Exited(_) | Change::Killed(_))
                && self.guard.take_if(|guard| guard.pid == pid).is_some()
            {
                self.tell(Input::GuardEnded);
            }
            // Others are orphans that run-with got as init of a PID namespace: reaped by the look.
        }
    }

    fn look_at_the_parent(&mut self) {
        if !self.parent_gone && self.parent.as_ref().is_some_and(Parent::is_gone) {
            self.parent_gone = true;
            self.tell(Input::ParentGone);
        }
    }

    /// Leaves nothing behind. `end`: how the command ended, if there was one.
    fn finish(&mut self, end: Option<&End>) {
        // While there is a guard.
        if let Some(tree) = &self.tree {
            if !tree.clear(TREE_PATIENCE) {
                say("processes of the command's tree do not end after SIGKILL");
            }
        }
        self.server = None;
        self.page.set_done();
        if let Some(guard) = &self.guard {
            guard.end();
        }
        self.pidfile = None;
        match end {
            Some(End::Exited(status)) => self.status.tell(Event::Exited(*status)),
            Some(End::Killed(signal)) => self.status.tell(Event::Killed(*signal)),
            None => {}
        }
    }
}

/// Who sent a signal.
fn sender(received: Received) -> Sender {
    if received.from_kernel {
        Sender::Kernel
    } else {
        Sender::Process(received.sender)
    }
}

fn no_guard(errno: Errno) -> Failure {
    Failure::own(format!("starting the guard: {errno}"))
}

fn open_parent(invocation: &Invocation, given: Option<OwnedFd>) -> Result<Option<Parent>, Failure> {
    expected_parent(invocation, given)?
        .map(Parent::open)
        .transpose()
        .map_err(|error| Failure::caused(&error))
}
