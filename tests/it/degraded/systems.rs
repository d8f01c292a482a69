//! Systems as there are: old kernels, containers' filters, sandboxes, hidden file systems.

use super::calls::call;
use super::*;

/// What is to come of a part.
#[derive(Clone, Copy, Debug)]
enum Comes {
    /// It holds, and says this of itself.
    Holds(&'static str),
    /// It is refused, and this is part of why.
    Fails(&'static str),
    /// SIGSYS is its end, and that of all that it had started.
    Killed,
    /// It says this, and ends well.
    Says(&'static str),
}

use Comes::{Fails, Holds, Killed, Says};

/// A system by what it lacks, and what comes of which part there.
struct System {
    name: &'static str,
    calls: &'static [(&'static str, Answer)],
    place: &'static str,
    parts: &'static [(&'static str, Comes)],
}

const ENOSYS: Answer = Answer::Errno(libc::ENOSYS as u32);
const EPERM: Answer = Answer::Errno(libc::EPERM as u32);
const EINVAL: Answer = Answer::Errno(libc::EINVAL as u32);
const EAFNOSUPPORT: Answer = Answer::Errno(libc::EAFNOSUPPORT as u32);

/// What comes of a thread where clone3 is EPERM: only glibc wants that call, on arm64 not in Debian 12's 2.36 yet.
const WITH_CLONE3: bool = cfg!(all(target_env = "gnu", target_arch = "x86_64"));
const NO_THREAD: &str = match WITH_CLONE3 {
    true => "starting a thread",
    false => NO_GUARD,
};
const NO_EVENTS: &str = match WITH_CLONE3 {
    true => "starting the thread",
    false => NO_GUARD,
};
const NO_GUARD: &str = "starting the guard: pidfd_open";

const SYSTEMS: &[System] = &[
    // As the tests' own, to be compared with.
    System {
        name: "nothing-missing",
        calls: &[],
        place: "",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("arm second", Holds("pidfd and parent-death signal")),
            ("arm grace", Holds("KILL after 50ms")),
            ("arm channel", Holds("pidfd on the parent")),
            ("arm signal", Holds("parent-death signal on the parent")),
            ("apply exit-with-parent=on", Holds("pidfd on the parent")),
            ("apply user=65534:65534", Holds("applied")),
            ("teardown", Holds("runs")),
            ("tree process", Holds("Process")),
            ("tree pid", Holds("PidNamespace")),
            ("tree user", Holds("UserNamespace")),
            ("tree cgroup", Holds("Cgroup")),
            ("tree marks", Holds("TreeBestEffort")),
            ("tree", Holds("PidNamespace")),
            ("stage", Holds("staged")),
            ("terminate", Holds("TERM")),
            ("output", Holds("said")),
            ("events", Holds("KILL")),
            ("detach", Holds("detached")),
            ("std", Holds("std")),
            ("ready unix", Holds("ready")),
            ("ready tcp", Holds("ready")),
            ("ready file", Holds("ready")),
            ("ready line", Holds("ready")),
            ("ready notify", Holds("ready")),
            ("run-with", Holds("")),
            ("run-with killed", Holds("")),
            ("run-with --exec", Holds("")),
            ("run-with --tree", Holds("")),
            ("run-with --tree-by cgroup", Holds("")),
            ("run-with --server", Holds("")),
            (
                "run-with --mechanisms",
                Says("pidfd_open: holds the parent"),
            ),
        ],
    },
    // Linux 5.2: no pidfd of a process that is there already. (Before that, CLONE_PIDFD is ignored.)
    System {
        name: "linux-5.2",
        calls: &[
            ("pidfd_open", ENOSYS),
            ("waitid(P_PIDFD)", EINVAL),
            ("clone3", ENOSYS),
            ("close_range", ENOSYS),
            ("setns", EINVAL),
        ],
        place: "",
        parts: &[
            ("arm", Holds("parent-death signal on the parent")),
            ("arm signal", Holds("parent-death signal on the parent")),
            ("arm second", Fails("needs one")),
            ("arm grace", Fails("needs one")),
            ("arm channel", Fails("needs one")),
            ("apply exit-with-parent=on", Holds("parent-death signal")),
            ("teardown", Fails("Linux 5.4")),
            ("tree process", Fails("Linux 5.4")),
            ("tree", Fails("Linux 5.4")),
            ("std", Fails("Linux 5.4")),
            ("run-with", Fails("opening a pidfd on the parent")),
            ("run-with --exec", Holds("")),
            ("run-with --tree", Fails("starting the guard: ENOSYS")),
            ("run-with --server", Fails("pidfd")),
            ("run-with --mechanisms", Says("--exec is what is left")),
        ],
    },
    // Linux 5.4 to 5.6: no close_range, no cgroup to be born in, no namespace by pidfd.
    System {
        name: "linux-5.4",
        calls: &[
            ("clone3", ENOSYS),
            ("close_range", ENOSYS),
            ("setns", EINVAL),
        ],
        place: "",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("arm grace", Holds("pidfd on the parent")),
            ("teardown", Holds("runs")),
            ("tree process", Holds("Process")),
            ("tree cgroup", Holds("Cgroup")),
            ("tree marks", Holds("TreeBestEffort")),
            ("tree pid", Fails("entering the PID namespace")),
            ("stage", Holds("staged")),
            ("terminate", Holds("TERM")),
            ("events", Holds("KILL")),
            ("std", Holds("std")),
            ("ready unix", Holds("ready")),
            ("run-with", Holds("")),
            ("run-with killed", Holds("")),
            (
                "tree",
                Fails("PidNamespace: entering the PID namespace: Invalid argument"),
            ),
            ("tree of-another-user", Holds("Cgroup")),
            (
                "run-with --tree",
                Fails("PidNamespace: entering the PID namespace: Invalid argument"),
            ),
            ("run-with --tree of-another-user", Holds("")),
            ("run-with --tree-by cgroup", Holds("")),
            ("run-with --mechanisms", Says("closed one by one, by /proc")),
        ],
    },
    // A filter that lets namespaces be made, and not entered.
    System {
        name: "no-entering",
        calls: &[("setns", EPERM)],
        place: "",
        parts: &[
            ("tree pid", Fails("entering the PID namespace")),
            ("tree user", Fails("entering the PID namespace")),
            ("tree cgroup", Holds("Cgroup")),
            (
                "tree",
                Fails(
                    "PidNamespace: entering the PID namespace: Operation not permitted \
                     (os error 1); Cgroup: a process of user 0 could leave it",
                ),
            ),
            ("tree", Fails("available by name: Cgroup, TreeBestEffort")),
            ("tree of-another-user", Holds("Cgroup")),
            ("run-with --tree", Fails("entering the PID namespace")),
            ("run-with --tree of-another-user", Holds("")),
        ],
    },
    // And one that does not know the call, on a kernel that does.
    System {
        name: "no-setns",
        calls: &[("setns", ENOSYS)],
        place: "",
        parts: &[
            ("tree", Fails("PidNamespace: entering the PID namespace")),
            ("tree of-another-user", Holds("Cgroup")),
            ("run-with --tree of-another-user", Holds("")),
        ],
    },
    // A container's filter that is older than its kernel: what it does not know answers EPERM, clone3 too, without which
    // glibc (2.34 on) makes no threads on x86-64.
    System {
        name: "filter-of-2019",
        calls: &[
            ("pidfd_open", EPERM),
            ("pidfd_send_signal", EPERM),
            ("clone3", EPERM),
            ("close_range", EPERM),
            ("kcmp", EPERM),
            ("setns", EPERM),
            ("unshare", EPERM),
            ("clone(CLONE_NEW*)", EPERM),
            ("openat2", EPERM),
            ("faccessat2", EPERM),
            ("epoll_pwait2", EPERM),
        ],
        place: "",
        parts: &[
            ("arm", Holds("parent-death signal on the parent")),
            ("arm grace", Fails("needs one")),
            ("teardown", Fails("pidfd_open")),
            ("tree process", Fails(NO_THREAD)),
            ("std", Fails(NO_THREAD)),
            ("events", Fails(NO_EVENTS)),
            ("run-with", Fails("opening a pidfd on the parent")),
            ("run-with --exec", Holds("")),
            ("run-with --tree", Fails("starting the guard: EPERM")),
            ("run-with --mechanisms", Says("--exec is what is left")),
        ],
    },
    // The same with ENOSYS for clone3, as it was mended: threads are made.
    System {
        name: "filter-without-pidfd",
        calls: &[
            ("pidfd_open", EPERM),
            ("pidfd_send_signal", EPERM),
            ("clone3", ENOSYS),
            ("close_range", EPERM),
            ("clone(CLONE_NEW*)", EPERM),
        ],
        place: "",
        parts: &[
            ("arm", Holds("parent-death signal on the parent")),
            ("tree process", Fails("starting the guard: pidfd_open")),
            ("std", Fails("starting the guard: pidfd_open")),
            ("events", Fails("starting the guard: pidfd_open")),
        ],
    },
    // Docker's filter of today, in a container without CAP_SYS_ADMIN's exceptions.
    System {
        name: "container",
        calls: &[
            ("clone3", ENOSYS),
            ("clone(CLONE_NEW*)", EPERM),
            ("setns", EPERM),
            ("unshare", EPERM),
            ("kcmp", EPERM),
            ("fanotify_init", EPERM),
        ],
        place: "cgroup-read-only",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("arm channel", Holds("pidfd on the parent")),
            ("apply exit-with-parent=on", Holds("pidfd on the parent")),
            ("teardown", Holds("runs")),
            ("tree process", Holds("Process")),
            ("tree marks", Holds("TreeBestEffort")),
            ("tree pid", Fails("clone with CLONE_NEWPID")),
            ("tree user", Fails("clone with CLONE_NEWUSER")),
            ("tree cgroup", Fails("Read-only file system")),
            ("tree", Fails("available by name: TreeBestEffort")),
            ("stage", Holds("staged")),
            ("terminate", Holds("TERM")),
            ("output", Holds("said")),
            ("events", Holds("KILL")),
            ("detach", Holds("detached")),
            ("std", Holds("std")),
            ("ready unix", Holds("ready")),
            ("ready tcp", Holds("ready")),
            ("ready notify", Holds("ready")),
            ("run-with", Holds("")),
            ("run-with killed", Holds("")),
            ("run-with --tree", Fails("available by name")),
            ("run-with --tree-by cgroup", Fails("Read-only file system")),
            (
                "run-with --mechanisms",
                Says("pidfd_open: holds the parent"),
            ),
        ],
    },
    // A unit with SystemCallFilter=@system-service, SystemCallErrorNumber=EPERM, RestrictNamespaces=yes,
    // RestrictAddressFamilies=AF_UNIX AF_INET.
    System {
        name: "systemd-unit",
        calls: &[
            ("clone3", ENOSYS),
            ("clone(CLONE_NEW*)", EPERM),
            ("setns", EPERM),
            ("unshare", EPERM),
            ("kcmp", EPERM),
            ("process_madvise", EPERM),
            ("fanotify_init", EPERM),
            ("socket(AF_NETLINK)", EAFNOSUPPORT),
        ],
        place: "",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("apply exit-with-parent=on", Holds("pidfd on the parent")),
            ("teardown", Holds("runs")),
            ("tree process", Holds("Process")),
            ("tree cgroup", Holds("Cgroup")),
            ("stage", Holds("staged")),
            ("std", Holds("std")),
            ("ready unix", Fails("sock_diag(7) failed")),
            ("ready tcp", Fails("sock_diag(7) failed")),
            ("ready file", Holds("ready")),
            ("ready line", Holds("ready")),
            ("ready notify", Holds("ready")),
            ("run-with", Holds("")),
            ("run-with --server", Fails("CLONE_NEWPID")),
        ],
    },
    // SIGSYS to whoever makes a call that is not on the list, as browsers' sandboxes have it.
    System {
        name: "sigsys",
        calls: &[("pidfd_open", Answer::Trap), ("close_range", Answer::Trap)],
        place: "",
        parts: &[
            ("arm", Killed),
            ("arm signal", Holds("parent-death signal")),
            ("tree process", Killed),
            ("std", Killed),
            ("run-with", Killed),
            ("run-with --exec", Holds("")),
        ],
    },
    // The same for what a child alone does.
    System {
        name: "sigsys-in-a-child",
        calls: &[("execveat", Answer::Kill)],
        place: "",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("tree process", Fails("starting the guard failed")),
            ("tree pid", Fails("starting the guard failed")),
            ("std", Fails("starting the guard failed")),
            ("run-with", Holds("")),
            ("run-with --tree", Fails("entering the namespace: ESRCH")),
        ],
    },
    // And for what the guard alone does: the first that it does, and what it would only do in the end.
    System {
        name: "sigsys-in-the-guard",
        calls: &[("clock_gettime", Answer::Trap)],
        place: "",
        parts: &[
            ("tree process", Fails("starting the guard failed")),
            ("tree marks", Fails("starting the guard failed")),
            ("std", Fails("starting the guard failed")),
            ("run-with", Holds("")),
        ],
    },
    System {
        name: "guard-cannot-read",
        calls: &[("recvmsg", EPERM)],
        place: "",
        parts: &[
            (
                "tree process",
                Fails("starting the guard failed: Operation not permitted"),
            ),
            (
                "tree cgroup",
                Fails("starting the guard failed: Operation not permitted"),
            ),
            (
                "std",
                Fails("starting the guard failed: Operation not permitted"),
            ),
        ],
    },
    System {
        name: "nobody-can-wait",
        calls: &[("epoll_pwait", EPERM)],
        place: "",
        parts: &[
            (
                "arm",
                Fails("making the watcher's wake-up descriptor failed"),
            ),
            (
                "arm grace",
                Fails("making the watcher's wake-up descriptor failed"),
            ),
            ("arm signal", Holds("parent-death signal")),
            (
                "events",
                Fails("starting the thread that tells of events failed"),
            ),
            ("tree process", Fails("Operation not permitted")),
        ],
    },
    System {
        name: "no-signal-by-pidfd",
        calls: &[("pidfd_send_signal", EPERM)],
        place: "",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("tree pid", Fails("starting the guard: pidfd_send_signal")),
            ("std", Fails("starting the guard: pidfd_send_signal")),
            ("run-with", Fails("starting the guard: EPERM")),
            ("run-with --tree", Fails("starting the guard: EPERM")),
            ("run-with --mechanisms", Says("signals cannot be sent")),
        ],
    },
    System {
        name: "no-parent-death-signal",
        calls: &[("prctl(PDEATHSIG)", EPERM)],
        place: "",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            (
                "arm second",
                Fails("setting the parent-death signal TERM failed"),
            ),
            (
                "arm signal",
                Fails("setting the parent-death signal TERM failed"),
            ),
            (
                "tree process",
                Fails("starting the guard: arming the parent-death signal"),
            ),
            (
                "tree pid",
                Fails("its init: arming the parent-death signal"),
            ),
            ("run-with", Fails("PR_SET_PDEATHSIG")),
            (
                "run-with --exec",
                Fails("setting the parent-death signal TERM failed"),
            ),
        ],
    },
    System {
        name: "no-memfd",
        calls: &[("memfd_create", ENOSYS)],
        place: "",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("teardown", Fails("memfd_create failed")),
            ("tree process", Fails("memfd_create for the helper failed")),
            ("run-with", Holds("")),
            ("run-with --tree", Fails("memfd_create")),
        ],
    },
    System {
        name: "proc-unmounted",
        calls: &[],
        place: "proc-unmounted",
        parts: HIDDEN,
    },
    System {
        name: "proc-empty",
        calls: &[],
        place: "proc-empty",
        parts: HIDDEN,
    },
    System {
        name: "proc-hidden-without-close-range",
        calls: &[("close_range", ENOSYS)],
        place: "proc-empty",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            (
                "tree process",
                Fails("starting the guard: closing the other descriptors"),
            ),
            ("run-with", Holds("")),
        ],
    },
    System {
        name: "proc-of-others-hidden",
        calls: &[],
        place: "proc-hidepid",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("tree process", Holds("Process")),
            ("tree user", Holds("UserNamespace")),
            ("tree marks", Holds("TreeBestEffort")),
            ("std", Holds("std")),
            ("ready unix", Holds("ready")),
            ("run-with", Holds("")),
        ],
    },
    System {
        name: "proc-of-others-hidden-from-a-user",
        calls: &[],
        place: "proc-hidepid-as-nobody",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("arm grace", Holds("pidfd on the parent")),
            ("teardown", Holds("runs")),
            ("tree process", Holds("Process")),
            ("tree pid", Fails("CAP_SYS_ADMIN is missing")),
            ("tree user", Holds("UserNamespace")),
            ("tree marks", Holds("TreeBestEffort")),
            ("tree", Holds("UserNamespace")),
            ("terminate", Holds("TERM")),
            ("output", Holds("said")),
            ("events", Holds("KILL")),
            ("detach", Holds("detached")),
            ("std", Holds("std")),
            ("ready unix", Holds("ready")),
            ("ready tcp", Holds("ready")),
            ("ready file", Holds("ready")),
            ("ready line", Holds("ready")),
            ("ready notify", Holds("ready")),
        ],
    },
    System {
        name: "fdinfo-hidden",
        calls: &[],
        place: "proc-fdinfo-hidden",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("tree process", Holds("Process")),
            ("tree user", Holds("UserNamespace")),
            ("tree marks", Holds("TreeBestEffort")),
            ("std", Holds("std")),
            ("ready unix", Holds("ready")),
            ("ready tcp", Holds("ready")),
            ("ready notify", Holds("ready")),
            ("run-with --server", Holds("")),
        ],
    },
    System {
        name: "no-cgroup-mounted",
        calls: &[],
        place: "cgroup-unmounted",
        parts: &[
            ("tree cgroup", Fails("Cgroup: ")),
            ("tree", Holds("PidNamespace")),
            ("run-with --tree-by cgroup", Fails("Cgroup: ")),
            ("run-with --tree", Holds("")),
        ],
    },
    System {
        name: "no-dev-null",
        calls: &[],
        place: "dev-null-missing",
        parts: &[
            ("arm", Holds("pidfd on the parent")),
            ("teardown", Holds("runs")),
            ("tree process", Fails("opening a standard descriptor")),
            ("tree pid", Fails("/dev/null")),
            ("std", Fails("opening a standard descriptor")),
            ("run-with", Holds("")),
        ],
    },
];

/// What a part makes of a /proc that is not there.
const HIDDEN: &[(&str, Comes)] = &[
    ("arm", Holds("pidfd on the parent")),
    ("arm grace", Holds("pidfd on the parent")),
    ("arm signal", Holds("parent-death signal")),
    ("teardown", Holds("runs")),
    ("tree process", Holds("Process")),
    ("tree pid", Holds("PidNamespace")),
    (
        "tree user",
        Fails("/proc does not show the namespace's init"),
    ),
    ("tree cgroup", Fails("/proc/self/cgroup")),
    ("tree marks", Fails("/proc does not show processes")),
    ("tree", Holds("PidNamespace")),
    ("stage", Holds("staged")),
    (
        "apply user=65534:65534",
        Fails("the proof that privileges are gone failed"),
    ),
    ("terminate", Holds("TERM")),
    ("std", Holds("std")),
    ("ready file", Holds("ready")),
    ("run-with", Holds("")),
    ("run-with --tree", Holds("")),
    ("run-with --tree-by cgroup", Fails("/proc/self/cgroup")),
    ("run-with --mechanisms", Says("unknown release")),
];

pub fn tests() -> Vec<Trial> {
    SYSTEMS
        .iter()
        .map(|system| {
            let name = format!("degraded::{}", system.name);
            test(&name, needs(system), || all_of(system))
        })
        .collect()
}

/// Whether cgroups are what a part is to have, or what is taken away.
fn needs(system: &System) -> &'static [Need] {
    let of_cgroups =
        |(name, comes): &(&str, Comes)| name.contains("cgroup") || matches!(comes, Holds("Cgroup"));
    if system.place.starts_with("cgroup") || system.parts.iter().any(of_cgroups) {
        &[Need::Root, Need::Cgroups]
    } else if system.name == "sigsys-in-a-child" {
        &[Need::Root, Need::DumpOfOne]
    } else if system.name == "sigsys-in-the-guard" {
        // An emulated machine's clock may be one that is read by the system call.
        &[Need::Root, Need::Native]
    } else {
        &[Need::Root]
    }
}

fn all_of(system: &System) -> Outcome {
    let rules = system
        .calls
        .iter()
        .map(|(name, answer)| call(name).answering(*answer).to_string());
    // The places first: changing them takes calls that may be filtered.
    let missing: Vec<String> = [system.place.to_owned()].into_iter().chain(rules).collect();
    let missing = missing.join(",");
    let mut wrong = Vec::new();
    for (name, comes) in system.parts {
        let part = PARTS
            .iter()
            .find(|part| part.name == *name)
            .ok_or("no such part")?;
        let seen = see(&missing, part);
        if let Err(error) = seen.and_then(|seen| is_as(&seen, *comes)) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn is_as(seen: &Seen, comes: Comes) -> Outcome {
    nothing_is_wrong(seen)?;
    let is_so = match comes {
        Holds(text) => seen.held.as_ref().is_some_and(|held| held.contains(text)),
        Fails(text) => {
            seen.held.is_none()
                && seen.said.contains(text)
                && seen.status.and_then(|status| status.code()).unwrap_or(0) != 0
        }
        Killed => seen.held.is_none() && seen.status.and_then(|s| s.signal()) == Some(libc::SIGSYS),
        Says(text) => {
            seen.said.contains(text) && seen.status.is_some_and(|status| status.success())
        }
    };
    ensure!(is_so, "not {comes:?}: {seen:?}");
    Ok(())
}
