//! Trees as the launcher makes them, with its threads.

use std::sync::Arc;

use nix::errno::Errno;

use super::super::command::{Command, LauncherExit};
use super::super::prepare;
use super::super::{Containment, Missing, SpawnError, SpawnStep};
use super::guard::Helper;
use super::request::Request;
use super::runtime::Runtime;
use super::spawner::{Made, NotMade};
use super::tree::{self, Means, Refused, Tree, Wish};

struct ByThreads<'a> {
    runtime: &'static Runtime,
    command: &'a Command,
}

impl Means for ByThreads<'_> {
    fn helper(&self) -> &Helper {
        self.runtime.helper()
    }

    fn child(&self, request: Request) -> Result<Made, (SpawnStep, Errno)> {
        let limit = self.command.spawn_timeout;
        let made = self.runtime.spawners().make(request, limit);
        made.map_err(|failed| match failed {
            NotMade::Step(step, errno) => (step, errno),
            NotMade::Stalled(step, _) => (step, Errno::ETIMEDOUT),
            NotMade::Late(made, _) => {
                self.runtime.reap_made(made);
                (SpawnStep::Exec, Errno::ETIMEDOUT)
            }
        })
    }

    fn user(&self) -> Result<Option<u32>, SpawnError> {
        prepare::plan(self.command).map(|plan| plan.user())
    }

    fn discard(&self, tree: Tree) {
        self.runtime.end_tree(&Arc::new(tree));
    }
}

/// Whether it may outlive the launcher's end, if only a little.
fn ends_gracefully(command: &Command) -> bool {
    command.detachable || command.order != 0 || command.launcher_exit != LauncherExit::Kill
}

fn wish<'a>(command: &'a Command, refused: &'a [Refused]) -> Wish<'a> {
    Wish {
        program: &command.program,
        containment: command.containment,
        cgroup: command.cgroup.as_deref(),
        gracefully: ends_gracefully(command),
        refused,
    }
}

/// What a command asks for; `None` if only the captive itself is to end. `refused`: what has been tried for it.
pub(super) fn contain(
    runtime: &'static Runtime,
    command: &Command,
    refused: &[Refused],
) -> Result<Option<Arc<Tree>>, SpawnError> {
    let asked = command.containment;
    if matches!(asked, Containment::Process | Containment::PidfdAutokill) {
        if command.cgroup.is_some() {
            let what = format!("cgroup() with containment {asked}: it holds a tree");
            return Err(command.invalid(what));
        }
        return Ok(None);
    }
    tree::contain(&wish(command, refused), &ByThreads { runtime, command }).map(Some)
}

/// Whether this error of a spawn says that its tree cannot be entered, and another mechanism would do: the program has not
/// begun.
pub(super) fn refused(command: &Command, tree: &Tree, error: &SpawnError) -> Option<Refused> {
    match error {
        SpawnError::Step {
            step: SpawnStep::EnterNamespace,
            errno,
            ..
        } => {
            let errno = Errno::from_raw(errno.raw_os_error()?);
            tree::refused(command.containment, tree, errno)
        }
        _ => None,
    }
}

/// What an error of a spawn means: of one that the kernel was to end, that this kernel cannot.
pub(super) fn explain(
    runtime: &'static Runtime,
    command: &Command,
    error: SpawnError,
) -> SpawnError {
    match error {
        SpawnError::Step {
            step: SpawnStep::Clone,
            errno,
            ..
        } if command.containment == Containment::PidfdAutokill => {
            let missing = Missing {
                containment: command.containment,
                what: "clone3 with CLONE_PIDFD_AUTOKILL (Linux 7.1, CAP_SYS_ADMIN)".to_owned(),
                errno: Some(errno),
            };
            let means = ByThreads { runtime, command };
            tree::refusal(vec![missing], &wish(command, &[]), &means)
        }
        other => other,
    }
}
