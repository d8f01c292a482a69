//! The same plan made in a child between clone and exec: raw system calls, nothing allocated.

use std::os::fd::AsFd;
#[cfg(any(captive_stand_in, not(target_os = "linux")))]
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicU32;

use nix::errno::Errno;

#[cfg(feature = "cli")]
use super::StepError;
use super::{Plan, Step};
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

    /// Moves the descriptor of the new root out of the way of what a child puts under numbers of its own, and says which it is:
    /// the child must not close it.
    #[cfg(any(captive_stand_in, not(target_os = "linux")))]
    pub(crate) fn keep_root_from(&mut self, taken: &[RawFd]) -> Result<Option<RawFd>, Errno> {
        let Some(mut root) = self.root.take() else {
            return Ok(None);
        };
        // Held meanwhile, so that the next copy has another number.
        let mut taken_ones = Vec::new();
        while taken.contains(&root.as_raw_fd()) {
            let copy = root.try_clone();
            taken_ones.push(root);
            root =
                copy.map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))?;
        }
        let number = root.as_raw_fd();
        self.root = Some(root);
        Ok(Some(number))
    }

    /// The error of a step that failed in a child.
    #[cfg(feature = "cli")]
    pub(crate) fn step_error(&self, at: usize, errno: Errno) -> Option<StepError> {
        Some(StepError {
            step: self.steps.get(at)?.clone(),
            done: self.steps.get(..at)?.to_vec(),
            cause: errno.into(),
        })
    }
}
