//! The supervisor: starts the command, passes signals on, ends the command when the parent is gone,
//! and ends as the command did.
//!
//! One thread, one loop, no handlers: every signal is blocked and read from a descriptor.
//!
//! | what happens | what is done |
//! |---|---|
//! | the command ends | its status is ours: exit, or death by the same signal without a core |
//! | the command stops, by its terminal | run-with stops as well, so that the shell sees its job stopped |
//! | the guard ends | another is started |
//! | the parent exits | the signal and SIGCONT, once (see [`super::guard`]); after the grace SIGKILL |
//! | SIGCONT | passed on to a command that is stopped, or in another process group |
//! | any other signal | passed on, unless the terminal sent it to the command too, or the command sent it |

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;

use super::super::args::{Invocation, ParentFlag};
use super::super::{Failure, say};
use super::guard::{self, Ending, Guard};
use super::page::{FailedAt, Page};
use super::program::Program;
use super::signals::{self, Original, Signals};
use super::status::{Event, Pidfile, StatusFd};
use super::{inherited, is_bound};
use crate::exit_with_parent::{Expected, Parent};
use crate::run_with::Plan;
use crate::sys::linux::{self as sys, Change, Received, Share, Shared};

/// Runs the command to its end; the answer is the exit status.
pub(crate) fn supervise(invocation: &Invocation) -> Result<i32, Failure> {
    // Before any descriptor of our own could be taken for one that was to be inherited.
    let status_fd = invocation
        .status_fd
        .map(|fd| inherited("status-fd", fd))
        .transpose()?;
    let parent = open_parent(invocation)?;
    let signals = Signals::take()?;
    let mut supervisor = Supervisor::start(invocation, signals, status_fd, parent)?;
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

/// How the command ended.
#[derive(Debug, Clone, Copy)]
enum End {
    Exited(c_int),
    Killed(c_int),
}

/// The command.
#[derive(Debug)]
struct Command {
    pid: i32,
    pidfd: OwnedFd,
    stopped: bool,
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
    forward: bool,
    status: StatusFd,
    pidfile: Option<Pidfile>,
}

impl Supervisor {
    fn start(
        invocation: &Invocation,
        signals: Signals,
        status_fd: Option<OwnedFd>,
        parent: Option<Parent>,
    ) -> Result<Self, Failure> {
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
        let command = spawn(&plan, &mut program, &page, original, binding.is_some())?;
        let mut it = Self {
            signals,
            page,
            binding,
            command,
            forward: invocation.forward,
            status: StatusFd::new(status_fd),
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
        if let Some(pidfile) = &self.pidfile {
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
            if received.signal == libc::SIGCHLD {
                if let Some(end) = self.look_at_the_children() {
                    return Some(end);
                }
            } else {
                self.forward(received);
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
                    Change::Stopped(signal) => self.command_stopped(signal),
                    Change::Continued => self.command.stopped = false,
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

    /// Stops with the command where a job-control shell is there to resume both.
    fn command_stopped(&mut self, signal: i32) {
        self.command.stopped = true;
        let own = sys::getpgid(0).unwrap_or(0);
        let group = sys::getpgid(self.command.pid).unwrap_or(0);
        let by_the_terminal = if group == own {
            [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal)
        } else {
            // A command with a group of its own (a shell) that had the terminal, or has given it back.
            foreground_group().is_some_and(|foreground| [own, group].contains(&foreground))
        };
        if by_the_terminal {
            // What resumes us is a SIGCONT, and is passed on like any other.
            signals::stop_self();
        }
    }

    fn forward(&mut self, received: Received) {
        let Received {
            signal,
            from_kernel,
            sender,
        } = received;
        let same_group = sys::getpgid(self.command.pid) == sys::getpgid(0);
        let wanted = if signal == libc::SIGCONT {
            self.command.stopped || (self.forward && !same_group)
        } else if from_kernel {
            // The terminal has told the whole group; but on a hang-up it tells the session's leader
            // alone.
            let alone = signal == libc::SIGHUP && sys::getsid(0) == Ok(sys::getpid());
            self.forward && (!same_group || alone)
        } else {
            self.forward && sender != self.command.pid && sender != sys::getpid()
        };
        if wanted {
            self.send(signal);
        }
    }

    fn send(&self, signal: i32) {
        let sent = sys::pidfd_send_signal(self.command.pidfd.as_fd(), signal);
        if let Err(errno @ Errno::EPERM) = sent {
            say(&format!(
                "signal {signal} to the command (pid {}): {errno}",
                self.command.pid
            ));
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
            // Our own child until we have reaped it: the pid is its.
            let _ = sys::kill(binding.guard.pid, libc::SIGKILL);
            sys::reap_pid(binding.guard.pid);
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

fn open_parent(invocation: &Invocation) -> Result<Option<Parent>, Failure> {
    if !is_bound(invocation)? {
        return Ok(None);
    }
    let expected = match invocation.parent {
        ParentFlag::Unsaid => Expected::Unsaid,
        ParentFlag::Pid(pid) => Expected::Pid(pid),
        ParentFlag::Fd(number) => Expected::Fd(inherited("parent-fd", number)?),
    };
    Parent::open(expected)
        .map(Some)
        .map_err(|error| Failure::caused(&error))
}

/// Makes the command's process; returns once it has exec'ed, or failed to.
fn spawn(
    plan: &Plan,
    program: &mut Program,
    page: &Shared<Page>,
    original: Original,
    bound: bool,
) -> Result<Command, Failure> {
    let supervisor = sys::getpid();
    let pid = sys::clone_running(Share::NothingUntilExec, &page.command, || {
        page.set_pid(sys::getpid());
        let (at, errno) = become_program(plan, program, original, bound.then_some(supervisor));
        page.fail(at, errno);
        sys::exit_group(super::super::FAILED)
    });
    let pid = pid.map_err(|errno| Failure::own(format!("clone: {errno}")))?;
    if let Some((at, errno)) = page.failure() {
        sys::reap_pid(pid);
        page.set_done();
        return Err(match at {
            FailedAt::Exec => program.failure(errno),
            FailedAt::Step(step) => plan
                .step_error(step, errno)
                .map_or_else(|| Failure::own(errno), |error| Failure::caused(&error)),
            FailedAt::ParentDeathSignal => Failure::own(format!("PR_SET_PDEATHSIG: {errno}")),
            FailedAt::Signals => Failure::own(format!("giving back the signals: {errno}")),
        });
    }
    let number = page
        .command()
        .ok_or_else(|| Failure::own("clone made no pidfd"))?;
    Ok(Command {
        pid,
        pidfd: sys::adopt(number),
        stopped: false,
    })
}

/// In the command's process: from the plan to exec. Raw system calls only.
fn become_program(
    plan: &Plan,
    program: &mut Program,
    original: Original,
    bound_to: Option<i32>,
) -> (FailedAt, Errno) {
    if let Err((step, errno)) = plan.make_in_child() {
        return (FailedAt::Step(step), errno);
    }
    if let Some(supervisor) = bound_to {
        // The second line, should run-with and its guard be killed in the same instant. After the
        // plan: a change of user clears it.
        if let Err(errno) = sys::set_parent_death_signal(libc::SIGKILL) {
            return (FailedAt::ParentDeathSignal, errno);
        }
        if sys::getppid() != supervisor {
            return (FailedAt::ParentDeathSignal, Errno::ESRCH);
        }
    }
    if let Err(errno) = original.restore() {
        return (FailedAt::Signals, errno);
    }
    (FailedAt::Exec, program.exec())
}

/// The process group that has our terminal, if we have one.
fn foreground_group() -> Option<i32> {
    let terminal = File::open("/dev/tty").ok()?;
    nix::unistd::tcgetpgrp(&terminal)
        .ok()
        .map(nix::unistd::Pid::as_raw)
}
