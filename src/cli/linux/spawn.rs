//! Makes the command's process: from clone to exec.
//!
//! run-with is held until the exec (CLONE_VFORK): a failure before it is read from the shared page, and
//! there is no process between the two that nobody knows. A command that keeps its credentials shares
//! run-with's memory until then, one that changes them has a copy: the user it changes to could stop or
//! trace it, which then holds up run-with, and nothing more; the guard watches meanwhile.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::super::{FAILED, Failure, say};
use super::page::{FailedAt, Page};
use super::program::Program;
use super::signals::Original;
use crate::run_with::Plan;
use crate::sys::linux::{self as sys, Share, Shared};

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

    /// Whether it is in run-with's own process group, as it was made.
    pub(super) fn shares_our_group(&self) -> bool {
        sys::getpgid(self.pid) == sys::getpgid(0)
    }
}

/// Makes the command's process; returns once it has exec'ed, or failed to.
pub(super) fn spawn(
    plan: &Plan,
    program: &mut Program,
    page: &Shared<Page>,
    original: Original,
    bound: bool,
) -> Result<Command, Failure> {
    let supervisor = sys::getpid();
    let steps = plan.in_child();
    // The cheaper child, unless it is to have other credentials: those are never changed while memory
    // is shared.
    let share = if plan.steps().is_empty() {
        Share::MemoryUntilExec
    } else {
        Share::NothingUntilExec
    };
    let pid = sys::clone_running(share, &page.command, || {
        page.set_pid(sys::getpid());
        let (at, errno) = match steps.make() {
            Err((step, errno)) => (FailedAt::Step(step), errno),
            Ok(()) => become_program(program, original, bound.then_some(supervisor)),
        };
        page.fail(at, errno);
        sys::exit_group(FAILED)
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
    })
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
    (FailedAt::Exec, program.exec())
}
