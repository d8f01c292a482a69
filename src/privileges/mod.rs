//! Becoming another user, and proving it.
//!
//! Names are looked up while they can be ([`Identity::resolve`]: before any chroot, with the whole
//! group list), the change itself is a handful of system calls made later by
//! [`run_with`](crate::run_with), in the one order that is written there.
//!
//! What is promised once the change has been made in a process:
//!
//! - real, effective, saved and file-system ids are the new ones, and the supplementary groups
//!   exactly the resolved list;
//! - this holds for **every thread**. The kernel's credentials belong to a thread; the C library
//!   changes all *its* threads, and a thread made by a raw clone keeps root. So each entry of
//!   `/proc/self/task` is read afterwards, and one that differs is an error;
//! - root cannot be regained: `setuid(0)` was tried and refused, and no thread has a capability left
//!   (capabilities survive where the caller was not root, or had set `SECBIT_KEEP_CAPS`).
//!
//! Not covered: descriptors opened before keep the rights they were opened with; a thread with
//! capabilities that hides from `/proc/self/task` by racing the look; a thread that gave itself a root
//! directory of its own (`unshare(CLONE_FS)`), which a chroot does not reach. Where a change fails in
//! some threads and not in others, the C library aborts the process (glibc). A target of uid 0 is
//! refused: that drops nothing.
//!
//! # Platforms
//!
//! Linux: tested, every thread is read. FreeBSD, macOS, NetBSD, OpenBSD, DragonFly: written, never run; credentials are the
//! process's there, so its ids are read, and root is tried.

mod error;
mod identity;
mod user;

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod linux;
        pub(crate) use linux::{ProofError, Threads};
        #[cfg(any(feature = "cli", all(feature = "launcher", captive_stand_in)))]
        pub(crate) use linux::in_child;
        pub(crate) use linux::{enter_root, open_root, set_gid, set_groups, set_uid};
        use linux::group_list;
    } else {
        mod bsd;
        pub(crate) use bsd::{ProofError, Threads};
        #[cfg(feature = "launcher")]
        pub(crate) use bsd::in_child;
        pub(crate) use bsd::{enter_root, open_root, set_gid, set_groups, set_uid};
        use bsd::group_list;
    }
}

pub use error::{NotDropped, PrivilegeError};
pub use identity::Identity;
pub use user::{User, UserError};
