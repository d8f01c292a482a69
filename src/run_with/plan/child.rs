//! The same plan made in a child between clone and exec: raw system calls, nothing allocated.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::{Plan, Step, StepError};
use crate::privileges::in_child;

impl Plan {
    /// Makes the steps in the calling process, which must be a fresh child with one thread. The
    /// error is the index of the step that failed, and why.
    pub(crate) fn make_in_child(&self) -> Result<(), (usize, Errno)> {
        for (at, step) in self.steps.iter().enumerate() {
            self.make_step_in_child(step).map_err(|errno| (at, errno))?;
        }
        Ok(())
    }

    fn make_step_in_child(&self, step: &Step) -> Result<(), Errno> {
        match step {
            Step::Chroot(_) => {
                let root = self.root.as_ref().ok_or(Errno::EBADF)?;
                in_child::enter_root(root.as_fd())
            }
            Step::ChangeDirectory => in_child::change_directory(),
            Step::SetGroups(groups) => in_child::set_groups(groups),
            Step::SetGid(gid) => in_child::set_gid(*gid),
            Step::SetUid(uid) => in_child::set_uid(*uid),
            Step::ProveDropped => {
                let identity = self.identity.as_ref().ok_or(Errno::EINVAL)?;
                in_child::prove_dropped(identity.uid(), identity.gid())
            }
            // The first cannot outlive an exec, the others are the supervisor's own.
            Step::StartAsyncTeardown | Step::RearmExitWithParent | Step::CheckParent => {
                Err(Errno::ENOSYS)
            }
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
