//! Launch processes that cannot outlive their launcher: [`Command`] and [`Captive`].
//!
//! ```no_run
//! use captive::Command;
//!
//! let qemu = Command::new("qemu-system-x86_64").args(["-nodefaults", "-S"]).spawn()?;
//! let report = qemu.wait()?;
//! println!("{}", report.status());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! From async code: the module `tokio` (feature `tokio`). From [`std::process::Command`]: [`CommandExt`], with the first line
//! of what follows only.
//!
//! # What is promised (Linux)
//!
//! 1. **The captive dies with the launcher process**, however that ends: SIGKILL, a panic, `exit`,
//!    `abort`, the OOM killer. The first line is the *guard*, one small process a launcher with memory
//!    of its own, which holds a pidfd of the launcher and of each captive, and has the launcher's
//!    credentials, so that a captive which has changed its user is within reach. It knows a captive
//!    before the captive executes its program. If the guard dies it is replaced. The second line is the
//!    parent-death signal, from a thread of this crate's own that never ends; it covers the moment in
//!    which launcher and guard are killed together, except for a captive that has changed its user by
//!    itself, which clears it. That the *calling* thread ends means nothing.
//! 2. **A spawn costs the same however much memory the launcher has**: the child shares it until its
//!    exec (`CLONE_VM | CLONE_VFORK`), and makes raw system calls only. Credentials are never changed
//!    while memory is shared: a child that is to have another user executes the crate's own helper
//!    first, and that changes them.
//! 3. **A spawn that stalls** (an executable or a directory on a dead mount) is an error after
//!    [`spawn_timeout`](Command::spawn_timeout), which names the step, and holds up no other spawn.
//! 4. **With [`Containment::Tree`] no descendant survives**, however it daemonised: the tree ends with its main
//!    process, and so with the launcher. It is held by a PID namespace, or by a cgroup, from which nothing
//!    escapes; where neither can be had, the launch is an error. See [`Containment`] for the table.
//! 5. **No zombie and no blocking drop**: a dropped [`Captive`] gets SIGKILL, and one thread of the
//!    crate's reaps it when its memory has been torn down. Whether it lives is never asked of a pid.
//!
//! # What a launcher does to itself
//!
//! | the launcher | its captives |
//! |---|---|
//! | forks | nothing happens; in the child every [`Captive`] is inert ([`CaptiveError::Forked`], and a drop does nothing), and captives which the child starts are its own |
//! | daemonises (forks and exits) | they end: the process that launched them has. Daemonise first |
//! | executes another program | they end: the threads and descriptors that hold them are gone. If a child that the launcher had forked without exec still has its copies of those, one that has changed its user by itself ends with that child |
//! | ignores SIGCHLD, or waits for any child (`waitpid(-1)`) | their status is read from the pidfd (Linux 6.15), else it is [`ExitStatus::Unknown`]. Such a wait may also return the guard, the init of a captive's PID namespace, and a process that only entered one: children like any other |
//!
//! # What is not promised
//!
//! - A process that a captive starts is followed only if the launch says so: with the default,
//!   [`Containment::Process`], only the captive itself ends.
//! - A main process that does not end after SIGKILL (state D) keeps its tree until it does, as long as the launcher
//!   lives; the guard gives it 5 s.
//! - The init of a PID namespace ends when all in it have been reaped: the main process, after the launcher's end, by whoever
//!   adopts it, and a descendant that was made with CLONE_PARENT by the launcher, whose child it is and which does not
//!   know it. [`Captive::wait_tree`] says false meanwhile.
//! - A tree of marks, or in a cgroup, has no second line but for its main process: see [`Containment`].
//! - A child that the launcher forks without exec has a copy of the pipe that keeps the init of a PID namespace alive, and of
//!   the lock on a cgroup. If launcher and guard are killed together, what is left of a tree that was to end gracefully,
//!   or with an order, is left until that child ends too; if the launcher is killed in the middle of such a launch, an init
//!   with nothing in its namespace.
//! - A set-user-ID program of an unprivileged launcher cannot be signalled by it, nor by its guard.
//! - What Linux keeps for each thread (processor affinity, nice value, namespaces, seccomp filters, dropped
//!   capabilities) a captive has from the *spawner thread*, which has it from the thread that first needed one.
//!   Launch before threads of yours sandbox themselves, or say it in the [`Command`].
//! - `setuid` and its like in the launcher wait for a spawner thread that a stalled child holds up. After a
//!   launcher has dropped privileges, a guard started from then on has no more rights than the launcher.
//! - The crate's descriptors (a socket, a few pidfds, an eventfd) must not be closed behind its back: a
//!   closefrom(3) belongs before the first spawn.
//! - A child that the launcher forks without exec while another thread spawns with
//!   [`run_with`](Command::run_with) has a copy of that spawn's pipe; if it keeps it past
//!   [`spawn_timeout`](Command::spawn_timeout), the spawn counts as stalled.
//! - A descriptor of the launcher's on a dead mount (FUSE, NFS) stalls every child when it closes its copy.
//! - A launcher that has put its future children into another PID namespace (`unshare(CLONE_NEWPID)`) cannot
//!   launch: no child of it can see that its parent lives.
//! - Between a captive's word to its guard and its exec, a guard that dies is replaced by one that does not
//!   know it yet. If the launcher is killed in the same moment, the second line is what is left.
//! - Before Linux 5.16 a core-dumping signal to a child in the moment before its exec ends everything that
//!   shares its memory, the launcher too.
//! - Whoever may signal the launcher may kill launcher and guard in the same instant: see 1 for what is
//!   left then.
//! - The guard holds one descriptor for each captive, as the launcher does. If somebody lowers its hard
//!   limit below what it needs from outside, it cannot.
//!
//! # Platforms
//!
//! Linux 5.4, x86-64 and aarch64 (the latter is run in a guest; `docs/platforms.md`). FreeBSD, macOS, NetBSD, OpenBSD and DragonFly:
//! written, **never run there**, see below; what is written is run on Linux against a stand-in for those systems' calls.
//! Elsewhere [`Command::spawn`] is [`SpawnError::Unsupported`].
//!
//! # On FreeBSD, macOS, NetBSD, OpenBSD and DragonFly
//!
//! The launcher forks a *supervisor* for each captive, and that the captive. It has the launcher's credentials, watches its end
//! through kqueue (its pid, and a socket), reaps the captive and reports how it ended: no status is lost to others who wait in
//! the launcher, nor if SIGCHLD is ignored. On FreeBSD the captive is made by pdfork(2): whatever ends the supervisor has the kernel
//! end the captive, whatever its user (procdesc_close(), `sys/kern/sys_procdesc.c`).
//!
//! | | FreeBSD | the others |
//! |---|---|---|
//! | the launcher ends, in whatever way; its threads mean nothing | [`LauncherExit`] | the same |
//! | the launcher executes another program | the same; where a child that it had forked without exec has its descriptors, when that child or the new program ends | the same |
//! | the captive has changed its user | as before | as before, if the launcher is root; a set-user-ID program cannot be signalled by others |
//! | the supervisor alone is killed | the kernel ends the captive; [`ExitStatus::Unknown`] | the launcher sends it SIGKILL at once, by its pid; [`ExitStatus::Unknown`] |
//! | the supervisor is stopped, then the launcher killed | [`LauncherExit`], when somebody resumes it | the same |
//! | launcher and supervisor are killed in the same instant | the kernel ends the captive | **it lives** |
//! | the supervisor of a [`detachable`](Command::detachable) one is killed | as on the others | as above, unless it was let go |
//! | [`Containment::Tree`]: launcher killed, main process ended | all of it ends ([`Containment::Reaper`]) | cannot be had |
//! | [`Containment::Tree`]: the supervisor is killed | the main process ends; **the rest lives**, and goes to the next reaper | |
//!
//! What else is not as on Linux:
//!
//! - **A spawn costs more the more memory the launcher has**: it is a fork(2), which copies the launcher's page tables, as there is no
//!   way to share memory until the exec with what goes on living beside it. What the launcher changes afterwards is kept twice
//!   as long as the supervisor lives.
//! - There are two processes for each captive (RLIMIT_NPROC), and two descriptors, on FreeBSD three, in the launcher.
//! - The captive's parent is its supervisor: what it sends to `getppid()` does not reach the launcher. Its session and process group
//!   are the launcher's.
//! - A supervisor is a child of the launcher's; on FreeBSD (a process descriptor) a wait for any child does not return it.
//! - Where there are no process descriptors a captive whose supervisor was killed is signalled by a number that, if it has ended in
//!   the same moment, may be another process's.
//! - A signal is an order to the supervisor, whose answer is waited for: microseconds, 5 s at the most.
//! - A fork of the launcher's in the moment in which another thread spawns has copies of that spawn's sockets. They hold up nothing.
//! - Between fork and exec the child has a copy of the launcher's memory, also when it has changed its user. It cannot be traced by
//!   that user before its exec (P_SUGID: p_candebug(), FreeBSD's `sys/kern/kern_prot.c`; OpenBSD's `sys/kern/sys_process.c`), only stopped.
//! - [`Command::order`], [`network_namespace`](Command::network_namespace), [`cgroup`](Command::cgroup), [`Ready::UnixListener`],
//!   [`Ready::TcpListener`] and [`Ready::Notify`] are errors that say so, and [`CommandExt`] is [`SpawnError::Unsupported`].
//! - [`Captive::pidfd`] is a socket that is readable from the captive's end on. A [`Stuck`] captive's state is not known.
//! - NetBSD: a set-user-ID launcher that is not root's cannot be watched (EACCES), and so cannot launch. macOS: a launcher that is
//!   being traced is told to have ended when its tracer lets go of it.
//! - The handles are told from those of a forked child by its pid alone.

#![cfg_attr(
    not(any(captive_helper, captive_bsd)),
    allow(dead_code, reason = "nobody launches what was asked for")
)]

mod captive;
mod command;
mod containment;
mod error;
mod events;
mod exit;
mod ready;
mod std_command;
mod stdio;
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub mod tokio;

cfg_if::cfg_if! {
    if #[cfg(any(captive_helper, captive_bsd))] {
        mod handle;
        mod news;
        #[cfg(feature = "tokio")]
        mod observer;
        mod outcome;
        mod prepare;
        mod primitive;
        mod settings;
        mod watch;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", captive_helper))] {
        mod linux;
        use linux as platform;
    } else if #[cfg(captive_bsd)] {
        mod bsd;
        use bsd as platform;
    } else {
        mod unsupported;
        use unsupported as platform;
    }
}

#[cfg(all(feature = "cli", target_os = "linux", captive_helper))]
pub(crate) use linux::{Holds, Tree, contain_alone, own_cgroup};

pub use captive::{Captive, Stuck};
pub use command::{Command, LauncherExit, Resource};
pub use containment::{Containment, ContainmentError, Missing};
pub use error::{CaptiveError, SpawnError, SpawnStep};
pub use events::{Event, Events, EventsError, events};
pub use exit::{EndedBy, ExitReport, ExitStatus, Usage};
pub use ready::{Readiness, Ready, ReadyError, Stream};
pub use std_command::CommandExt;
pub use stdio::Stdio;

/// Whether captives can be launched on this system; asking changes nothing.
pub fn is_supported() -> bool {
    platform::is_supported()
}
