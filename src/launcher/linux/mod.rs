//! Linux: the launcher's threads, its child between clone and exec, its guard.
//!
//! ```text
//! Command::spawn ── request (all allocated) ── spawner thread ── child: clone(VM|VFORK) .. exec
//!                                                                  │ its own pidfd
//! Captive ── process (pidfd, status) ── reaper thread           guard (a process; the helper)
//! ```

use super::SpawnError;
use super::command::{Command, Defaults};
use super::primitive;
use super::stdio::Pipes;
pub(super) use crate::sys::linux as sys;

#[cfg(feature = "cli")]
mod alone;
mod caught;
mod child;
mod claim;
mod contained;
mod guard;
pub(super) mod probe;
mod proc;
mod process;
#[path = "helper/protocol.rs"]
#[allow(dead_code, unreachable_pub, reason = "the helper uses the rest")]
mod protocol;
mod reaper;
mod request;
mod runtime;
mod slot;
mod spawner;
mod stage;
mod std_child;
mod stuck;
mod tree;

pub(super) use super::handle::{Handle, start};
#[cfg(feature = "tokio")]
pub(super) use super::observer::Observer;
pub(super) use super::watch::Streams;
#[cfg(feature = "tokio")]
pub(super) use super::watch::{LAST_WORDS, Look, PAUSE};
#[cfg(feature = "cli")]
pub(crate) use alone::{Holds, contain_alone, own_cgroup};
pub(super) use caught::Caught;
pub(super) use process::Process;
pub(super) use runtime::Runtime;
pub(super) use std_child::spawn_std;
#[cfg(feature = "cli")]
pub(crate) use tree::Tree;

pub(super) fn is_supported() -> bool {
    // A descriptor that cannot be open: EBADF from a kernel that knows P_PIDFD, EINVAL before 5.4.
    sys::reap(i32::MAX) == Err(nix::errno::Errno::EBADF)
}

/// Why [`is_supported`] says no.
const NO_WAIT: &str = "waitid(2) does not wait for pidfds (Linux 5.4), or a filter refuses it";

pub(super) fn spawn(command: &Command, defaults: &Defaults) -> Result<(Handle, Pipes), SpawnError> {
    if !is_supported() {
        return Err(SpawnError::Unsupported(NO_WAIT));
    }
    Handle::spawn(command, defaults)
}
