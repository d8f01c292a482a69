//! The functions of [`bsd`](../bsd/mod.rs), made of Linux's: for tests alone, with `--cfg captive_stand_in`.
//!
//! What is written for the BSDs is compiled against these then, and run on real processes. It stands in for
//! one of two kinds of system, by the environment variable `CAPTIVE_STAND_IN`: `kqueue` for those that
//! have nothing but kqueue, else FreeBSD.
//!
//! Where it is not what it stands for:
//!
//! - A process descriptor is a pidfd. That the kernel ends a child when its descriptor is closed is the
//!   parent-death signal (SIGKILL) here: it comes when the *parent* ends, and a change of user clears it until
//!   [`arm_parent_death`] sets it again. A wait for any child returns one with a descriptor as well.
//! - A reaper is a child subreaper (prctl(2)), its descendants are found by a walk over `/proc`, which allocates: after
//!   glibc's fork a child may. Who is forked during a walk is found by the next.
//! - The parent-death signal belongs to the thread that forked. Whoever forks here and counts on it has one thread.
//! - What is forked inherits an epoll set, as no child inherits a queue.

#![allow(unsafe_code)]
// Each of those who use it uses a part.
#![allow(dead_code, unused_imports)]

mod child;
mod process;
mod reap;
mod socket;
#[cfg(feature = "cli")]
mod supervise;

pub(crate) use crate::sys::exec::*;
pub(crate) use crate::sys::linux::Epoll as Queue;
pub(crate) use crate::sys::linux::execve;
pub(crate) use crate::sys::posix::*;
#[cfg(feature = "cli")]
pub(crate) use supervise::*;
pub(crate) use {child::*, process::*, reap::*, socket::*};

/// Whether FreeBSD is stood in for. Asked of the environment once, by whoever forks first.
fn is_freebsd() -> bool {
    static KIND: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
    match KIND.load(std::sync::atomic::Ordering::Relaxed) {
        0 => {
            let kqueue = std::env::var_os("CAPTIVE_STAND_IN").is_some_and(|kind| kind == "kqueue");
            let kind = if kqueue { 2 } else { 1 };
            KIND.store(kind, std::sync::atomic::Ordering::Relaxed);
            !kqueue
        }
        kind => kind == 1,
    }
}
