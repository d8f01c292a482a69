//! The supervisor: starts the command, passes signals on, ends the command when the parent is gone,
//! and ends as the command did.
//!
//! One thread, one loop, no handlers: every signal is blocked and read from a descriptor.
//!
//! | what happens | what is done |
//! |---|---|
//! | the command ends | its status is ours: exit, or death by the same signal without a core |
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
use std::time::Instant;

use super::super::args::{Invocation, ParentFlag};
use super::super::{Failure, say};
use super::guard::{self, Ending, Guard};
use super::job_control::JobControl;
use super::page::Page;
use super::program::Program;
use super::signals::{self, Signals};
use super::spawn::{Command, spawn};
use super::status::{Event, Pidfile, StatusFd};
use super::{inherited, is_bound};
use crate::exit_with_parent::{Expected, Parent};
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
    let signals = Signals::take()?;
    let mut supervisor = Supervisor::start(invocation, given, signals)?;
    let end = supervisor.run();
    supervisor.finish(end);
    Ok(match end {
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

/// The descriptors that the command line names, taken over before there is one of our own that a
/// number could be mistaken for.
#[derive(Debug)]
struct Given {
    parent: Option<OwnedFd>,
    status: Option<OwnedFd>,
}

impl Given {
    fn take(invocation: &Invocation) -> Result<Self, Failure> {
        let parent = match invocation.parent {
            ParentFlag::Fd(number) => Some(number),
            _ => None,
        };
        if parent.is_some() && parent == invocation.status_fd {
            return Err(Failure::own(
                "--parent-fd and --status-fd name the same descriptor",
            ));
        }
        let status = invocation.status_fd;
        Ok(Self {
            parent: parent.map(|fd| inherited("parent-fd", fd)).transpose()?,
            status: status.map(|fd| inherited("status-fd", fd)).transpose()?,
        })
    }
}

/// How the command ended.
#[derive(Debug, Clone, Copy)]
enum End {
    Exited(c_int),
    Killed(c_int),
}

/// The parent, and what its exit means.
#[derive(Debug)]
struct Binding {
    parent: Parent,
    ending: Ending,
    guard: Guard,
    /// The parent is gone and the signal has been sent.
    gone: bool,
    /// When SIGKILL follows.
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Supervisor {
    signals: Signals,
    page: Shared<Page>,
    binding: Option<Binding>,
    command: Command,
    job: JobControl,
    forward: bool,
    status: StatusFd,
    pidfile: Option<Pidfile>,
}

impl Supervisor {
    fn start(invocation: &Invocation, given: Given, signals: Signals) -> Result<Self, Failure> {
        let parent = open_parent(invocation, given.parent)?;
        let plan = Plan::resolve(&invocation.options).map_err(|error| Failure::caused(&error))?;
        let mut program = Program::new(&invocation.command, std::process::id())?;
        let pidfile = invocation
            .pidfile
            .as_deref()
            .map(Pidfile::prepare)
            .transpose()?;
        let page = Page::map().map_err(|errno| Failure::own(format!("mmap: {errno}")))?;
        let binding = match parent {
            Some(parent) => Some(Binding::new(invocation, parent, &page)?),
            None => None,
        };
        let original = signals.original();
        let command = match &binding {
            Some(binding) if binding.parent.is_gone() => Err(Failure::own("the parent is gone")),
            _ => spawn(&plan, &mut program, &page, original, binding.is_some()),
        };
        let command = command.inspect_err(|_| {
            if let Some(binding) = &binding {
                binding.guard.end();
            }
        })?;
        let mut it = Self {
            signals,
            page,
            binding,
            command,
            job: JobControl::default(),
            forward: invocation.forward,
            status: StatusFd::new(given.status),
            pidfile,
        };
        drop((plan, program));
        it.settle();
        if let Err(failure) = it.announce() {
            guard::kill(it.command.pidfd.as_fd(), it.command.pid);
            let end = it.run();
            it.finish(end);
            return Err(failure);
        }
        Ok(it)
    }

    /// Gives away what the supervisor does not need: the right to gain privileges, and descriptors
    /// that others wait for the end of.
    fn settle(&self) {
        let _ = sys::set_no_new_privs();
        let mut keep = vec![2, self.signals.raw_fd(), self.command.pidfd.as_raw_fd()];
        if let Some(binding) = &self.binding {
            keep.extend([
                binding.parent.poll_fd().as_fd().as_raw_fd(),
                binding.guard.watched(),
            ]);
        }
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

    fn run(&mut self) -> End {
        loop {
            if let Some(end) = self.read_signals() {
                return end;
            }
            self.look_at_the_parent();
            self.wait();
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let mut fds = [
            libc::pollfd {
                fd: self.signals.raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            },
            libc::pollfd {
                fd: -1,
                events: 0,
                revents: 0,
            },
        ];
        let mut limit = None;
        if let Some(binding) = &self.binding {
            if !binding.gone {
                let parent = binding.parent.poll_fd();
                fds[1].fd = parent.as_fd().as_raw_fd();
                fds[1].events = parent.events().bits();
            }
            limit = binding
                .deadline
                .map(|at| at.saturating_duration_since(Instant::now()));
        }
        let _ = sys::poll(&mut fds, limit);
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
                libc::SIGCHLD => self.job.stop_with(&self.command),
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
                self.replace_guard(pid);
            }
            // Others are orphans that run-with got as init of a PID namespace: reaped by the look.
        }
        None
    }

    fn replace_guard(&mut self, ended: i32) {
        let Some(binding) = self.binding.as_mut().filter(|b| b.guard.pid == ended) else {
            return;
        };
        match Guard::start(&self.page, &binding.parent, binding.ending) {
            Ok(guard) => binding.guard = guard,
            Err(errno) => say(&format!(
                "the guard has ended and cannot be replaced: {errno}"
            )),
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
        let Some(binding) = &mut self.binding else {
            return;
        };
        if !binding.gone && binding.parent.is_gone() {
            binding.gone = true;
            binding.deadline = binding
                .ending
                .kill_after
                .and_then(|grace| Instant::now().checked_add(grace));
            if self.page.claim_signal() {
                guard::send(self.command.pidfd.as_fd(), binding.ending.signal);
            }
            self.status.tell(Event::ParentExited);
        }
        if binding.deadline.is_some_and(|at| at <= Instant::now()) {
            binding.deadline = None;
            guard::kill(self.command.pidfd.as_fd(), self.command.pid);
        }
    }

    /// Leaves nothing behind.
    fn finish(&mut self, end: End) {
        self.page.set_done();
        if let Some(binding) = &self.binding {
            binding.guard.end();
        }
        self.pidfile = None;
        self.status.tell(match end {
            End::Exited(status) => Event::Exited(status),
            End::Killed(signal) => Event::Killed(signal),
        });
    }
}

impl Binding {
    fn new(invocation: &Invocation, parent: Parent, page: &Shared<Page>) -> Result<Self, Failure> {
        let ending = Ending {
            signal: invocation.signal,
            kill_after: invocation.kill_after,
        };
        let guard = Guard::start(page, &parent, ending)
            .map_err(|errno| Failure::own(format!("starting the guard: {errno}")))?;
        Ok(Self {
            parent,
            ending,
            guard,
            gone: false,
            deadline: None,
        })
    }
}

fn open_parent(invocation: &Invocation, given: Option<OwnedFd>) -> Result<Option<Parent>, Failure> {
    if !is_bound(invocation)? {
        return Ok(None);
    }
    let expected = match (given, invocation.parent) {
        (Some(fd), _) => Expected::Fd(fd),
        (None, ParentFlag::Pid(pid)) => Expected::Pid(pid),
        (None, _) => Expected::Unsaid,
    };
    Parent::open(expected)
        .map(Some)
        .map_err(|error| Failure::caused(&error))
}
