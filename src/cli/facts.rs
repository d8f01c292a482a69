//! What the machine asks for, as the system has it at this moment; and our terminal.

use std::fs::File;
use std::time::Instant;

use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid, tcgetpgrp, tcsetpgrp};

use super::machine::{Facts, Time};
use super::writing;

/// What is so now.
pub(super) struct Now {
    /// When time began.
    pub(super) since: Instant,
    /// The command's pid.
    pub(super) command: i32,
}

impl Facts for Now {
    fn now(&self) -> Time {
        self.since.elapsed()
    }

    fn own_group(&self) -> i32 {
        getpgrp().as_raw()
    }

    fn command_group(&self) -> Option<i32> {
        let command = Pid::from_raw(self.command);
        getpgid(Some(command)).ok().map(Pid::as_raw)
    }

    fn foreground(&self) -> Option<i32> {
        let terminal = File::open("/dev/tty").ok()?;
        tcgetpgrp(&terminal).ok().map(Pid::as_raw)
    }

    fn leads_session(&self) -> bool {
        getsid(None) == Ok(getpid())
    }

    fn has_raised(&self, signal: i32) -> bool {
        writing::has_raised(signal)
    }
}

/// Gives our terminal to a process group; SIGTTOU, which could stop us, is blocked.
pub(super) fn give_terminal_to(group: i32) {
    if let Ok(terminal) = File::open("/dev/tty") {
        let _ = tcsetpgrp(&terminal, Pid::from_raw(group));
    }
}
