//! What can be asked of a captive on any thread, also when its handle is no more: for looks that may take their time.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;

use super::super::ReadyError;
use super::super::captive::Stuck;
use super::super::watch::{Look, Streams, Watch};
use super::process::Process;
use super::stuck;

/// Keeps no captive alive: what ends it is its handle.
#[derive(Debug, Clone)]
pub(in super::super) struct Observer {
    pub(super) process: Arc<Process>,
    pub(super) watch: Option<Arc<Watch>>,
}

/// A descriptor that tells that a tree has changed, and how.
#[derive(Debug)]
pub(in super::super) struct TreeChange {
    pub(in super::super) fd: OwnedFd,
    pub(in super::super) interest: Interest,
}

impl Observer {
    pub(in super::super) fn stuck(&self) -> Stuck {
        stuck(&self.process)
    }

    /// Whether a look at the tree takes its time.
    #[allow(clippy::unused_self, reason = "where it is a walk, it is this tree's")]
    pub(in super::super) fn has_to_walk(&self) -> bool {
        false
    }

    pub(in super::super) fn tree_is_empty(&self) -> bool {
        self.process.tree_is_empty()
    }

    /// To be asked for before the first look at the tree; `None` if there is nothing but to look again.
    pub(in super::super) fn tree_change(&self) -> Option<TreeChange> {
        let fd = self.process.line().try_clone_to_owned().ok()?;
        let interest = Interest::READABLE;
        Some(TreeChange { fd, interest })
    }

    fn watch(&self) -> Result<&Watch, ReadyError> {
        self.watch.as_deref().ok_or(ReadyError::NotAsked)
    }

    /// What is readable when there is something new to look at, if anything is.
    pub(in super::super) fn words(
        &self,
        streams: Streams<'_>,
    ) -> Result<Option<OwnedFd>, ReadyError> {
        self.watch()?.words(streams)
    }

    /// Whether it is ready.
    pub(in super::super) fn look(&self, words: Option<BorrowedFd<'_>>) -> Result<Look, ReadyError> {
        self.watch()?
            .look_once(&self.process, words, || Ok(self.process.report()))
    }

    /// The error after [`Look::Closed`], some time later.
    pub(in super::super) fn after_closing(&self) -> ReadyError {
        let watch = self.watch();
        watch.map_or_else(
            |error| error,
            |watch| watch.error_after_closing(|| Ok(self.process.report())),
        )
    }

    /// The error after this time without success.
    pub(in super::super) fn after_limit(&self, limit: Duration) -> ReadyError {
        let watch = self.watch();
        watch.map_or_else(|error| error, |watch| watch.error_after_limit(limit))
    }
}
