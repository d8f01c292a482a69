//! What is to end with a captive.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;

/// What ends with a captive, and by which means.
///
/// With everything but [`Process`](Self::Process) and [`PidfdAutokill`](Self::PidfdAutokill) it is the captive's *tree*:
/// all that it has started, and that they have started. The tree ends with its main process, whatever ends that: the
/// main process first (so that one with [`async_teardown`](crate::async_teardown) is waitable at once), the rest,
/// with SIGKILL, when it has ended. [`Captive::wait_tree`](super::Captive::wait_tree) waits for the last of it.
///
/// What others do at a process's request (`systemd-run`, `docker run`, `at`) is not its descendant.
///
/// # How `Tree` chooses
///
/// The first that can be had, among those from which nothing escapes (a namespace that can be made and not entered, as where
/// a filter of system calls refuses setns(2), cannot be had):
///
/// | launcher | captive | mechanism |
/// |---|---|---|
/// | has CAP_SYS_ADMIN | any | [`PidNamespace`](Self::PidNamespace) |
/// | any | of another user ([`run_with`](super::Command::run_with)), not root, who may write no `cgroup.procs` above it | [`Cgroup`](Self::Cgroup) |
/// | not root | any | [`UserNamespace`](Self::UserNamespace) |
/// | otherwise | | [`SpawnError::Containment`](super::SpawnError::Containment), which says why each could not be had, and which could be had by name |
///
/// # Platforms
///
/// The table is Linux's. On FreeBSD `Tree` is [`Reaper`](Self::Reaper), for any launcher and captive. On macOS, NetBSD, OpenBSD and
/// DragonFly there is nothing that a descendant cannot leave: `Tree` is an error that says so, and
/// [`TreeBestEffort`](Self::TreeBestEffort) what can be had. What is another system's is an error too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Containment {
    /// Only the captive itself. The default.
    #[default]
    Process,
    /// The captive and all its descendants, however they daemonise, by the first mechanism of the table above from
    /// which there is no escape; else an error.
    Tree,
    /// A PID namespace; pid_namespaces(7). No process in it can leave it, and the kernel ends everything in it when its init ends,
    /// which is this crate's: a process that only waits, and ends when launcher and guard are gone.
    ///
    /// Needs CAP_SYS_ADMIN and Linux 5.8. In it the captive has another pid for itself, and its parent is 0; `/proc`
    /// is still the launcher's, so that a pid and a number there differ (`/proc/self` is right). No mount
    /// namespace is made: what the captive mounts is there for all.
    ///
    /// It is no sandbox: through that `/proc` a process of root's, or of the launcher's own user, may reach into
    /// processes outside, and one inside may trace the init, which then does not end by itself when launcher *and*
    /// guard are killed in the same instant (the guard's SIGKILL ends it all the same).
    PidNamespace,
    /// The same in a user namespace, for a launcher without privileges; user_namespaces(7). The captive has the
    /// launcher's user and group; all others are unknown there, so that set-user-ID programs (sudo, fusermount) have
    /// no effect. EPERM or ENOSPC where the system does not let users make them.
    UserNamespace,
    /// A control group (version 2) of its own, below the launcher's or the one said by
    /// [`Command::cgroup`](super::Command::cgroup); cgroups(7), `cgroup.kill`. Nothing in the captive is changed by
    /// it. For a launcher that is not root its cgroup must have been delegated to it (a systemd user session does).
    ///
    /// A process leaves by a write to a `cgroup.procs` if it may write that of a cgroup which both have above them:
    /// root may, and so may processes of the launcher's own user where the cgroup is delegated to that user. If
    /// launcher and guard are killed in the same instant, the second line is the main process's alone; the rest ends
    /// when another launcher is started in the same cgroup. Needs Linux 5.14.
    Cgroup,
    /// FreeBSD: the captive's supervisor is a reaper (procctl(2), `PROC_REAP_ACQUIRE`), to which every descendant belongs until it has
    /// been waited for, whatever session it makes; nothing leaves. It is ended by `PROC_REAP_KILL`, again and again until none is
    /// left. Nobody holds it but the supervisor: if *that* is killed the kernel ends the main process, and the rest goes to
    /// the next reaper and lives.
    Reaper,
    /// A walk over `/proc`: everything that has the tree's name in its environment (`CAPTIVE_TREE`) gets SIGKILL,
    /// until there is none left. Never chosen for [`Tree`](Self::Tree): a process that clears its environment,
    /// that the launcher may not read, or that forks faster than it is found lives on. One that has been killed is not
    /// found any more from the moment in which its memory is gone, shortly before its end.
    ///
    /// Elsewhere than on Linux it is the process group, which the captive leads: who makes a group or a session of its own has
    /// left it. It gets SIGKILL before the main process is reaped, so that its number is no other's;
    /// [`Captive::wait_tree`](super::Captive::wait_tree) looks for 5 s whether there is such a group.
    TreeBestEffort,
    /// The main process alone, by the kernel: it dies when the launcher's pidfd of it is closed;
    /// CLONE_PIDFD_AUTOKILL, Linux 7.1. *This has never been run*: no kernel that has it was at hand. A forked child of
    /// the launcher that has a copy of the pidfd keeps the captive alive; there is no usage in its report. Needs
    /// CAP_SYS_ADMIN.
    PidfdAutokill,
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "Process",
            Self::Tree => "Tree",
            Self::PidNamespace => "PidNamespace",
            Self::UserNamespace => "UserNamespace",
            Self::Cgroup => "Cgroup",
            Self::Reaper => "Reaper",
            Self::TreeBestEffort => "TreeBestEffort",
            Self::PidfdAutokill => "PidfdAutokill",
        })
    }
}

/// Why a captive cannot be contained as asked; nothing was launched.
#[derive(Debug)]
#[non_exhaustive]
pub struct ContainmentError {
    /// The program that was to be launched.
    pub program: OsString,
    /// What was asked for.
    pub asked: Containment,
    /// What is missing, for each mechanism that would have served.
    pub missing: Vec<Missing>,
    /// What could be had by name.
    pub available: Vec<Containment>,
}

/// What one mechanism lacks.
#[derive(Debug)]
#[non_exhaustive]
pub struct Missing {
    /// The mechanism.
    pub containment: Containment,
    /// What was tried or looked for, with its operand.
    pub what: String,
    /// The errno, if a system call said so.
    pub errno: Option<io::Error>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.containment, self.what)?;
        match &self.errno {
            Some(errno) => write!(f, ": {errno}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ContainmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = Path::new(&self.program).display();
        write!(
            f,
            "launching {program}: it cannot be contained as {}",
            self.asked
        )?;
        for (place, missing) in self.missing.iter().enumerate() {
            write!(f, "{} {missing}", if place == 0 { ":" } else { ";" })?;
        }
        if self.available.is_empty() {
            return f.write_str("; nothing else is available");
        }
        f.write_str("; available by name:")?;
        for (place, containment) in self.available.iter().enumerate() {
            write!(f, "{} {containment}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl std::error::Error for ContainmentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The one reason there is, if there is one.
        match self.missing.as_slice() {
            [
                Missing {
                    errno: Some(errno), ..
                },
            ] => Some(errno),
            _ => None,
        }
    }
}
