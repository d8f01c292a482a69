//! A value that is replaced as a whole.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

/// A value that many read and few replace: QEMU's RCU-protected pointer, with memory that cannot go away.
///
/// - Readers never block, and hold no writer up: [`load`](Self::load) is lock-free, and nearly always wait-free.
/// - A reader never sees a dead value: what it has loaded lives until it lets go of it, replaced or not.
/// - What is published is seen whole, and with everything that its writer did before.
///
/// ```
/// use captive::sync::Published;
///
/// let names = Published::new(vec!["a"]);
/// let before = names.load();
/// names.update(|names| names.iter().copied().chain(["b"]).collect());
/// assert_eq!(*before, ["a"]);
/// assert_eq!(*names.load(), ["a", "b"]);
/// ```
pub struct Published<T>(ArcSwap<T>);

/// A value as it was when it was loaded. To be kept for a moment: while very many are held, loading costs more.
pub struct Snapshot<T>(Guard<Arc<T>>);

impl<T> Published<T> {
    /// Publishes a first value.
    pub fn new(value: T) -> Self {
        Self(ArcSwap::from_pointee(value))
    }

    /// The value of this moment.
    pub fn load(&self) -> Snapshot<T> {
        Snapshot(self.0.load())
    }

    /// The value of this moment, to be kept.
    pub fn load_full(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Replaces the value.
    pub fn store(&self, value: T) {
        self.0.store(Arc::new(value));
    }

    /// Makes the next value from this one. Of two at once neither is lost: `next` is called again if another writer
    /// came first, so it must have no effect but its result.
    pub fn update(&self, mut next: impl FnMut(&T) -> T) {
        self.0.rcu(|value| next(value));
    }
}

impl<T> Deref for Snapshot<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Published").field(&&*self.load()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}
