//! The same plan made in a child between clone and exec: raw system calls, nothing allocated.

use std::os::fd::AsFd;
use std::sync::atomic::AtomicU32;

use nix::errno::Errno;

use super::{Plan, Step, StepError};
use crate::privileges::{Identity, in_child};

/// A plan, and room for what its proof reads, allocated while that may be done.
#[derive(Debug)]
pub(crate) struct InChild<'a> {
    plan: &'a Plan,
    /// The groups the child is to have, sorted.
    groups: Vec<u32>,
    /// As many places.
    room: Vec<AtomicU32>,
}

impl InChild<'_> {
    /// Makes the steps in the calling process, which must be a fresh child with one thread. The
    /// error is the index of the step that failed, and why.
    pub(crate) fn make(&self) -> Result<(), (usize, Errno)> {
        for (at, step) in self.plan.steps.iter().enumerate() {
            self.make_step(step).map_err(|errno| (at, errno))?;
        }
        Ok(())
    }

    fn make_step(&self, step: &Step) -> Result<(), Errno> {
        match step {
            Step::Chroot(_) => {
                let root = self.plan.root.as_ref().ok_or(Errno::EBADF)?;
                in_child::enter_root(root.as_fd())
            }
            Step::ChangeDirectory => in_child::change_directory(),
            Step::SetGroups(groups) => in_child::set_groups(groups),
            Step::SetGid(gid) => in_child::set_gid(*gid),
            Step::SetUid(uid) => in_child::set_uid(*uid),
            Step::ProveDropped => {
                let identity = self.plan.identity.as_ref().ok_or(Errno::EINVAL)?;
                in_child::prove_dropped(identity.uid(), identity.gid(), &self.groups, &self.room)
            }
            // The first cannot outlive an exec, the others are the supervisor's own.
            Step::StartAsyncTeardown | Step::RearmExitWithParent | Step::CheckParent => {
                Err(Errno::ENOSYS)
            }
        }
    }
}

impl Plan {
    /// The plan for a child, to be made before there is one.
    pub(crate) fn in_child(&self) -> InChild<'_> {
        let groups = self.identity.as_ref().map(Identity::groups);
        let mut groups = groups.unwrap_or_default().to_vec();
        groups.sort_unstable();
        InChild {
            plan: self,
            room: groups.iter().map(|_| AtomicU32::new(0)).collect(),
            groups,
        }
    }

    /// The error of a step that failed in a child.
    pub(crate) fn step_error(&self, at: usize, errno: Errno) -> Option<StepError> {
        Some(StepError {
            step: self.steps.get(at)?.clone(),
            done: self.steps.get(..at)?.to_vec(),
            cause: errno.into(),
        })
    }
}
