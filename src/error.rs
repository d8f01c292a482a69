//! The crate's error: which part failed; the part's own error says at which step, on what, and why.

use std::fmt;

use crate::async_teardown::TeardownError;
use crate::exit_with_parent::ArmError;
use crate::privileges::PrivilegeError;
use crate::run_with::{OptionError, PrepareError, StepError};

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
    /// [`exit_with_parent`](mod@crate::exit_with_parent).
    ExitWithParent(ArmError),
    /// [`privileges`](crate::privileges): a user that cannot be resolved.
    Privileges(PrivilegeError),
    /// [`async_teardown`](crate::async_teardown).
    AsyncTeardown(TeardownError),
    /// An option string.
    Options(OptionError),
    /// [`RunWith::prepare`](crate::RunWith::prepare).
    Prepare(PrepareError),
    /// [`Prepared::apply`](crate::run_with::Prepared::apply).
    Apply(StepError),
}

impl Error {
    fn part(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Self::ExitWithParent(error) => error,
            Self::Privileges(error) => error,
            Self::AsyncTeardown(error) => error,
            Self::Options(error) => error,
            Self::Prepare(error) => error,
            Self::Apply(error) => error,
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

macro_rules! from_part {
    ($($error:ident => $variant:ident),+ $(,)?) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )+};
}

from_part! {
    ArmError => ExitWithParent,
    PrivilegeError => Privileges,
    TeardownError => AsyncTeardown,
    OptionError => Options,
    PrepareError => Prepare,
    StepError => Apply,
}
