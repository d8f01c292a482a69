//! Which mechanism contains a captive: the table of [`Containment`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::super::super::{Containment, ContainmentError, Missing, SpawnError, SpawnStep};
use super::super::guard::Helper;
use super::super::request::Request;
use super::super::spawner::Made;
use super::cgroup::{self, Cgroup, Why};
use super::{Namespace, Tree, marks};
use crate::sys::linux as sys;

/// Those that can be asked for by name, in the order of [`Containment::Tree`]'s preference.
const OF_TREES: [Containment; 4] = [
    Containment::PidNamespace,
    Containment::Cgroup,
    Containment::UserNamespace,
    Containment::TreeBestEffort,
];

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Wish<'a> {
    pub(in super::super) program: &'a OsStr,
    pub(in super::super) containment: Containment,
    /// Where its cgroup is to be made, if anywhere.
    pub(in super::super) cgroup: Option<&'a Path>,
    /// The kernel is not to end it in the moment in which the launcher ends.
    pub(in super::super) gracefully: bool,
    /// What has been made before, and could not be entered: not to be made again.
    pub(in super::super) refused: &'a [Refused],
}

/// A namespace of which only its entering shows that it cannot be had, and why: setns(2) of a pidfd, which a filter may not
/// let through, and which is not there before Linux 5.8 (EINVAL).
pub(in super::super) type Refused = (Containment, Errno);

/// Whether that is what this errno of entering a tree means, and another mechanism would do.
pub(in super::super) fn refused(
    asked: Containment,
    tree: &Tree,
    entering: Errno,
) -> Option<Refused> {
    let is_refused = matches!(entering, Errno::EPERM | Errno::ENOSYS | Errno::EINVAL);
    (asked == Containment::Tree && tree.namespace().is_some() && is_refused)
        .then(|| (tree.containment(), entering))
}

/// Who makes it: a launcher with its threads, or a program that has one.
pub(in super::super) trait Means {
    fn helper(&self) -> &Helper;

    /// Makes a child.
    fn child(&self, request: Request) -> Result<Made, (SpawnStep, Errno)>;

    /// The user that the captive will have, if not ours.
    fn user(&self) -> Result<Option<u32>, SpawnError>;

    /// Ends a tree in which there is nothing.
    fn discard(&self, tree: Tree);
}

/// A tree as it is asked for.
pub(in super::super) fn contain(
    wish: &Wish<'_>,
    means: &impl Means,
) -> Result<Arc<Tree>, SpawnError> {
    let wanted: &[Containment] = match &wish.containment {
        Containment::Tree => &[
            Containment::PidNamespace,
            Containment::Cgroup,
            Containment::UserNamespace,
        ],
        named => &[*named],
    };
    let mut missing = Vec::new();
    for containment in wanted {
        let escape = if wish.containment == Containment::Tree {
            escape(*containment, wish, means)?
        } else {
            None
        };
        let refused = wish.refused.iter().find(|(one, _)| one == containment);
        let made = match (escape, refused) {
            (Some(why), _) => Err((why, None)),
            (None, Some((_, errno))) => Err((SpawnStep::EnterNamespace.to_string(), Some(*errno))),
            (None, None) => make(*containment, wish, means),
        };
        match made {
            Ok(tree) => return Ok(Arc::new(tree)),
            Err((what, errno)) => missing.push(Missing {
                containment: *containment,
                what,
                errno: errno.map(Errno::into),
            }),
        }
    }
    Err(refusal(missing, wish, means))
}

/// The error, with what could be had. By trying: nothing else tells.
pub(in super::super) fn refusal(
    missing: Vec<Missing>,
    wish: &Wish<'_>,
    means: &impl Means,
) -> SpawnError {
    let mut available = Vec::new();
    for containment in OF_TREES {
        // What cannot be entered as one kind of namespace cannot be as the other.
        let is_refused = !wish.refused.is_empty() && is_namespace(containment);
        if containment == wish.containment || is_refused {
            continue;
        }
        if let Ok(tree) = make(containment, wish, means) {
            available.push(containment);
            means.discard(tree);
        }
    }
    SpawnError::Containment(ContainmentError {
        program: wish.program.to_owned(),
        asked: wish.containment,
        missing,
        available,
    })
}

/// Why this mechanism is not one for `Tree`, although it may be had.
fn escape(
    containment: Containment,
    wish: &Wish<'_>,
    means: &impl Means,
) -> Result<Option<String>, SpawnError> {
    let own = nix::unistd::geteuid();
    Ok(match containment {
        Containment::Cgroup => {
            let Ok(base) = base(wish) else {
                return Ok(None);
            };
            let uid = means.user()?.unwrap_or(own.as_raw());
            cgroup::may_leave(&base, uid).then(|| {
                format!(
                    "a process of user {uid} could leave it by a write to cgroup.procs in or above {}",
                    base.display()
                )
            })
        }
        // With root's user mapped it would have every capability there.
        Containment::UserNamespace => own.is_root().then(|| "the launcher is root".to_owned()),
        _ => None,
    })
}

fn make(containment: Containment, wish: &Wish<'_>, means: &impl Means) -> Result<Tree, Why> {
    let namespace = match containment {
        Containment::PidNamespace => {
            if !has_sys_admin() {
                return Err(("CAP_SYS_ADMIN is missing".to_owned(), None));
            }
            Some(make_namespace(false, wish, means)?)
        }
        Containment::UserNamespace => Some(make_namespace(true, wish, means)?),
        Containment::Reaper => {
            let what = "a reaper that knows its descendants, which FreeBSD has".to_owned();
            return Err((what, None));
        }
        Containment::TreeBestEffort => {
            marks::can_walk()?;
            None
        }
        _ => None,
    };
    let (cgroup, name) = if containment == Containment::Cgroup || wish.cgroup.is_some() {
        let made = make_cgroup(wish).inspect_err(|_| {
            if let Some(namespace) = &namespace {
                namespace.end_now();
            }
        });
        let (cgroup, name) = made?;
        (Some(cgroup), name)
    } else {
        (None, cgroup::next_number())
    };
    Ok(Tree {
        containment,
        name,
        namespace,
        cgroup,
        ending: false.into(),
        let_go: false.into(),
    })
}

fn make_namespace(user: bool, wish: &Wish<'_>, means: &impl Means) -> Result<Namespace, Why> {
    let make = |request| means.child(request);
    Namespace::start(user, wish.gracefully, means.helper(), make)
}

fn is_namespace(containment: Containment) -> bool {
    matches!(
        containment,
        Containment::PidNamespace | Containment::UserNamespace
    )
}

fn base(wish: &Wish<'_>) -> Result<PathBuf, Why> {
    match wish.cgroup {
        Some(given) => Ok(given.to_owned()),
        None => cgroup::own(),
    }
}

fn make_cgroup(wish: &Wish<'_>) -> Result<(Cgroup, u64), Why> {
    let base = base(wish)?;
    if wish.cgroup.is_some() {
        cgroup::sweep_given(&base);
        return Cgroup::make_below(&base);
    }
    Cgroup::make(&base)
}

fn has_sys_admin() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    sys::effective_capabilities().is_ok_and(|set| set & 1 << CAP_SYS_ADMIN != 0)
}
