//! A build without the crate's helper: there are no trees, and no values of these types.

#![allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signatures are those of the types that have values"
)]

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::super::super::Failure;
use super::super::super::args::TreeBy;

#[derive(Debug)]
pub(in super::super) struct Tree(Infallible);

#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Holds(Infallible);

pub(in super::super) const IS_BUILT: bool = false;

pub(in super::super) fn own_cgroup() -> Result<std::path::PathBuf, String> {
    Err("this build has no helper program".to_owned())
}

pub(in super::super) fn contain(
    _by: TreeBy,
    _program: &OsStr,
    _user: Option<u32>,
) -> Result<Arc<Tree>, Failure> {
    Err(Failure::own(
        "--tree: this build has no helper program for it",
    ))
}

impl Tree {
    pub(in super::super) fn holds(&self) -> Holds {
        match self.0 {}
    }

    pub(in super::super) fn clear(&self, _limit: Duration) -> bool {
        match self.0 {}
    }
}

impl Holds {
    pub(in super::super) fn raw_fds(&self) -> std::iter::Empty<RawFd> {
        match self.0 {}
    }

    pub(in super::super) fn is_namespace(&self) -> bool {
        match self.0 {}
    }

    pub(in super::super) fn enter(&self) -> Result<(), Errno> {
        match self.0 {}
    }

    pub(in super::super) fn join(&self) -> Result<(), Errno> {
        match self.0 {}
    }

    pub(in super::super) fn end(&self) {
        match self.0 {}
    }

    pub(in super::super) fn remove(&self) -> bool {
        match self.0 {}
    }
}
