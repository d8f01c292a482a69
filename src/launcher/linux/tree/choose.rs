//! Which mechanism contains a captive: the table of [`Containment`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::super::super::command::Command;
use super::super::super::{Containment, ContainmentError, Missing, SpawnError, SpawnStep};
use super::super::request;
use super::super::runtime::Runtime;
use super::super::spawner::NotMade;
use super::cgroup::{self, Cgroup, Why};
use super::{Namespace, Tree};
use crate::sys::linux as sys;

/// What a command asks for; `None` if only the captive itself is to end.
pub(in super::super) fn contain(
    runtime: &'static Runtime,
    command: &Command,
) -> Result<Option<Arc<Tree>>, SpawnError> {
    let asked = command.containment;
    let wanted: &[Containment] = match asked {
        Containment::Process | Containment::PidfdAutokill => {
            if command.cgroup.is_some() {
                return Err(command.invalid(format!(
                    "cgroup() with containment {asked}: it holds a tree"
                )));
            }
            return Ok(None);
        }
        Containment::Tree => &[
            Containment::PidNamespace,
            Containment::Cgroup,
            Containment::UserNamespace,
        ],
        _ => &[asked],
    };
    let maker = Maker { runtime, command };
    let mut missing = Vec::new();
    for containment in wanted {
        let made = match maker.escape(*containment)? {
            Some(why) if asked == Containment::Tree => Err((why, None)),
            _ => maker.make(*containment),
        };
        match made {
            Ok(tree) => return Ok(Some(Arc::new(tree))),
            Err((what, errno)) => missing.push(Missing {
                containment: *containment,
                what,
                errno: errno.map(Errno::into),
            }),
        }
    }
    Err(maker.refusal(missing))
}

/// What an error of a spawn means: of one that the kernel was to end, that this kernel cannot.
pub(in super::super) fn explain(
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
            Maker { runtime, command }.refusal(vec![missing])
        }
        other => other,
    }
}

struct Maker<'a> {
    runtime: &'static Runtime,
    command: &'a Command,
}

impl Maker<'_> {
    /// Why this mechanism is not one for `Tree`, although it may be had.
    fn escape(&self, containment: Containment) -> Result<Option<String>, SpawnError> {
        let root = nix::unistd::geteuid().is_root();
        Ok(match containment {
            Containment::Cgroup => {
                let Ok(base) = self.base() else {
                    return Ok(None);
                };
                let own = nix::unistd::geteuid().as_raw();
                let uid = request::user_of(self.command)?.unwrap_or(own);
                cgroup::may_leave(&base, uid).then(|| {
                    format!(
                        "a process of user {uid} could leave it by writing to cgroup.procs in {}",
                        base.display()
                    )
                })
            }
            // With root's user mapped it would have every capability there.
            Containment::UserNamespace => root.then(|| "the launcher is root".to_owned()),
            _ => None,
        })
    }

    /// The error, with what could be had. By trying: nothing else tells.
    fn refusal(&self, missing: Vec<Missing>) -> SpawnError {
        let asked = self.command.containment;
        let mut available = Vec::new();
        for containment in Containment::OF_TREES {
            if containment == asked {
                continue;
            }
            if let Ok(tree) = self.make(containment) {
                available.push(containment);
                self.runtime.end_tree(&Arc::new(tree));
            }
        }
        SpawnError::Containment(ContainmentError {
            program: self.command.program.clone(),
            asked,
            missing,
            available,
        })
    }

    fn make(&self, containment: Containment) -> Result<Tree, Why> {
        let mut tree = Tree {
            containment,
            name: cgroup::next_number(),
            namespace: None,
            cgroup: None,
            ending: false.into(),
            let_go: false.into(),
        };
        match containment {
            Containment::PidNamespace => {
                if !has_sys_admin() {
                    return Err(("CAP_SYS_ADMIN is missing".to_owned(), None));
                }
                tree.namespace = Some(self.namespace(false)?);
            }
            Containment::UserNamespace => tree.namespace = Some(self.namespace(true)?),
            _ => {}
        }
        if containment == Containment::Cgroup || self.command.cgroup.is_some() {
            let made = self.cgroup().inspect_err(|_| {
                if let Some(namespace) = &tree.namespace {
                    namespace.end_now();
                }
            });
            let (cgroup, name) = made?;
            tree.cgroup = Some(cgroup);
            tree.name = name;
        }
        Ok(tree)
    }

    fn namespace(&self, user: bool) -> Result<Namespace, Why> {
        let runtime = self.runtime;
        Namespace::start(user, runtime.helper(), |request| {
            runtime
                .spawners()
                .make(request, self.command.spawn_timeout)
                .map_err(|failed| match failed {
                    NotMade::Step(_, errno) => errno,
                    NotMade::Stalled(..) => Errno::ETIMEDOUT,
                    NotMade::Late(made, _) => {
                        runtime.reap_made(made);
                        Errno::ETIMEDOUT
                    }
                })
        })
    }

    fn base(&self) -> Result<PathBuf, Why> {
        match &self.command.cgroup {
            Some(given) => Ok(given.clone()),
            None => cgroup::own(),
        }
    }

    fn cgroup(&self) -> Result<(Cgroup, u64), Why> {
        let base: &Path = &self.base()?;
        if self.command.cgroup.is_some() {
            cgroup::sweep_given(base);
        }
        Cgroup::make(base)
    }
}

fn has_sys_admin() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    sys::effective_capabilities().is_ok_and(|set| set & 1 << CAP_SYS_ADMIN != 0)
}
