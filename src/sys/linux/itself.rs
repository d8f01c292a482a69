//! What a process that blocks every signal does to itself by one.

use super::{ALL_SIGNALS, getpid, kill, set_disposition, set_not_dumpable, set_signal_mask};

/// Stops this process as the terminal's stop character would have: not at all if nobody is there to
/// resume it (an orphaned process group).
pub(crate) fn stop_self() {
    let _ = set_disposition(libc::SIGTSTP, libc::SIG_DFL);
    with_unblocked(libc::SIGTSTP);
}

/// Ends this process by `signal`, without a core dump. Returns if that is impossible.
pub(crate) fn die_of(signal: i32) {
    let _ = set_not_dumpable();
    let _ = set_disposition(signal, libc::SIG_DFL);
    with_unblocked(signal);
}

/// Sends ourselves a signal, and lets this one alone through.
fn with_unblocked(signal: i32) {
    let _ = kill(getpid(), signal);
    let bit = 1_u64 << (signal - 1);
    let _ = set_signal_mask(ALL_SIGNALS & !bit);
    let _ = set_signal_mask(ALL_SIGNALS);
}
