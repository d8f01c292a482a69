//! The supervisor: starts the command, passes signals on, ends the command when the parent is gone,
//! and ends as the command did.
//!
//! One thread, one loop, no handlers: every signal is blocked and read from a descriptor.
//!
//! | what happens | what is done |
//! |---|---|
//! | the command ends | the rest of its tree ends (`--tree`); its status is ours: exit, or death by the same signal without a core |
//! | the command stops, without a terminal | nothing: who stopped it resumes it |
//! | the command stops by a signal of job control, or by another in the foreground | run-with stops as well, so that the shell sees its job stopped |
//! | the guard ends | another is started |
//! | the parent exits | the signal and SIGCONT, once (see [`super::guard`]); after the grace SIGKILL |
//! | SIGCONT, the command is stopped | the terminal to the command's group if that had it, and SIGCONT to the group it leads, or to the command |
//! | SIGCONT otherwise | passed on to a command in another process group |
//! | a terminal's signal, from the kernel | passed on to a command in another process group; a hang-up also if run-with leads the session, since then nobody else is told |
//! | any other signal | passed on, unless the command sent it, or run-with itself |
//!
//! A command that shares run-with's process group gets what a process sends to the group from the
//! sender and from run-with: no process can know that it was not sent to run-with alone.

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::args::Invocation;
use super::super::given::{Given, expected_parent};
use super::super::program::Program;
use super::super::status::{Event, Pidfile, StatusFd};
use super::super::{Failure, say};
use super::guard::{self, Ending, Guard, PATIENCE, TREE_PATIENCE};
use super::job_control::JobControl;
use super::page::Page;
use super::server::Server;
use super::signals::{self, Signals};
use super::spawn::{Command, Starting, spawn};
use super::tree::{self, Holds, Tree};
use crate::exit_with_parent::Parent;
use crate::run_with::Plan;
use crate::sys::linux::{self as sys, Change, Received, Shared};

/// What the kernel sends to the processes of a terminal. Anything else from the kernel (the alarm set
/// before an exec, which a fork does not inherit) is for run-with alone.
const TERMINAL_SIGNALS: [c_int; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGWINCH,
];

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
                signals::die_of(signal);
            }
            128 + signal
        }
    })
}

/// How the command ended.
#[derive(Debug, Clone, Copy)]
enum End {
    Exited(c_int),
    Killed(c_int),
}

/// What the end of run-with means for the command, and that of the parent, if it is bound to one.
#[derive(Debug)]
struct Binding {
    parent: Option<Parent>,
    ending: Ending,
    /// None between one's end and the next one's start.
    guard: Option<Guard>,
    /// Before this, no other guard is started.
    next_guard: Instant,
    /// The parent is gone, and who is to send the signal has been settled.
    gone: bool,
    /// When to look whether it was sent, if the guard is to send it.
    look_again: Option<Instant>,
    /// When SIGKILL follows.
    deadline: Option<Instant>,
}

/// How soon after a guard's start the next one may be started: whoever kills them all does not make
/// run-with do nothing else.
const GUARD_INTERVAL: Duration = Duration::from_millis(10);

/// How often to look where the system refuses to wait.
const BLIND: Duration = Duration::from_millis(10);

/// When to try again if a guard could not be started.
const GUARD_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Supervisor {
    signals: Rc<Signals>,
    page: Shared<Page>,
    binding: Option<Binding>,
    command: Command,
    tree: Option<Arc<Tree>>,
    /// Ended when it is dropped: the command has ended, or was never run.
    server: Option<Server>,
    /// Until the command has exec'ed.
    starting: Option<Starting>,
    /// Why it has not, or could not be announced.
    failed: Option<Failure>,
    job: JobControl,
    forward: bool,
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
        let mut binding = None;
        let launch = || {
            if bound {
                binding = Some(Binding::new(invocation, parent, &page, holds)?);
            }
            if binding.as_ref().is_some_and(Binding::parent_is_gone) {
                return Err(Failure::own("the parent is gone"));
            }
            spawn(plan, program, &page, signals.original(), bound, holds)
        };
        let launched = launch();
        let (command, starting) = launched.inspect_err(|_| {
            if let Some(guard) = binding.as_ref().and_then(|binding| binding.guard.as_ref()) {
                guard.end();
            }
            if let Some(tree) = &tree {
                tree.clear(TREE_PATIENCE);
            }
        })?;
        Ok(Self {
            signals,
            page,
            binding,
            command,
            tree,
            server,
            starting: Some(starting),
            failed: None,
            job: JobControl::default(),
            forward: invocation.forward,
            status: StatusFd::new(given.status),
            pidfile,
        })
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
        if let Some(binding) = &self.binding {
            if let Some(parent) = &binding.parent {
                keep.push(parent.poll_fd().as_fd().as_raw_fd());
            }
            keep.extend(binding.guard.iter().flat_map(Guard::raw_fds));
        }
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
            let ended = self.read_signals();
            self.look_at_the_start(ended.is_some());
            if let Some(end) = ended {
                return self.failed.take().map_or(Ok(end), Err);
            }
            self.keep_guarded();
            self.look_at_the_parent();
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
        let mut until = None;
        if let Some(binding) = &self.binding {
            if let (false, Some(parent)) = (binding.gone, &binding.parent) {
                let parent = parent.poll_fd();
                fds[2] = sys::pollfd(parent.as_fd().as_raw_fd(), parent.events().bits());
            }
            let guard = binding.guard.is_none().then_some(binding.next_guard);
            until = [binding.deadline, binding.look_again, guard]
                .into_iter()
                .flatten()
                .min();
        }
        let limit = until.map(|at| at.saturating_duration_since(Instant::now()));
        if sys::poll(&mut fds, limit).is_err() {
            // Somebody has lowered our limit of descriptors (EINVAL): no waiting, but no spinning.
            sys::sleep(BLIND);
        }
    }

    /// Acts on every signal that has come. The command's end is the last thing looked at, so that a
    /// stop or a signal before it is not lost.
    fn read_signals(&mut self) -> Option<End> {
        while let Some(received) = self.signals.next() {
            // What SIGCONT means depends on whether the command is stopped *now*.
            if [libc::SIGCHLD, libc::SIGCONT].contains(&received.signal) {
                if let Some(end) = self.look_at_the_children() {
                    return Some(end);
                }
            }
            match received.signal {
                libc::SIGCHLD => {
                    // A command that stops at once is announced before run-with stops with it.
                    self.look_at_the_start(false);
                    self.job.stop_with(&self.command);
                }
                libc::SIGCONT => self.job.resume(&self.command, self.forward),
                _ => self.forward(received),
            }
        }
        None
    }

    fn look_at_the_children(&mut self) -> Option<End> {
        while let Ok(Some((pid, change))) = sys::next_change() {
            if pid == self.command.pid {
                match change {
                    Change::Exited(status) => return Some(End::Exited(status)),
                    Change::Killed(signal) => return Some(End::Killed(signal)),
                    Change::Stopped(signal) => self.job.stopped(signal),
                    Change::Continued => self.job.continued(),
                }
            } else if matches!(change, Change::Exited(_) | Change::Killed(_)) {
                if let Some(binding) = &mut self.binding {
                    binding.guard.take_if(|guard| guard.pid == pid);
                }
            }
            // Others are orphans that run-with got as init of a PID namespace: reaped by the look.
        }
        None
    }

    /// Starts another guard where one has ended.
    fn keep_guarded(&mut self) {
        let now = Instant::now();
        let holds = self.tree.as_ref().map(|tree| tree.holds());
        let Some(binding) = &mut self.binding else {
            return;
        };
        if binding.guard.is_some() || now < binding.next_guard {
            return;
        }
        match Guard::start(&self.page, binding.parent.as_ref(), binding.ending, holds) {
            Ok(guard) => {
                binding.guard = Some(guard);
                binding.next_guard = now + GUARD_INTERVAL;
            }
            Err(errno) => {
                say(&format!(
                    "the guard has ended and cannot be replaced yet: {errno}"
                ));
                binding.next_guard = now + GUARD_RETRY;
            }
        }
    }

    fn forward(&self, received: Received) {
        let Received {
            signal,
            from_kernel,
            sender,
        } = received;
        let wanted = if from_kernel && TERMINAL_SIGNALS.contains(&signal) {
            // The whole group has got it; but on a hang-up the session's leader alone.
            let alone = signal == libc::SIGHUP && sys::getsid(0) == Ok(sys::getpid());
            alone || !self.command.shares_our_group()
        } else {
            sender != self.command.pid && sender != sys::getpid()
        };
        if wanted && self.forward {
            self.command.send(signal);
        }
    }

    fn look_at_the_parent(&mut self) {
        let now = Instant::now();
        let Some(binding) = &mut self.binding else {
            return;
        };
        let mut send = false;
        if !binding.gone && binding.parent_is_gone() {
            binding.gone = true;
            binding.deadline = binding
                .ending
                .kill_after
                .and_then(|grace| now.checked_add(grace));
            send = self.page.claim_signal();
            binding.look_again = (!send).then(|| now + PATIENCE);
            self.status.tell(Event::ParentExited);
        }
        if binding.look_again.take_if(|at| *at <= now).is_some() {
            send = !self.page.is_signalled();
        }
        if send {
            let signal = binding.ending.signal;
            if let Err(errno @ Errno::EPERM) = guard::send(self.command.pidfd.as_fd(), signal) {
                let pid = self.command.pid;
                say(&format!(
                    "the parent is gone: {signal} to the command (pid {pid}): {errno}"
                ));
            }
            self.page.set_signalled();
        }
        if binding.deadline.take_if(|at| *at <= now).is_some() {
            guard::kill(self.command.pidfd.as_fd(), self.command.pid);
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
        if let Some(guard) = self
            .binding
            .as_ref()
            .and_then(|binding| binding.guard.as_ref())
        {
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

impl Binding {
    fn new(
        invocation: &Invocation,
        parent: Option<Parent>,
        page: &Shared<Page>,
        tree: Option<Holds>,
    ) -> Result<Self, Failure> {
        let ending = Ending {
            signal: invocation.signal,
            kill_after: invocation.kill_after,
        };
        let guard = Guard::start(page, parent.as_ref(), ending, tree).map_err(no_guard)?;
        Ok(Self {
            parent,
            ending,
            guard: Some(guard),
            next_guard: Instant::now() + GUARD_INTERVAL,
            gone: false,
            look_again: None,
            deadline: None,
        })
    }

    fn parent_is_gone(&self) -> bool {
        self.parent.as_ref().is_some_and(Parent::is_gone)
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
