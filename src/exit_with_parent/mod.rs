//! The process ends when its parent does.
//!
//! Called early in `main` of the captive itself:
//!
//! ```no_run
//! captive::exit_with_parent()?; // SIGTERM to ourselves when the parent process is gone
//! # Ok::<(), captive::Error>(())
//! ```
//!
//! What is promised, and where each promise ends:
//!
//! 1. **Parent means the parent process**, not the thread that forked us. On Linux a small thread
//!    polls a pidfd on the parent; it has its own descriptor table, so a later `closefrom()` in the
//!    program does not blind it. `PR_SET_PDEATHSIG` is sent when the forking *thread* ends: it is
//!    the mechanism where there is no pidfd, and by [name](ExitWithParent::mechanism), and
//!    [`Report::scope`] says so.
//! 2. **No race, given who the parent is.** Without a word from the caller, the parent is
//!    `getppid()` at the time of the call, held by a descriptor so that a recycled pid is never taken
//!    for it. A parent that died *before* that cannot be told from one that lives when a subreaper
//!    adopted us. Pass [`expect_parent`](ExitWithParent::expect_parent) (a pid) or
//!    [`parent_fd`](ExitWithParent::parent_fd) (a pidfd or a pipe) and there is no such gap.
//! 3. **A change of credentials does not matter** to the pidfd. The parent-death signal is cleared by
//!    it, and [`Armed::rearm`] sets it again.
//! 4. SIGTERM by default, another [signal](ExitWithParent::signal) and a
//!    [grace](ExitWithParent::kill_after) before SIGKILL by choice. A program that would rather be
//!    told gets a [channel](ExitWithParent::channel) or a [callback](ExitWithParent::callback).
//!
//! Three parents are cases of their own, and errors unless the caller says more:
//!
//! | `getppid()` | what it may mean | without a word | how to say it |
//! |---|---|---|---|
//! | 0 | the parent is in an outer PID namespace | [`ArmError::ParentOutside`] | `parent_fd` |
//! | 1 | init adopted an orphan, or the launcher is pid 1 of a container | [`ArmError::ParentIsInit`] | `expect_parent(1)`, `parent_fd` |
//! | another | the launcher, or a subreaper that adopted an orphan | taken for the launcher | `expect_parent`, `parent_fd` |
//!
//! Not covered, whatever the mechanism: [`Limit`] lists it, and [`Armed::report`] says which apply.
//!
//! # Platforms
//!
//! Linux: pidfd since 5.3, the parent-death signal since 2.1.57; tested. FreeBSD since 11.2
//! (procctl), macOS, NetBSD, OpenBSD, DragonFly (kqueue): written, never run. Elsewhere
//! [`is_supported`] is false and arming is an error.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

mod error;
mod report;

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod binding;
        mod known;
        mod linux;
        mod pipe;
        mod primitive;
        mod watcher;
        use linux as platform;
    } else if #[cfg(target_os = "freebsd")] {
        mod asked;
        mod binding;
        mod freebsd;
        mod known;
        mod kqueue;
        mod pipe;
        mod primitive;
        mod queued;
        mod watcher;
        use freebsd as platform;
    } else if #[cfg(any(
        target_os = "macos",
        target_os = "netbsd",
        target_os = "openbsd",
        target_os = "dragonfly",
    ))] {
        mod asked;
        mod binding;
        mod known;
        mod kqueue;
        mod pipe;
        mod primitive;
        mod queued;
        mod watcher;
        use kqueue as platform;
    } else {
        mod unsupported;
        use unsupported as platform;
    }
}

// Of other systems, with what Linux has in the place of their kernels: for tests.
#[cfg(all(test, target_os = "linux"))]
mod asked;
#[cfg(all(test, target_os = "linux"))]
mod kqueue;
#[cfg(all(test, target_os = "linux"))]
mod orderings;
// The stand-in's run-with uses a part.
#[cfg_attr(captive_stand_in, allow(dead_code))]
#[cfg(all(any(test, all(feature = "cli", captive_stand_in)), target_os = "linux"))]
mod queued;

cfg_if::cfg_if! {
    if #[cfg(all(feature = "cli", captive_bsd))] {
        pub(crate) use queued::Parent;
    } else if #[cfg(all(feature = "cli", target_os = "linux"))] {
        pub(crate) use platform::Parent;
    }
}

pub use crate::sys::signal::{Signal, UnknownSignal};
pub use error::{ArmError, ArmStep};
pub use report::{Known, Limit, Mechanism, Report, Scope};

/// The parent is gone: what the channel and callback forms deliver, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParentExited {
    /// The pid it had, where that is known: not for [`parent_fd`](ExitWithParent::parent_fd).
    pub pid: Option<u32>,
}

/// Whether this system has a mechanism at all; asking changes nothing.
pub fn is_supported() -> bool {
    platform::is_supported()
}

/// Ends this process (SIGTERM to itself) when its parent process is gone: [`ExitWithParent`] with
/// its defaults.
///
/// # Errors
/// [`ArmError`]; nothing is armed then.
pub fn exit_with_parent() -> Result<Armed, ArmError> {
    ExitWithParent::new().arm()
}

/// How the caller says who the parent is.
#[derive(Debug, Default)]
pub(crate) enum Expected {
    /// Whoever getppid names.
    #[default]
    Unsaid,
    /// The process with this pid.
    Pid(u32),
    /// Whoever is behind this pidfd, or holds the other end of this pipe.
    Fd(OwnedFd),
}

/// What is done when the parent is gone.
#[derive(Clone)]
pub(crate) enum Action {
    /// The signal to this process; SIGKILL if it still lives after the grace.
    Signal {
        signal: Signal,
        kill_after: Option<Duration>,
    },
    /// The program is told.
    Call(Arc<dyn Fn(ParentExited) + Send + Sync>),
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal { signal, kill_after } => f
                .debug_struct("Signal")
                .field("signal", signal)
                .field("kill_after", kill_after)
                .finish(),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}

/// How this process is to be bound to its parent. Everything has a default:
/// `ExitWithParent::new().arm()` is [`exit_with_parent()`].
#[derive(Debug)]
pub struct ExitWithParent {
    expected: Expected,
    mechanism: Option<Mechanism>,
    second_line: bool,
    signal: Signal,
    kill_after: Option<Duration>,
}

impl Default for ExitWithParent {
    fn default() -> Self {
        Self {
            expected: Expected::Unsaid,
            mechanism: None,
            second_line: false,
            signal: Signal::TERM,
            kill_after: None,
        }
    }
}

impl ExitWithParent {
    /// The parent that getppid names, the best mechanism there is, SIGTERM, no grace.
    pub fn new() -> Self {
        Self::default()
    }

    /// The parent is the process `pid`, as the launcher knew its own: if our parent is another one,
    /// the launcher is gone already and arming fails with [`ArmError::ParentGone`].
    ///
    /// Only a direct parent can be named. Behind sudo, a shell or another PID namespace use
    /// [`parent_fd`](Self::parent_fd).
    #[must_use]
    pub fn expect_parent(mut self, pid: u32) -> Self {
        self.expected = Expected::Pid(pid);
        self
    }

    /// The parent is whoever is behind this inherited descriptor: a pidfd of the launcher, or the
    /// read end of a pipe whose write end only the launcher holds (its end of file is the launcher's
    /// exit). Holds across PID namespaces, sudo and shells, and for any process, parent or not.
    ///
    /// The descriptor is made close-on-exec. A write end of the same pipe in this process would keep
    /// the pipe open for ever: that is [`ArmError::WriterHeldHere`]. A copy in *another* process
    /// (something else the launcher forked) is not seen from here and delays the end until that one
    /// closes it.
    #[must_use]
    pub fn parent_fd(mut self, fd: OwnedFd) -> Self {
        self.expected = Expected::Fd(fd);
        self
    }

    /// This mechanism and no other; without it the best one is chosen.
    #[must_use]
    pub fn mechanism(mut self, mechanism: Mechanism) -> Self {
        self.mechanism = Some(mechanism);
        self
    }

    /// Also arms the parent-death signal (Linux, FreeBSD), for the case that the watcher thread is
    /// held up. On Linux this makes the whole *thread*-scoped again, and the signal may arrive
    /// twice. Arm from the main thread.
    #[must_use]
    pub fn second_line(mut self) -> Self {
        self.second_line = true;
        self
    }

    /// The signal this process gets; SIGTERM by default. A signal that every thread blocks or that is
    /// ignored ends nothing: see [`kill_after`](Self::kill_after).
    #[must_use]
    pub fn signal(mut self, signal: Signal) -> Self {
        self.signal = signal;
        self
    }

    /// If the process still lives this long after the signal, SIGKILL. No such limit by default.
    /// Needs a watcher thread, so not with the parent-death signal alone.
    #[must_use]
    pub fn kill_after(mut self, grace: Duration) -> Self {
        self.kill_after = Some(grace);
        self
    }

    /// Arms. Returns once the parent is being watched.
    ///
    /// # Errors
    /// [`ArmError`]; nothing is armed then, and a parent that is gone already is
    /// [`ArmError::ParentGone`].
    pub fn arm(self) -> Result<Armed, ArmError> {
        let action = Action::Signal {
            signal: self.signal,
            kill_after: self.kill_after,
        };
        self.arm_with(action)
    }

    /// Arms, and instead of a signal sends [`ParentExited`] once over a channel. The process decides.
    ///
    /// ```no_run
    /// use captive::exit_with_parent::ExitWithParent;
    /// let (_armed, parent) = ExitWithParent::new().channel()?;
    /// // ... serve; then, or in a select! beside the work:
    /// parent.recv().ok();
    /// println!("flush and leave");
    /// # Ok::<(), captive::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`arm`](Self::arm); [`ArmError::NeedsWatcher`] where only the parent-death signal exists.
    pub fn channel(self) -> Result<(Armed, Receiver<ParentExited>), ArmError> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let armed = self.callback(move |event| {
            // A full or closed channel: the program has been told, or does not care.
            let _ = sender.try_send(event);
        })?;
        Ok((armed, receiver))
    }

    /// Arms, and instead of a signal calls `tell` on the watcher thread, which blocks all signals and
    /// has descriptors of its own: files of the program are not open there. Use it to wake the
    /// program, not to do its work.
    ///
    /// # Errors
    /// As [`channel`](Self::channel).
    pub fn callback<F>(self, tell: F) -> Result<Armed, ArmError>
    where
        F: Fn(ParentExited) + Send + Sync + 'static,
    {
        self.arm_with(Action::Call(Arc::new(tell)))
    }

    fn arm_with(self, action: Action) -> Result<Armed, ArmError> {
        let request = Request {
            expected: self.expected,
            mechanism: self.mechanism,
            second_line: self.second_line,
            action,
        };
        platform::Armed::arm(request).map(Armed)
    }
}

/// What a platform file is asked for.
#[derive(Debug)]
struct Request {
    expected: Expected,
    mechanism: Option<Mechanism>,
    second_line: bool,
    action: Action,
}

/// A process that is bound to its parent. Dropping this changes nothing: the binding stays.
///
/// In a forked child this handle is inert: the child is bound to nobody until it calls
/// [`rearm`](Self::rearm).
#[derive(Debug)]
pub struct Armed(platform::Armed);

impl Armed {
    /// What is armed, and what it does not cover.
    pub fn report(&self) -> Report {
        self.0.report()
    }

    /// Whether the parent is there at this moment. Never asked of a pid.
    pub fn parent_is_alive(&self) -> bool {
        self.0.parent_is_alive()
    }

    /// Arms again after what takes it away: a change of credentials (the parent-death signal only), or
    /// a fork, in the child (a daemon's second life), which stays bound to the *original* parent.
    ///
    /// In a forked child of a program with several threads this allocates and starts a thread; the
    /// usual caution of fork(2) applies.
    ///
    /// In a forked child call it before any closefrom(3): it needs the parent's descriptor, which the
    /// child has from this process.
    ///
    /// # Errors
    /// [`ArmError::ParentGone`] if the parent ended meanwhile; [`ArmError::NeedsWatcher`] in a forked
    /// child if only the parent-death signal was armed: that one can only mean the direct parent.
    pub fn rearm(&mut self) -> Result<(), ArmError> {
        self.0.rearm()
    }

    /// Ends the binding: the parent's exit no longer concerns this process. Once this has returned, no
    /// watcher sends a signal any more, SIGKILL after a grace included, and none begins a callback;
    /// one that has begun goes on.
    ///
    /// What has been ended can be neither asked nor ended again:
    ///
    /// ```compile_fail,E0382
    /// let mut armed = captive::exit_with_parent()?;
    /// armed.disarm()?;
    /// armed.rearm()?; // there is no binding any more
    /// # Ok::<(), captive::Error>(())
    /// ```
    ///
    /// # Errors
    /// The system's refusal, by step; the binding may stand then. EBADF after a closefrom(3), which the
    /// watch survives and this handle does not (Linux; told by kcmp(2)).
    pub fn disarm(self) -> Result<(), ArmError> {
        self.0.disarm()
    }
}
