//! Locks and sleeping. In the models, `tests/loom`, this module is loom's.

pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
pub(super) use std::thread::{Thread, current};
use std::time::Instant;

/// Sleeps until somebody unparks this thread, then, or for no reason.
pub(super) fn park_until(until: Instant) {
    std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
}
