//! The system calls that a kernel may not have, or a filter not let through, and that this crate makes.

use crate::support::seccomp::{Answer, Argument, Rule, When};

/// A system call, or one use of it, by name.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub name: &'static str,
    number: libc::c_long,
    when: When,
}

impl Call {
    pub fn answering(self, answer: Answer) -> Rule {
        Rule {
            call: self.number as u32,
            when: self.when,
            answer,
        }
    }
}

const fn always(name: &'static str, number: libc::c_long) -> Call {
    let when = When::Always;
    Call { name, number, when }
}

const fn equals(name: &'static str, number: libc::c_long, index: u32, value: i32) -> Call {
    let value = value as u32;
    let when = When::Equals(Argument { index, value });
    Call { name, number, when }
}

const fn bits(name: &'static str, number: libc::c_long, index: u32, value: i32) -> Call {
    let value = value as u32;
    let when = When::HasSome(Argument { index, value });
    Call { name, number, when }
}

/// What makes a namespace, as container profiles have it: CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET.
const NAMESPACES: i32 = 0x7e02_0000;

/// All of them. Not here: what every Linux has that is to be considered, and every filter lets through (read, kill, poll, ..).
pub const CALLS: &[Call] = &[
    always("pidfd_open", libc::SYS_pidfd_open),
    always("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    equals("waitid(P_PIDFD)", libc::SYS_waitid, 0, 3),
    always("clone3", libc::SYS_clone3),
    bits("clone(CLONE_PIDFD)", libc::SYS_clone, 0, libc::CLONE_PIDFD),
    bits(
        "clone(CLONE_PARENT)",
        libc::SYS_clone,
        0,
        libc::CLONE_PARENT,
    ),
    bits(
        "clone(CLONE_NEWPID)",
        libc::SYS_clone,
        0,
        libc::CLONE_NEWPID,
    ),
    bits(
        "clone(CLONE_NEWUSER)",
        libc::SYS_clone,
        0,
        libc::CLONE_NEWUSER,
    ),
    always("close_range", libc::SYS_close_range),
    always("execveat", libc::SYS_execveat),
    always("memfd_create", libc::SYS_memfd_create),
    always("setns", libc::SYS_setns),
    always("unshare", libc::SYS_unshare),
    equals(
        "prctl(PDEATHSIG)",
        libc::SYS_prctl,
        0,
        libc::PR_SET_PDEATHSIG,
    ),
    equals(
        "prctl(GET_DUMPABLE)",
        libc::SYS_prctl,
        0,
        libc::PR_GET_DUMPABLE,
    ),
    equals("socket(AF_NETLINK)", libc::SYS_socket, 0, libc::AF_NETLINK),
    always("socketpair", libc::SYS_socketpair),
    always("kcmp", libc::SYS_kcmp),
    always("epoll_create1", libc::SYS_epoll_create1),
    always("epoll_ctl", libc::SYS_epoll_ctl),
    always("epoll_pwait", libc::SYS_epoll_pwait),
    always("signalfd4", libc::SYS_signalfd4),
    always("eventfd2", libc::SYS_eventfd2),
    always("flock", libc::SYS_flock),
    equals("fcntl(F_SETLK)", libc::SYS_fcntl, 1, libc::F_SETLK),
    equals("fcntl(F_SETLKW)", libc::SYS_fcntl, 1, libc::F_SETLKW),
    equals("fcntl(F_ADD_SEALS)", libc::SYS_fcntl, 1, libc::F_ADD_SEALS),
    always("prlimit64", libc::SYS_prlimit64),
    always("recvmsg", libc::SYS_recvmsg),
    always("capget", libc::SYS_capget),
    always("dup3", libc::SYS_dup3),
    always("pipe2", libc::SYS_pipe2),
    always("statx", libc::SYS_statx),
    always("clock_gettime", libc::SYS_clock_gettime),
    always("openat2", libc::SYS_openat2),
    always("faccessat2", libc::SYS_faccessat2),
    always("epoll_pwait2", libc::SYS_epoll_pwait2),
    always("process_madvise", libc::SYS_process_madvise),
    always("inotify_init1", libc::SYS_inotify_init1),
    always("fanotify_init", libc::SYS_fanotify_init),
    bits("clone(CLONE_NEW*)", libc::SYS_clone, 0, NAMESPACES),
];

/// One of them.
pub fn call(name: &str) -> Call {
    *CALLS
        .iter()
        .find(|call| call.name == name)
        .unwrap_or_else(|| panic!("no call {name}"))
}
