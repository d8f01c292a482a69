//! run-with on Linux: the supervisor with its guard, and `--exec`.

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::args::{Invocation, ParentFlag};
use super::{Failure, systemd};
use crate::sys::linux as sys;

mod guard;
mod job_control;
mod mechanisms;
mod page;
mod program;
mod replace;
mod server;
mod signals;
mod spawn;
mod status;
mod supervisor;
mod tree;

pub(super) use mechanisms::survey;
pub(super) use replace::become_command;
pub(super) use supervisor::supervise;

/// Whether the parent is to be watched; refused where it is systemd, which outlives everything.
fn is_bound(invocation: &Invocation) -> Result<bool, Failure> {
    let bound = invocation.options.get_exit_with_parent() == Some(true);
    let exec_pid = std::env::var_os("SYSTEMD_EXEC_PID");
    let named = invocation.parent != ParentFlag::Unsaid;
    if bound && !named && systemd::is_our_parent(exec_pid.as_deref(), std::process::id()) {
        return Err(Failure::own(
            "exit-with-parent=on: the parent is systemd, which ends the unit's processes by itself \
             (KillMode=) and does not exit; leave the option out, or name another process with \
             --parent-fd. See BindsTo= and PartOf= in systemd.unit(5) to tie one unit to another",
        ));
    }
    Ok(bound)
}

/// The descriptor with this number, which was given on the command line, as ours; close-on-exec.
fn inherited(flag: &str, number: i32) -> Result<OwnedFd, Failure> {
    if !sys::is_open(number) {
        return Err(Failure::own(format!(
            "--{flag}: descriptor {number} is not open"
        )));
    }
    let fd = sys::adopt(number);
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|errno| Failure::own(format!("--{flag}: descriptor {number}: {errno}")))?;
    Ok(fd)
}
