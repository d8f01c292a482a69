//! What is new for a thread that sleeps until it is woken.

use super::primitive::{Mutex, MutexGuard, PoisonError};

/// Items that wait to be taken. Nothing that was pushed stays here while the thread sleeps: a push puts
/// the item in *before* it wakes, and a taker clears the wake-up *before* it looks.
#[derive(Debug)]
pub(super) struct News<T>(Mutex<Vec<T>>);

impl<T> News<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(super) fn push(&self, item: T, wake: impl FnOnce()) {
        self.lock().push(item);
        wake();
    }

    pub(super) fn take(&self, clear: impl FnOnce()) -> Vec<T> {
        clear();
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
