//! A stack for a child that shares our memory.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use nix::errno::Errno;

/// A mapping whose lowest page cannot be touched: a stack that overflows faults, and overwrites
/// nothing. Unmapped on drop.
#[derive(Debug)]
pub(crate) struct GuardedStack {
    base: NonNull<c_void>,
    length: usize,
    /// The size of the page that cannot be touched.
    #[cfg_attr(
        not(captive_helper),
        allow(dead_code, reason = "for two stacks in one")
    )]
    guard: usize,
}

/// Which part of making a stack failed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StackError {
    /// mmap(2)
    Map(Errno),
    /// mprotect(2) of the guard page
    Guard(Errno),
}

// SAFETY: an address and a length of memory that no thread owns.
unsafe impl Send for GuardedStack {}
// SAFETY: as above; a shared reference gives away the address only.
unsafe impl Sync for GuardedStack {}

impl GuardedStack {
    /// At least `size` bytes, and the guard page below them. Pages are allocated when touched.
    pub(crate) fn new(size: usize) -> Result<Self, StackError> {
        // SAFETY: sysconf takes and touches no memory of ours.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).unwrap_or(64 * 1024);
        let length = page + size.next_multiple_of(page);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        let base = match NonNull::new(base) {
            Some(base) if base.as_ptr() != libc::MAP_FAILED => base,
            _ => return Err(StackError::Map(Errno::last())),
        };
        let stack = Self {
            base,
            length,
            guard: page,
        };
        // SAFETY: the first page of our own mapping, which nothing uses.
        if unsafe { libc::mprotect(base.as_ptr(), page, libc::PROT_NONE) } != 0 {
            return Err(StackError::Guard(Errno::last()));
        }
        Ok(stack)
    }

    /// Keeps it out of forked children. Not vital: an old kernel's refusal costs two pages.
    pub(crate) fn dont_fork(&self) {
        // SAFETY: our own mapping; the advice changes nothing in this process.
        unsafe { libc::madvise(self.base.as_ptr(), self.length, libc::MADV_DONTFORK) };
    }

    /// Where its upper or lower half begins and ends, above the guard page: two stacks, for a child and one that
    /// the child makes.
    #[cfg(captive_helper)]
    pub(crate) fn half(&self, upper: bool) -> (usize, usize) {
        let top = self.top() as usize;
        let lowest = self.base.as_ptr() as usize + self.guard;
        // Pages of at most 64 KiB, as the halves are.
        let middle = lowest + (top - lowest) / 2;
        if upper {
            (middle, top)
        } else {
            (lowest, middle)
        }
    }

    /// The end of the mapping, page-aligned: where a stack that grows down begins.
    pub(crate) fn top(&self) -> *mut c_void {
        self.base.as_ptr().wrapping_byte_add(self.length)
    }
}

impl Drop for GuardedStack {
    fn drop(&mut self) {
        // SAFETY: our own mapping; whoever ran on it has ended, or the owner has not let go of it.
        unsafe { libc::munmap(self.base.as_ptr(), self.length) };
    }
}
