//! What run-with was given by whoever started it: descriptors by their number, and a parent.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::args::{Invocation, ParentFlag};
use super::{Failure, systemd};
use crate::exit_with_parent::Expected;
use crate::sys::inherited::take_inherited;

/// The descriptors that the command line names, taken over before there is one of our own that a
/// number could be mistaken for.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) parent: Option<OwnedFd>,
    pub(super) status: Option<OwnedFd>,
}

impl Given {
    pub(super) fn take(invocation: &Invocation) -> Result<Self, Failure> {
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
            parent: parent.map(|fd| take("parent-fd", fd)).transpose()?,
            status: status.map(|fd| take("status-fd", fd)).transpose()?,
        })
    }
}

fn take(flag: &str, number: i32) -> Result<OwnedFd, Failure> {
    take_inherited(number).map_err(|errno| {
        Failure::own(match errno {
            Errno::EBADF => format!("--{flag}: descriptor {number} is not open"),
            errno => format!("--{flag}: descriptor {number}: {errno}"),
        })
    })
}

/// Whether the parent is to be watched; refused where it is systemd, which outlives everything.
pub(super) fn is_bound(invocation: &Invocation) -> Result<bool, Failure> {
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

/// Who the parent is to be, if it is to be watched. `given`: the descriptor of `--parent-fd`.
pub(super) fn expected_parent(
    invocation: &Invocation,
    given: Option<OwnedFd>,
) -> Result<Option<Expected>, Failure> {
    if !is_bound(invocation)? {
        return Ok(None);
    }
    Ok(Some(match (given, invocation.parent) {
        (Some(fd), _) => Expected::Fd(fd),
        (None, ParentFlag::Pid(pid)) => Expected::Pid(pid),
        (None, _) => Expected::Unsaid,
    }))
}
