//! A captive's handle, where there are captives: what is asked of the platform's process and runtime, and by whom it may be.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::captive::Stuck;
use super::command::{Command, Defaults};
use super::events::Sink;
#[cfg(feature = "tokio")]
use super::observer::Observer;
use super::platform::{Process, Runtime, sys};
use super::stdio::Pipes;
use super::watch::{Streams, Watch};
use super::{CaptiveError, Containment, ExitReport, Readiness, ReadyError, SpawnError};
use crate::sys::signal::Signal;

/// A captive of the process that owns `runtime`.
#[derive(Debug)]
pub(super) struct Handle {
    process: Arc<Process>,
    runtime: &'static Runtime,
    containment: Containment,
    watch: Option<Arc<Watch>>,
    let_go: AtomicBool,
}

/// Starts the thread that tells of events.
pub(super) fn start() -> std::io::Result<()> {
    let runtime = Runtime::of_this_process();
    runtime.reaper().start(runtime).map_err(Into::into)
}

impl Handle {
    pub(super) fn spawn(
        command: &Command,
        defaults: &Defaults,
    ) -> Result<(Self, Pipes), SpawnError> {
        let runtime = Runtime::of_this_process();
        let (watch, extra) = Watch::prepare(command)?.unzip();
        let (process, pipes) = runtime.spawn(command, defaults, &extra.unwrap_or_default())?;
        let handle = Self {
            containment: process.containment().unwrap_or(command.containment),
            process,
            runtime,
            watch: watch.map(Arc::new),
            let_go: false.into(),
        };
        Ok((handle, pipes))
    }

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
        self.runtime.try_wait(&self.process)
    }

    pub(super) fn wait_until(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<ExitReport>, CaptiveError> {
        self.check_owner()?;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(report) = self.runtime.try_wait(&self.process)? {
                return Ok(Some(report));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let limit = left.unwrap_or(Duration::from_secs(3600));
            match sys::poll_within(self.pidfd(), libc::POLLIN, limit) {
                Ok(false) | Err(Errno::EINTR) => {}
                Ok(true) => {
                    if self.runtime.try_wait(&self.process)?.is_none() {
                        // It has ended, and how is not known yet: a tracer has not let go of it, or its supervisor was killed
                        // and the reaper is about to find out. Nothing tells when.
                        std::thread::sleep(pause.min(limit));
                        pause = (pause * 2).min(Duration::from_millis(50));
                    }
                }
                // RLIMIT_NOFILE is 0: nothing can be polled.
                Err(_) => std::thread::sleep(pause.min(limit)),
            }
        }
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
            runtime: self.runtime,
            watch: self.watch.clone(),
        })
    }

    pub(super) fn tell(&self, sink: Sink) -> Result<(), CaptiveError> {
        self.check_owner()?;
        self.runtime.reaper().watch(Arc::clone(&self.process), sink);
        Ok(())
    }

    pub(super) fn resume(&self) {
        self.process.resume();
    }

    pub(super) fn stuck(&self) -> Stuck {
        self.process.stuck()
    }

    pub(super) fn detach(&self) -> Result<(), CaptiveError> {
        self.check_owner()?;
        self.runtime.let_go(&self.process)?;
        self.let_go.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.runtime.is_ours() || self.process.has_ended() {
            return;
        }
        let is_let_go = self.let_go.load(Ordering::Relaxed);
        self.runtime.give_up(&self.process, is_let_go);
    }
}
