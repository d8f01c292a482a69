//! The launcher's side of the stage: what the helper is told, and what it says.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::super::command::Command;
use super::super::prepare::{Executable, c_string};
use super::super::{SpawnError, SpawnStep};
use super::child::NUMBER_ROOM;
use super::guard::Helper;
use super::protocol::{self, ROLE_STAGE, StageReport};
use super::request::{Program, Request};
use crate::privileges::Identity;
use crate::run_with::{Plan, Step};
use crate::sys::linux::{self as sys, StringArray};

/// The pipe on which the helper speaks, and what its steps are called.
#[derive(Debug)]
pub(super) struct Stage {
    pipe: OwnedFd,
    steps: Vec<Step>,
}

/// Turns a request for a command into one for the helper, which makes the plan's steps and executes
/// the command.
pub(super) fn insert(
    request: &mut Request,
    plan: Plan,
    command: &Command,
    helper: &Helper,
) -> Result<(), SpawnError> {
    let failed = |step: SpawnStep| {
        move |errno: Errno| SpawnError::Step {
            program: command.program.clone(),
            step,
            errno: errno.into(),
        }
    };
    let program = helper.program().map_err(failed(SpawnStep::HelperProgram))?;
    let (pipe, theirs) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed(SpawnStep::OpenStdio))?;
    let (steps, root, identity) = plan.into_parts();
    let Program::Direct(Executable {
        candidates,
        argv,
        envp,
        own_pid,
    }) = std::mem::replace(
        &mut request.program,
        Program::Stage {
            program: -1,
            kept: [-1; 2],
            argv: StringArray::new(Vec::new()),
            envp: StringArray::new(Vec::new()),
            own_pid: None,
        },
    )
    else {
        return Ok(());
    };
    // The order in which the helper reads them; the first and the second are filled in by the child.
    let blank = "0".repeat(NUMBER_ROOM);
    let (uid, gid) = identity
        .as_ref()
        .map_or((0, 0), |identity| (identity.uid(), identity.gid()));
    let groups = identity.as_ref().map(Identity::groups);
    let groups = groups.unwrap_or_default();
    let mut numbers = format!(
        "{blank} {blank} {} {} {} {} {uid} {gid} {} {}",
        request.parent,
        request.parent_death_signal,
        request.settings.mask,
        u8::from(identity.is_some()),
        candidates.len(),
        groups.len(),
    );
    for group in groups {
        numbers.push(' ');
        numbers.push_str(&group.to_string());
    }
    // In a new root the directory is looked for there.
    let directory = match (&root, request.settings.directory.take()) {
        (Some(_), Some(directory)) => directory,
        (None, directory) => {
            request.settings.directory = directory;
            CString::default()
        }
        (Some(_), None) => CString::default(),
    };
    let mut arguments = vec![
        c_string(command, "captive-stage".as_ref())?,
        CString::new(ROLE_STAGE).unwrap_or_default(),
        CString::new(numbers).unwrap_or_default(),
        directory,
    ];
    arguments.extend(candidates);
    arguments.extend(argv.into_strings());
    let kept = [
        theirs.as_raw_fd(),
        root.as_ref().map_or(-1, AsRawFd::as_raw_fd),
    ];
    let program = Program::Stage {
        program: program.as_raw_fd(),
        kept,
        argv: StringArray::new(arguments),
        envp,
        own_pid,
    };
    request.set_stage(Stage { pipe, steps }, program, [Some(theirs), root]);
    Ok(())
}

/// Reads until the command has been executed (the end of the pipe), or why it was not.
pub(super) fn follow(
    stage: &Stage,
    command: &Command,
    deadline: Option<Instant>,
) -> Result<(), SpawnError> {
    let mut last = protocol::STEP_CHROOT;
    loop {
        let limit = deadline.map_or(command.spawn_timeout, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        match sys::poll_within(stage.pipe.as_fd(), libc::POLLIN, limit) {
            Ok(false) => {
                return Err(SpawnError::Stalled {
                    program: command.program.clone(),
                    step: stage.step(last, command),
                    after: command.spawn_timeout,
                });
            }
            Err(Errno::EINTR) => continue,
            // Or RLIMIT_NOFILE is 0, and poll(2) looks at nothing: read(2) waits as well.
            Ok(true) | Err(_) => {}
        }
        // A report is written in one piece (PIPE_BUF).
        let mut bytes = [0; size_of::<StageReport>()];
        let failed = match nix::unistd::read(&stage.pipe, &mut bytes) {
            Ok(0) if last == protocol::STEP_EXEC => return Ok(()),
            // Killed on the way.
            Ok(0) => Errno::ECANCELED,
            Ok(_) => {
                let (step, errno) = bytes.split_at(size_of::<u32>());
                last = u32::from_ne_bytes(step.try_into().unwrap_or_default());
                match i32::from_ne_bytes(errno.try_into().unwrap_or_default()) {
                    0 => continue,
                    errno => Errno::from_raw(errno),
                }
            }
            Err(Errno::EINTR) => continue,
            Err(errno) => errno,
        };
        return Err(SpawnError::Step {
            program: command.program.clone(),
            step: stage.step(last, command),
            errno: failed.into(),
        });
    }
}

impl Stage {
    /// What a number of the helper's is called.
    fn step(&self, number: u32, command: &Command) -> SpawnStep {
        let found = self.steps.iter().find(|step| {
            matches!(
                (number, step),
                (protocol::STEP_CHROOT, Step::Chroot(_))
                    | (protocol::STEP_GROUPS, Step::SetGroups(_))
                    | (protocol::STEP_GID, Step::SetGid(_))
                    | (protocol::STEP_UID, Step::SetUid(_))
                    | (protocol::STEP_PROOF, Step::ProveDropped)
            )
        });
        match (found, number) {
            (Some(step), _) => SpawnStep::RunWith(step.clone()),
            (None, protocol::STEP_CHDIR) => match &command.current_dir {
                Some(directory) => SpawnStep::ChangeDirectory(directory.clone()),
                None => SpawnStep::RunWith(Step::ChangeDirectory),
            },
            (None, protocol::STEP_PARENT) => SpawnStep::ParentDeathSignal,
            (None, protocol::STEP_MASK) => SpawnStep::Signals,
            (None, _) => SpawnStep::Exec,
        }
    }
}
