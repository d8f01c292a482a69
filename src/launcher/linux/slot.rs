//! Room for one value, which one thread puts there and another waits for.
//!
//! Not a channel: crossbeam's spins and yields before it sleeps, and a thread that yields to the child it
//! waits for has it run to its end first: spawns took three times as long.

use std::time::{Duration, Instant};

use super::primitive::{Condvar, Mutex, PoisonError};

#[derive(Debug)]
pub(super) struct Slot<T> {
    value: Mutex<Option<T>>,
    filled: Condvar,
}

impl<T> Slot<T> {
    pub(super) fn new() -> Self {
        Self {
            value: Mutex::new(None),
            filled: Condvar::new(),
        }
    }

    /// Of a slot that is empty: callers put nothing before the last value was taken.
    pub(super) fn put(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.filled.notify_one();
    }

    pub(super) fn take(&self) -> T {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = value.take() {
                return value;
            }
            value = self
                .filled
                .wait(value)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`take`](Self::take), at most `limit`.
    pub(super) fn take_within(&self, limit: Duration) -> Option<T> {
        // A limit beyond the clock is none.
        let Some(deadline) = Instant::now().checked_add(limit) else {
            return Some(self.take());
        };
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if value.is_some() {
                return value.take();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (value, _) = self
                .filled
                .wait_timeout(value, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
