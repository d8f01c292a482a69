//! Reapers: who adopts orphans, and knows its descendants. FreeBSD 10.2's procctl(2) has them whole; elsewhere
//! all is ENOSYS. **Never run**, see `docs/platforms.md`.
//!
//! By FreeBSD's `sys/kern/kern_procctl.c` and `kern_exit.c`:
//!
//! - Everything that is forked after PROC_REAP_ACQUIRE below the reaper belongs to it (p_reaplist), in
//!   whatever session, group or jail, until it has been *reaped*; nothing can leave. A descendant may become
//!   a reaper itself: its own descendants belong to it then, and come to us when it ends.
//! - PROC_REAP_KILL goes through reapers below as well. Since 13.2 it stops each before it signals it
//!   and begins again until it finds no other (reap_kill_subtree()), so that a fork in the middle does not escape;
//!   before, it is one pass. A loop until PROC_REAP_STATUS counts none is right with both.
//! - It signals whom kill(2) would let us signal (p_cansignal()), goes on after a refusal, and answers its errno only if
//!   nobody was signalled before. ESRCH: there is nobody who is not ending already.
//! - When a reaper ends, its descendants go to the next above it, and live (reaper_abandon_children()).

use nix::errno::Errno;

cfg_if::cfg_if! {
    if #[cfg(target_os = "freebsd")] {
        use super::layout::{ReaperKill, ReaperStatus};

        /// procctl(2) on the calling process.
        ///
        /// # Safety
        /// `data` is what `command` reads and writes.
        unsafe fn procctl(command: libc::c_int, data: *mut libc::c_void) -> Result<(), Errno> {
            // SAFETY: the caller's promise; P_PID and 0 are the calling process.
            Errno::result(unsafe { libc::procctl(libc::P_PID, 0, command, data) }).map(drop)
        }

        /// Whether there are reapers.
        pub(crate) fn has_reapers() -> bool {
            true
        }

        /// Makes the calling process a reaper; PROC_REAP_ACQUIRE. EBUSY: it is one.
        pub(crate) fn become_reaper() -> Result<(), Errno> {
            // SAFETY: it takes no data.
            unsafe { procctl(libc::PROC_REAP_ACQUIRE, std::ptr::null_mut()) }
        }

        /// Sends a signal to every descendant; PROC_REAP_KILL. ESRCH: there is none that is not ending.
        pub(crate) fn kill_descendants(signal: i32) -> Result<(), Errno> {
            let mut kill = ReaperKill { signal, ..ReaperKill::default() };
            // SAFETY: one structure, as the command has it.
            unsafe { procctl(libc::PROC_REAP_KILL, (&raw mut kill).cast()) }
        }

        /// How many descendants there are, with those who have ended and not been waited for; PROC_REAP_STATUS.
        pub(crate) fn count_descendants() -> Result<u32, Errno> {
            let mut status = ReaperStatus::default();
            // SAFETY: one structure, as the command has it.
            unsafe { procctl(libc::PROC_REAP_STATUS, (&raw mut status).cast()) }?;
            Ok(status.descendants)
        }

        /// Has the kernel send this signal to the calling process when its parent ends; PROC_PDEATHSIG_CTL, 11.2. A fork
        /// clears it, and so does exec of a set-user-ID program (do_execve(), `sys/kern/kern_exec.c`), nothing else. A child whose process
        /// descriptor the parent's exit closes for the last time has another parent by then, and gets none.
        pub(crate) fn arm_parent_death(signal: i32) -> Result<(), Errno> {
            let mut signal = signal;
            // SAFETY: the command reads one int.
            unsafe { procctl(libc::PROC_PDEATHSIG_CTL, (&raw mut signal).cast()) }
        }
    } else {
        /// Whether there are reapers.
        pub(crate) fn has_reapers() -> bool {
            false
        }

        /// Makes the calling process a reaper.
        pub(crate) fn become_reaper() -> Result<(), Errno> {
            Err(Errno::ENOSYS)
        }

        /// Sends a signal to every descendant.
        pub(crate) fn kill_descendants(_signal: i32) -> Result<(), Errno> {
            Err(Errno::ENOSYS)
        }

        /// How many descendants there are.
        pub(crate) fn count_descendants() -> Result<u32, Errno> {
            Err(Errno::ENOSYS)
        }

        /// Has the kernel send this signal to the calling process when its parent ends.
        pub(crate) fn arm_parent_death(_signal: i32) -> Result<(), Errno> {
            Err(Errno::ENOSYS)
        }
    }
}
