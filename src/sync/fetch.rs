//! What std's atomic integers lack: an increment that leaves 0 alone, and the operations that return the
//! new value.

use super::primitive::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32,
    AtomicU64, AtomicUsize, Ordering,
};

/// Operations of QEMU's `docs/devel/atomics.txt` that std has not, for every atomic integer up to the width of
/// a pointer (and 64 bits, where the machine has them). Arithmetic wraps, as std's does.
///
/// ```
/// use captive::sync::FetchOps;
/// use std::sync::atomic::AtomicU32;
///
/// let references = AtomicU32::new(1);
/// assert_eq!(references.fetch_inc_nonzero(), 1); // the value before, 1: now 2
/// assert_eq!(references.dec_fetch(), 1);
/// assert_eq!(references.dec_fetch(), 0);
/// assert_eq!(references.fetch_inc_nonzero(), 0); // it was 0 and is left so
/// ```
pub trait FetchOps {
    /// The integer.
    type Value;

    /// Adds 1 unless the value is 0; the value before. 0 means that nothing was done: the object is on its way
    /// out, and no reference can be had. (`atomic_fetch_inc_nonzero`; Linux's `atomic_inc_not_zero`.)
    ///
    /// Sequentially consistent if it adds, and if it does not.
    #[doc(alias = "atomic_fetch_inc_nonzero")]
    fn fetch_inc_nonzero(&self) -> Self::Value;

    /// Adds 1; the new value. (`atomic_inc_fetch`.)
    #[doc(alias = "atomic_inc_fetch")]
    fn inc_fetch(&self) -> Self::Value;

    /// Subtracts 1; the new value. (`atomic_dec_fetch`.)
    #[doc(alias = "atomic_dec_fetch")]
    fn dec_fetch(&self) -> Self::Value;

    /// Adds; the new value, sequentially consistent. (`atomic_add_fetch`.)
    #[doc(alias = "atomic_add_fetch")]
    fn add_fetch(&self, value: Self::Value) -> Self::Value
    where
        Self: Sized,
    {
        self.add_fetch_with(value, Ordering::SeqCst)
    }

    /// Subtracts; the new value, sequentially consistent. (`atomic_sub_fetch`.)
    #[doc(alias = "atomic_sub_fetch")]
    fn sub_fetch(&self, value: Self::Value) -> Self::Value
    where
        Self: Sized,
    {
        self.sub_fetch_with(value, Ordering::SeqCst)
    }

    /// Bitwise and; the new value, sequentially consistent. (`atomic_and_fetch`.)
    #[doc(alias = "atomic_and_fetch")]
    fn and_fetch(&self, value: Self::Value) -> Self::Value
    where
        Self: Sized,
    {
        self.and_fetch_with(value, Ordering::SeqCst)
    }

    /// Bitwise or; the new value, sequentially consistent. (`atomic_or_fetch`.)
    #[doc(alias = "atomic_or_fetch")]
    fn or_fetch(&self, value: Self::Value) -> Self::Value
    where
        Self: Sized,
    {
        self.or_fetch_with(value, Ordering::SeqCst)
    }

    /// Bitwise exclusive or; the new value, sequentially consistent. (`atomic_xor_fetch`.)
    #[doc(alias = "atomic_xor_fetch")]
    fn xor_fetch(&self, value: Self::Value) -> Self::Value
    where
        Self: Sized,
    {
        self.xor_fetch_with(value, Ordering::SeqCst)
    }

    /// As [`add_fetch`](Self::add_fetch), with an ordering of the caller's.
    fn add_fetch_with(&self, value: Self::Value, order: Ordering) -> Self::Value;

    /// As [`sub_fetch`](Self::sub_fetch), with an ordering of the caller's.
    fn sub_fetch_with(&self, value: Self::Value, order: Ordering) -> Self::Value;

    /// As [`and_fetch`](Self::and_fetch), with an ordering of the caller's.
    fn and_fetch_with(&self, value: Self::Value, order: Ordering) -> Self::Value;

    /// As [`or_fetch`](Self::or_fetch), with an ordering of the caller's.
    fn or_fetch_with(&self, value: Self::Value, order: Ordering) -> Self::Value;

    /// As [`xor_fetch`](Self::xor_fetch), with an ordering of the caller's.
    fn xor_fetch_with(&self, value: Self::Value, order: Ordering) -> Self::Value;
}

macro_rules! fetch_ops {
    ($($atomic:ty: $value:ty),+ $(,)?) => {
        $(impl FetchOps for $atomic {
            type Value = $value;

            fn fetch_inc_nonzero(&self) -> $value {
                let add = |value: $value| (value != 0).then(|| value.wrapping_add(1));
                match self.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add) {
                    Ok(before) | Err(before) => before,
                }
            }

            fn inc_fetch(&self) -> $value {
                self.fetch_add(1, Ordering::SeqCst).wrapping_add(1)
            }

            fn dec_fetch(&self) -> $value {
                self.fetch_sub(1, Ordering::SeqCst).wrapping_sub(1)
            }

            fn add_fetch_with(&self, value: $value, order: Ordering) -> $value {
                self.fetch_add(value, order).wrapping_add(value)
            }

            fn sub_fetch_with(&self, value: $value, order: Ordering) -> $value {
                self.fetch_sub(value, order).wrapping_sub(value)
            }

            fn and_fetch_with(&self, value: $value, order: Ordering) -> $value {
                self.fetch_and(value, order) & value
            }

            fn or_fetch_with(&self, value: $value, order: Ordering) -> $value {
                self.fetch_or(value, order) | value
            }

            fn xor_fetch_with(&self, value: $value, order: Ordering) -> $value {
                self.fetch_xor(value, order) ^ value
            }
        })+
    };
}

fetch_ops! {
    AtomicI8: i8,
    AtomicI16: i16,
    AtomicI32: i32,
    AtomicI64: i64,
    AtomicIsize: isize,
    AtomicU8: u8,
    AtomicU16: u16,
    AtomicU32: u32,
    AtomicU64: u64,
    AtomicUsize: usize,
}
