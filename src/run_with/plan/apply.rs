//! The plan made in this process, for all its threads.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::{Plan, Prepared, Step, StepCause, StepError};
use crate::async_teardown::{self, Teardown};
use crate::exit_with_parent::{ArmError, Armed};
use crate::privileges::{self, ProofError, Threads};

/// What a plan left behind it. Dropping this changes nothing.
#[derive(Debug)]
pub struct Applied {
    armed: Option<Armed>,
    teardown: Option<Teardown>,
}

impl Applied {
    /// The watch on the parent.
    pub fn armed(&self) -> Option<&Armed> {
        self.armed.as_ref()
    }

    /// The watch on the parent, to keep, end or arm again.
    pub fn into_armed(self) -> Option<Armed> {
        self.armed
    }

    /// The async-teardown process.
    pub fn teardown(&self) -> Option<&Teardown> {
        self.teardown.as_ref()
    }
}

impl Prepared {
    /// Makes the steps, in order, in this process: for every thread, or it fails.
    ///
    /// Call it when everything that needs privileges or the old root is open, and before work from
    /// outside is taken.
    ///
    /// A plan is applied once:
    ///
    /// ```compile_fail,E0382
    /// let options: captive::RunWith = "user=nobody".parse()?;
    /// let prepared = options.prepare()?;
    /// prepared.apply()?;
    /// prepared.apply()?; // it has been used up
    /// # Ok::<(), captive::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`StepError`], with the step, its operand, and what had been done. If
    /// [`must_end`](StepError::must_end), the process is in between and must not go on.
    pub fn apply(self) -> Result<Applied, StepError> {
        let Self { plan, armed } = self;
        // First of all: the new root may have no /proc, and where there is none nothing has been
        // changed yet.
        let threads = match plan.identity {
            Some(_) => Some(Threads::open().map_err(|errno| StepError {
                step: Step::ProveDropped,
                done: Vec::new(),
                cause: errno.into(),
            })?),
            None => None,
        };
        let mut hands = Hands {
            applied: Applied {
                armed,
                teardown: None,
            },
            threads,
        };
        for (at, step) in plan.steps.iter().enumerate() {
            hands.make(&plan, step).map_err(|cause| StepError {
                step: step.clone(),
                done: plan.steps[..at].to_vec(),
                cause,
            })?;
        }
        Ok(hands.applied)
    }
}

struct Hands {
    applied: Applied,
    threads: Option<Threads>,
}

impl Hands {
    fn make(&mut self, plan: &Plan, step: &Step) -> Result<(), StepCause> {
        match step {
            Step::Chroot(_) => {
                let root = plan.root.as_ref().ok_or(Errno::EBADF)?;
                privileges::enter_root(root.as_fd())?;
            }
            Step::ChangeDirectory => nix::unistd::chdir("/")?,
            Step::SetGroups(groups) => privileges::set_groups(groups)?,
            Step::SetGid(gid) => privileges::set_gid(*gid)?,
            Step::SetUid(uid) => privileges::set_uid(*uid)?,
            Step::ProveDropped => self.prove_dropped(plan)?,
            Step::StartAsyncTeardown => {
                let teardown = async_teardown::start().map_err(StepCause::AsyncTeardown)?;
                self.applied.teardown = Some(teardown);
            }
            Step::RearmExitWithParent => {
                if let Some(armed) = &mut self.applied.armed {
                    armed.rearm().map_err(StepCause::ExitWithParent)?;
                }
            }
            Step::CheckParent => {
                if self
                    .applied
                    .armed
                    .as_ref()
                    .is_some_and(|armed| !armed.parent_is_alive())
                {
                    let gone = ArmError::ParentGone {
                        expected: None,
                        found: None,
                    };
                    return Err(StepCause::ExitWithParent(gone));
                }
            }
        }
        Ok(())
    }

    fn prove_dropped(&mut self, plan: &Plan) -> Result<(), StepCause> {
        let (Some(threads), Some(identity)) = (&mut self.threads, &plan.identity) else {
            return Err(Errno::ENOENT.into());
        };
        threads
            .prove_dropped(identity)
            .map_err(|error| match error {
                ProofError::NotDropped(found) => StepCause::NotDropped(found),
                ProofError::Errno(errno) => errno.into(),
            })
    }
}
