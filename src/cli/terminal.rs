//! The terminal that run-with has, if it has one.

use std::fs::File;

use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};

/// The process group that has our terminal, if we have one.
pub(super) fn foreground_group() -> Option<i32> {
    let terminal = File::open("/dev/tty").ok()?;
    tcgetpgrp(&terminal).ok().map(Pid::as_raw)
}

/// Gives our terminal to a process group; SIGTTOU, which could stop us, is blocked.
pub(super) fn give_terminal_to(group: i32) {
    if let Ok(terminal) = File::open("/dev/tty") {
        let _ = tcsetpgrp(&terminal, Pid::from_raw(group));
    }
}
