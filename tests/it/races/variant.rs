//! What is run in each test, and who is killed.

use super::phase::Phase;

/// How run-with is told who its parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Nothing,
    /// `--expect-parent` with the launcher's pid.
    Pid,
    /// `--parent-fd` with a pipe whose write end the launcher has.
    Pipe,
}

/// Who gets the SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Launcher,
    RunWith,
    /// Both, the guard first: what is left is the parent-death signal.
    RunWithAndGuard,
    /// The guard; and run-with once the guard has been replaced.
    Guard,
}

/// What run-with runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// sleep(1), found along PATH.
    Sleep,
    /// This binary, which becomes another user at once and then waits.
    OtherUser,
}

/// An invocation of run-with, where, and who is killed.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub name: &'static str,
    /// run-with's first arguments.
    pub options: &'static [&'static str],
    pub said: Said,
    /// Whether orphans are adopted by a subreaper, and not by pid 1.
    pub subreaper: bool,
    pub victim: Victim,
    pub command: Command,
}

const PLAIN: Variant = Variant {
    name: "plain",
    options: &["exit-with-parent=on", "-k", "1"],
    said: Said::Nothing,
    subreaper: false,
    victim: Victim::Launcher,
    command: Command::Sleep,
};

/// Every variant. `unbound` is the control: the same without the option.
pub const VARIANTS: &[Variant] = &[
    PLAIN,
    Variant {
        name: "user",
        options: &["exit-with-parent=on,user=nobody", "-k", "1"],
        ..PLAIN
    },
    Variant {
        name: "exec",
        options: &["--exec", "exit-with-parent=on"],
        ..PLAIN
    },
    Variant {
        name: "exec_user",
        options: &["--exec", "exit-with-parent=on,user=nobody"],
        ..PLAIN
    },
    Variant {
        name: "parent_fd",
        said: Said::Pipe,
        ..PLAIN
    },
    Variant {
        name: "expect_parent",
        said: Said::Pid,
        ..PLAIN
    },
    Variant {
        name: "subreaper",
        subreaper: true,
        ..PLAIN
    },
    Variant {
        name: "subreaper_parent_fd",
        subreaper: true,
        said: Said::Pipe,
        ..PLAIN
    },
    Variant {
        name: "subreaper_expect_parent",
        subreaper: true,
        said: Said::Pid,
        ..PLAIN
    },
    Variant {
        name: "subreaper_exec_expect_parent",
        options: &["--exec", "exit-with-parent=on"],
        subreaper: true,
        said: Said::Pid,
        ..PLAIN
    },
    Variant {
        name: "run_with_killed",
        victim: Victim::RunWith,
        command: Command::OtherUser,
        ..PLAIN
    },
    Variant {
        name: "run_with_and_guard_killed",
        options: &["exit-with-parent=on,user=nobody", "-k", "1"],
        victim: Victim::RunWithAndGuard,
        ..PLAIN
    },
    Variant {
        name: "guard_killed",
        victim: Victim::Guard,
        command: Command::OtherUser,
        ..PLAIN
    },
    Variant {
        name: "unbound",
        options: &["chroot=/"],
        ..PLAIN
    },
];

impl Variant {
    pub fn named(name: &str) -> Option<&'static Self> {
        VARIANTS.iter().find(|variant| variant.name == name)
    }

    /// Whether run-with becomes the command.
    pub fn execs(&self) -> bool {
        self.options.contains(&"--exec")
    }

    /// Whether the option under test is on.
    pub fn is_bound(&self) -> bool {
        self.name != "unbound"
    }

    /// Whether survivors of a kill in this phase are what the documentation says: a parent that died
    /// before it was looked at, with a subreaper that took its place.
    pub fn may_survive(&self, phase: Phase) -> bool {
        self.subreaper && self.said == Said::Nothing && phase <= Phase::BeforeArming
    }

    /// The phases in which a kill must have come.
    pub fn phases(&self) -> &'static [Phase] {
        use Phase::{BeforeArming, BeforeExec, BeforeFork, BeforeItsExec, OtherUser, Running};
        if self.execs() {
            &[BeforeExec, BeforeArming, Running]
        } else if !self.is_bound() {
            &[Running]
        } else if self.command == Command::OtherUser {
            &[
                BeforeExec,
                BeforeArming,
                BeforeFork,
                BeforeItsExec,
                Running,
                OtherUser,
            ]
        } else {
            &[BeforeExec, BeforeArming, BeforeFork, BeforeItsExec, Running]
        }
    }
}
