//! A command that stops and goes on, and the shell that wants to see its job do so.
//!
//! The shell knows run-with alone: when the command stops at a terminal run-with stops as well, and what
//! resumes run-with is handed on.

use std::ffi::c_int;
use std::fs::File;

use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};

use super::signals;
use super::spawn::Command;
use crate::sys::linux as sys;

/// What is known of the command's stops.
#[derive(Debug, Default)]
pub(super) struct JobControl {
    stopped: Option<Stop>,
    /// How often the command has stopped.
    stops: u64,
    /// The stop for which run-with has stopped as well, until a SIGCONT is read.
    slept_for: Option<u64>,
}

/// A command that is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stop {
    signal: c_int,
    /// The process group that had the terminal then.
    foreground: Option<i32>,
}

impl JobControl {
    /// The command has been stopped by `signal`.
    pub(super) fn stopped(&mut self, signal: c_int) {
        let foreground = foreground_group();
        self.stopped = Some(Stop { signal, foreground });
        self.stops += 1;
    }

    /// The command goes on.
    pub(super) fn continued(&mut self) {
        self.stopped = None;
    }

    /// Stops with the command where a job-control shell is there to resume both: it has seen nothing
    /// yet, and waits for its job. Without a terminal nobody would resume run-with.
    pub(super) fn stop_with(&mut self, command: &Command) {
        let Some(Stop {
            signal,
            foreground: Some(foreground),
        }) = self.stopped
        else {
            return;
        };
        let in_foreground =
            Ok(foreground) == sys::getpgid(0) || Ok(foreground) == sys::getpgid(command.pid);
        let by_job_control = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal);
        if in_foreground || by_job_control {
            // What resumes us is a SIGCONT, which is read like any other.
            self.slept_for = Some(self.stops);
            signals::stop_self();
        }
    }

    /// SIGCONT has come. `forward`: whether signals are passed on at all; a stopped command is
    /// resumed even if they are not.
    pub(super) fn resume(&mut self, command: &Command, forward: bool) {
        let slept_for = self.slept_for.take();
        let Some(stop) = self.stopped else {
            if forward && !command.shares_our_group() {
                command.send(libc::SIGCONT);
            }
            return;
        };
        if slept_for.is_some_and(|stop| stop != self.stops) {
            // What woke us was for the stop before this one, which is over.
            return;
        }
        let pid = command.pid;
        if command.shares_our_group() || sys::getpgid(pid) != Ok(pid) {
            command.send(libc::SIGCONT);
            return;
        }
        // A shell that puts us into the foreground gives the terminal to our group.
        if stop.foreground == Some(pid) && foreground_group().map(Ok) == Some(sys::getpgid(0)) {
            give_terminal_to(pid);
        }
        // All of the group was stopped, by the terminal. The command has not been reaped: the number
        // is its own.
        let _ = sys::kill(-pid, libc::SIGCONT);
    }
}

/// The process group that has our terminal, if we have one.
fn foreground_group() -> Option<i32> {
    let terminal = File::open("/dev/tty").ok()?;
    tcgetpgrp(&terminal).ok().map(Pid::as_raw)
}

/// Gives our terminal to a process group; SIGTTOU, which could stop us, is blocked.
fn give_terminal_to(group: i32) {
    if let Ok(terminal) = File::open("/dev/tty") {
        let _ = tcsetpgrp(&terminal, Pid::from_raw(group));
    }
}
