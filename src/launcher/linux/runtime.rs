//! What one launcher process has: its spawner threads, its guard, its reaper. Made at the first spawn,
//! kept for the life of the process.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::command::{Command, Defaults};
use super::super::prepare;
use super::super::stdio::Pipes;
use super::super::{CaptiveError, ExitReport, SpawnError, SpawnStep};
use super::contained;
use super::guard::{Guard, Helper, Line};
use super::process::Process;
use super::reaper::Reaper;
use super::request::{Prepared, Request};
use super::spawner::{Made, Spawners};
use super::stage;
use super::tree::Tree;
use crate::sys::linux::{self as sys, Owner};
use crate::sys::signal::Signal;

#[derive(Debug)]
pub(in super::super) struct Runtime {
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
    pub(in super::super) fn of_this_process() -> &'static Self {
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

    pub(in super::super) fn is_ours(&self) -> bool {
        self.owner.is_this_process()
    }

    pub(in super::super) fn pid(&self) -> i32 {
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

    pub(in super::super) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// A number that no captive of this process has.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(in super::super) fn spawn(
        &'static self,
        command: &Command,
        defaults: &Defaults,
        extra: &[(OsString, OsString)],
    ) -> Result<(Arc<Process>, Pipes), SpawnError> {
        self.reaper.start(self).map_err(|errno| SpawnError::Step {
            program: command.program.clone(),
            step: SpawnStep::StartThread,
            errno: errno.into(),
        })?;
        // Before the tree: what is wrong with the command changes nothing.
        prepare::check(command)?;
        let mut refused = Vec::new();
        loop {
            let tree = contained::contain(self, command, &refused)?;
            let spawned = self.spawn_in(command, defaults, tree.as_ref(), extra);
            if let (Err(error), Some(tree)) = (&spawned, &tree) {
                self.end_tree(tree);
                if let Some(one) = contained::refused(command, tree, error) {
                    refused.push(one);
                    continue;
                }
            }
            return spawned.map_err(|error| contained::explain(self, command, error));
        }
    }

    /// Into a tree that has been made for it.
    fn spawn_in(
        &'static self,
        command: &Command,
        defaults: &Defaults,
        tree: Option<&Arc<Tree>>,
        extra: &[(OsString, OsString)],
    ) -> Result<(Arc<Process>, Pipes), SpawnError> {
        self.with_guard(&command.program, |line| {
            let id = self.next_id();
            let Prepared { request, pipes } =
                Request::prepare(command, defaults, id, &self.helper, tree, extra)?;
            let process = self.launch(command, request.with_guard(line), line.generation())?;
            Ok((process, pipes))
        })
    }

    /// Spawns something that tells the guard of itself; again, with another guard, where this one cannot be told.
    pub(super) fn with_guard<T>(
        &'static self,
        program: &OsStr,
        mut spawn: impl FnMut(&Line) -> Result<T, SpawnError>,
    ) -> Result<T, SpawnError> {
        let mut tries = 0;
        loop {
            let line = self
                .guard
                .line(self)
                .map_err(|(step, errno)| SpawnError::Step {
                    program: program.to_owned(),
                    step,
                    errno: errno.into(),
                })?;
            match spawn(&line) {
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
                answer => return answer,
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
        let tree = request.tree().cloned();
        let deadline = Instant::now().checked_add(command.spawn_timeout);
        let made = match self.spawners.make(request, command.spawn_timeout) {
            Ok(made) => made,
            Err(failure) => {
                let (error, late) = failure.into_error(command);
                if let Some(made) = late {
                    self.reap_made(made);
                }
                return Err(error);
            }
        };
        let process = Arc::new(Process::new(made, message, tree));
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
        if let Some(tree) = process.tree() {
            self.end_tree(tree);
        }
        self.guard.forget(process.id());
    }

    /// Ends what is left of a tree, and sees to it that nothing remains.
    pub(super) fn end_tree(&self, tree: &Arc<Tree>) {
        if !tree.claim_end() || tree.is_let_go() {
            return;
        }
        // A walk takes its time, and is the reaper's.
        if !tree.is_marked() {
            tree.end();
        }
        self.clear_up(tree);
    }

    fn clear_up(&self, tree: &Arc<Tree>) {
        if let Some(init) = tree.init() {
            self.reap_in_the_background(Arc::clone(init));
        }
        if tree.is_marked() || tree.cgroup().is_some() {
            self.reaper.take_tree(Arc::clone(tree));
        }
    }

    /// It is to live on without us.
    pub(in super::super) fn let_go(
        &'static self,
        process: &Arc<Process>,
    ) -> Result<(), CaptiveError> {
        self.guard
            .let_go(self, process)
            .map_err(|errno| CaptiveError::Guard(errno.into()))?;
        if let Some(tree) = process.tree() {
            tree.let_go();
            self.clear_up(tree);
        }
        Ok(())
    }

    /// Reaps it if it has ended.
    pub(in super::super) fn try_wait(
        &self,
        process: &Process,
    ) -> Result<Option<ExitReport>, CaptiveError> {
        let report = process.try_wait()?;
        if report.is_some() {
            self.ended(process);
        }
        Ok(report)
    }

    /// Its handle is no more.
    pub(in super::super) fn give_up(&self, process: &Arc<Process>, is_let_go: bool) {
        if !is_let_go {
            // What cannot be signalled is still the guard's to end.
            let _ = process.signal(Signal::KILL);
        }
        self.reap_in_the_background(Arc::clone(process));
    }

    /// A child that nobody else knows, and that is to end or has been told to.
    pub(super) fn reap_made(&self, made: Made) {
        self.reap_in_the_background(Arc::new(Process::unguarded(made)));
    }

    pub(super) fn reap_in_the_background(&self, process: Arc<Process>) {
        self.reaper.take(process);
    }
}
