//! Trees for a program of one thread that makes its children itself: run-with.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::{Containment, SpawnError, SpawnStep};
use super::child::Progress;
use super::guard::Helper;
use super::protocol::Name;
use super::request::Request;
use super::spawner::{self, Made};
use super::tree::{self, Means, Namespace, Tree, Wish};
use crate::sys::linux as sys;

/// How long an empty tree may take to go.
const PATIENCE: Duration = Duration::from_secs(1);

struct Alone {
    helper: Helper,
    user: Option<u32>,
}

impl Means for Alone {
    fn helper(&self) -> &Helper {
        &self.helper
    }

    /// The calling thread is held until the child's exec, and is its parent: it must be the program's only one.
    fn child(&self, mut request: Request) -> Result<Made, (SpawnStep, Errno)> {
        spawner::make_here(&mut request, &Progress::default())
    }

    fn user(&self) -> Result<Option<u32>, SpawnError> {
        Ok(self.user)
    }

    fn discard(&self, tree: Tree) {
        tree.clear(PATIENCE);
    }
}

/// A tree for one command. Its user is `user`, if not ours.
pub(crate) fn contain_alone(
    program: &OsStr,
    containment: Containment,
    user: Option<u32>,
) -> Result<Arc<Tree>, SpawnError> {
    let helper = Helper::default();
    let means = Alone { helper, user };
    tree::sweep_own();
    let mut refused = Vec::new();
    loop {
        let wish = Wish {
            program,
            containment,
            cgroup: None,
            gracefully: false,
            refused: &refused,
        };
        let tree = tree::contain(&wish, &means)?;
        // Before the command, which is made by others.
        let one = spawner::try_to_enter(tree.holds())
            .err()
            .and_then(|errno| tree::refused(containment, &tree, errno));
        let Some(one) = one else {
            return Ok(tree);
        };
        tree.clear(PATIENCE);
        refused.push(one);
    }
}

/// The cgroup in which one would be made, if we may.
pub(crate) fn own_cgroup() -> Result<PathBuf, String> {
    let why = |(what, errno): (String, Option<Errno>)| match errno {
        Some(errno) => format!("{what}: {errno}"),
        None => what,
    };
    let own = tree::own_cgroup().map_err(why)?;
    let flags = nix::fcntl::AtFlags::AT_EACCESS;
    nix::unistd::faccessat(
        nix::fcntl::AT_FDCWD,
        &own,
        nix::unistd::AccessFlags::W_OK,
        flags,
    )
    .map_err(|errno| why((own.display().to_string(), Some(errno))))?;
    Ok(own)
}

impl Tree {
    /// Ends it, waits until it is empty, at most `limit`, and leaves nothing; whether it is empty.
    pub(crate) fn clear(&self, limit: Duration) -> bool {
        self.end();
        let empty = self.wait_empty(Instant::now().checked_add(limit));
        if let Some(init) = self.init() {
            sys::reap_ended(init.as_fd());
        }
        self.remove();
        empty
    }

    /// Its descriptors, for who shares our table.
    pub(crate) fn holds(&self) -> Holds {
        let namespace = self.namespace();
        let raw = |fd: &dyn AsFd| fd.as_fd().as_raw_fd();
        Holds {
            init: namespace.map(|namespace| raw(&**namespace.init())),
            pipe: namespace.map(|namespace| raw(namespace.pipe())),
            user: namespace.is_some_and(Namespace::is_of_user),
            cgroup: self.cgroup().map(|cgroup| raw(cgroup)),
            name: self.for_message().1,
        }
    }
}

/// What holds a tree, as numbers of descriptors: for processes that share our table, and for children before their
/// exec. Every method makes raw system calls only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holds {
    init: Option<RawFd>,
    pipe: Option<RawFd>,
    user: bool,
    cgroup: Option<RawFd>,
    name: u64,
}

impl Holds {
    /// What must stay open.
    pub(crate) fn raw_fds(&self) -> impl Iterator<Item = RawFd> + use<> {
        [self.init, self.pipe, self.cgroup].into_iter().flatten()
    }

    /// Whether it is a namespace, which the command is to be born in.
    pub(crate) fn is_namespace(&self) -> bool {
        self.init.is_some()
    }

    /// Has the calling process's next child born in the namespace.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        self.init
            .map_or(Ok(()), |init| sys::enter_namespaces(init, self.user))
    }

    /// Moves the calling process into the cgroup.
    pub(crate) fn join(&self) -> Result<(), Errno> {
        self.cgroup.map_or(Ok(()), sys::join_cgroup)
    }

    /// SIGKILL to all that is in it.
    pub(crate) fn end(&self) {
        if let Some(init) = self.init {
            sys::with_raw_fd(init, |init| {
                let _ = sys::pidfd_send_signal(init, libc::SIGKILL);
            });
        }
        if let Some(cgroup) = self.cgroup {
            sys::with_raw_fd(cgroup, |cgroup| {
                let _ = sys::kill_cgroup(cgroup);
            });
        }
    }

    /// Removes the cgroup's directory, if it is empty; whether there is none any more.
    pub(crate) fn remove(&self) -> bool {
        let Some(cgroup) = self.cgroup else {
            return true;
        };
        let name = Name::of(self.name);
        let name = CStr::from_bytes_until_nul(name.with_nul()).unwrap_or_default();
        sys::with_raw_fd(cgroup, |cgroup| {
            sys::remove_cgroup(cgroup, name) != Err(Errno::EBUSY)
        })
    }
}
