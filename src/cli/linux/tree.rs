//! `--tree`: the launcher's trees, for a command that run-with makes itself.

cfg_if::cfg_if! {
    if #[cfg(captive_helper)] {
        use std::ffi::OsStr;
        use std::path::PathBuf;
        use std::sync::Arc;

        use super::super::Failure;
        use super::super::args::TreeBy;
        use crate::Containment;
        pub(super) use crate::launcher::{Holds, Tree, contain_alone};

        /// Whether there can be trees.
        pub(super) const IS_BUILT: bool = true;

        /// The cgroup in which one would be made, or why none can be.
        pub(super) fn own_cgroup() -> Result<PathBuf, String> {
            crate::launcher::own_cgroup()
        }

        /// A tree for the command; `user` is the one it will have, if not ours.
        pub(super) fn contain(
            by: TreeBy,
            program: &OsStr,
            user: Option<u32>,
        ) -> Result<Arc<Tree>, Failure> {
            let containment = match by {
                TreeBy::Any => Containment::Tree,
                TreeBy::PidNamespace => Containment::PidNamespace,
                TreeBy::UserNamespace => Containment::UserNamespace,
                TreeBy::Cgroup => Containment::Cgroup,
            };
            contain_alone(program, containment, user).map_err(|error| Failure::caused(&error))
        }
    } else {
        mod without;
        pub(super) use without::{Holds, IS_BUILT, Tree, contain, own_cgroup};
    }
}
