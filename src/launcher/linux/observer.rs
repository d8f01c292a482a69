//! What can be asked of a captive on any thread, also when its handle is no more: for looks that may take their time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;

use super::super::captive::Stuck;
use super::super::watch::{Look, Streams, Watch};
use super::super::{CaptiveError, ExitReport, ReadyError};
use super::process::Process;
use super::runtime::Runtime;
use super::stuck;
use super::tree::Cgroup;

/// Keeps no captive alive: what ends it is its handle.
#[derive(Debug, Clone)]
pub(in super::super) struct Observer {
    pub(super) process: Arc<Process>,
    pub(super) runtime: &'static Runtime,
    pub(super) watch: Option<Arc<Watch>>,
}

/// A descriptor that tells that a tree has changed, and how.
#[derive(Debug)]
pub(in super::super) struct TreeChange {
    pub(in super::super) fd: OwnedFd,
    pub(in super::super) interest: Interest,
}

impl Observer {
    fn try_wait(&self) -> Result<Option<ExitReport>, CaptiveError> {
        let report = self.process.try_wait()?;
        if report.is_some() {
            self.runtime.ended(&self.process);
        }
        Ok(report)
    }

    pub(in super::super) fn stuck(&self) -> Stuck {
        stuck::look_at(&self.process)
    }

    /// Whether a look at the tree is a walk over `/proc`.
    pub(in super::super) fn has_to_walk(&self) -> bool {
        self.process.tree().is_some_and(|tree| tree.is_marked())
    }

    pub(in super::super) fn tree_is_empty(&self) -> bool {
        self.process.tree().is_none_or(|tree| tree.is_empty())
    }

    /// To be asked for before the first look at the tree; `None` if there is nothing but to look again.
    pub(in super::super) fn tree_change(&self) -> Option<TreeChange> {
        let tree = self.process.tree()?;
        if let Some(namespace) = tree.namespace() {
            let fd = namespace.init().as_fd().try_clone_to_owned().ok()?;
            let interest = Interest::READABLE;
            return Some(TreeChange { fd, interest });
        }
        // cgroups(7), `cgroup.events`.
        let fd = tree.cgroup().and_then(Cgroup::events)?.into();
        let interest = Interest::PRIORITY;
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
            .look_once(&self.process, words, || self.try_wait())
    }

    /// The error after [`Look::Closed`], some time later.
    pub(in super::super) fn after_closing(&self) -> ReadyError {
        let watch = self.watch();
        watch.map_or_else(
            |error| error,
            |watch| watch.error_after_closing(|| self.try_wait()),
        )
    }

    /// The error after this time without success.
    pub(in super::super) fn after_limit(&self, limit: Duration) -> ReadyError {
        let watch = self.watch();
        watch.map_or_else(|error| error, |watch| watch.error_after_limit(limit))
    }
}
