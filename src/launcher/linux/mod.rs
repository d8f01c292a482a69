//! Linux: the launcher's threads, its child between clone and exec, its guard.
//!
//! ```text
//! Command::spawn ── request (all allocated) ── spawner thread ── child: clone(VM|VFORK) .. exec
//!                                                                  │ its own pidfd
//! Captive ── process (pidfd, status) ── reaper thread           guard (a process; the helper)
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::captive::Stuck;
use super::command::{Command, Defaults};
use super::events::Sink;
use super::primitive;
use super::stdio::Pipes;
use super::watch::Watch;
use super::{CaptiveError, Containment, ExitReport, Readiness, ReadyError, SpawnError};
pub(super) use crate::sys::linux as sys;
use crate::sys::signal::Signal;

#[cfg(feature = "cli")]
mod alone;
mod caught;
mod child;
mod claim;
mod contained;
mod guard;
#[cfg(feature = "tokio")]
mod observer;
pub(super) mod probe;
mod proc;
mod process;
#[path = "helper/protocol.rs"]
#[allow(dead_code, unreachable_pub, reason = "the helper uses the rest")]
mod protocol;
mod reaper;
mod request;
mod runtime;
mod slot;
mod spawner;
mod stage;
mod std_child;
mod stuck;
mod tree;

pub(super) use super::watch::Streams;
#[cfg(feature = "tokio")]
pub(super) use super::watch::{LAST_WORDS, Look, PAUSE};
#[cfg(feature = "cli")]
pub(crate) use alone::{Holds, contain_alone, own_cgroup};
pub(super) use caught::Caught;
#[cfg(feature = "tokio")]
pub(super) use observer::Observer;
pub(super) use process::Process;
use runtime::Runtime;
pub(super) use std_child::spawn_std;
#[cfg(feature = "cli")]
pub(crate) use tree::Tree;

pub(super) fn is_supported() -> bool {
    // A descriptor that cannot be open: EBADF from a kernel that knows P_PIDFD, EINVAL before 5.4.
    sys::reap(i32::MAX) == Err(nix::errno::Errno::EBADF)
}

/// Why [`is_supported`] says no.
const NO_WAIT: &str = "waitid(2) does not wait for pidfds (Linux 5.4), or a filter refuses it";

pub(super) fn spawn(command: &Command, defaults: &Defaults) -> Result<(Handle, Pipes), SpawnError> {
    if !is_supported() {
        return Err(SpawnError::Unsupported(NO_WAIT));
    }
    let runtime = Runtime::of_this_process();
    let (watch, extra) = Watch::prepare(command)?.unzip();
    let (process, pipes) = runtime.spawn(command, defaults, &extra.unwrap_or_default())?;
    let handle = Handle {
        containment: process
            .tree()
            .map_or(command.containment, |tree| tree.containment()),
        process,
        runtime,
        watch: watch.map(Arc::new),
        let_go: false.into(),
    };
    Ok((handle, pipes))
}

/// Starts the thread that tells of events.
pub(super) fn start() -> std::io::Result<()> {
    let runtime = Runtime::of_this_process();
    runtime.reaper().start(runtime).map_err(Into::into)
}

/// A captive of the process that owns `runtime`.
#[derive(Debug)]
pub(super) struct Handle {
    process: Arc<Process>,
    runtime: &'static Runtime,
    containment: Containment,
    watch: Option<Arc<Watch>>,
    let_go: std::sync::atomic::AtomicBool,
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
        let report = self.process.try_wait()?;
        if report.is_some() {
            self.runtime.ended(&self.process);
        }
        Ok(report)
    }

    pub(super) fn wait_until(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<ExitReport>, CaptiveError> {
        self.check_owner()?;
        let report = self.process.wait_until(deadline)?;
        if report.is_some() {
            self.runtime.ended(&self.process);
        }
        Ok(report)
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), CaptiveError> {
        self.check_owner()?;
        self.process.signal(signal)
    }

    pub(super) fn containment(&self) -> Containment {
        self.containment
    }

    pub(super) fn wait_tree(&self, deadline: Option<Instant>) -> bool {
        self.process
            .tree()
            .is_none_or(|tree| tree.wait_empty(deadline))
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
        let _ = sys::pidfd_send_signal(self.process.as_fd(), libc::SIGCONT);
    }

    pub(super) fn stuck(&self) -> Stuck {
        stuck::look_at(&self.process)
    }

    pub(super) fn detach(&self) -> Result<(), CaptiveError> {
        self.check_owner()?;
        self.runtime.let_go(&self.process)?;
        self.let_go
            .store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.runtime.is_ours() || self.process.has_ended() {
            return;
        }
        if !self.let_go.load(std::sync::atomic::Ordering::Relaxed) {
            // What cannot be signalled is still the guard's to end.
            let _ = self.process.signal(Signal::KILL);
        }
        self.runtime
            .reap_in_the_background(Arc::clone(&self.process));
    }
}
