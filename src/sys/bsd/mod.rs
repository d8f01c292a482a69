//! System calls of the BSDs and macOS. **Never run**, see `docs/platforms.md`.
//!
//! [`stand_in`](super) has the same functions made of Linux's calls, so that what is written on top of
//! these can be run by tests.
//!
//! What is said to be for a forked child is async-signal-safe by the systems' sigaction(2): a system
//! call or next to it, no allocation, no lock.

#![allow(unsafe_code)]

mod queue;

pub(crate) use queue::Queue;

cfg_if::cfg_if! {
    if #[cfg(any(feature = "cli", feature = "launcher"))] {
        mod child;
        mod process;
        mod reap;
        #[cfg(target_os = "freebsd")]
        mod layout;
        mod socket;

        pub(crate) use super::exec::*;
        pub(crate) use super::posix::*;
        pub(crate) use {child::*, process::*, reap::*, socket::*};
    }
}

cfg_if::cfg_if! {
    if #[cfg(feature = "cli")] {
        mod supervise;

        pub(crate) use supervise::*;
    }
}
