//! What this Linux offers and what run-with would use. Every probe leaves everything as it is: the
//! process looks at itself, sends itself signal 0, closes a descriptor that cannot be open.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::super::mechanisms::{Fact, Offer, Survey, Value};
use super::super::systemd;
use crate::async_teardown;
use crate::sys::linux as sys;

mod tree;

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SYS_CHROOT: u32 = 18;

/// Looks at the machine, and at this process.
pub(crate) fn survey() -> Survey {
    let release = release();
    let mechanisms = Mechanisms::probe(release.as_deref());
    let parent = Parent::look();
    Survey {
        system: format!(
            "Linux {}",
            release.as_deref().unwrap_or("(unknown release)")
        ),
        process: process(parent),
        options: [
            exit_with_parent(&mechanisms, parent),
            exit_with_parent_exec(&mechanisms, parent),
            chroot(),
            user(),
            teardown(),
        ]
        .into_iter()
        .chain(tree::offers(mechanisms.lacking(), release.as_deref()))
        .collect(),
        mechanisms: mechanisms.offers(),
    }
}

/// The kernel's release, if /proc is there to say it.
fn release() -> Option<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(release.trim_end().to_owned())
}

/// Whether a release is `major.minor` or later.
fn is_at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(a)), Some(Ok(b))) => (a, b) >= (major, minor),
        _ => false,
    }
}

/// Whether each mechanism is there, or why not.
#[derive(Debug)]
struct Mechanisms {
    pidfd: Result<(), Errno>,
    /// `None`: cannot be tried without a pidfd.
    signal: Option<Result<(), Errno>>,
    group_signal: Option<Result<(), Errno>>,
    clone_pidfd: bool,
    close_range: Result<(), Errno>,
    parent_death_signal: Result<(), Errno>,
}

impl Mechanisms {
    fn probe(release: Option<&str>) -> Self {
        let own = sys::pidfd_open(sys::getpid());
        let own_fd = own.as_ref().ok().map(OwnedFd::as_fd);
        Self {
            signal: own_fd.map(|fd| sys::pidfd_send_signal(fd, 0)),
            group_signal: own_fd.map(|fd| match sys::pidfd_send_signal_to_group(fd, 0) {
                // We lead no group: but the kernel has looked.
                Err(Errno::ESRCH) => Ok(()),
                answer => answer,
            }),
            // Newer kernels have the older call; an older one would make a process of the attempt.
            clone_pidfd: own.is_ok() || release.is_some_and(|release| is_at_least(release, 5, 2)),
            close_range: sys::probe_close_range(),
            parent_death_signal: sys::parent_death_signal().map(drop),
            pidfd: own.map(drop),
        }
    }

    /// What run-with and its guard need to end a command.
    fn lacking(&self) -> Option<&'static str> {
        let held = self.pidfd.is_ok() && self.clone_pidfd && matches!(self.signal, Some(Ok(())));
        match self.parent_death_signal {
            Ok(()) if held => None,
            Ok(()) => Some("pidfds are missing: --exec is what is left"),
            Err(_) => Some("there is no parent-death signal, the second line"),
        }
    }

    fn offers(&self) -> Vec<Offer> {
        let offer = |name, answer: Result<(), Errno>, yes: &str, no: &str| Offer {
            name,
            available: answer.is_ok(),
            note: match answer {
                Ok(()) => yes.to_owned(),
                Err(errno) => format!("{errno}; {no}"),
            },
        };
        let with_pidfd = |name, answer: Option<Result<(), Errno>>, yes: &str, no: &str| {
            answer.map_or_else(
                || Offer {
                    name,
                    available: false,
                    note: "needs pidfd".to_owned(),
                },
                |answer| offer(name, answer, yes, no),
            )
        };
        vec![
            offer(
                "pidfd",
                self.pidfd,
                "pidfd_open: holds the parent (Linux 5.3)",
                "without it there is no exit-with-parent=on but with --exec",
            ),
            with_pidfd(
                "pidfd-signal",
                self.signal,
                "pidfd_send_signal: reaches the command and no other (Linux 5.1)",
                "signals cannot be sent",
            ),
            with_pidfd(
                "pidfd-group-signal",
                self.group_signal,
                "PIDFD_SIGNAL_PROCESS_GROUP: SIGKILL to a group the command leads (Linux 6.9)",
                "by number instead, but when run-with was killed: its guard then reaches the command alone",
            ),
            Offer {
                name: "clone-pidfd",
                available: self.clone_pidfd,
                note: if self.clone_pidfd {
                    "CLONE_PIDFD: the command is held from its first instant (Linux 5.2; not \
                     tried, that would make a process: concluded from pidfd or the release)"
                } else {
                    "CLONE_PIDFD needs Linux 5.2; without it there is no supervisor"
                }
                .to_owned(),
            },
            offer(
                "close-range",
                self.close_range,
                "close_range: lets go of what was inherited (Linux 5.9)",
                "descriptors are closed one by one, by /proc",
            ),
            offer(
                "parent-death-signal",
                self.parent_death_signal,
                "PR_SET_PDEATHSIG: all there is with --exec, else the second line",
                "without it there is no exit-with-parent=on",
            ),
        ]
    }
}

/// Who our parent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// An ordinary process: the launcher, as far as can be seen.
    Process(u32),
    /// Process 1 of our PID namespace.
    Init,
    /// A process outside our PID namespace.
    Outside,
    /// systemd, which has started this very process.
    Systemd(u32),
}

impl Parent {
    fn look() -> Self {
        let exec_pid = std::env::var_os("SYSTEMD_EXEC_PID");
        let pid = u32::try_from(sys::getppid()).unwrap_or(0);
        if systemd::is_our_parent(exec_pid.as_deref(), std::process::id()) {
            return Self::Systemd(pid);
        }
        match pid {
            0 => Self::Outside,
            1 => Self::Init,
            pid => Self::Process(pid),
        }
    }

    fn pid(self) -> u32 {
        match self {
            Self::Process(pid) | Self::Systemd(pid) => pid,
            Self::Init => 1,
            Self::Outside => 0,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Init => "init",
            Self::Outside => "outside",
            Self::Systemd(_) => "systemd",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Process(_) => {
                "the launcher, or a subreaper that adopted us: --expect-parent and --parent-fd tell"
            }
            Self::Init => "pid 1: the launcher has gone, or is pid 1 itself",
            Self::Outside => "in an outer PID namespace: its pid is not known here",
            Self::Systemd(_) => "systemd, which ends a unit's processes by itself",
        }
    }

    /// Why exit-with-parent=on is refused with this parent unless somebody says more.
    fn refusal(self, exec: bool) -> Option<&'static str> {
        match (self, exec) {
            (Self::Process(_), _) => None,
            (Self::Init, false) => {
                Some("the parent is pid 1: say so with --expect-parent 1, or use --parent-fd")
            }
            (Self::Init, true) => Some("the parent is pid 1: say so with --expect-parent 1"),
            (Self::Outside, false) => {
                Some("the parent is outside this PID namespace: use --parent-fd")
            }
            (Self::Outside, true) => {
                Some("the parent is outside this PID namespace: use --parent-fd, without --exec")
            }
            (Self::Systemd(_), false) => Some(
                "the parent is systemd: leave the option out, or name another process with \
                 --parent-fd",
            ),
            (Self::Systemd(_), true) => Some("the parent is systemd: leave the option out"),
        }
    }
}

fn process(parent: Parent) -> Vec<Fact> {
    let fact = |name, value, note: &str| Fact {
        name,
        value,
        note: note.to_owned(),
    };
    let in_unit = std::env::var_os("INVOCATION_ID").is_some();
    let (unit, meaning) = match (parent, in_unit) {
        (Parent::Systemd(_), _) => ("main", "a unit's process: SYSTEMD_EXEC_PID names it"),
        (_, true) => (
            "inherited",
            "started from within a unit: INVOCATION_ID is set",
        ),
        (_, false) => ("no", ""),
    };
    vec![
        fact("pid", Value::Number(std::process::id()), ""),
        fact("parent", Value::Number(parent.pid()), ""),
        fact("parent-kind", Value::Word(parent.kind()), parent.meaning()),
        fact("euid", Value::Number(nix::unistd::geteuid().as_raw()), ""),
        fact("egid", Value::Number(nix::unistd::getegid().as_raw()), ""),
        fact("systemd-unit", Value::Word(unit), meaning),
    ]
}

fn offer(name: &'static str, refusal: Option<String>, uses: &str) -> Offer {
    Offer {
        name,
        available: refusal.is_none(),
        note: refusal.unwrap_or_else(|| uses.to_owned()),
    }
}

fn exit_with_parent(mechanisms: &Mechanisms, parent: Parent) -> Offer {
    let refusal = mechanisms.lacking().or_else(|| parent.refusal(false));
    let uses = "pidfd of the parent, watched by run-with and its guard; second line: \
                parent-death signal KILL";
    offer("exit-with-parent", refusal.map(str::to_owned), uses)
}

fn exit_with_parent_exec(mechanisms: &Mechanisms, parent: Parent) -> Offer {
    let refusal = match mechanisms.parent_death_signal {
        Ok(()) => parent.refusal(true),
        Err(_) => Some("there is no parent-death signal"),
    };
    let uses = "parent-death signal alone: thread-scoped, lost on a change of user";
    offer("exit-with-parent --exec", refusal.map(str::to_owned), uses)
}

fn chroot() -> Offer {
    let refusal = missing(&[(CAP_SYS_CHROOT, "CAP_SYS_CHROOT")]);
    offer(
        "chroot",
        refusal,
        "chroot in the command's process, before its exec",
    )
}

fn user() -> Offer {
    let refusal =
        missing(&[(CAP_SETUID, "CAP_SETUID"), (CAP_SETGID, "CAP_SETGID")]).or_else(|| {
            // user_namespaces(7)
            let setgroups = fs::read_to_string("/proc/self/setgroups").ok()?;
            (setgroups.trim_end() == "deny")
                .then(|| "setgroups is denied in this user namespace".to_owned())
        });
    let uses = "setgroups, setresgid, setresuid in the command's process, and the proof";
    offer("user", refusal, uses)
}

fn teardown() -> Offer {
    let library = if async_teardown::is_supported() {
        "works here"
    } else {
        "does not work here"
    };
    let refusal = format!(
        "not for a command, whose memory is its own after exec; \
         captive::async_teardown::start() in the program itself {library}"
    );
    offer("async-teardown", Some(refusal), "")
}

/// Which of these capabilities this process cannot use.
fn missing(wanted: &[(u32, &str)]) -> Option<String> {
    let effective = match sys::effective_capabilities() {
        Ok(effective) => effective,
        Err(errno) => return Some(format!("capget: {errno}")),
    };
    let names: Vec<&str> = wanted
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    (!names.is_empty()).then(|| format!("needs {}", names.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert!(is_at_least("5.2.0-rc1", 5, 2));
        assert!(is_at_least("6.18.44-x", 5, 2));
        assert!(is_at_least("10.0", 5, 2));
        assert!(!is_at_least("5.1.99", 5, 2));
        assert!(!is_at_least("4.19", 5, 2));
        assert!(!is_at_least("", 5, 2));
    }
}
