//! The wrappers that are compared, and the commands they run.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Answer, Fallible};
use crate::support::Need;
use crate::support::process::run_with_path;

/// One way to bind a command to its launcher.
#[derive(Debug)]
pub(super) struct Wrapper {
    /// Its row in the table.
    pub(super) row: &'static str,
    /// The test's name.
    pub(super) name: &'static str,
    pub(super) needs: &'static [Need],
    /// What stands before the command; `run-with` is the program under test.
    prefix: &'static [&'static str],
    /// The same, naming the launcher, where that can be said.
    told: Option<&'static [&'static str]>,
    /// nbdkit binds itself: the command is a part of the wrapper's own arguments.
    is_nbdkit: bool,
}

/// In the order of the table.
pub(super) const WRAPPERS: &[Wrapper] = &[
    Wrapper {
        row: "`run-with`",
        name: "peers::run-with",
        needs: &[
            Need::Root,
            Need::Program("nbdkit"),
            Need::Program("unshare"),
        ],
        prefix: &["run-with", "exit-with-parent=on", "--"],
        told: Some(&[
            "run-with",
            "--expect-parent={launcher}",
            "exit-with-parent=on",
            "--",
        ]),
        is_nbdkit: false,
    },
    Wrapper {
        row: "`run-with --tree`",
        name: "peers::run-with-tree",
        needs: &[
            Need::Root,
            Need::Program("nbdkit"),
            Need::Program("unshare"),
        ],
        prefix: &["run-with", "--tree", "exit-with-parent=on", "--"],
        told: Some(&[
            "run-with",
            "--tree",
            "--expect-parent={launcher}",
            "exit-with-parent=on",
            "--",
        ]),
        is_nbdkit: false,
    },
    Wrapper {
        row: "`run-with --exec`",
        name: "peers::run-with-exec",
        needs: &[
            Need::Root,
            Need::Program("nbdkit"),
            Need::Program("unshare"),
        ],
        prefix: &["run-with", "--exec", "exit-with-parent=on", "--"],
        told: Some(&[
            "run-with",
            "--exec",
            "--expect-parent={launcher}",
            "exit-with-parent=on",
            "--",
        ]),
        is_nbdkit: false,
    },
    Wrapper {
        row: "`setpriv --pdeathsig KILL`",
        name: "peers::setpriv",
        needs: &[
            Need::Root,
            Need::Program("setpriv"),
            Need::Program("nbdkit"),
            Need::Program("unshare"),
        ],
        prefix: &["setpriv", "--pdeathsig", "KILL", "--"],
        told: None,
        is_nbdkit: false,
    },
    Wrapper {
        row: "`tini -p SIGTERM -s`",
        name: "peers::tini",
        needs: &[
            Need::Root,
            Need::Program("tini"),
            Need::Program("nbdkit"),
            Need::Program("unshare"),
        ],
        prefix: &["tini", "-p", "SIGTERM", "-s", "--"],
        told: None,
        is_nbdkit: false,
    },
    Wrapper {
        row: "`bwrap --die-with-parent`",
        name: "peers::bwrap",
        needs: &[
            Need::Root,
            Need::Program("bwrap"),
            Need::Program("nbdkit"),
            Need::Program("unshare"),
        ],
        prefix: &["bwrap", "--dev-bind", "/", "/", "--die-with-parent", "--"],
        told: None,
        is_nbdkit: false,
    },
    Wrapper {
        row: "`bwrap --unshare-pid --die-with-parent`",
        name: "peers::bwrap-unshare-pid",
        needs: &[
            Need::Root,
            Need::Program("bwrap"),
            Need::Program("nbdkit"),
            Need::Program("unshare"),
        ],
        prefix: &[
            "bwrap",
            "--dev-bind",
            "/",
            "/",
            "--unshare-pid",
            "--die-with-parent",
            "--",
        ],
        told: None,
        is_nbdkit: false,
    },
    Wrapper {
        row: "`nbdkit --exit-with-parent`",
        name: "peers::nbdkit",
        needs: &[
            Need::Root,
            Need::Program("nbdkit"),
            Need::Program("unshare"),
        ],
        prefix: &["nbdkit", "--exit-with-parent"],
        told: None,
        is_nbdkit: true,
    },
];

/// No wrapper at all: what every `yes` is compared with. It is no row of the table.
pub(super) const NONE: Wrapper = Wrapper {
    row: "",
    name: "peers::no-wrapper",
    needs: &[
        Need::Root,
        Need::Program("nbdkit"),
        Need::Program("unshare"),
    ],
    prefix: &[],
    told: None,
    is_nbdkit: false,
};

/// What [`NONE`] gives, column by column.
pub(super) const NONE_ANSWERS: [Answer; 8] = [
    Answer::No,
    Answer::No,
    Answer::Yes,
    Answer::Absent,
    Answer::No,
    Answer::No,
    Answer::Absent,
    Answer::No,
];

/// What the wrapper runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// It waits.
    Idle,
    /// It changes its user itself, and waits.
    ChangesUser,
    /// It starts a process in a session of its own (`tail`), and waits.
    Tree,
}

impl Wrapper {
    /// The command's name once it runs.
    pub(super) fn comm(&self, task: Task) -> &'static str {
        if self.is_nbdkit || task == Task::ChangesUser {
            "nbdkit"
        } else {
            "sleep"
        }
    }

    /// Wrapper and command; a socket, if one is made, is `socket`.
    pub(super) fn argv(&self, task: Task, socket: &Path) -> Vec<String> {
        self.complete(self.prefix, task, socket)
    }

    /// The same with `{launcher}` where the launcher's pid belongs.
    pub(super) fn argv_told(&self, task: Task, socket: &Path) -> Option<Vec<String>> {
        Some(self.complete(self.told?, task, socket))
    }

    fn complete(&self, prefix: &[&str], task: Task, socket: &Path) -> Vec<String> {
        let socket = socket.to_str().unwrap_or_default();
        let served: &[&str] = match task {
            Task::Idle => &["-U", socket, "memory", "1M"],
            Task::ChangesUser => &["-u", "nobody", "-U", socket, "memory", "1M"],
            Task::Tree => &[
                "-U",
                socket,
                "eval",
                "after_fork=setsid -f tail -f /dev/null </dev/null >/dev/null 2>&1",
                "get_size=echo 1M",
                "pread=head -c $3 /dev/zero",
            ],
        };
        let command: &[&str] = match task {
            _ if self.is_nbdkit => &[],
            Task::Idle => &["sleep", "600"],
            Task::ChangesUser => &["nbdkit", "-f"],
            Task::Tree => &["sh", "-c", "setsid -f tail -f /dev/null; exec sleep 600"],
        };
        let serves = self.comm(task) == "nbdkit";
        let served = if serves { served } else { &[] };
        let all = prefix.iter().chain(command).chain(served);
        all.map(|word| {
            if *word == "run-with" {
                run_with_path()
            } else {
                word
            }
        })
        .map(str::to_owned)
        .collect()
    }

    /// The first line of what it says of its version.
    pub(super) fn version(&self) -> Fallible<String> {
        let program = self.prefix.first().ok_or("no program")?;
        let path = if *program == "run-with" {
            run_with_path()
        } else {
            program
        };
        let said = Command::new(path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}
