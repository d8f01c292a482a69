//! Makes the command's process: from fork to exec.
//!
//! Its exec is the end of file of a pipe; why there was none is in the words that both see.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::program::Program;
use super::super::{FAILED, Failure, say};
use super::supervisor::Page;
use super::sys::{self, OnClose, Signals};
use crate::run_with::Plan;

/// The command, which nobody waits for but run-with: its pid is its own as long as that has not.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) pid: i32,
    /// FreeBSD's process descriptor, of a command that is bound: closed, by the end of run-with, it ends the command.
    descriptor: Option<OwnedFd>,
}

impl Command {
    /// Passes a signal on.
    pub(super) fn send(&self, signal: i32) {
        if let Err(errno @ Errno::EPERM) = sys::kill(self.pid, signal) {
            let pid = self.pid;
            say(&format!(
                "signal {signal} to the command (pid {pid}): {errno}"
            ));
        }
    }

    /// SIGKILL to it, and to the group it leads.
    pub(super) fn kill(&self) {
        let _ = sys::kill_group(self.pid, libc::SIGKILL);
        let _ = sys::kill(self.pid, libc::SIGKILL);
    }

    /// The descriptor that must stay open.
    pub(super) fn raw_fd(&self) -> Option<RawFd> {
        self.descriptor.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// A command that has not been seen to exec, and what is needed to say why it has not.
#[derive(Debug)]
pub(super) struct Starting {
    plan: Plan,
    program: Program,
    exec: OwnedFd,
}

impl Starting {
    /// The read end of a pipe that ends with the exec, or when there will be none.
    pub(super) fn exec(&self) -> BorrowedFd<'_> {
        self.exec.as_fd()
    }

    /// Whether there has been an exec, or will be none.
    pub(super) fn is_over(&self) -> bool {
        let mut fds = [PollFd::new(self.exec(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Why there will be none.
    pub(super) fn failure(&self, page: &Page) -> Option<Failure> {
        let (at, errno) = page.failure()?;
        Some(match at {
            EXEC => self.program.failure(errno),
            PARENT => Failure::own(format!("the parent-death signal: {errno}")),
            SIGNALS => Failure::own(format!("giving back the signals: {errno}")),
            step => self
                .plan
                .step_error((step - FIRST_STEP) as usize, errno)
                .map_or_else(|| Failure::own(errno), |error| Failure::caused(&error)),
        })
    }
}

// Where the command's process failed before its exec.
const PARENT: u32 = 1;
const SIGNALS: u32 = 2;
const EXEC: u32 = 3;
/// A step of the plan, by its index from here on.
const FIRST_STEP: u32 = 4;

/// Makes the command's process. The calling process has one thread.
#[expect(unsafe_code, reason = "fork")]
pub(super) fn spawn(
    plan: Plan,
    mut program: Program,
    page: &Page,
    signals: &Signals,
    bound: bool,
) -> Result<(Command, Starting), Failure> {
    let failed = |what: &'static str| move |errno: Errno| Failure::own(format!("{what}: {errno}"));
    let supervisor = sys::getpid();
    let steps = plan.in_child();
    let (exec, theirs) = sys::pipe().map_err(failed("pipe"))?;
    // A command that is bound to nothing outlives run-with.
    let on_close = if bound {
        OnClose::Kill
    } else {
        OnClose::NoDescriptor
    };
    // SAFETY: one thread; the child executes or ends, and drops nothing.
    let forked = unsafe { sys::fork(on_close) }.map_err(failed("fork"))?;
    let Some(child) = forked else {
        // Before all else: from here on the guard knows whom to end.
        page.set_pid(sys::getpid());
        let (at, errno) = match steps.make() {
            Err((step, errno)) => (FIRST_STEP + u32::try_from(step).unwrap_or(0), errno),
            Ok(()) => become_program(&mut program, signals, bound.then_some(supervisor)),
        };
        page.fail(at, errno);
        sys::exit(FAILED)
    };
    drop(steps);
    // The command's process has the last write end, until its exec.
    drop(theirs);
    // It may not have come to it yet.
    page.set_pid(child.pid);
    let command = Command {
        pid: child.pid,
        descriptor: child.descriptor,
    };
    let starting = Starting {
        plan,
        program,
        exec,
    };
    Ok((command, starting))
}

/// In the command's process: from the plan's end to exec. System calls only.
fn become_program(program: &mut Program, signals: &Signals, bound_to: Option<i32>) -> (u32, Errno) {
    if let Some(supervisor) = bound_to {
        // FreeBSD: what the process descriptor does, should somebody have a copy of that: a guard that was stopped
        // before it closed what it inherited. After the plan: in the stand-in a change of user clears it.
        if sys::has_parent_death_signal() {
            if let Err(errno) = sys::arm_parent_death(libc::SIGKILL) {
                return (PARENT, errno);
            }
        }
        if sys::getppid() != supervisor {
            return (PARENT, Errno::ESRCH);
        }
    }
    if let Err(errno) = signals.restore() {
        return (SIGNALS, errno);
    }
    (EXEC, program.exec(sys::getpid()))
}
