//! One plan: everything resolved while the process is privileged, and then carried out in the one
//! order that is written here.
//!
//! `prepare()` looks users up, opens the new root and starts watching the parent; it changes
//! nothing. `apply()` makes the list of [`Step`]s in this process, just before its work starts. The
//! program run-with has the same list made in its child.
//!
//! The order, and why each step stands where it does:
//!
//! 1. chroot, then chdir to `/`: needs CAP_SYS_CHROOT, which the change of user takes away; and a
//!    working directory left outside would be a way out.
//! 2. groups, gid, uid: from least to most, as the uid takes the right to change the others.
//! 3. the proof that root is gone, before anything else is done in its absence.
//! 4. async teardown: its helper has the credentials of this moment.
//! 5. the parent-death signal again: a change of user clears it.
//! 6. the parent, once more.
//!
//! No name is looked up inside the new root: its passwd and its name service libraries mean
//! nothing.

use std::os::fd::OwnedFd;

use super::RunWith;
use crate::async_teardown;
use crate::exit_with_parent::{Armed, exit_with_parent};
use crate::privileges::{self, Identity};

mod apply;
mod error;
mod step;

cfg_if::cfg_if! {
    if #[cfg(any(
        all(feature = "cli", target_os = "linux"),
        all(feature = "launcher", captive_bsd),
    ))] {
        mod child;
        // Linux's launcher has its helper make it.
        #[allow(unused_imports)]
        pub(crate) use child::InChild;
    }
}

pub use apply::Applied;
pub use error::{PrepareError, StepCause, StepError};
pub use step::Step;

/// The steps, with what they need already in hand.
#[derive(Debug)]
pub(crate) struct Plan {
    steps: Vec<Step>,
    root: Option<OwnedFd>,
    identity: Option<Identity>,
}

/// A plan whose parent, if it is to have one, is being watched. Made by [`RunWith::prepare`].
#[derive(Debug)]
#[must_use = "nothing is applied until `apply` is called"]
pub struct Prepared {
    plan: Plan,
    armed: Option<Armed>,
}

impl Plan {
    /// Resolves and opens; changes nothing.
    pub(crate) fn resolve(options: &RunWith) -> Result<Self, PrepareError> {
        let mut plan = Self {
            steps: Vec::new(),
            root: None,
            identity: None,
        };
        if let Some(path) = options.get_chroot() {
            let root = privileges::open_root(path).map_err(|errno| PrepareError::Root {
                path: path.into(),
                errno: errno.into(),
            })?;
            plan.root = Some(root);
            plan.steps
                .extend([Step::Chroot(path.into()), Step::ChangeDirectory]);
        }
        if let Some(user) = options.get_user() {
            let identity = Identity::resolve(user)?;
            plan.steps.extend([
                Step::SetGroups(identity.groups().to_vec()),
                Step::SetGid(identity.gid()),
                Step::SetUid(identity.uid()),
                Step::ProveDropped,
            ]);
            plan.identity = Some(identity);
        }
        if options.get_async_teardown() == Some(true) {
            if !async_teardown::is_supported() {
                return Err(PrepareError::AsyncTeardownUnsupported);
            }
            plan.steps.push(Step::StartAsyncTeardown);
        }
        Ok(plan)
    }

    /// Its steps, the new root, the new user.
    #[cfg(captive_helper)]
    pub(crate) fn into_parts(self) -> (Vec<Step>, Option<OwnedFd>, Option<Identity>) {
        (self.steps, self.root, self.identity)
    }

    /// The user that it changes to.
    #[cfg(all(feature = "launcher", target_os = "linux", not(captive_stand_in)))]
    pub(crate) fn user(&self) -> Option<u32> {
        self.identity.as_ref().map(Identity::uid)
    }

    /// The steps, in order.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }
}

impl RunWith {
    /// Resolves everything that needs names, paths and privileges, and starts watching the parent
    /// (SIGTERM to ourselves if it goes from here on) if `exit-with-parent` is on.
    ///
    /// # Errors
    /// [`PrepareError`]; nothing has been changed then.
    pub fn prepare(&self) -> Result<Prepared, PrepareError> {
        self.prepare_with(|| exit_with_parent().map_err(PrepareError::from))
    }

    /// As [`prepare`](Self::prepare), but the caller says how the parent is watched: another signal, a
    /// descriptor, a channel. `arm` is called last, and only if `exit-with-parent` is on.
    ///
    /// ```no_run
    /// use captive::RunWith;
    /// use captive::exit_with_parent::{ExitWithParent, Signal};
    /// let options: RunWith = "exit-with-parent=on,user=nobody".parse()?;
    /// let prepared = options.prepare_with(|| ExitWithParent::new().signal(Signal::INT).arm())?;
    /// # Ok::<(), captive::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`PrepareError`], also made from the error of `arm`.
    pub fn prepare_with<E>(
        &self,
        arm: impl FnOnce() -> Result<Armed, E>,
    ) -> Result<Prepared, PrepareError>
    where
        PrepareError: From<E>,
    {
        let mut plan = Plan::resolve(self)?;
        let armed = match self.get_exit_with_parent() {
            Some(true) => Some(arm()?),
            _ => None,
        };
        if armed.is_some() {
            plan.steps
                .extend([Step::RearmExitWithParent, Step::CheckParent]);
        }
        Ok(Prepared { plan, armed })
    }
}

impl Prepared {
    /// The steps that `apply` will make, in order.
    pub fn steps(&self) -> &[Step] {
        self.plan.steps()
    }

    /// The watch on the parent, which runs already.
    pub fn armed(&self) -> Option<&Armed> {
        self.armed.as_ref()
    }
}
