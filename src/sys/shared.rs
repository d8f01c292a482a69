//! A page that parent and child see alike: words that either writes and the other reads.

#![allow(unsafe_code)]

use std::ops::Deref;
use std::ptr::NonNull;

use nix::errno::Errno;

/// A value in anonymous shared memory (mmap(2), MAP_SHARED): a child that was forked sees the
/// same one, and keeps it when this one is dropped.
#[derive(Debug)]
pub(crate) struct Shared<T>(NonNull<T>);

/// A type whose every bit pattern is a value, all zeroes included, and which is only ever changed
/// through atomics, so that two processes may have it at once.
///
/// # Safety
/// Exactly that: a struct of atomics of integers.
pub(crate) unsafe trait SharedWords: Sync {}

// SAFETY: as for a reference to T, which any thread may use at once (SharedWords), and drop.
unsafe impl<T: SharedWords> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: SharedWords> Sync for Shared<T> {}

impl<T: SharedWords> Shared<T> {
    /// Maps a new one, all zeroes.
    pub(crate) fn new() -> Result<Self, Errno> {
        let flags = libc::MAP_SHARED | libc::MAP_ANON;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping where the kernel likes; nothing that exists is touched.
        let page =
            unsafe { libc::mmap(std::ptr::null_mut(), size_of::<T>(), access, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(page.cast()).map(Self).ok_or(Errno::ENOMEM)
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; no reference outlives the owner.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<T>()) };
    }
}

impl<T: SharedWords> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: mapped by `new` with T's size and a page's alignment, unmapped by the drop
        // alone, and all zeroes is a value of T (SharedWords).
        unsafe { self.0.as_ref() }
    }
}
