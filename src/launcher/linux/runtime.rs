//! What one launcher process has: its spawner threads, its guard, its reaper. Made at the first spawn,
//! kept for the life of the process.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::command::{Command, Defaults};
use super::super::stdio::Pipes;
use super::super::{CaptiveError, SpawnError, SpawnStep};
use super::guard::{Guard, Helper};
use super::process::Process;
use super::reaper::Reaper;
use super::request::{Prepared, Request};
use super::spawner::{Made, Spawners};
use super::stage;
use crate::sys::linux::{self as sys, Owner};

#[derive(Debug)]
pub(super) struct Runtime {
    owner: Owner,
    spawners: Spawners,
    helper: Helper,
    guard: Guard,
    reaper: Reaper,
    next_id: AtomicU64,
}

/// How often a captive whose guard cannot be told is launched with another guard.
const GUARD_TRIES: u32 = 3;

/// How long it may take until there is room for a message again.
const ROOM: Duration = Duration::from_millis(10);

impl Runtime {
    /// The one of the calling process. A forked child has another, since it has none of the threads: no
    /// lock here, which a fork in the middle would leave taken for ever.
    pub(super) fn of_this_process() -> &'static Self {
        static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(std::ptr::null_mut());
        loop {
            let current = RUNTIME.load(Ordering::Acquire);
            if let Some(runtime) = sys::leaked(current) {
                if runtime.is_ours() {
                    return runtime;
                }
            }
            // Never freed: handles refer to it, and threads. Nothing is started before it is used.
            let new = Box::leak(Box::new(Self {
                owner: Owner::this_process(),
                spawners: Spawners::default(),
                helper: Helper::default(),
                guard: Guard::default(),
                reaper: Reaper::new(),
                next_id: AtomicU64::new(1),
            }));
            let _ = RUNTIME.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.owner.is_this_process()
    }

    pub(super) fn pid(&self) -> i32 {
        self.owner.pid()
    }

    pub(super) fn spawners(&self) -> &Spawners {
        &self.spawners
    }

    pub(super) fn helper(&self) -> &Helper {
        &self.helper
    }

    pub(super) fn guard(&self) -> &Guard {
        &self.guard
    }

    pub(super) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    pub(super) fn spawn(
        &'static self,
        command: &Command,
        defaults: &Defaults,
    ) -> Result<(Arc<Process>, Pipes), SpawnError> {
        let mut tries = 0;
        loop {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let Prepared { request, pipes } =
                Request::prepare(command, defaults, id, &self.helper)?;
            let failed = |step: SpawnStep, errno: Errno| SpawnError::Step {
                program: command.program.clone(),
                step,
                errno: errno.into(),
            };
            self.reaper
                .start(self)
                .map_err(|errno| failed(SpawnStep::StartThread, errno))?;
            let line = self
                .guard
                .line(self)
                .map_err(|(step, errno)| failed(step, errno))?;
            match self.launch(command, request.with_guard(&line), line.generation()) {
                Ok(process) => return Ok((process, pipes)),
                Err(SpawnError::Step {
                    step: SpawnStep::TellGuard,
                    ..
                }) if tries < GUARD_TRIES => {
                    tries += 1;
                    // It is dead, or reads no more: another one will. Otherwise there was no room just then.
                    if line.listens() {
                        std::thread::sleep(ROOM);
                    } else {
                        // If that fails the next round says so.
                        let _ = self.guard.replace(self, line.generation());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// From clone to exec.
    fn launch(
        &self,
        command: &Command,
        mut request: Request,
        generation: u64,
    ) -> Result<Arc<Process>, SpawnError> {
        let message = request.message();
        let stage = request.take_stage();
        let deadline = Instant::now().checked_add(command.spawn_timeout);
        let Made { pid, pidfd } = match self.spawners.make(request, command.spawn_timeout) {
            Ok(made) => made,
            Err(failure) => {
                let (error, late) = failure.into_error(command);
                if let Some(made) = late {
                    self.reap_in_the_background(Arc::new(Process::unguarded(made)));
                }
                return Err(error);
            }
        };
        let process = Arc::new(Process::new(pid, pidfd, message));
        // Before the stage, which may take its time: another guard is to be told of it.
        self.guard.note(&process, generation);
        if let Some(stage) = &stage {
            if let Err(error) = stage::follow(stage, command, deadline) {
                // Its own child, and nobody else has a handle on it.
                let _ = sys::pidfd_send_signal(process.as_fd(), libc::SIGKILL);
                self.reap_in_the_background(process);
                return Err(error);
            }
        }
        Ok(process)
    }

    /// It has ended, and been reaped.
    pub(super) fn ended(&self, process: &Process) {
        self.guard.forget(process.id());
    }

    /// It is to live on without us.
    pub(super) fn let_go(&'static self, process: &Arc<Process>) -> Result<(), CaptiveError> {
        self.guard
            .let_go(self, process)
            .map_err(|errno| CaptiveError::Guard(errno.into()))
    }

    pub(super) fn reap_in_the_background(&self, process: Arc<Process>) {
        self.reaper.take(process);
    }
}
