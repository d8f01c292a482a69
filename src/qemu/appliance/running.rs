//! A QEMU that runs.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::ChildStderr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::ApplianceError;
use super::launch::is_gone;
use super::log::Log;
use super::stop::{StopPlan, Stoppable, StoppedBy};
use crate::Captive;
use crate::launcher::ExitReport;
use crate::qemu::domain::Reason;
use crate::qemu::monitor::{Agent, MonitorError, Qmp, QmpEvents};
use crate::sys::signal::Signal;

/// A QEMU whose monitor is not connected yet.
pub(super) struct Launched {
    captive: Arc<Captive>,
    log: Log,
    end: Receiver<()>,
    at_end: AtEnd,
}

type Told = Box<dyn FnOnce(Reason) + Send>;

/// Whom the watcher tells.
#[derive(Clone)]
pub(super) struct AtEnd(Arc<Mutex<Watched>>);

enum Watched {
    Runs(Option<Told>),
    Ended(Reason),
}

/// A QEMU that runs. Dropped, it is killed, with its tree.
pub struct Running {
    parts: Parts,
    events: Option<QmpEvents>,
    log: Log,
    /// Its end is that of the machine.
    owned: bool,
}

/// What a domain's machine is made of.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) captive: Arc<Captive>,
    pub(super) qmp: Arc<Qmp>,
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) at_end: AtEnd,
}

/// For its last words, once it has been killed.
const LAST_WORDS: Duration = Duration::from_secs(10);

impl Running {
    /// Watches it from here on.
    #[allow(clippy::new_ret_no_self, reason = "it is connected in a second step")]
    pub(super) fn new(mut captive: Captive, room: usize) -> io::Result<Launched> {
        let log = Log::new(room);
        let stderr = captive.stderr.take();
        let captive = Arc::new(captive);
        let at_end = AtEnd(Arc::new(Mutex::new(Watched::Runs(None))));
        let (ends, end) = bounded(1);
        let watch = {
            let (captive, log, at_end) = (captive.clone(), log.clone(), at_end.clone());
            move || {
                listen(stderr, &captive, &log);
                let reason = reason(captive.wait().ok().as_ref(), &log);
                // What it holds is let go of before anybody is told: so who waits for the end finds nothing left.
                drop(captive);
                at_end.ended(reason);
                let _ = ends.send(());
            }
        };
        thread::Builder::new()
            .name(format!("qemu-{}", captive.id()))
            .spawn(watch)?;
        Ok(Launched {
            captive,
            log,
            end,
            at_end,
        })
    }

    /// Its monitor.
    pub fn qmp(&self) -> &Arc<Qmp> {
        &self.parts.qmp
    }

    /// The agent in its guest, if it was given a channel for one.
    pub fn agent(&self) -> Option<&Arc<Agent>> {
        self.parts.agent.as_ref()
    }

    /// Its process.
    pub fn captive(&self) -> &Arc<Captive> {
        &self.parts.captive
    }

    /// The end of what it wrote.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its events, for the one who asks first.
    pub fn take_events(&mut self) -> Option<QmpEvents> {
        self.events.take()
    }

    pub(super) fn keep(&mut self, events: QmpEvents) {
        self.events = Some(events);
    }

    /// Has this called when it has ended, with why, by the thread that watches it; at once, if it has. For one only: the
    /// last.
    pub fn at_end(&self, tell: impl FnOnce(Reason) + Send + 'static) {
        self.parts.at_end.tell(tell);
    }

    /// It is another's to end.
    pub(super) fn into_parts(mut self) -> Parts {
        self.owned = false;
        self.parts.clone()
    }

    /// Ends it, as the plan says. Returns when it has ended, or is stuck.
    pub fn stop(&self, plan: &StopPlan) -> StoppedBy {
        plan.carry_out(&mut Stopping(self))
    }
}

impl Launched {
    pub(super) fn connected(self, qmp: Qmp, agent: Option<Agent>) -> Running {
        Running {
            parts: Parts {
                captive: self.captive,
                qmp: Arc::new(qmp),
                agent: agent.map(Arc::new),
                at_end: self.at_end,
            },
            events: None,
            log: self.log,
            owned: true,
        }
    }

    /// Ends it, and says why there is none.
    pub(super) fn failed(self, cause: MonitorError) -> ApplianceError {
        let ended = is_gone(&cause) && self.end.recv_timeout(LAST_WORDS).is_ok();
        if !ended {
            let _ = self.captive.kill();
            let _ = self.end.recv_timeout(LAST_WORDS);
        }
        let log = self.log.text();
        if ended {
            let report = self.captive.try_wait().ok().flatten();
            ApplianceError::Ended { report, log }
        } else {
            ApplianceError::Monitor { cause, log }
        }
    }
}

impl AtEnd {
    pub(super) fn tell(&self, tell: impl FnOnce(Reason) + Send + 'static) {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *watched {
            Watched::Runs(told) => *told = Some(Box::new(tell)),
            Watched::Ended(reason) => {
                let reason = reason.clone();
                drop(watched);
                tell(reason);
            }
        }
    }

    fn ended(&self, reason: Reason) {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *watched, Watched::Ended(reason.clone()));
        drop(watched);
        if let Watched::Runs(Some(told)) = before {
            told(reason);
        }
    }
}

/// Keeps what it writes, until it has ended: what it has started may have its standard error still.
fn listen(stderr: Option<ChildStderr>, captive: &Captive, log: &Log) {
    let Some(mut stderr) = stderr else {
        return;
    };
    let mut bytes = [0; 4096];
    loop {
        let mut fds = [
            PollFd::new(stderr.as_fd(), PollFlags::POLLIN),
            PollFd::new(captive.pidfd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            // EINTR; nothing else can be.
            continue;
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let (words, ended) = (is_ready(&fds[0]), is_ready(&fds[1]));
        if words {
            match stderr.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => log.add(&bytes[..count]),
                Err(_) => {}
            }
        } else if ended {
            return;
        }
    }
}

/// Why a domain whose QEMU ended so does not run.
fn reason(report: Option<&ExitReport>, log: &Log) -> Reason {
    match report {
        Some(report) if report.success() => Reason::Shutdown,
        report => {
            let how = report.map_or_else(
                || "it ended, and how is not known".to_owned(),
                |report| report.status().to_string(),
            );
            match log.last_line() {
                Some(line) => Reason::Crashed(format!("{how}: {line}")),
                None => Reason::Crashed(how),
            }
        }
    }
}

struct Stopping<'a>(&'a Running);

impl Stoppable for Stopping<'_> {
    fn ask(&mut self, command: &str, limit: Duration) -> bool {
        let asked: Result<serde_json::Value, _> = self.0.qmp().execute_within(command, &(), limit);
        asked.is_ok()
    }

    fn terminate(&mut self) -> bool {
        self.0.captive().signal(Signal::TERM).is_ok()
    }

    fn kill(&mut self) {
        let _ = self.0.captive().kill();
    }

    fn wait(&mut self, limit: Duration) -> bool {
        matches!(self.0.captive().wait_timeout(limit), Ok(Some(_)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.owned {
            // The watcher has a handle as well, so nobody else's drop does it.
            let _ = self.parts.captive.kill();
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("pid", &self.parts.captive.id())
            .finish_non_exhaustive()
    }
}
