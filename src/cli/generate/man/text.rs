//! The words of the man page that stand in no table, with the marks of [`super::roff`].

pub(super) const DESCRIPTION: &str = "\
`run-with` runs *COMMAND* so that it is gone when the process that started `run-with` is, in another \
root directory, as another user: QEMU's `-run-with` option for any program. Operands that contain an \
equals sign are options; the first without one, or what follows `--`, is the command. Nothing is on \
by default: without an option, `--tree`, `--server`, `--pidfile` or `--status-fd` there is nothing to do, which is an \
error.

`run-with` stays, as a small *supervisor* with one thread, and the command is its child, in the same \
session and process group. With `exit-with-parent=on` or `--tree` there is a second process, the \
*guard*, in a session of its own, which is there before the command is. When the parent exits, for whatever \
reason, SIGKILL included, the command gets a signal (`--signal`) and a SIGCONT, and if it still runs \
after a time (`--kill-after`) it gets SIGKILL, together with its process group if it leads one. If \
`run-with` itself ends before the command (SIGKILL, a crash), the guard sends SIGKILL to the command \
at once. If `run-with` is stopped when the parent exits, the guard does in its place what was to be \
done. If the guard is killed, `run-with` starts another, at most one in a hundredth of a second; if \
it cannot, it says so and tries again every second.

With `--tree` everything that the command has started ends with it. What holds the tree, a PID \
namespace with an init of `run-with`'s or a control group, is made before the command. When the command has \
ended, in whatever way, all that is left gets SIGKILL, and `run-with` ends when nothing is left. When \
`run-with` is killed, the guard and the kernel do the same.

With `--server` a second command runs while the command does, such as a server that the command is a client \
of. It is started first, by a process of `run-with`'s own (`run-with-server`, in a session of its own); the \
command is run when it is ready; and when the command has ended, so does the server, with all that it has \
started, before `run-with` does. Should `run-with` end otherwise, `run-with-server` ends the server; \
should that be killed, its guard does.

The parent is the *process* that started `run-with`, and not the thread: a launcher's thread may end. \
It is held by a pidfd, so that a recycled pid is never taken for it. Its exec is not its exit. Should \
it have exited before `run-with` looked, the command does not start.

Every signal that `run-with` gets is passed on, except those that the terminal has sent to the \
command as well, those that the command itself has sent, and SIGCONT to a command of the same process \
group that is not stopped. The command starts with the signal mask and the dispositions that \
`run-with` was started with.

The terminal stays the command's: `run-with` makes no process group or session for it. When the \
terminal stops the command, `run-with` stops as well, so that a shell sees its job stopped, and when \
the shell resumes the job, the command goes on.

The command inherits all descriptors but those of `--parent-fd` and `--status-fd`. Once it runs, \
`run-with` and the guard close their own copies of everything, standard input and output included, \
and keep standard error and what they need: a pipe ends when the command closes it. `run-with` keeps \
its caller's identity and root, since it must be able to signal the command, and takes no_new_privs \
upon itself, which the command does not inherit. It says nothing while all is well; what it has to \
say goes to standard error.

With `--exec` there is no supervisor and no guard: see there.";

pub(super) const OPTION_STRING: &str = "\
Elements are *KEY=VALUE*, separated by commas; a comma in a value is written twice. The last value of \
a repeated key wins, and every value is checked. Several option strings mean what one with a comma \
between them would. A switch is `on` (`yes`, `true`, `y`) or `off` (`no`, `false`, `n`). The key \
`help` or `?` prints the keys. An unknown key is an error, never the command: to run a program whose \
name contains an equals sign, write `--` before it.";

/// What is to be said of a key, beside its line in the table.
pub(super) const KEYS: &[(&str, &str)] = &[
    (
        "async-teardown",
        "Refused with `on`: a program's memory cannot be shared from outside once it has been \
         exec'ed. A program that wants it calls `captive::async_teardown::start()`, or uses the \
         library's own option string.",
    ),
    (
        "chroot",
        "The directory is opened before anything is changed; the working directory is then `/`. \
         PATH is searched in the new root. Descriptors that point outside stay open. Needs \
         CAP_SYS_CHROOT.",
    ),
    (
        "exit-with-parent",
        "Refused where it would mean nothing: the parent is pid 1 and `--expect-parent` does not \
         say so; the parent is in an outer PID namespace and there is no `--parent-fd`; the parent \
         is systemd, which ends a unit's processes by itself.",
    ),
    (
        "user",
        "A name, with its groups, or two numbers, without supplementary groups. Names are looked up \
         before chroot. Afterwards it is proven that root cannot be regained. HOME, USER and LOGNAME \
         stay as they were. Needs CAP_SETUID and CAP_SETGID.",
    ),
];

/// The sections after the flags: paragraphs, `tag :: words` for items, four blanks for examples.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("EXIT STATUS", EXIT_STATUS),
    ("SIGNALS", SIGNALS),
    ("ENVIRONMENT", ENVIRONMENT),
    ("PLATFORMS", PLATFORMS),
    ("NOT GUARANTEED", NOT_GUARANTEED),
    ("EXAMPLES", EXAMPLES),
    ("SEE ALSO", SEE_ALSO),
];

const EXIT_STATUS: &str = "\
The command's own. If a signal killed the command, `run-with` dies of the same signal, without a core \
dump; as pid 1, which cannot, it exits with 128 and the signal's number.

`125` :: `run-with` itself failed: wrong usage, an option that cannot be carried out, a parent that \
has exited already.

`126` :: The command was found and cannot be executed.

`127` :: The command was not found.";

const SIGNALS: &str = "\
SIGKILL :: `run-with` ends, and the guard kills the command, if `exit-with-parent=on`. Without it \
there is no guard: the command lives on. A `--pidfile` stays behind.

SIGSTOP :: Stops `run-with` alone. The guard acts on the parent's exit in its place, about a tenth of \
a second later, and sends `run-with` a SIGCONT once the command is gone. If the launcher's end orphans \
the process group that the stopped `run-with` is in, the kernel sends all of the group, the command \
included, SIGHUP and SIGCONT.

SIGCONT :: Passed on to a command that is stopped, or that is in another process group.

SIGINT, SIGQUIT, SIGTSTP from the terminal :: Not passed on to a command of the same process group, \
which has got them from the terminal too.

SIGHUP from the terminal :: Passed on if `run-with` leads the session: nobody else has got it.

SIGCHLD :: Not passed on.

all others :: Passed on, unless the command sent them, or `--no-forward`.

a signal to the group :: What a process sends to the whole process group (`kill %1` in a shell, `kill \
-- -PGID`) a command of that group gets twice: from the sender, and from `run-with`, which cannot know \
that it was not sent to it alone.

the signal for the parent's exit :: Sent once. If whoever is to send it, `run-with` or the guard, is \
stopped or killed just before, the other sends it about a tenth of a second later; if the first one is \
resumed after that, the command gets it twice.";

const ENVIRONMENT: &str = "\
`PATH` :: Where the command is looked for, if its name has no slash; `/bin:/usr/bin` if unset. \
Searched in the new root, if there is one.

`LISTEN_PID`, `WATCHDOG_PID` :: If they name `run-with`, the command gets its own pid in their place: \
socket activation and the watchdog work through `run-with`.

`SYSTEMD_EXEC_PID` :: If it names `run-with`, systemd is its parent, and `exit-with-parent=on` is \
refused unless `--parent-fd` or `--expect-parent` says who the parent is.

`HOME`, `USER`, `LOGNAME` :: Stay as they were, also with `user=`.";

const PLATFORMS: &str = "\
Linux 5.3 or later for `exit-with-parent=on`, 5.8 for `--tree` (5.14 with a cgroup), any for `--exec`. Before 5.9 (close_range) descriptors \
are closed one by one, for which /proc is needed. Before 6.9 the guard, when it has to act because \
`run-with` was killed, reaches the command but not the command's process group. `run-with \
--mechanisms` says what there is. On FreeBSD, macOS, NetBSD, OpenBSD and DragonFly it has *never been run*: \
there is no `--server`; `--tree` on FreeBSD alone, and it does not outlive `run-with`; `--exec` with \
`exit-with-parent=on` on FreeBSD alone.";

const NOT_GUARANTEED: &str = "\
Descendants :: Without `--tree` the command ends, and with SIGKILL its process group if it leads one. \
What it has started is otherwise its own affair: a grandchild that has moved to a session of its own \
(setsid, a daemon) lives on. With it, what others do at a process's request (systemd-run, at) is no \
descendant.

A tree in a cgroup :: With `--tree-by cgroup` a process of root's, or of the user to whom the cgroup is \
delegated, can leave on purpose; and if `run-with` and its guard are killed in the same instant, the \
tree lives on until the next `run-with --tree` in the same cgroup.

A set-user-ID command :: A command that changes to a user whom `run-with` may not signal, because \
`run-with` is not root, can be ended neither by `run-with` nor by its guard. `run-with` says so when \
the parent is gone.

Both killed in the same instant :: If `run-with` and its guard are killed together, the kernel's \
parent-death signal, SIGKILL, is what remains; it is lost when the command has changed its user or \
is a set-ID program.

The guard stopped, `run-with` killed :: The same.

Between two guards :: The same, if `run-with` is killed after its guard and before there is another.

A stalled exec :: Without a controlling terminal, `user=` and `chroot=`, `run-with` waits for the \
command's exec (vfork). While the program is on a file system that does not answer, it passes on no \
signals; the guard does act on the parent's exit. In the other cases `run-with` is not held up.

The first instruction :: A launcher that died before `run-with` began cannot be told from a subreaper \
that adopted `run-with`, unless `--expect-parent` or `--parent-fd` says who the launcher is.

Processes that cannot act :: A command in an uninterruptible sleep ends when it wakes. A huge \
launcher counts as gone once its memory has been freed.

Signals from the command's user :: A command that may signal `run-with` may end it, and its guard.";

const EXAMPLES: &str = "\
A server that ends with the script that started it, as nobody:

    run-with exit-with-parent=on,user=nobody nbdkit -f -U /tmp/sock memory 1G

A virtual machine that gets half a minute to end:

    run-with -k 30 exit-with-parent=on qemu-system-x86_64 -S -display none

From a program that knows its own pid, without the doubt of the first instruction:

    run-with --expect-parent \"$$\" exit-with-parent=on -- sleep 1000

With wrappers between the launcher (here bash) and `run-with`: a pipe whose other end the launcher \
holds.

    exec {hold}> >(run-with --parent-fd 3 exit-with-parent=on sleep 1000 3<&0 </dev/null)

A client of a server that is there as long as it is needed, and no longer:

    run-with --server 'nbdkit -f -U \"$unixsocket\" memory 1G' \\
        --uri 'nbd+unix:///?socket=$unixsocket' --run 'nbdinfo \"$uri\"'

A build, none of whose daemons is left when it is done:

    run-with --tree make check

Another root and other ids, and nothing else:

    run-with chroot=/srv/jail,user=65534:65534 /bin/server

What would be used here:

    run-with --mechanisms";

const SEE_ALSO: &str = "\
env(1), setpriv(1), timeout(1), unshare(1), prctl(2), pidfd_open(2), cgroups(7), pid_namespaces(7), signal(7), \
systemd.exec(5), qemu(1)";
