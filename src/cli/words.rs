//! What run-with, its guard and the command's process before its exec tell each other: words in a
//! page that all of them see.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use nix::errno::Errno;

/// The words. All zeroes are words of a time in which nothing has happened.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Words {
    /// The command's pid, written by itself before its exec, or by the process that made it in a namespace.
    pid: AtomicI32,
    /// The signal for the parent's exit: 0, then [`CLAIMED`], then [`SENT`].
    signalled: AtomicU32,
    /// 1 once the command has ended and been reaped.
    done: AtomicU32,
    /// Where the command's process failed before its exec, as the platform numbers it; 0 is nowhere.
    failed_at: AtomicU32,
    /// With which errno.
    errno: AtomicI32,
}

/// Somebody has undertaken to send it.
const CLAIMED: u32 = 1;
/// It has been sent.
const SENT: u32 = 2;

impl Words {
    pub(super) fn pid(&self) -> i32 {
        self.pid.load(Ordering::SeqCst)
    }

    pub(super) fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Ordering::SeqCst);
    }

    /// Whether the caller is the one to send the signal for the parent's exit: true for one caller
    /// only, ever.
    pub(super) fn claim_signal(&self) -> bool {
        self.signalled
            .compare_exchange(0, CLAIMED, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Whether somebody has: the parent is gone.
    #[cfg_attr(
        target_os = "linux",
        allow(dead_code, reason = "a pidfd says so there")
    )]
    pub(super) fn is_claimed(&self) -> bool {
        self.signalled.load(Ordering::SeqCst) != 0
    }

    /// Whether the signal has been sent: one who claimed it may have been stopped or killed since.
    pub(super) fn is_signalled(&self) -> bool {
        self.signalled.load(Ordering::SeqCst) == SENT
    }

    /// The signal has been sent.
    pub(super) fn set_signalled(&self) {
        self.signalled.store(SENT, Ordering::SeqCst);
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst) != 0
    }

    pub(super) fn set_done(&self) {
        self.done.store(1, Ordering::SeqCst);
    }

    /// Says where and why there will be no exec.
    pub(super) fn fail(&self, at: u32, errno: Errno) {
        self.errno.store(errno as i32, Ordering::SeqCst);
        self.failed_at.store(at, Ordering::SeqCst);
    }

    /// Where and why there was no exec.
    pub(super) fn failure(&self) -> Option<(u32, Errno)> {
        let at = self.failed_at.load(Ordering::SeqCst);
        let errno = Errno::from_raw(self.errno.load(Ordering::SeqCst));
        (at != 0).then_some((at, errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_claims_and_others_see_it_sent() {
        let words = Words::default();
        assert!(!words.is_claimed());
        assert!(words.claim_signal());
        assert!(words.is_claimed());
        assert!(!words.claim_signal());
        assert!(!words.is_signalled());
        words.set_signalled();
        assert!(words.is_signalled());
        assert!(!words.claim_signal());
    }

    #[test]
    fn a_failure_has_a_place() {
        let words = Words::default();
        assert_eq!(words.failure(), None);
        words.fail(7, Errno::EPERM);
        assert_eq!(words.failure(), Some((7, Errno::EPERM)));
    }
}
