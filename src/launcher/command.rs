//! What to launch, and how: std's method names where std has the method.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use super::platform;
use super::{Captive, CaptiveError, Containment, ExitReport, Ready, SpawnError, Stdio};
use crate::RunWith;
use crate::sys::signal::Signal;

/// A limit of getrlimit(2), by the system's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resource(pub(super) i32);

macro_rules! resources {
    ($($(#[$doc:meta])* $name:ident = $number:ident),+ $(,)?) => {
        #[allow(
            clippy::cast_possible_wrap,
            clippy::cast_lossless,
            clippy::unnecessary_cast,
            reason = "a small number, whose type is libc's"
        )]
        impl Resource {
            $($(#[$doc])* pub const $name: Self = Self(libc::$number as i32);)+
        }

        impl fmt::Display for Resource {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$name => f.write_str(stringify!($number)),)+
                    Self(number) => write!(f, "{number}"),
                }
            }
        }
    };
}

resources! {
    /// The size of a core dump, in bytes.
    CORE = RLIMIT_CORE,
    /// Processor time, in seconds.
    CPU = RLIMIT_CPU,
    /// The data segment, in bytes.
    DATA = RLIMIT_DATA,
    /// The size of a file, in bytes.
    FSIZE = RLIMIT_FSIZE,
    /// Locked memory, in bytes.
    MEMLOCK = RLIMIT_MEMLOCK,
    /// One more than the highest descriptor.
    NOFILE = RLIMIT_NOFILE,
    /// The number of the user's processes.
    NPROC = RLIMIT_NPROC,
    /// The stack, in bytes.
    STACK = RLIMIT_STACK,
}

#[cfg(not(target_os = "openbsd"))]
impl Resource {
    /// The address space, in bytes; `RLIMIT_AS`.
    #[allow(
        clippy::cast_possible_wrap,
        clippy::unnecessary_cast,
        reason = "a small number, whose type is libc's"
    )]
    pub const AS: Self = Self(libc::RLIMIT_AS as i32);
}

/// What happens to a captive when its launcher is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LauncherExit {
    /// SIGKILL, at once.
    Kill,
    /// A signal, and SIGCONT in case it is stopped; SIGKILL if it still lives after the grace. It may
    /// get the signal twice: from the kernel (the parent-death signal) and from the guard. If guard
    /// and launcher are killed in the same instant, the grace never ends. (Linux; elsewhere it gets it once.)
    Signal {
        /// The signal, such as SIGTERM.
        signal: Signal,
        /// How long it may take then.
        kill_after: Duration,
    },
}

/// A captive to be launched. As [`std::process::Command`], and what is needed beyond that.
///
/// Nothing is done before [`spawn`](Self::spawn), and a command can be spawned many times.
#[derive(Debug)]
pub struct Command {
    pub(super) program: OsString,
    pub(super) arg0: Option<OsString>,
    pub(super) args: Vec<OsString>,
    pub(super) clear_env: bool,
    /// The last change of a variable wins; `None` removes it.
    pub(super) env: Vec<(OsString, Option<OsString>)>,
    pub(super) current_dir: Option<PathBuf>,
    pub(super) stdin: Option<Stdio>,
    pub(super) stdout: Option<Stdio>,
    pub(super) stderr: Option<Stdio>,
    pub(super) descriptors: Vec<(OwnedFd, i32)>,
    pub(super) listeners: Vec<(OwnedFd, String)>,
    pub(super) ready: Option<Ready>,
    pub(super) session: bool,
    pub(super) process_group: Option<i32>,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) network_namespace: Option<OwnedFd>,
    pub(super) umask: Option<u32>,
    pub(super) nice: Option<i32>,
    pub(super) limits: Vec<(Resource, [u64; 2])>,
    pub(super) blocked: Vec<Signal>,
    pub(super) ignored: Vec<Signal>,
    pub(super) defaulted: Vec<Signal>,
    pub(super) run_with: RunWith,
    pub(super) launcher_exit: LauncherExit,
    pub(super) order: u32,
    pub(super) detachable: bool,
    pub(super) spawn_timeout: Duration,
    pub(super) containment: Containment,
    pub(super) cgroup: Option<PathBuf>,
}

impl Command {
    /// `program`, looked for along the *captive's* PATH if it has no slash; no arguments, the launcher's
    /// environment and standard descriptors, nothing else inherited.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arg0: None,
            args: Vec::new(),
            clear_env: false,
            env: Vec::new(),
            current_dir: None,
            stdin: None,
            stdout: None,
            stderr: None,
            descriptors: Vec::new(),
            listeners: Vec::new(),
            ready: None,
            session: false,
            process_group: None,
            terminal: None,
            network_namespace: None,
            umask: None,
            nice: None,
            limits: Vec::new(),
            blocked: Vec::new(),
            ignored: Vec::new(),
            defaulted: Vec::new(),
            run_with: RunWith::new(),
            launcher_exit: LauncherExit::Kill,
            order: 0,
            detachable: false,
            spawn_timeout: Duration::from_secs(10),
            containment: Containment::Process,
            cgroup: None,
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        for arg in args {
            self.arg(arg);
        }
        self
    }

    /// The first of the strings the program sees, instead of its name.
    pub fn arg0(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.arg0 = Some(arg.as_ref().to_owned());
        self
    }

    /// Sets a variable of the environment.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        let value = Some(value.as_ref().to_owned());
        self.env.push((key.as_ref().to_owned(), value));
        self
    }

    /// Sets variables of the environment.
    pub fn envs(
        &mut self,
        variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        for (key, value) in variables {
            self.env(key, value);
        }
        self
    }

    /// Removes a variable of the environment.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        self.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// Removes every variable: the launcher's, and those set so far.
    pub fn env_clear(&mut self) -> &mut Self {
        self.clear_env = true;
        self.env.clear();
        self
    }

    /// The working directory; the launcher's by default. With a new root
    /// ([`run_with`](Self::run_with)) it is looked for in that, and is `/` by default.
    pub fn current_dir(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.current_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Standard input: the launcher's by default; `/dev/null` for [`output`](Self::output).
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdin = Some(stdio.into());
        self
    }

    /// Standard output: the launcher's by default; a pipe for [`output`](Self::output).
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdout = Some(stdio.into());
        self
    }

    /// Standard error: the launcher's by default; a pipe for [`output`](Self::output).
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stderr = Some(stdio.into());
        self
    }

    /// Gives the captive a descriptor of ours under this number; of several under one number the last
    /// counts. Every other descriptor above 2 is closed in the captive, close-on-exec or not.
    pub fn descriptor(&mut self, fd: impl Into<OwnedFd>, number: i32) -> &mut Self {
        self.descriptors.retain(|(_, other)| *other != number);
        self.descriptors.push((fd.into(), number));
        self
    }

    /// Hands over a listening socket by systemd's protocol, sd_listen_fds(3): descriptor 3, or the next one, with LISTEN_PID
    /// (the captive's own, also in a PID namespace), LISTEN_FDS and LISTEN_FDNAMES in the environment. `name` is
    /// without colons and blanks; `unknown` is systemd's for none. The launcher's own variables of these names are never
    /// passed on.
    ///
    /// Clients can connect before the captive runs, so that nobody has to wait until it is ready. But as long as
    /// this command exists, the launcher has the socket too, and a connect() to a captive that has ended waits instead of
    /// failing: drop the command after the spawn.
    pub fn listen(&mut self, socket: impl Into<OwnedFd>, name: impl Into<String>) -> &mut Self {
        self.listeners.push((socket.into(), name.into()));
        self
    }

    /// What says that the captive is ready, for [`Captive::wait_ready`]. By default nothing does.
    pub fn ready(&mut self, ready: Ready) -> &mut Self {
        self.ready = Some(ready);
        self
    }

    /// The captive leads a session of its own, without a terminal; setsid(2).
    pub fn setsid(&mut self, on: bool) -> &mut Self {
        self.session = on;
        self
    }

    /// The process group; 0 for a new one that the captive leads; setpgid(2).
    pub fn process_group(&mut self, group: i32) -> &mut Self {
        self.process_group = Some(group);
        self
    }

    /// The terminal that controls the captive, which leads a session of its own then.
    pub fn controlling_terminal(&mut self, terminal: impl Into<OwnedFd>) -> &mut Self {
        self.terminal = Some(terminal.into());
        self.setsid(true)
    }

    /// The network namespace to enter: a descriptor of `/proc/PID/ns/net` or of what `ip netns` made.
    /// Needs CAP_SYS_ADMIN. Linux; elsewhere an error.
    pub fn network_namespace(&mut self, namespace: impl Into<OwnedFd>) -> &mut Self {
        self.network_namespace = Some(namespace.into());
        self
    }

    /// The file mode creation mask; the launcher's by default.
    pub fn umask(&mut self, mask: u32) -> &mut Self {
        self.umask = Some(mask);
        self
    }

    /// The nice value, -20 to 19; the launcher's by default.
    pub fn nice(&mut self, nice: i32) -> &mut Self {
        self.nice = Some(nice);
        self
    }

    /// A resource limit, soft and hard, in the unit of getrlimit(2); `u64::MAX` is none.
    pub fn resource_limit(&mut self, resource: Resource, soft: u64, hard: u64) -> &mut Self {
        self.limits.push((resource, [soft, hard]));
        self
    }

    /// The signals that are blocked; none by default, whatever the launcher blocks.
    pub fn signal_mask(&mut self, blocked: impl IntoIterator<Item = Signal>) -> &mut Self {
        self.blocked = blocked.into_iter().collect();
        self
    }

    /// A signal the captive ignores. By default those that the launcher ignores, except SIGPIPE.
    pub fn ignore_signal(&mut self, signal: Signal) -> &mut Self {
        self.defaulted.retain(|other| *other != signal);
        self.ignored.push(signal);
        self
    }

    /// A signal with its default disposition although the launcher ignores it.
    pub fn default_signal(&mut self, signal: Signal) -> &mut Self {
        self.ignored.retain(|other| *other != signal);
        self.defaulted.push(signal);
        self
    }

    /// A new root, another user: the steps of [`RunWith`], in its order. `exit-with-parent` is what a
    /// captive does anyway (`off` is refused: see [`detachable`](Self::detachable)); `async-teardown` is
    /// refused, since only the program itself can share its memory.
    pub fn run_with(&mut self, options: RunWith) -> &mut Self {
        self.run_with = options;
        self
    }

    /// What happens to the captive when the launcher is gone; [`LauncherExit::Kill`] by default.
    pub fn launcher_exit(&mut self, what: LauncherExit) -> &mut Self {
        self.launcher_exit = what;
        self
    }

    /// When the launcher is gone, captives of a lower number end before those of a higher one get
    /// their signal (QEMU, then its virtiofsd). 0 by default. The kernel's parent-death signal knows no
    /// order: a captive of an order other than 0 does without this second line. Linux; elsewhere another number than 0 is
    /// an error.
    pub fn order(&mut self, order: u32) -> &mut Self {
        self.order = order;
        self
    }

    /// Whether [`Captive::detach`] may let the captive go. Such a captive does without the second line
    /// (the parent-death signal, which only itself could clear; FreeBSD: the kernel's SIGKILL when its supervisor ends). Off
    /// by default.
    pub fn detachable(&mut self, on: bool) -> &mut Self {
        self.detachable = on;
        self
    }

    /// What ends with the captive: [`Containment::Process`], itself alone, by default.
    pub fn containment(&mut self, containment: Containment) -> &mut Self {
        self.containment = containment;
        self
    }

    /// The cgroup (version 2), by its directory, below which the captive gets one of its own, of which it is the only
    /// process with its descendants: one that the caller has made, with limits perhaps, or that has been delegated
    /// to it. Without this it is the launcher's own cgroup, if the containment wants one at all. With it, every
    /// containment of a tree does, and the captive is in both. The caller's own directory is not removed. Linux; elsewhere
    /// an error.
    pub fn cgroup(&mut self, directory: impl AsRef<Path>) -> &mut Self {
        self.cgroup = Some(directory.as_ref().to_owned());
        self
    }

    /// How long the way to exec may take; 10 s by default.
    pub fn spawn_timeout(&mut self, limit: Duration) -> &mut Self {
        self.spawn_timeout = limit;
        self
    }

    /// Launches the captive. Returns when it has executed its program, or there is none.
    ///
    /// # Errors
    /// [`SpawnError`], with the step that failed. Nothing of the captive is left then.
    pub fn spawn(&mut self) -> Result<Captive, SpawnError> {
        self.spawn_shared()
    }

    /// As [`spawn`](Self::spawn), which has std's signature.
    pub(super) fn spawn_shared(&self) -> Result<Captive, SpawnError> {
        self.spawn_with(&Defaults {
            stdin: Stdio::Inherit,
            output: Stdio::Inherit,
        })
    }

    /// Launches it, waits for its end, and collects its output and errors.
    ///
    /// # Errors
    /// [`SpawnError`] as an [`std::io::Error`]'s cause, or the [`CaptiveError`] of the wait. A status that
    /// is lost is an error too.
    pub fn output(&mut self) -> std::io::Result<Output> {
        let captive = self
            .spawn_with(&Defaults {
                stdin: Stdio::Null,
                output: Stdio::Piped,
            })
            .map_err(std::io::Error::other)?;
        captive.wait_with_output().map_err(std::io::Error::other)
    }

    /// Launches it and waits for its end.
    ///
    /// # Errors
    /// [`SpawnError`] as an [`std::io::Error`]'s cause, or the [`CaptiveError`] of the wait.
    pub fn status(&mut self) -> std::io::Result<ExitReport> {
        let captive = self.spawn().map_err(std::io::Error::other)?;
        captive
            .wait()
            .map_err(|error: CaptiveError| std::io::Error::other(error))
    }

    fn spawn_with(&self, defaults: &Defaults) -> Result<Captive, SpawnError> {
        platform::spawn(self, defaults)
            .map(|(handle, pipes)| Captive::new(handle, pipes, self.detachable))
    }

    /// An error about what was asked for.
    pub(super) fn invalid(&self, what: impl Into<String>) -> SpawnError {
        SpawnError::Invalid {
            program: self.program.clone(),
            what: what.into(),
        }
    }
}

/// The standard descriptors that were not said.
#[derive(Debug)]
pub(super) struct Defaults {
    pub(super) stdin: Stdio,
    pub(super) output: Stdio,
}
