//! A launched captive.

use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Output};
use std::time::{Duration, Instant};

use super::stdio::Pipes;
use super::{CaptiveError, Containment, ExitReport, ExitStatus, Readiness, ReadyError, platform};
use crate::sys::signal::Signal;

/// A process that ends when its launcher does, or when this is dropped.
///
/// All methods take `&self`, so that one thread can signal what another waits for. In a forked child of
/// the launcher they answer [`CaptiveError::Forked`], and a drop does nothing.
///
/// Dropping sends SIGKILL and returns at once: the process is reaped in the background.
#[derive(Debug)]
pub struct Captive {
    /// The writing end of its standard input, if that is a pipe.
    pub stdin: Option<ChildStdin>,
    /// The reading end of its standard output, if that is a pipe.
    pub stdout: Option<ChildStdout>,
    /// The reading end of its standard error, if that is a pipe.
    pub stderr: Option<ChildStderr>,
    handle: platform::Handle,
    detachable: bool,
}

/// How long SIGKILL may take before [`Captive::terminate`] says that the captive is stuck.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Captive {
    pub(super) fn new(handle: platform::Handle, pipes: Pipes, detachable: bool) -> Self {
        Self {
            stdin: pipes.stdin,
            stdout: pipes.stdout,
            stderr: pipes.stderr,
            handle,
            detachable,
        }
    }

    pub(super) fn handle(&self) -> &platform::Handle {
        &self.handle
    }

    /// Its pid. After its end the number may be another process's: signal through this handle.
    pub fn id(&self) -> u32 {
        self.handle.id()
    }

    /// Its pidfd, readable when it has ended; for a poll(2) of the caller's. Elsewhere than on Linux a socket, of which that is
    /// true as well.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.handle.pidfd()
    }

    /// Waits for its end. Standard input, if it is a pipe, is *not* closed first.
    ///
    /// # Errors
    /// [`CaptiveError::Forked`], [`CaptiveError::Wait`].
    pub fn wait(&self) -> Result<ExitReport, CaptiveError> {
        loop {
            if let Some(report) = self.wait_until(None)? {
                return Ok(report);
            }
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn try_wait(&self) -> Result<Option<ExitReport>, CaptiveError> {
        self.handle.try_wait()
    }

    /// Waits for its end, at most `limit`; `None` if it runs on.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<ExitReport>, CaptiveError> {
        // A limit beyond the clock is none.
        self.wait_until(Instant::now().checked_add(limit))
    }

    /// By which mechanism its tree is contained: never [`Containment::Tree`], but the one that was chosen for it.
    pub fn containment(&self) -> Containment {
        self.handle.containment()
    }

    /// Waits until it has ended and nothing is left of its tree, at most `limit`; whether it is so. Without a tree
    /// ([`Containment::Process`]) only for its own end.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_tree(&self, limit: Duration) -> Result<bool, CaptiveError> {
        let deadline = Instant::now().checked_add(limit);
        Ok(self.wait_until(deadline)?.is_some() && self.handle.wait_tree(deadline))
    }

    /// Waits until it is ready, as [`Command::ready`](super::Command::ready) said, at most `limit`. Once it was, the
    /// answer is the same again.
    ///
    /// # Errors
    /// [`ReadyError::Ended`] at once when it ends first, [`ReadyError::TimedOut`], and others. It is as it was: drop it if
    /// it is of no use then.
    pub fn wait_ready(&self, limit: Duration) -> Result<Readiness, ReadyError> {
        let stdout = self.stdout.as_ref().map(AsFd::as_fd);
        let stderr = self.stderr.as_ref().map(AsFd::as_fd);
        self.handle
            .wait_ready(platform::Streams { stdout, stderr }, limit)
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<ExitReport>, CaptiveError> {
        self.handle.wait_until(deadline)
    }

    /// Sends a signal. One that has ended gets nothing, and nobody else does.
    ///
    /// # Errors
    /// [`CaptiveError::Forked`], [`CaptiveError::Signal`] (EPERM).
    pub fn signal(&self, signal: Signal) -> Result<(), CaptiveError> {
        self.handle.signal(signal)
    }

    /// SIGKILL. Does not wait: see [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn kill(&self) -> Result<(), CaptiveError> {
        self.signal(Signal::KILL)
    }

    /// Ends it: SIGTERM (and SIGCONT, in case it is stopped), after `grace` SIGKILL; then its report,
    /// which says what was needed.
    ///
    /// # Errors
    /// As [`wait`](Self::wait) and [`signal`](Self::signal); [`CaptiveError::Stuck`] with what it is
    /// doing if SIGKILL has not ended it within 10 s. It is still ours then, and can be waited for.
    pub fn terminate(&self, grace: Duration) -> Result<ExitReport, CaptiveError> {
        self.signal(Signal::TERM)?;
        self.handle.resume();
        if let Some(report) = self.wait_timeout(grace)? {
            return Ok(report);
        }
        self.kill()?;
        match self.wait_timeout(KILL_PATIENCE)? {
            Some(report) => Ok(report),
            None => Err(CaptiveError::Stuck(self.handle.stuck())),
        }
    }

    /// Lets it go: it lives on when the launcher ends, and when this handle is gone. It is reaped in the
    /// background as long as the launcher lives.
    ///
    /// # Errors
    /// The handle, still in force, and why: [`CaptiveError::NotDetachable`], [`CaptiveError::Guard`],
    /// [`CaptiveError::Forked`].
    #[allow(
        clippy::result_large_err,
        reason = "the handle is what the caller wants back"
    )]
    pub fn detach(self) -> Result<(), (Self, CaptiveError)> {
        match self.let_go() {
            Ok(()) => Ok(()),
            Err(error) => Err((self, error)),
        }
    }

    /// From now on a drop does nothing.
    pub(super) fn let_go(&self) -> Result<(), CaptiveError> {
        if !self.detachable {
            return Err(CaptiveError::NotDetachable);
        }
        self.handle.detach()
    }

    /// Closes its standard input, reads its output and errors to their ends, and waits for it.
    ///
    /// # Errors
    /// As [`wait`](Self::wait); [`CaptiveError::Read`]; [`CaptiveError::Wait`] with ECHILD if its status
    /// is lost, for which std's `Output` has no value.
    pub fn wait_with_output(mut self) -> Result<Output, CaptiveError> {
        drop(self.stdin.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (self.stdout.take(), self.stderr.take());
        let read = std::thread::scope(|scope| {
            let errors = scope.spawn(|| err.map_or(Ok(0), |mut err| err.read_to_end(&mut stderr)));
            let output = out.map_or(Ok(0), |mut out| out.read_to_end(&mut stdout));
            let errors = errors
                .join()
                .unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()));
            output.and(errors)
        });
        read.map_err(CaptiveError::Read)?;
        let status = std_status(&self.wait()?, self.id())?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
}

impl AsRef<Self> for Captive {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// As std has it; ECHILD for a status that is lost, which std has no value for.
pub(super) fn std_status(
    report: &ExitReport,
    pid: u32,
) -> Result<std::process::ExitStatus, CaptiveError> {
    // The wait status of wait(2), as std reads it.
    let status = match report.status() {
        ExitStatus::Exited(code) => code << 8,
        ExitStatus::Killed {
            signal,
            core_dumped,
        } => signal.number() | if core_dumped { 0x80 } else { 0 },
        ExitStatus::Unknown => {
            let errno = std::io::Error::from_raw_os_error(libc::ECHILD);
            return Err(CaptiveError::Wait { pid, errno });
        }
    };
    Ok(std::process::ExitStatus::from_raw(status))
}

/// A process that does not end, and what it is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stuck {
    /// Its pid.
    pub pid: u32,
    /// The letter of its state in proc_pid_stat(5): `D` waits for a device, `Z` has ended and is being
    /// traced, `T` and `t` are stopped.
    pub state: Option<char>,
    /// Where in the kernel it waits; proc_pid_wchan(5), empty without the right to know.
    pub wchan: String,
    /// The processes that it started, and theirs.
    pub descendants: Vec<u32>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} does not end after SIGKILL", self.pid)?;
        if let Some(state) = self.state {
            write!(f, ": state {state}")?;
        }
        if !self.wchan.is_empty() {
            write!(f, " in {}", self.wchan)?;
        }
        if !self.descendants.is_empty() {
            write!(f, ", with descendants {:?}", self.descendants)?;
        }
        Ok(())
    }
}
