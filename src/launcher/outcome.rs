//! How something ended, asked of the kernel once and remembered: the kernel tells it once.

use super::primitive::{Mutex, MutexGuard, PoisonError};

/// A state to be noted while it runs, and the report once it has ended.
#[derive(Debug)]
pub(super) struct Outcome<S, R>(Mutex<Inner<S, R>>);

#[derive(Debug)]
struct Inner<S, R> {
    state: S,
    report: Option<R>,
}

impl<S, R: Clone> Outcome<S, R> {
    pub(super) fn new(state: S) -> Self {
        Self(Mutex::new(Inner {
            state,
            report: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S, R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state. After the end it says no more.
    #[cfg_attr(
        not(captive_helper),
        allow(dead_code, reason = "elsewhere the supervisor notes what was sent")
    )]
    pub(super) fn note(&self, change: impl FnOnce(&mut S)) {
        let mut inner = self.lock();
        if inner.report.is_none() {
            change(&mut inner.state);
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.lock().report.is_some()
    }

    /// The report; `ask` is for one that is not known yet, and must not wait for the end: who
    /// signals or looks meanwhile waits for the lock. `None` and an error change nothing.
    pub(super) fn get<E>(
        &self,
        ask: impl FnOnce(&S) -> Result<Option<R>, E>,
    ) -> Result<Option<R>, E> {
        let mut inner = self.lock();
        if inner.report.is_none() {
            inner.report = ask(&inner.state)?;
        }
        Ok(inner.report.clone())
    }
}
