//! Who has a child in the end: the one who asked for it, or, if that one has given up, the thread that
//! made it, which ends it.

use super::primitive::{AtomicU32, Ordering};

/// Settled once, by the first who comes. Until then the child's descriptor is open: the thread that made
/// it lets go of it only as part of its answer, or after it has found the claim given up.
#[derive(Debug)]
pub(super) struct Claim(AtomicU32);

/// How a claim can be settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// The child, or why there is none, goes to the one who asked.
    Answered = 1,
    /// Nobody waits for an answer any more.
    GivenUp = 2,
}

impl Claim {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether it was still open, and is settled so now.
    pub(super) fn settle(&self, how: Settled) -> bool {
        self.0
            .compare_exchange(0, how as u32, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}
