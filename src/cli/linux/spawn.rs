//! Makes the command's process: from clone to exec.
//!
//! A command that changes its credentials, or that a terminal could stop before its exec, is made by a
//! plain fork, whose exec is the end of file of a pipe: run-with goes on meanwhile. Any other shares
//! run-with's memory until its exec (vfork), which is cheaper, and holds run-with until then.
//!
//! A command whose tree is a namespace is made there by a process that has entered it, as a child of run-with's.
//!
//! Why there was no exec is in the shared page.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::super::program::Program;
use super::super::{FAILED, Failure, say};
use super::page::{FailedAt, Page};
use super::signals::Original;
use super::tree::Holds;
use crate::run_with::Plan;
use crate::sys::linux::{self as sys, Never, Share, Shared};

/// The command, which nobody reaps but run-with: its pid is its own as long as this exists.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

impl Command {
    /// Passes a signal on.
    pub(super) fn send(&self, signal: i32) {
        let sent = sys::pidfd_send_signal(self.pidfd.as_fd(), signal);
        if let Err(errno @ Errno::EPERM) = sent {
            let pid = self.pid;
            say(&format!(
                "signal {signal} to the command (pid {pid}): {errno}"
            ));
        }
    }
}

/// A command that has not been seen to exec, and what is needed to say why it has not.
#[derive(Debug)]
pub(super) struct Starting {
    plan: Plan,
    program: Program,
    /// The read end of a pipe that ends with the exec; none if that has been waited for.
    exec: Option<OwnedFd>,
}

impl Starting {
    /// What to wait for: its hang-up says that there has been an exec, or will be none.
    pub(super) fn raw_fd(&self) -> Option<RawFd> {
        self.exec.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether there has been an exec, or will be none.
    pub(super) fn is_over(&self) -> bool {
        match &self.exec {
            None => true,
            Some(exec) => sys::poll_within(exec.as_fd(), 0, Duration::ZERO) == Ok(true),
        }
    }

    /// Why there will be none.
    pub(super) fn failure(&self, page: &Page) -> Option<Failure> {
        let (at, errno) = page.failure()?;
        Some(match FailedAt::from_number(at)? {
            FailedAt::Exec => self.program.failure(errno),
            FailedAt::Step(step) => self
                .plan
                .step_error(step, errno)
                .map_or_else(|| Failure::own(errno), |error| Failure::caused(&error)),
            FailedAt::Namespace => Failure::own(format!("entering the namespace: {errno}")),
            FailedAt::Cgroup => Failure::own(format!("entering the cgroup: {errno}")),
            FailedAt::ParentDeathSignal => Failure::own(format!("PR_SET_PDEATHSIG: {errno}")),
            FailedAt::Signals => Failure::own(format!("giving back the signals: {errno}")),
        })
    }
}

/// Makes the command's process.
pub(super) fn spawn(
    plan: Plan,
    mut program: Program,
    page: &Shared<Page>,
    original: Original,
    bound: bool,
    tree: Option<Holds>,
) -> Result<(Command, Starting), Failure> {
    let supervisor = sys::getpid();
    let steps = plan.in_child();
    let in_namespace = tree.is_some_and(|tree| tree.is_namespace());
    let failed = |errno: Errno| {
        let what = if in_namespace {
            "entering the namespace"
        } else {
            "clone"
        };
        Failure::own(format!("{what}: {errno}"))
    };
    let held = sys::ERRNO_FREE && plan.steps().is_empty() && !in_namespace && !has_terminal();
    // What it sees of a parent outside its namespace, as long as that lives.
    let parent = if in_namespace { 0 } else { supervisor };
    let (share, pipe) = if held {
        (Share::MemoryUntilExec, None)
    } else {
        (
            Share::Nothing,
            Some(nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?),
        )
    };
    let in_child = || {
        if !in_namespace {
            page.set_pid(sys::getpid());
        }
        let (at, errno) = match (tree.map_or(Ok(()), |tree| tree.join()), steps.make()) {
            (Err(errno), _) => (FailedAt::Cgroup, errno),
            (_, Err((step, errno))) => (FailedAt::Step(step), errno),
            (_, Ok(())) => become_program(&mut program, original, bound.then_some(parent)),
        };
        page.fail(at.number(), errno);
        sys::exit_group(FAILED)
    };
    let made = match tree.filter(Holds::is_namespace) {
        Some(tree) => make_in_namespace(tree, page, in_child),
        None => sys::clone_running(share, &page.command, in_child),
    };
    drop(steps);
    let pid = made.map_err(|errno| {
        // The kernel may have written a number before it failed.
        page.forget_command();
        failed(errno)
    })?;
    let Some(number) = page.command() else {
        // Linux before 5.2 ignores CLONE_PIDFD. Our own child, not reaped: the pid is its.
        let _ = sys::kill(pid, libc::SIGKILL);
        sys::reap_pid(pid);
        return Err(Failure::own("clone made no pidfd"));
    };
    let command = Command {
        pid,
        pidfd: sys::adopt(number),
    };
    // The write end is dropped here: the command's process has the last one, until its exec.
    let exec = pipe.map(|(read, _write)| read);
    Ok((
        command,
        Starting {
            plan,
            program,
            exec,
        },
    ))
}

/// Makes the command's process in a namespace, through one that enters it and shares our descriptors, so that the
/// command's pidfd is ours. The answer is the command's pid.
fn make_in_namespace<F: FnOnce() -> Never>(
    tree: Holds,
    page: &Shared<Page>,
    in_child: F,
) -> Result<i32, Errno> {
    let own = AtomicI32::new(-1);
    let between = sys::clone_running(Share::Descriptors, &own, || {
        let made = tree
            .enter()
            .and_then(|()| sys::clone_sibling(&page.command, in_child));
        match made {
            Ok(pid) => page.set_pid(pid),
            Err(errno) => page.fail(FailedAt::Namespace.number(), errno),
        }
        sys::exit_group(0)
    })?;
    // Our child, which ends as soon as it has made the command.
    sys::reap_pid(between);
    drop(sys::adopt(own.load(Ordering::Acquire)));
    match (page.pid(), page.failure()) {
        (0, Some((_, errno))) => Err(errno),
        // Somebody has killed it: whatever it had made is in the tree.
        (0, None) => Err(Errno::ECANCELED),
        (pid, _) => Ok(pid),
    }
}

/// Whether this process has a controlling terminal, whose stop character could stop the command's
/// process before its exec.
fn has_terminal() -> bool {
    match File::open("/dev/tty") {
        Ok(_) => true,
        // ENXIO says that there is none; anything else, that it cannot be said.
        Err(error) => error.raw_os_error() != Some(libc::ENXIO),
    }
}

/// In the command's process: from the plan's end to exec. Raw system calls only.
fn become_program(
    program: &mut Program,
    original: Original,
    bound_to: Option<i32>,
) -> (FailedAt, Errno) {
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
    (FailedAt::Exec, program.exec(sys::getpid()))
}
