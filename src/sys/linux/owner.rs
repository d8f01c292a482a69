//! Which process something belongs to, where a pid alone does not say.
//!
//! A child forked into another PID namespace can have the pid of the process it was forked from.
//! So each process has a mark besides: a number in a page that a fork empties (`MADV_WIPEONFORK`,
//! Linux 4.14; it is the copying of the memory that empties it, whoever asked for the copy, so a raw
//! clone does as well) and that no ancestor had. Needs neither /proc, which a new root may lack, nor
//! a handler that only the C library's fork runs.
//!
//! Before Linux 4.14 the pid is all there is, and everywhere for a child that *shares* the memory
//! (`CLONE_VM`): the two have one mark.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use nix::errno::Errno;

/// A process, as it knows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pid: i32,
    mark: u32,
}

impl Owner {
    /// The calling process.
    pub(crate) fn this_process() -> Self {
        let pid = super::getpid();
        Self {
            pid,
            mark: page().map_or(pid as u32, mark),
        }
    }

    /// Whether it is the calling process.
    pub(crate) fn is_this_process(self) -> bool {
        self == Self::this_process()
    }

    /// Its pid, in its own namespace.
    pub(crate) fn pid(self) -> i32 {
        self.pid
    }

    /// A word that is not 0 and that no ancestor has; the pid where there are no marks.
    pub(crate) fn word(self) -> u32 {
        self.mark
    }
}

/// Above every pid (2^22), so that no mark is taken for one.
const FIRST_MARK: u32 = 1 << 24;

/// The calling process's mark, made if it has none. `NEXT` is copied by a fork: what a child makes is
/// above what it inherited.
fn mark(word: &AtomicU32) -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(FIRST_MARK);
    match word.load(Ordering::Acquire) {
        0 => {
            let new = NEXT.fetch_add(1, Ordering::Relaxed);
            // Another thread may have been first.
            word.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire)
                .map_or_else(|theirs| theirs, |_| new)
        }
        mark => mark,
    }
}

/// The word that a fork empties; mapped once, and kept. A refusal is kept too: marks must not begin
/// when owners without one have been noted.
fn page() -> Option<&'static AtomicU32> {
    static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
    // No lock and no OnceLock: a fork in the middle would leave it taken for ever.
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        let new = map_page().unwrap_or(libc::MAP_FAILED.cast());
        page = match PAGE.compare_exchange(
            std::ptr::null_mut(),
            new,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => new,
            Err(theirs) => {
                unmap_page(new);
                theirs
            }
        };
    }
    if page == libc::MAP_FAILED.cast() {
        return None;
    }
    // SAFETY: mapped by `map_page`, page-aligned, never unmapped once it is in PAGE, and all zeroes is
    // a value.
    Some(unsafe { &*page })
}

fn map_page() -> Result<*mut AtomicU32, Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let size = size_of::<AtomicU32>();
    // SAFETY: a fresh mapping where the kernel likes; nothing that exists is touched.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: our own mapping, which nobody else knows yet.
    if unsafe { libc::madvise(page, size, libc::MADV_WIPEONFORK) } != 0 {
        let errno = Errno::last();
        unmap_page(page.cast());
        return Err(errno);
    }
    Ok(page.cast())
}

/// Of one that was never in use.
fn unmap_page(page: *mut AtomicU32) {
    if page != libc::MAP_FAILED.cast() {
        // SAFETY: our own mapping, which nobody else has been told of.
        unsafe { libc::munmap(page.cast(), size_of::<AtomicU32>()) };
    }
}
