//! Who watches a machine, and tells the domain of its end.

use std::fmt;

use super::Domain;
use super::job::core::Run;
use super::model::{Model, Reason};

/// Held by who watches a machine. When it is dropped without a word, nobody watches any more: the machine is killed, and
/// the domain is inactive.
#[must_use = "a machine that nobody watches is killed"]
pub struct Lifeline<M: Model> {
    pub(super) domain: Domain<M>,
    pub(super) run: Run,
    pub(super) told: bool,
}

impl<M: Model> Lifeline<M> {
    /// The domain.
    pub fn domain(&self) -> &Domain<M> {
        &self.domain
    }

    /// The machine has ended. Its live definition is freed, the persistent one is back in its place, every call that is in
    /// the monitor or the agent fails, and who waits for a job is told. A domain that was destroyed has
    /// [`Reason::Destroyed`], whatever `reason` is.
    pub fn died(mut self, reason: Reason) {
        self.told = true;
        self.domain.inner.died(self.run, reason);
    }
}

impl<M: Model> Drop for Lifeline<M> {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        if let Some(machine) = &self.domain.inner.object().machine {
            // What cannot be killed cannot be ended by anybody here.
            let _ = machine.process.kill();
        }
        self.domain.inner.died(self.run, Reason::Unwatched);
    }
}

impl<M: Model> fmt::Debug for Lifeline<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifeline")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}
