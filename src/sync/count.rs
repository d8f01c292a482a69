//! A reference count that is never revived and never overflows.

use std::fmt;

use super::primitive::{AtomicUsize, Ordering};

/// How many references there are to something that is to end when there are none.
///
/// - **Never revived**: once it is 0, [`try_ref`](Self::try_ref) says no, for ever. Who finds an object by a stale
///   pointer or name learns that it is dead.
/// - **Never overflows**: at half of what fits it stays where it is. Such an object is never ended, which is a
///   leak, where an overflow would end it under those who use it. As Linux's `refcount_t`.
///
/// It counts; it does not hold: the memory is another's to keep (an [`Arc`](std::sync::Arc)'s), and what is done at
/// the end is the caller's.
///
/// ```
/// use captive::sync::RefCount;
///
/// let count = RefCount::new(); // 1: ours
/// assert!(count.try_ref());
/// assert!(!count.unref());
/// assert!(count.unref()); // that was the last one: end the object now
/// assert!(!count.try_ref());
/// ```
pub struct RefCount(AtomicUsize);

/// From here on it is not counted any more. Every thread of the machine may be between its load and its exchange
/// and still be far from an overflow.
pub(super) const SATURATED: usize = usize::MAX / 2;

impl RefCount {
    /// One reference: the caller's.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicUsize::new(1))
    }

    /// With so many references.
    #[cfg(test)]
    pub(super) fn at(count: usize) -> Self {
        Self(AtomicUsize::new(count))
    }

    /// Takes a reference, unless there is none left: then the object is dead, and the answer is false.
    ///
    /// Acquire: what its holders have done before is seen.
    #[doc(alias = "atomic_fetch_inc_nonzero")]
    #[must_use = "without a reference the object is dead"]
    pub fn try_ref(&self) -> bool {
        let mut count = self.0.load(Ordering::Acquire);
        loop {
            match count {
                0 => return false,
                SATURATED.. => return true,
                _ => {}
            }
            let more =
                self.0
                    .compare_exchange_weak(count, count + 1, Ordering::AcqRel, Ordering::Acquire);
            match more {
                Ok(_) => return true,
                Err(found) => count = found,
            }
        }
    }

    /// Gives a reference back; whether it was the last. Then, and only then, the object is the caller's to end.
    ///
    /// A count that is 0 is left so, and nobody is told twice: giving back what one has not is a mistake that ends
    /// nothing. Release, and acquire at the end: what others did with the object is seen before it is ended.
    #[must_use = "the last one ends the object"]
    pub fn unref(&self) -> bool {
        let mut count = self.0.load(Ordering::Acquire);
        loop {
            match count {
                0 | SATURATED.. => return false,
                _ => {}
            }
            let less =
                self.0
                    .compare_exchange_weak(count, count - 1, Ordering::AcqRel, Ordering::Acquire);
            match less {
                Ok(_) => return count == 1,
                Err(found) => count = found,
            }
        }
    }

    /// Whether there is no reference left. True stays true; false may be so no more when it is read.
    pub fn is_dead(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

impl Default for RefCount {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RefCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RefCount")
            .field(&self.0.load(Ordering::Relaxed))
            .finish()
    }
}
