//! A command that stops and goes on, and the shell that wants to see its job do so.
//!
//! The shell knows run-with alone: when the command stops at a terminal run-with stops as well, and what
//! resumes run-with is handed on.

use std::ffi::c_int;

use super::{Action, Facts, Setup};

/// What is known of the command's stops.
#[derive(Debug, Default)]
pub(super) struct Job {
    stopped: Option<Stop>,
    /// How often the command has stopped.
    stops: u64,
    /// Up to which of its stops run-with has looked whether to stop as well.
    looked_at: u64,
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

impl Job {
    /// The command has been stopped by `signal`.
    pub(super) fn stopped(&mut self, signal: c_int, foreground: Option<i32>) {
        self.stopped = Some(Stop { signal, foreground });
        self.stops += 1;
    }

    /// The command goes on.
    pub(super) fn continued(&mut self) {
        self.stopped = None;
    }

    /// Stops with the command where a job-control shell is there to resume both: it has seen nothing
    /// yet, and waits for its job. Without a terminal nobody would resume run-with.
    pub(super) fn look(&mut self, facts: &impl Facts) -> Option<Action> {
        if std::mem::replace(&mut self.looked_at, self.stops) == self.stops {
            // An old stop, and another child's news: to stop again would lose the SIGCONT that is
            // on its way.
            return None;
        }
        let Stop { signal, foreground } = self.stopped?;
        let foreground = foreground?;
        let in_foreground =
            foreground == facts.own_group() || Some(foreground) == facts.command_group();
        let by_job_control = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal);
        if in_foreground || by_job_control {
            // What resumes us is a SIGCONT, which is read like any other.
            self.slept_for = Some(self.stops);
            return Some(Action::StopSelf);
        }
        None
    }

    /// SIGCONT has come. A stopped command is resumed even if signals are not passed on.
    pub(super) fn resume(&mut self, setup: Setup, facts: &impl Facts, actions: &mut Vec<Action>) {
        let slept_for = self.slept_for.take();
        let shares_our_group = facts.command_group() == Some(facts.own_group());
        let Some(stop) = self.stopped else {
            if setup.forward && !shares_our_group {
                actions.push(Action::Send(libc::SIGCONT));
            }
            return;
        };
        if slept_for.is_some_and(|stop| stop != self.stops) {
            // What woke us was for the stop before this one, which is over.
            return;
        }
        if shares_our_group || facts.command_group() != Some(setup.command) {
            actions.push(Action::Send(libc::SIGCONT));
            return;
        }
        // A shell that puts us into the foreground gives the terminal to our group.
        if stop.foreground == Some(setup.command) && facts.foreground() == Some(facts.own_group()) {
            actions.push(Action::GiveTerminal);
        }
        // All of the group was stopped, by the terminal.
        actions.push(Action::ResumeGroup);
    }
}
