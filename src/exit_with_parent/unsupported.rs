//! A system without any mechanism: asking says no, arming is an error.

use super::{ArmError, Report, Request};

pub(super) fn is_supported() -> bool {
    false
}

/// Never made here.
#[derive(Debug)]
pub(super) enum Armed {}

impl Armed {
    pub(super) fn arm(request: Request) -> Result<Self, ArmError> {
        Err(ArmError::Unsupported(request.mechanism))
    }

    pub(super) fn report(&self) -> Report {
        match *self {}
    }

    pub(super) fn parent_is_alive(&self) -> bool {
        match *self {}
    }

    pub(super) fn rearm(&mut self) -> Result<(), ArmError> {
        match *self {}
    }

    pub(super) fn disarm(self) -> Result<(), ArmError> {
        match self {}
    }
}
