//! What holds a captive's descendants, and ends them when it has ended.
//!
//! | mechanism | what it is | ends by | is empty when |
//! |---|---|---|---|
//! | PID namespace, with or without a user namespace | an init of ours, made before the captive | SIGKILL to the init | that one has ended: the kernel has it wait for all |
//! | cgroup | a directory `captive-PID-N`, locked | `cgroup.kill` | `cgroup.events` says so |
//! | marks | a variable of the environment | a walk over `/proc` | a walk finds none |
//!
//! The guard has descriptors of the same things and does the same; whoever comes first.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::Containment;
use super::protocol::{self, Name};
use crate::sys::linux as sys;

mod cgroup;
mod choose;
mod marks;
mod namespace;

#[cfg(feature = "cli")]
pub(super) use cgroup::own as own_cgroup;
pub(super) use cgroup::{Cgroup, Events, sweep_own};
pub(super) use choose::{Means, Refused, Wish, contain, refusal, refused};
pub(super) use marks::is_in as is_marked_in;
pub(super) use namespace::Namespace;

#[derive(Debug)]
pub(crate) struct Tree {
    containment: Containment,
    name: u64,
    namespace: Option<Namespace>,
    cgroup: Option<Cgroup>,
    /// Somebody has undertaken to see to its end.
    ending: AtomicBool,
    let_go: AtomicBool,
}

impl Tree {
    /// The mechanism.
    pub(crate) fn containment(&self) -> Containment {
        self.containment
    }

    /// As the guard is told of it: what it is, and its name.
    pub(super) fn for_message(&self) -> (u32, u64) {
        let bit = |is: bool, bit: u32| if is { bit } else { 0 };
        let bits = bit(self.namespace.is_some(), protocol::TREE_NAMESPACE)
            | bit(self.cgroup.is_some(), protocol::TREE_CGROUP)
            | bit(self.is_marked(), protocol::TREE_MARKED);
        (bits, self.name)
    }

    /// What the guard gets of it, in the order of the protocol.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let mut fds = Vec::new();
        if let Some(namespace) = &self.namespace {
            fds.push(namespace.init().as_fd().as_raw_fd());
            fds.push(namespace.pipe().as_raw_fd());
        }
        if let Some(cgroup) = &self.cgroup {
            fds.push(cgroup.as_fd().as_raw_fd());
        }
        fds
    }

    pub(super) fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    pub(super) fn is_marked(&self) -> bool {
        self.containment == Containment::TreeBestEffort
    }

    /// The variable that marks it.
    pub(super) fn mark(&self) -> Option<(&'static [u8], Name)> {
        self.is_marked()
            .then(|| (protocol::MARK, Name::of(self.name)))
    }

    /// Whether the caller is the one to see to its end: true once.
    pub(super) fn claim_end(&self) -> bool {
        !self.ending.swap(true, Ordering::AcqRel)
    }

    /// SIGKILL to all that is left of it. For marks, to all that one walk finds.
    pub(crate) fn end(&self) {
        if let Some(namespace) = &self.namespace {
            // An init that has ended has ended all.
            let _ = sys::pidfd_send_signal(namespace.init().as_fd(), libc::SIGKILL);
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        if self.is_marked() {
            marks::kill(&Name::of(self.name));
        }
    }

    /// Whether nothing of it is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.namespace.as_ref().is_none_or(has_ended)
            && self.cgroup.as_ref().is_none_or(Cgroup::is_empty)
            && (!self.is_marked() || marks::find(&Name::of(self.name)) == 0)
    }

    /// Waits until nothing of it is left, or until the deadline; whether it is so.
    pub(crate) fn wait_empty(&self, deadline: Option<Instant>) -> bool {
        /// Where nothing tells, a walk each so often.
        const LOOK: Duration = Duration::from_millis(20);
        // Before the look: what changes after that wakes.
        let events = self.cgroup.as_ref().and_then(Cgroup::events);
        loop {
            if self.is_empty() {
                return true;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let limit = left.unwrap_or(Duration::from_secs(3600));
            let soon = limit.min(LOOK);
            let waited = match (&self.namespace, &events) {
                (Some(namespace), _) if !has_ended(namespace) => {
                    sys::poll_within(namespace.init().as_fd(), libc::POLLIN, limit)
                }
                // Nothing tells if somebody removes it between its end and the word of that.
                (_, Some(events)) => events.wait(soon),
                _ => Err(Errno::ENOSYS),
            };
            if waited.is_err() {
                std::thread::sleep(soon);
            }
        }
    }

    /// It is to live on.
    pub(super) fn let_go(&self) {
        if let Some(namespace) = &self.namespace {
            namespace.say(protocol::INIT_LET_GO);
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.let_go();
        }
        self.let_go.store(true, Ordering::Release);
    }

    pub(super) fn is_let_go(&self) -> bool {
        self.let_go.load(Ordering::Acquire)
    }

    /// Takes away what is left of it when it is empty.
    pub(super) fn remove(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
    }

    /// The init, which is a child of ours, to be reaped.
    pub(super) fn init(&self) -> Option<&Arc<super::process::Process>> {
        self.namespace.as_ref().map(Namespace::init)
    }
}

/// Whether its init has ended, and so all that was in it.
fn has_ended(namespace: &Namespace) -> bool {
    sys::poll_within(namespace.init().as_fd(), libc::POLLIN, Duration::ZERO) == Ok(true)
}
