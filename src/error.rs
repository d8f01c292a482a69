//! The crate's error: which part failed; the part's own error says at which step, on what, and why.

use std::fmt;

use crate::exit_with_parent::ArmError;

/// What went wrong in any part of this crate, for callers that use several with one `?`.
///
/// Each variant is the error of one part, unchanged; [`std::error::Error::source`] is that part's
/// cause (the errno), never a repetition of the message.
#[derive(Debug)]
#[non_exhaustive]
#[allow(
    clippy::error_impl_error,
    reason = "the crate's one error, as std::io::Error is io's"
)]
pub enum Error {
    /// [`exit_with_parent`](crate::exit_with_parent).
    ExitWithParent(ArmError),
}

impl Error {
    fn part(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Self::ExitWithParent(error) => error,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.part(), f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.part().source()
    }
}

impl From<ArmError> for Error {
    fn from(error: ArmError) -> Self {
        Self::ExitWithParent(error)
    }
}
