//! What the supervisor does when something happens: decisions alone, with time as an input and no
//! system call, so that every sequence of events can be played on any system. The platforms' supervisors
//! tell it what has happened, and do what is decided here.
//!
//! | what happens | what is done |
//! |---|---|
//! | the command ends | its status is ours |
//! | the command stops, without a terminal | nothing: who stopped it resumes it |
//! | the command stops by a signal of job control, or by another in the foreground | run-with stops as well, so that the shell sees its job stopped |
//! | the guard ends | another is started, but never more than one in [`GUARD_INTERVAL`] |
//! | the parent exits | the signal and SIGCONT, once; after the grace SIGKILL |
//! | SIGCONT, the command is stopped | the terminal to the command's group if that had it, and SIGCONT to the group it leads, or to the command |
//! | SIGCONT otherwise | passed on to a command in another process group |
//! | a terminal's signal, from the kernel | passed on to a command in another process group; a hang-up also if run-with leads the session |
//! | a terminal's signal, nobody says from whom, run-with's group has the terminal | taken for the terminal's |
//! | SIGPIPE, SIGXFSZ, from the kernel or nobody says from whom, after a write of run-with's that raises it | not passed on |
//! | any other signal | passed on, unless the command sent it, or run-with itself |

use std::ffi::c_int;
use std::time::Duration;

mod job;
#[cfg(test)]
mod tests;

use crate::exit_with_parent::Signal;

use job::Job;

/// Time, since some moment before the first.
pub(super) type Time = Duration;

/// How long run-with may take to act on the parent's exit before the guard does.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// How soon after a guard's start the next one may be started: whoever kills them all does not make
/// run-with do nothing else.
pub(super) const GUARD_INTERVAL: Duration = Duration::from_millis(10);

/// When to try again if a guard could not be started.
pub(super) const GUARD_RETRY: Duration = Duration::from_secs(1);

/// How soon to look again at a command whose end was told and that cannot be waited for yet.
const ENDING: Duration = Duration::from_millis(1);

/// Who sent a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// The kernel: a terminal, mostly.
    Kernel,
    /// A process; 0 for one outside our PID namespace.
    Process(i32),
    /// The system does not say.
    #[cfg_attr(target_os = "linux", allow(dead_code, reason = "it says"))]
    Unknown,
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Exited(c_int),
    Killed(c_int),
}

/// Something has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// A signal to run-with. SIGCHLD and SIGCONT come after what has happened to the command before them.
    Signal(c_int, Sender),
    /// The command has been stopped by this signal.
    Stopped(c_int),
    /// The command goes on.
    Continued,
    /// The kernel has told the command's end; how it ended comes when it can be waited for.
    #[cfg_attr(
        target_os = "linux",
        allow(dead_code, reason = "what is told there can be waited for")
    )]
    Ending,
    /// The command has ended, and has been waited for.
    Ended(End),
    ParentGone,
    GuardEnded,
    /// A guard that was asked for runs.
    GuardStarted,
    /// It could not be started.
    GuardFailed,
    /// Nothing, but for the time.
    Tick,
}

/// What is so while something happens. Asked only where it matters: some of it costs system calls.
pub(super) trait Facts {
    fn now(&self) -> Time;
    /// run-with's process group.
    fn own_group(&self) -> i32;
    /// The command's, if it has one still.
    fn command_group(&self) -> Option<i32>;
    /// The one that has our terminal, if we have one.
    fn foreground(&self) -> Option<i32>;
    /// Whether run-with leads its session.
    fn leads_session(&self) -> bool;
    /// Whether a write of run-with's has raised this signal since this was last asked.
    fn has_raised(&self, signal: c_int) -> bool;
}

/// Something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// This signal to the command.
    Send(c_int),
    /// SIGCONT to the group that the command leads.
    ResumeGroup,
    /// Our terminal to the group that the command leads.
    GiveTerminal,
    /// run-with stops, until it is resumed.
    StopSelf,
    /// It is told on the side that the parent is gone.
    TellParentGone,
    /// The signal for the parent's exit and SIGCONT to the command, if nobody has undertaken it.
    SignalUnlessClaimed,
    /// The same, if it has not been sent.
    SignalUnlessSent,
    /// SIGKILL to the command, and to the group it leads.
    Kill,
    StartGuard,
    /// Look whether the command can be waited for.
    LookAtCommand,
    /// The command has ended so: nothing follows.
    Finish(End),
}

/// What is done to the command when the parent is gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) signal: Signal,
    /// `None`: never.
    pub(super) kill_after: Option<Duration>,
}

/// What the machine is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    pub(super) own_pid: i32,
    pub(super) command: i32,
    /// Whether signals are passed on.
    pub(super) forward: bool,
    /// Whether there is a guard.
    pub(super) guarded: bool,
    /// From the parent's exit to SIGKILL; `None`: never.
    pub(super) kill_after: Option<Duration>,
    pub(super) now: Time,
}

/// The state of the supervisor.
#[derive(Debug)]
pub(super) struct Machine {
    setup: Setup,
    job: Job,
    guard: Guard,
    parent_gone: bool,
    /// When to look whether the signal was sent, if the guard was to send it.
    look_again: Option<Time>,
    /// When SIGKILL follows.
    deadline: Option<Time>,
    /// When to look at a command whose end was told.
    ending: Option<Time>,
    finished: bool,
}

/// The guard, as the machine knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// There is none, and is to be none.
    Unwanted,
    /// One runs; another may be started from then on.
    Runs { next: Time },
    /// There is none until then.
    Due(Time),
    /// It has been asked for.
    Asked,
}

impl Machine {
    pub(super) fn new(setup: Setup) -> Self {
        let next = setup.now.saturating_add(GUARD_INTERVAL);
        Self {
            setup,
            job: Job::default(),
            guard: if setup.guarded {
                Guard::Runs { next }
            } else {
                Guard::Unwanted
            },
            parent_gone: false,
            look_again: None,
            deadline: None,
            ending: None,
            finished: false,
        }
    }

    /// What is to be done, in this order.
    pub(super) fn step(&mut self, input: Input, facts: &impl Facts) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        match input {
            Input::Signal(libc::SIGCHLD, _) => {
                actions.extend(self.job.look(facts));
            }
            Input::Signal(libc::SIGCONT, _) => {
                self.job.resume(self.setup, facts, &mut actions);
            }
            Input::Signal(signal, sender) => {
                if self.setup.forward && self.is_for_command(signal, sender, facts) {
                    actions.push(Action::Send(signal));
                }
            }
            Input::Stopped(signal) => self.job.stopped(signal, facts.foreground()),
            Input::Continued => self.job.continued(),
            Input::Ending => self.ending = Some(facts.now()),
            Input::Ended(end) => {
                self.finished = true;
                return vec![Action::Finish(end)];
            }
            Input::ParentGone => self.parent_is_gone(facts.now(), &mut actions),
            Input::GuardEnded => {
                if let Guard::Runs { next } = self.guard {
                    self.guard = Guard::Due(next);
                }
            }
            Input::GuardStarted => {
                let next = facts.now().saturating_add(GUARD_INTERVAL);
                self.guard = Guard::Runs { next };
            }
            Input::GuardFailed => {
                self.guard = Guard::Due(facts.now().saturating_add(GUARD_RETRY));
            }
            Input::Tick => {}
        }
        self.pass_time(facts.now(), &mut actions);
        actions
    }

    /// When something is to be done if nothing happens before.
    pub(super) fn due(&self) -> Option<Time> {
        let guard = match self.guard {
            Guard::Due(at) => Some(at),
            _ => None,
        };
        if self.finished {
            return None;
        }
        [self.look_again, self.deadline, self.ending, guard]
            .into_iter()
            .flatten()
            .min()
    }

    fn parent_is_gone(&mut self, now: Time, actions: &mut Vec<Action>) {
        if std::mem::replace(&mut self.parent_gone, true) {
            return;
        }
        actions.extend([Action::SignalUnlessClaimed, Action::TellParentGone]);
        self.look_again = now.checked_add(PATIENCE);
        self.deadline = self
            .setup
            .kill_after
            .and_then(|grace| now.checked_add(grace));
    }

    /// What is due by now.
    fn pass_time(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.look_again.take_if(|at| *at <= now).is_some() {
            actions.push(Action::SignalUnlessSent);
        }
        if self.deadline.take_if(|at| *at <= now).is_some() {
            actions.push(Action::Kill);
        }
        if let Guard::Due(at) = self.guard {
            if at <= now {
                self.guard = Guard::Asked;
                actions.push(Action::StartGuard);
            }
        }
        if self.ending.is_some_and(|at| at <= now) {
            self.ending = now.checked_add(ENDING);
            actions.push(Action::LookAtCommand);
        }
    }

    /// Whether a signal to run-with has not reached the command, and is to.
    fn is_for_command(&self, signal: c_int, sender: Sender, facts: &impl Facts) -> bool {
        let of_terminal = TERMINAL_SIGNALS.contains(&signal)
            && match sender {
                Sender::Kernel => true,
                Sender::Process(_) => false,
                // A process that reads or writes from the background stops its whole group: it has not
                // got the terminal.
                Sender::Unknown => {
                    facts.foreground() == Some(facts.own_group())
                        || [libc::SIGTTIN, libc::SIGTTOU].contains(&signal)
                }
            };
        if of_terminal {
            // The whole group has got it; but on a hang-up the session's leader alone.
            let alone = signal == libc::SIGHUP && facts.leads_session();
            return alone || facts.command_group() != Some(facts.own_group());
        }
        match sender {
            Sender::Process(pid) => pid != self.setup.command && pid != self.setup.own_pid,
            // Anything else from the kernel is meant for the command, such as an alarm set before an exec, but what
            // run-with's own writing has raised.
            Sender::Kernel | Sender::Unknown => !facts.has_raised(signal),
        }
    }
}

/// What the kernel sends to the processes of a terminal.
const TERMINAL_SIGNALS: &[c_int] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGWINCH,
    // The status character, ^T.
    #[cfg(not(target_os = "linux"))]
    libc::SIGINFO,
];
