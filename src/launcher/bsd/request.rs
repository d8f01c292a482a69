//! A launch with everything resolved and allocated, so that supervisor and child only make system calls.

use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;

use super::super::command::{Command, Defaults, LauncherExit};
use super::super::prepare::{self, Executable};
use super::super::settings::{self, Names, Settings};
use super::super::stdio::Pipes;
use super::super::{Containment, SpawnError, SpawnStep};
use super::{sys, words};
use crate::run_with::{Plan, Step};
use crate::sys::signal::Signal;

/// What the supervisor and the child are to do.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) launcher: i32,
    pub(super) holds: Holds,
    pub(super) on_exit: OnExit,
    /// It may be let go later: the kernel is not to end it with its supervisor.
    pub(super) detachable: bool,
    pub(super) settings: Settings,
    /// The working directory, if it is one in the new root.
    pub(super) directory: Option<CString>,
    pub(super) executable: Executable,
}

/// By what a captive's tree is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Nothing,
    /// Its supervisor, a reaper.
    Reaper,
    /// The process group that it leads.
    Group,
}

/// What happens when the launcher is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OnExit {
    pub(super) signal: i32,
    /// How long after the signal SIGKILL comes, if it is not that already.
    pub(super) kill_after: Option<Duration>,
}

/// A request, what it refers to, and the launcher's ends of the captive's pipes.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) request: Request,
    pub(super) plan: Plan,
    pub(super) pipes: Pipes,
    pub(super) labels: Labels,
    /// Kept open until the child has them.
    pub(super) held: Vec<OwnedFd>,
}

/// What the steps are called.
#[derive(Debug)]
pub(super) struct Labels {
    names: Names,
    steps: Vec<Step>,
}

impl Labels {
    /// What a code means.
    pub(super) fn step(&self, code: u32) -> SpawnStep {
        let index = (code >> 8) as usize;
        match code & 0xff {
            words::FORK => SpawnStep::Fork,
            words::REAPER => SpawnStep::BecomeReaper,
            words::CLEAR => SpawnStep::CloseDescriptors,
            words::PARENT => SpawnStep::ParentDeathSignal,
            words::PLAN => match self.steps.get(index) {
                Some(step) => SpawnStep::RunWith(step.clone()),
                None => SpawnStep::StartSupervisor,
            },
            _ => settings::step_of(code, &self.names).unwrap_or(SpawnStep::StartSupervisor),
        }
    }
}

impl Request {
    /// Resolves what a command says.
    pub(super) fn prepare(
        command: &Command,
        defaults: &Defaults,
        holds: Holds,
        extra: &[(OsString, OsString)],
    ) -> Result<Prepared, SpawnError> {
        refuse(command)?;
        let mut plan = prepare::plan(command)?;
        let mut held = Vec::new();
        let mut pipes = Pipes::default();
        let descriptors = prepare::descriptors(command, defaults, &mut held, &mut pipes)?;
        let mut settings = Settings::new(command, descriptors)?;
        if holds == Holds::Group && !settings.session {
            settings.group = Some(0);
        }
        // The supervisor, from which the child has its dispositions, does not ignore it.
        let children = prepare::bit(libc::SIGCHLD);
        if sys::is_ignored(libc::SIGCHLD) && settings.defaulted & children == 0 {
            settings.ignored |= children;
        }
        let root = plan
            .keep_root_from(&settings.names.targets)
            .map_err(|errno: Errno| SpawnError::Step {
                program: command.program.clone(),
                step: SpawnStep::OpenStdio,
                errno: errno.into(),
            })?;
        settings.keep.extend(root);
        let directory = root.and_then(|_| settings.directory.take());
        let on_exit = match command.launcher_exit {
            LauncherExit::Kill => OnExit {
                signal: Signal::KILL.number(),
                kill_after: None,
            },
            LauncherExit::Signal { signal, kill_after } => OnExit {
                signal: signal.number(),
                kill_after: Some(kill_after),
            },
        };
        let environment = prepare::environment(command, extra)?;
        Ok(Prepared {
            labels: Labels {
                names: settings.names.clone(),
                steps: plan.steps().to_vec(),
            },
            request: Self {
                launcher: sys::getpid(),
                holds,
                on_exit,
                detachable: command.detachable,
                settings,
                directory,
                executable: Executable::new(command, environment)?,
            },
            plan,
            pipes,
            held,
        })
    }
}

/// What only Linux has.
fn refuse(command: &Command) -> Result<(), SpawnError> {
    if command.network_namespace.is_some() {
        return Err(command.invalid("network_namespace(): namespaces are Linux's"));
    }
    if command.cgroup.is_some() {
        return Err(command.invalid("cgroup(): cgroups are Linux's"));
    }
    if command.order != 0 {
        return Err(command.invalid(
            "order(): every captive has a supervisor of its own here, which knows no other",
        ));
    }
    let group = command.process_group.unwrap_or(0);
    if command.containment == Containment::TreeBestEffort && group != 0 {
        return Err(command.invalid(format!(
            "process_group({group}) with containment {}: its tree is a group that it leads",
            command.containment
        )));
    }
    Ok(())
}
