//! What one launcher process has: its reaper. Made at the first spawn, kept for the life of the process.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Instant;

use nix::errno::Errno;

use super::super::command::{Command, Defaults};
use super::super::prepare;
use super::super::stdio::Pipes;
use super::super::{CaptiveError, ExitReport, SpawnError, SpawnStep};
use super::contained;
use super::process::Process;
use super::reaper::Reaper;
use super::request::{Prepared, Request};
use super::supervisor;
use super::sys;
use super::words::{Launch, Page};

#[derive(Debug)]
pub(in super::super) struct Runtime {
    /// Whose it is.
    pid: i32,
    reaper: Reaper,
}

impl Runtime {
    /// The one of the calling process. A forked child has another, since it has none of the threads: no
    /// lock here, which a fork in the middle would leave taken for ever.
    pub(in super::super) fn of_this_process() -> &'static Self {
        static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(std::ptr::null_mut());
        loop {
            let current = RUNTIME.load(Ordering::Acquire);
            if let Some(runtime) = sys::leaked(current) {
                if runtime.is_ours() {
                    return runtime;
                }
            }
            // Never freed: handles refer to it, and its thread. Nothing is started before it is used.
            let new = Box::leak(Box::new(Self {
                pid: sys::getpid(),
                reaper: Reaper::new(),
            }));
            let _ = RUNTIME.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    pub(in super::super) fn is_ours(&self) -> bool {
        sys::getpid() == self.pid
    }

    pub(in super::super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(in super::super) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    pub(in super::super) fn spawn(
        &'static self,
        command: &Command,
        defaults: &Defaults,
        extra: &[(OsString, OsString)],
    ) -> Result<(Arc<Process>, Pipes), SpawnError> {
        let failed = |step: SpawnStep, errno: Errno| SpawnError::Step {
            program: command.program.clone(),
            step,
            errno: errno.into(),
        };
        self.reaper
            .start(self)
            .map_err(|errno| failed(SpawnStep::StartThread, errno))?;
        prepare::check(command)?;
        let holds = contained::choose(command)?;
        let Prepared {
            mut request,
            plan,
            pipes,
            labels,
            held,
        } = Request::prepare(command, defaults, holds, extra)?;
        let deadline = Instant::now().checked_add(command.spawn_timeout);
        let mut start = || {
            let page = Page::new()?;
            let made = supervisor::make(&mut request, &plan.in_child(), &page)?;
            Ok(Process::new(made, page, holds, command.detachable))
        };
        let process = start().map_err(|errno| failed(SpawnStep::StartSupervisor, errno))?;
        drop(held);
        let process = Arc::new(process);
        // Whatever becomes of the launch, its supervisor is waited for.
        self.reaper.take(Arc::clone(&process));
        match process.await_launch(deadline) {
            Launch::Done => Ok((process, pipes)),
            Launch::Failed(step, errno) => {
                // Nothing is left of it, but where its supervisor was killed.
                process.abandon();
                Err(failed(labels.step(step), errno))
            }
            Launch::UnderWay => {
                process.abandon();
                Err(SpawnError::Stalled {
                    program: command.program.clone(),
                    step: labels.step(process.step()),
                    after: command.spawn_timeout,
                })
            }
        }
    }

    /// How it ended, if that is known by now.
    #[allow(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "where it is reaped by whoever asks, that is the runtime's, and fails"
    )]
    pub(in super::super) fn try_wait(
        &self,
        process: &Process,
    ) -> Result<Option<ExitReport>, CaptiveError> {
        Ok(process.report())
    }

    /// It is to live on without its launcher.
    #[allow(
        clippy::unused_self,
        reason = "where a guard is told, it is the runtime's"
    )]
    pub(in super::super) fn let_go(&self, process: &Process) -> Result<(), CaptiveError> {
        process.let_go()
    }

    /// Its handle is no more. The reaper has it since its launch.
    #[allow(
        clippy::unused_self,
        reason = "where the reaper has to be told, it is the runtime's"
    )]
    pub(in super::super) fn give_up(&self, process: &Process, is_let_go: bool) {
        if !is_let_go {
            process.abandon();
        }
    }
}
