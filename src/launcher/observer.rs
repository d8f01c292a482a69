//! What can be asked of a captive on any thread, also when its handle is no more: for looks that may take their time.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;

use super::ReadyError;
use super::captive::Stuck;
use super::platform::{Process, Runtime};
use super::watch::{Look, Streams, Watch};

/// Keeps no captive alive: what ends it is its handle.
#[derive(Debug, Clone)]
pub(super) struct Observer {
    pub(super) process: Arc<Process>,
    pub(super) runtime: &'static Runtime,
    pub(super) watch: Option<Arc<Watch>>,
}

/// A descriptor that tells that a tree has changed, and how.
#[derive(Debug)]
pub(super) struct TreeChange {
    pub(super) fd: OwnedFd,
    pub(super) interest: Interest,
}

impl Observer {
    pub(super) fn stuck(&self) -> Stuck {
        self.process.stuck()
    }

    /// Whether a look at the tree takes its time.
    pub(super) fn has_to_walk(&self) -> bool {
        self.process.has_to_walk()
    }

    pub(super) fn tree_is_empty(&self) -> bool {
        self.process.tree_is_empty()
    }

    /// To be asked for before the first look at the tree; `None` if there is nothing but to look again.
    pub(super) fn tree_change(&self) -> Option<TreeChange> {
        self.process.tree_change()
    }

    fn watch(&self) -> Result<&Watch, ReadyError> {
        self.watch.as_deref().ok_or(ReadyError::NotAsked)
    }

    /// What is readable when there is something new to look at, if anything is.
    pub(super) fn words(&self, streams: Streams<'_>) -> Result<Option<OwnedFd>, ReadyError> {
        self.watch()?.words(streams)
    }

    /// Whether it is ready.
    pub(super) fn look(&self, words: Option<BorrowedFd<'_>>) -> Result<Look, ReadyError> {
        let try_wait = || self.runtime.try_wait(&self.process);
        self.watch()?.look_once(&self.process, words, try_wait)
    }

    /// The error after [`Look::Closed`], some time later.
    pub(super) fn after_closing(&self) -> ReadyError {
        let try_wait = || self.runtime.try_wait(&self.process);
        let watch = self.watch();
        watch.map_or_else(|error| error, |watch| watch.error_after_closing(try_wait))
    }

    /// The error after this time without success.
    pub(super) fn after_limit(&self, limit: Duration) -> ReadyError {
        let watch = self.watch();
        watch.map_or_else(|error| error, |watch| watch.error_after_limit(limit))
    }
}
