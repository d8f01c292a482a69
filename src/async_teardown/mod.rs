//! The process is waitable at once when it dies, however much memory it had (Linux).
//!
//! A process that dies gives its memory back before its parent can wait for it: half a second for
//! 8 GiB in 4 KiB pages, minutes for a terabyte. Until then its sockets and locks are held and its
//! parent cannot go on. [`start`] makes a second process, `cleanup/PID`, that shares the address
//! space (`clone(CLONE_VM)`). The main process then drops its share in no time, and the memory goes
//! with the helper, which is the last to leave.
//!
//! # What the helper is
//!
//! - It runs a handful of raw system calls on a stack of its own with a guard page, touches no
//!   thread-local storage (errno included), and blocks every signal that can be blocked.
//! - It has the credentials the caller of [`start`] had *then*, so start it after privileges were
//!   dropped. It never needs to signal anybody, so it always can end, and does.
//! - It has a session of its own: a SIGKILL for the main process's process group does not hit it.
//! - It is a child of the main process with exit signal 0: `wait` and `waitpid(-1)` do not see it
//!   (`__WALL` does), and no SIGCHLD comes from it. When the main process is gone, init or the
//!   nearest subreaper inherits and reaps it, like any orphan. Should it be killed earlier, its
//!   zombie stays until [`Teardown::end`] or the main process's end.
//! - It keeps two descriptors, those it waits on, and closes its copies of all others: a pipe held
//!   by the main process reads as ended when the main process is.
//!
//! # What it waits on
//!
//! First a POSIX record lock, which the main process holds on a memory file; the helper sleeps in
//! `fcntl(F_SETLKW)`, with no timeout and nothing to poll. The kernel releases such a lock when the
//! process that took it exits *or* closes the descriptor, and the descriptor is close-on-exec, so
//! that one wait covers both an exit and an exec: after an exec the helper ends too, instead of
//! keeping the old image in memory. A pidfd alone would not see the exec. A close-on-exec pipe
//! would, but not while some forked child still holds a copy of its write end (a server that execs
//! its next version beside its workers); the lock is not inherited.
//!
//! Then a pidfd of the main process, with a limit. A process closes its descriptors some steps
//! before it is waitable, and whoever waits for it then has to run; a kernel that does not preempt
//! its own work makes both wait for a clock tick if the helper frees memory on the same processor.
//! So it lets them go first: until the process is reaped, or for 5 ms (Linux before 6.9 does not
//! say when a process is reaped: always 5 ms). No signal and no permission is involved.
//!
//! The price of the lock:
//!
//! - A main process that closes descriptors it does not know (closefrom(3)), or opens and closes
//!   this file through `/proc/self/fd`, ends the helper within 100 ms, and is then torn down like
//!   any other process. [`Teardown::is_running`] tells.
//! - After an exec the old image goes within 100 ms. The helper's zombie remains with the program
//!   that was executed, which gets one SIGCHLD for it (and has no zombie if it ignores SIGCHLD);
//!   [`start`] in the new program reaps it. [`Teardown::end`] before the exec avoids all of that.
//! - The lock belongs to the table of descriptors: a process made with `clone(CLONE_FILES)` but
//!   without `CLONE_THREAD` that outlives the main process keeps the helper, and the memory.
//!
//! # Platforms
//!
//! Linux 5.4, x86-64 (tested) and aarch64 (run in a guest). Elsewhere [`start`] is an error: no other system lets a process
//! share memory with another and have descriptors and credentials of its own.
//!
//! # What it does not help against
//!
//! See [`NotCovered`], and `docs/async-teardown.md` for figures.
//!
//! ```no_run
//! // After chroot and setuid, before the work starts.
//! let teardown = captive::async_teardown::start()?;
//! eprintln!("{}", teardown.report());
//! // Dropping the handle changes nothing; `teardown.end()` would end the helper.
//! # Ok::<(), captive::async_teardown::TeardownError>(())
//! ```

use std::fmt;
use std::io;

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod linux;
        use linux as platform;
    } else {
        mod unsupported;
        use unsupported as platform;
    }
}

/// Whether [`start`] can work here: Linux 5.4 or later on `x86_64` or `aarch64`.
///
/// Elsewhere a system call cannot be made without errno, which the helper would share, or the
/// kernel lacks what it takes. Asks the kernel, so a seccomp filter that denies `waitid` shows.
pub fn is_supported() -> bool {
    platform::is_supported()
}

/// Starts the helper, and returns when it is ready.
///
/// Start it after the last change of credentials, root directory and process (a forked child has
/// no helper and may start its own), from any thread: the helper belongs to the process, not to
/// the thread. One helper a process.
///
/// # Errors
///
/// [`Unsupported`](TeardownError::Unsupported) where [`is_supported`] is false,
/// [`AlreadyRunning`](TeardownError::AlreadyRunning) on a second call in one process,
/// [`Init`](TeardownError::Init) as pid 1, [`HelperDied`](TeardownError::HelperDied) when someone
/// killed the helper before it was ready, and [`Step`](TeardownError::Step) when the kernel refused
/// a step. After an error nothing is left behind, and the process is as it was.
pub fn start() -> Result<Teardown, TeardownError> {
    platform::start().map(|helper| Teardown { helper })
}

/// A running helper. Dropping this changes nothing: the helper stays until the process ends.
///
/// In a forked child the handle is inert.
#[derive(Debug)]
#[must_use = "dropping it leaves the helper running, but `end` is then out of reach"]
pub struct Teardown {
    helper: platform::Helper,
}

impl Teardown {
    /// The helper's pid.
    pub fn pid(&self) -> i32 {
        self.helper.pid()
    }

    /// Whether the helper still runs. It does not if somebody killed it, or if the process closed
    /// the descriptor it waits on; always false in a forked child, which has no helper.
    pub fn is_running(&self) -> bool {
        self.helper.is_running()
    }

    /// What was started, and what it does not cover.
    pub fn report(&self) -> Report {
        Report {
            helper: self.pid(),
            running: self.is_running(),
        }
    }

    /// Ends the helper, waits until it is gone and reaps it; [`start`] may then be called again.
    ///
    /// A helper that was already gone is no error. A stopped helper is killed; if its user is
    /// another (the process has changed its own since) the wait lasts until it is continued.
    ///
    /// # Errors
    ///
    /// [`Forked`](TeardownError::Forked) in a forked child: the helper is the parent's, and stays.
    pub fn end(self) -> Result<(), TeardownError> {
        self.helper.end()
    }
}

/// What [`Teardown::report`] says. `Display` writes it for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The helper's pid.
    pub helper: i32,
    /// Whether it ran when the report was made.
    pub running: bool,
}

impl Report {
    /// The ends of the process, and the events before, that the helper does not help with.
    pub const fn not_covered(&self) -> &'static [NotCovered] {
        &[
            NotCovered::KilledTogether,
            NotCovered::OutOfMemory,
            NotCovered::PidNamespaceEnd,
            NotCovered::Exec,
            NotCovered::DescriptorClosed,
            NotCovered::HelperStopped,
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.running { "runs" } else { "is gone" };
        write!(
            f,
            "async teardown: helper {} {state}. Covered: the end of this process alone, by a \
             signal or by itself, also with its process group. Not covered: ",
            self.helper
        )?;
        for (index, case) in self.not_covered().iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{case}")?;
        }
        f.write_str(".")
    }
}

/// Something the helper does not help with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotCovered {
    /// Process and helper are killed in one go (`cgroup.kill`, systemd's default `KillMode`): the
    /// memory goes before both are gone. Kill the process first, wait for it, then the rest.
    KilledTogether,
    /// The kernel's out-of-memory killer kills every process that shares the memory.
    OutOfMemory,
    /// When pid 1 of a PID namespace ends, it waits for all members; see [`TeardownError::Init`].
    PidNamespaceEnd,
    /// An exec ends the helper; what is executed has to start its own.
    Exec,
    /// A process that closes descriptors it did not open (closefrom(3)) ends the helper.
    DescriptorClosed,
    /// With the helper stopped (SIGSTOP, a frozen cgroup, a debugger) the process is waitable at
    /// once all the same, but its memory comes back only when the helper is continued or killed.
    HelperStopped,
}

impl fmt::Display for NotCovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KilledTogether => "both killed together (cgroup.kill)",
            Self::OutOfMemory => "an out-of-memory kill",
            Self::PidNamespaceEnd => "the end of the PID namespace",
            Self::Exec => "exec, which ends the helper",
            Self::DescriptorClosed => "the process closing the helper's descriptor (closefrom)",
            Self::HelperStopped => {
                "the memory of a process whose helper is stopped, until it is continued or killed"
            }
        })
    }
}

/// A step of [`start`] that the kernel can refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// `memfd_create(2)`: the file to hold a lock on.
    CreateFile,
    /// `fcntl(F_SETLK)` in the process: taking the lock.
    TakeLock,
    /// `pidfd_open(2)` of the process itself.
    OpenPidfd,
    /// `mmap(2)`: the helper's stack.
    MapStack,
    /// `mprotect(2)`: the guard page of the helper's stack.
    GuardStack,
    /// `clone(2)`: the helper itself.
    Clone,
    /// `close_range(2)` in the helper, or `/proc/self/status` where there is none.
    CloseDescriptors,
    /// `prctl(PR_SET_NAME)` in the helper.
    SetName,
    /// `setsid(2)` in the helper.
    NewSession,
    /// `fcntl(F_SETLK)` in the helper, which must find the lock held.
    FindLock,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateFile => "memfd_create",
            Self::TakeLock => "fcntl(F_SETLK) in the process",
            Self::OpenPidfd => "pidfd_open of the process itself",
            Self::MapStack => "mmap of the helper's stack",
            Self::GuardStack => "mprotect of the helper's guard page",
            Self::Clone => "clone(CLONE_VM)",
            Self::CloseDescriptors => "closing descriptors in the helper",
            Self::SetName => "prctl(PR_SET_NAME) in the helper",
            Self::NewSession => "setsid in the helper",
            Self::FindLock => "fcntl(F_SETLK) in the helper",
        })
    }
}

/// Why there is no helper, or why it was not ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum TeardownError {
    /// Not on this operating system, architecture or kernel: see [`is_supported`].
    Unsupported,
    /// This process has started a helper and not ended it (it need not run any more).
    AlreadyRunning,
    /// This process is pid 1 of its PID namespace. Its end kills the helper and waits for it, so
    /// nothing would be gained.
    Init,
    /// The helper was killed before it was ready.
    HelperDied,
    /// The handle was copied by a fork: the helper belongs to the process `owner`.
    Forked {
        /// The process that started the helper.
        owner: i32,
    },
    /// The kernel refused a step.
    Step {
        /// Which.
        step: Step,
        /// What it answered.
        source: io::Error,
    },
}

impl fmt::Display for TeardownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => {
                f.write_str("async teardown needs Linux 5.4 or later on x86_64 or aarch64")
            }
            Self::AlreadyRunning => f.write_str("this process has an async teardown helper"),
            Self::Init => f.write_str(
                "async teardown is of no use to pid 1: its end waits for the whole PID namespace",
            ),
            Self::HelperDied => {
                f.write_str("the async teardown helper was killed before it was ready")
            }
            Self::Forked { owner } => {
                write!(f, "the async teardown helper belongs to process {owner}")
            }
            Self::Step { step, source: _ } => write!(f, "async teardown: {step} failed"),
        }
    }
}

impl std::error::Error for TeardownError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Step { step: _, source } => Some(source),
            _ => None,
        }
    }
}
