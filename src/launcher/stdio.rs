//! What a captive's standard descriptors are.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{ChildStderr, ChildStdin, ChildStdout};

/// What one of a captive's standard descriptors is; as [`std::process::Stdio`], whose choice cannot be
/// read back.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// The launcher's own. If that is closed, so is the captive's.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// A new pipe, whose other end is in the [`Captive`](super::Captive).
    Piped,
    /// This descriptor. It stays open in the launcher as long as the
    /// [`Command`](super::Command) exists.
    Fd(OwnedFd),
}

impl Stdio {
    /// [`Stdio::Inherit`].
    pub fn inherit() -> Self {
        Self::Inherit
    }

    /// [`Stdio::Null`].
    pub fn null() -> Self {
        Self::Null
    }

    /// [`Stdio::Piped`].
    pub fn piped() -> Self {
        Self::Piped
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self::Fd(fd)
    }
}

macro_rules! from_owner {
    ($($owner:ty),+ $(,)?) => {$(
        impl From<$owner> for Stdio {
            fn from(owner: $owner) -> Self {
                Self::Fd(owner.into())
            }
        }
    )+};
}

from_owner!(File, ChildStdin, ChildStdout, ChildStderr);

/// The launcher's ends of a captive's pipes.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}
