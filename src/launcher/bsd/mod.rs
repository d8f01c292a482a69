//! FreeBSD, macOS, NetBSD, OpenBSD, DragonFly: a supervisor process for each captive. **Never run there**, see
//! `docs/platforms.md`: what is here is run on Linux, on real processes, against the stand-in for those systems' calls.
//!
//! ```text
//! Command::spawn ── request (all allocated) ── fork ── supervisor ── fork ── captive .. exec
//!                                                │  page, orders        (FreeBSD: pdfork, SIGKILL on close)
//! Captive ── process (page, sockets) ── reaper thread
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::captive::Stuck;
use super::command::{Command, Defaults};
use super::events::Sink;
use super::stdio::Pipes;
use super::watch::Watch;
use super::{CaptiveError, Containment, ExitReport, Readiness, ReadyError, SpawnError};
pub(super) use crate::sys::bsd as sys;
use crate::sys::signal::Signal;

mod caught;
mod child;
mod contained;
#[cfg(feature = "tokio")]
mod observer;
pub(super) mod probe;
mod process;
mod reaper;
mod request;
mod runtime;
mod supervisor;
mod words;

pub(super) use super::watch::Streams;
#[cfg(feature = "tokio")]
pub(super) use super::watch::{LAST_WORDS, Look, PAUSE};
pub(super) use caught::Caught;
#[cfg(feature = "tokio")]
pub(super) use observer::Observer;
pub(super) use process::Process;
use request::Holds;
use runtime::Runtime;

pub(super) fn is_supported() -> bool {
    true
}

pub(super) fn spawn(command: &Command, defaults: &Defaults) -> Result<(Handle, Pipes), SpawnError> {
    let runtime = Runtime::of_this_process();
    let (watch, extra) = Watch::prepare(command)?.unzip();
    let (process, pipes) = runtime.spawn(command, defaults, &extra.unwrap_or_default())?;
    let handle = Handle {
        containment: match process.holds() {
            Holds::Reaper => Containment::Reaper,
            Holds::Nothing | Holds::Group => command.containment,
        },
        process,
        runtime,
        watch: watch.map(Arc::new),
        let_go: false.into(),
    };
    Ok((handle, pipes))
}

pub(super) fn spawn_std(
    _command: &mut std::process::Command,
) -> Result<std::process::Child, SpawnError> {
    Err(SpawnError::Unsupported(
        "std's child is the launcher's own, and tells no guard of itself on this system: use captive::Command",
    ))
}

/// Starts the thread that tells of events.
pub(super) fn start() -> std::io::Result<()> {
    let runtime = Runtime::of_this_process();
    runtime.reaper().start(runtime).map_err(Into::into)
}

/// What is known of a captive that does not end: its pid.
fn stuck(process: &Process) -> Stuck {
    Stuck {
        pid: process.pid().unsigned_abs(),
        state: None,
        wchan: String::new(),
        descendants: Vec::new(),
    }
}

/// A captive of the process that owns `runtime`.
#[derive(Debug)]
pub(super) struct Handle {
    process: Arc<Process>,
    runtime: &'static Runtime,
    containment: Containment,
    watch: Option<Arc<Watch>>,
    let_go: AtomicBool,
}

impl Handle {
    fn check_owner(&self) -> Result<(), CaptiveError> {
        if self.runtime.is_ours() {
            Ok(())
        } else {
            Err(CaptiveError::Forked {
                launcher: self.runtime.pid().unsigned_abs(),
            })
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.process.pid().unsigned_abs()
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(super) fn try_wait(&self) -> Result<Option<ExitReport>, CaptiveError> {
        self.check_owner()?;
        Ok(self.process.report())
    }

    pub(super) fn wait_until(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<ExitReport>, CaptiveError> {
        self.check_owner()?;
        Ok(self.process.wait_until(deadline))
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), CaptiveError> {
        self.check_owner()?;
        self.process.signal(signal)
    }

    pub(super) fn containment(&self) -> Containment {
        self.containment
    }

    pub(super) fn wait_tree(&self, deadline: Option<Instant>) -> bool {
        self.process.await_tree(deadline)
    }

    pub(super) fn wait_ready(
        &self,
        streams: Streams<'_>,
        limit: Duration,
    ) -> Result<Readiness, ReadyError> {
        self.check_owner()?;
        let watch = self.watch.as_ref().ok_or(ReadyError::NotAsked)?;
        watch.wait(&self.process, streams, limit, || self.try_wait())
    }

    #[cfg(feature = "tokio")]
    pub(super) fn observer(&self) -> Result<Observer, CaptiveError> {
        self.check_owner()?;
        Ok(Observer {
            process: Arc::clone(&self.process),
            watch: self.watch.clone(),
        })
    }

    pub(super) fn tell(&self, sink: Sink) -> Result<(), CaptiveError> {
        self.check_owner()?;
        self.runtime.reaper().watch(Arc::clone(&self.process), sink);
        Ok(())
    }

    pub(super) fn resume(&self) {
        self.process.send(libc::SIGCONT);
    }

    pub(super) fn stuck(&self) -> Stuck {
        stuck(&self.process)
    }

    pub(super) fn detach(&self) -> Result<(), CaptiveError> {
        self.check_owner()?;
        self.process.let_go()?;
        self.let_go.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.runtime.is_ours() || self.process.has_ended() {
            return;
        }
        // The reaper has it already.
        if !self.let_go.load(Ordering::Relaxed) {
            self.process.abandon();
        }
    }
}
