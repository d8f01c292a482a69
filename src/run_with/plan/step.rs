//! The steps of a plan, by name.

use std::fmt;
use std::path::PathBuf;

/// One step, with its operand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// chroot(2) to this directory, opened beforehand.
    Chroot(PathBuf),
    /// chdir(2) to `/`, which is the new root then.
    ChangeDirectory,
    /// setgroups(2).
    SetGroups(Vec<u32>),
    /// setresgid(2).
    SetGid(u32),
    /// setresuid(2).
    SetUid(u32),
    /// Every thread has the new credentials, and setuid(0) is refused.
    ProveDropped,
    /// [`async_teardown`](crate::async_teardown) starts.
    StartAsyncTeardown,
    /// [`Armed::rearm`](crate::exit_with_parent::Armed::rearm).
    RearmExitWithParent,
    /// The parent is still there.
    CheckParent,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chroot(path) => write!(f, "chroot to {}", path.display()),
            Self::ChangeDirectory => f.write_str("chdir to / in the new root"),
            Self::SetGroups(groups) => {
                f.write_str("setgroups to ")?;
                for (n, group) in groups.iter().enumerate() {
                    write!(f, "{}{group}", if n == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::SetGid(gid) => write!(f, "setgid to {gid}"),
            Self::SetUid(uid) => write!(f, "setuid to {uid}"),
            Self::ProveDropped => f.write_str("the proof that privileges are gone"),
            Self::StartAsyncTeardown => f.write_str("starting async teardown"),
            Self::RearmExitWithParent => f.write_str("arming exit-with-parent again"),
            Self::CheckParent => f.write_str("looking at the parent again"),
        }
    }
}
