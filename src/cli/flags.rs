//! The flags of run-with, written once: the parser, `--help`, the man page and the shell completions
//! are made from this table.

/// One flag.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) id: Id,
    /// Its letter, if it has one.
    pub(super) short: Option<char>,
    /// Its name.
    pub(super) long: &'static str,
    /// What its value is called, if it takes one.
    pub(super) value: Option<&'static str>,
    /// One line.
    pub(super) help: &'static str,
    /// What the man page says; plain text, paragraphs separated by empty lines.
    pub(super) text: &'static str,
    /// Whether it needs the supervisor, so that `--exec` refuses it.
    pub(super) supervises: bool,
}

/// Which flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Id {
    Signal,
    KillAfter,
    Tree,
    TreeBy,
    Server,
    Ready,
    ReadyTimeout,
    Uri,
    Run,
    ExpectParent,
    ParentFd,
    Exec,
    NoForward,
    Pidfile,
    StatusFd,
    Mechanisms,
    Json,
    Help,
    Version,
    Generate,
}

/// Every flag, in the order in which it is shown.
pub(super) const FLAGS: &[Flag] = &[
    Flag {
        id: Id::Signal,
        short: Some('s'),
        long: "signal",
        value: Some("SIGNAL"),
        help: "what the command gets when the parent is gone [TERM]",
        text: "The signal the command gets when the parent is gone, by name or number. Default: \
               TERM. A SIGCONT follows it, so that a stopped command acts on it too.",
        supervises: false,
    },
    Flag {
        id: Id::KillAfter,
        short: Some('k'),
        long: "kill-after",
        value: Some("DURATION"),
        help: "after how long SIGKILL follows; 0: never [10s]",
        text: "If the command still runs this long after the signal, it gets SIGKILL, and so does \
               its process group if it leads one of its own. A number with an optional fraction and \
               an optional suffix: s (seconds, the default), m, h, d. 0 means never. Default: 10s.",
        supervises: true,
    },
    Flag {
        id: Id::Tree,
        short: None,
        long: "tree",
        value: None,
        help: "end the command's whole tree with it",
        text: "Whatever the command has started, and they, ends when the command has ended, however it \
               was detached: SIGKILL to all that is left, then run-with ends. It also ends when run-with is \
               killed. The first of these that can be had and that no process can leave: a PID \
               namespace (with CAP_SYS_ADMIN), a control group (for a command of another user, who cannot \
               leave it), a PID namespace in a user namespace (not for root). If none can be had, status \
               125, and the message says why.\n\nIn a PID namespace the command has another pid for itself than \
               for run-with, and its parent is 0; /proc is as it was.",
        supervises: true,
    },
    Flag {
        id: Id::TreeBy,
        short: None,
        long: "tree-by",
        value: Some("MECHANISM"),
        help: "the same, by this mechanism",
        text: "As --tree, by the mechanism of this name: pid-namespace (needs CAP_SYS_ADMIN); user-namespace (a \
               PID namespace in a user namespace, in which set-user-ID programs have no effect); cgroup (version \
               2, below run-with's own, which must be delegated to a user who is not root; nothing changes for \
               the command, but a process of root's, or of the user to whom it is delegated, can leave it on \
               purpose).",
        supervises: true,
    },
    Flag {
        id: Id::Server,
        short: None,
        long: "server",
        value: Some("COMMAND"),
        help: "run this (by the shell) while the command runs",
        text: "Start a server, wait until it is ready, run the command, end the server with all that it has started \
               (SIGTERM, after --kill-after SIGKILL), and exit with the command's status. COMMAND goes to /bin/sh -c. In \
               its environment and the command's are unixsocket, a path for a socket in a directory of its \
               own, port with --ready tcp, and uri with --uri. The server ends whenever run-with does, in whatever \
               way. Its standard input is /dev/null, and it is in a session of its own. If it is not \
               ready in time, or ends before, the command is not run: status 125.",
        supervises: true,
    },
    Flag {
        id: Id::Ready,
        short: None,
        long: "ready",
        value: Some("WHEN"),
        help: "when it is ready: unix, tcp[:PORT], file:PATH, line:TEXT, notify",
        text: "When the server is ready. unix: it listens on \"$unixsocket\" (the default if its command names \
               that). tcp:PORT: it listens on this TCP port; tcp: on \"$port\", which was free before. file:PATH: the file \
               is there, and is not one that was there before. line:TEXT: it has written a line with TEXT to standard \
               output, which is passed on. notify: it has said READY=1 by sd_notify(3). Listeners are found without \
               connecting to them, and must be the server's own.",
        supervises: true,
    },
    Flag {
        id: Id::ReadyTimeout,
        short: None,
        long: "ready-timeout",
        value: Some("DURATION"),
        help: "how long it may take to be ready [30s]",
        text: "How long the server may take to be ready; as for --kill-after. Default: 30s.",
        supervises: true,
    },
    Flag {
        id: Id::Uri,
        short: None,
        long: "uri",
        value: Some("TEMPLATE"),
        help: "$uri for both, with $unixsocket and $port in it",
        text: "The variable uri: TEMPLATE, in which $unixsocket and $port (or ${unixsocket}, ${port}) stand for their \
               values. Arguments after -- are never rewritten.",
        supervises: true,
    },
    Flag {
        id: Id::Run,
        short: None,
        long: "run",
        value: Some("COMMAND"),
        help: "the command, by the shell",
        text: "The command to run, for /bin/sh -c, in place of operands: it sees $uri and the others.",
        supervises: false,
    },
    Flag {
        id: Id::ExpectParent,
        short: None,
        long: "expect-parent",
        value: Some("PID"),
        help: "the parent is this process, or it is gone already",
        text: "The parent is the process PID, as the launcher knows its own pid. If run-with's \
               parent is another one, the launcher has died already: status 125, and the command \
               does not start. Without this or --parent-fd, a launcher that died before run-with's \
               first instruction cannot be told from a subreaper that adopted run-with. A launcher \
               that is pid 1 (in a container) must be named: --expect-parent 1.",
        supervises: false,
    },
    Flag {
        id: Id::ParentFd,
        short: None,
        long: "parent-fd",
        value: Some("FD"),
        help: "the parent is behind this pidfd, or holds this pipe's other end",
        text: "The parent is whoever is behind this inherited descriptor: a pidfd, or the read end \
               of a pipe whose write end only the launcher holds. Works across PID namespaces, sudo \
               and shells. The command does not inherit it.",
        supervises: true,
    },
    Flag {
        id: Id::Exec,
        short: None,
        long: "exec",
        value: None,
        help: "no supervisor: become the command (thread-scoped; see the manual)",
        text: "Become the command instead of supervising it. exit-with-parent=on is then the \
               kernel's parent-death signal alone, which is *thread-scoped*: it is sent when the \
               thread of the launcher that started run-with ends, though the launcher lives; it is \
               lost when the command changes its user; and nobody sends SIGKILL after it. Refused \
               for set-user-ID, set-group-ID and capability-bearing programs, for which the kernel \
               clears it.",
        supervises: false,
    },
    Flag {
        id: Id::NoForward,
        short: None,
        long: "no-forward",
        value: None,
        help: "do not pass signals on to the command",
        text: "Signals that run-with gets are not passed on to the command. Without this all are, \
               but for those that the terminal has sent to the command as well and those the \
               command itself has sent.",
        supervises: true,
    },
    Flag {
        id: Id::Pidfile,
        short: None,
        long: "pidfile",
        value: Some("FILE"),
        help: "write the command's pid to FILE while it runs",
        text: "Once the command runs, its pid and a newline are in FILE, which appears whole. run-with \
               removes it when the command has ended, unless another file is there by then. If \
               run-with itself is killed (SIGKILL), it stays behind. The path is run-with's, \
               outside any chroot.",
        supervises: true,
    },
    Flag {
        id: Id::StatusFd,
        short: None,
        long: "status-fd",
        value: Some("FD"),
        help: "write what happens to FD, a line of JSON each",
        text: "Write what happens to this inherited descriptor, one line of JSON each: \
               {\"event\":\"started\",\"pid\":N}, {\"event\":\"parent-exited\"}, \
               {\"event\":\"exited\",\"status\":N}, {\"event\":\"killed\",\"signal\":N}. The command \
               does not inherit it. A reader that has gone is no error; for one that does not read, \
               what finds no room is lost.",
        supervises: true,
    },
    Flag {
        id: Id::Mechanisms,
        short: None,
        long: "mechanisms",
        value: None,
        help: "say what this machine offers and what would be used",
        text: "Say what this machine offers and what would be used, and exit. With --json, for a \
               program to read.",
        supervises: false,
    },
    Flag {
        id: Id::Json,
        short: None,
        long: "json",
        value: None,
        help: "with --mechanisms: as JSON",
        text: "With --mechanisms: as JSON.",
        supervises: false,
    },
    Flag {
        id: Id::Generate,
        short: None,
        long: "generate",
        value: Some("KIND"),
        help: "print the man page or a shell's completions",
        text: "Print the man page (man) or a shell's completions (bash, zsh, fish), made from the \
               same table of flags as this text, and exit.",
        supervises: false,
    },
    Flag {
        id: Id::Help,
        short: Some('h'),
        long: "help",
        value: None,
        help: "print this help",
        text: "Print a summary of the flags and options, and exit.",
        supervises: false,
    },
    Flag {
        id: Id::Version,
        short: Some('V'),
        long: "version",
        value: None,
        help: "print the version",
        text: "Print the version, and exit.",
        supervises: false,
    },
];
