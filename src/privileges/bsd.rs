//! FreeBSD, macOS, NetBSD, OpenBSD, DragonFly: credentials belong to the process, so a change is a
//! change for every thread. **Never run**, see `docs/platforms.md`.
//!
//! setuid(2) and setgid(2) are used, which for root set the real, effective and saved ids at once:
//! not all of these systems have setresuid(2). The saved ids cannot be read everywhere, so the proof
//! is the attempt: neither setuid(0) nor seteuid(0) may succeed.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{self, Gid, Uid};

use super::{Identity, NotDropped};

/// The `int` of getgrouplist(3): a group id, but signed on macOS.
#[cfg(target_os = "macos")]
type ListedGid = libc::c_int;
#[cfg(not(target_os = "macos"))]
type ListedGid = libc::gid_t;

/// No user has more groups; kern.ngroups of FreeBSD is 1023 by default.
const MOST_GROUPS: usize = 65_536;

/// getgrouplist(3), the primary group included.
pub(super) fn group_list(user: &CStr, gid: u32) -> Result<Vec<u32>, Errno> {
    let mut room = 32;
    while room <= MOST_GROUPS {
        let mut groups: Vec<ListedGid> = vec![0; room];
        let mut count = libc::c_int::try_from(room).unwrap_or(libc::c_int::MAX);
        let list = groups.as_mut_ptr();
        // SAFETY: `user` is a C string, `list` has room for `count` ids, and the call writes no more
        // than that and the count.
        let answer =
            unsafe { libc::getgrouplist(user.as_ptr(), gid.cast_into(), list, &raw mut count) };
        if answer >= 0 {
            groups.truncate(usize::try_from(count).unwrap_or(0));
            return Ok(groups.into_iter().map(CastInto::cast_into).collect());
        }
        room *= 4;
    }
    Err(Errno::ENOBUFS)
}

/// The same bits with the other sign, where the system's types differ.
trait CastInto<T> {
    fn cast_into(self) -> T;
}

impl CastInto<u32> for u32 {
    fn cast_into(self) -> u32 {
        self
    }
}

#[cfg(target_os = "macos")]
impl CastInto<libc::c_int> for u32 {
    fn cast_into(self) -> libc::c_int {
        libc::c_int::from_ne_bytes(self.to_ne_bytes())
    }
}

#[cfg(target_os = "macos")]
impl CastInto<u32> for libc::c_int {
    fn cast_into(self) -> u32 {
        u32::from_ne_bytes(self.to_ne_bytes())
    }
}

/// Opens a new root to enter later. Not all of these systems have O_PATH: it must be readable.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// chroot(2) to an open directory, and into it. On failure the working directory is what it was.
pub(crate) fn enter_root(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // Without a way back nothing is begun.
    let before = nix::fcntl::open(".", flags, Mode::empty())?;
    unistd::fchdir(dir)?;
    unistd::chroot(".").inspect_err(|_| {
        let _ = unistd::fchdir(&before);
    })
}

/// setgroups(2).
pub(crate) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    let count = groups.len().try_into().map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointer and the count are those of a slice of ids, which is read and not kept.
    let answer = unsafe { libc::setgroups(count, groups.as_ptr()) };
    Errno::result(answer).map(drop)
}

/// setgid(2); for root the real, effective and saved group.
pub(crate) fn set_gid(gid: u32) -> Result<(), Errno> {
    unistd::setgid(Gid::from_raw(gid))
}

/// setuid(2); for root the real, effective and saved user.
pub(crate) fn set_uid(uid: u32) -> Result<(), Errno> {
    unistd::setuid(Uid::from_raw(uid))
}

/// All threads have the process's credentials: nothing to open.
#[derive(Debug)]
pub(crate) struct Threads;

impl Threads {
    #[allow(clippy::unnecessary_wraps, reason = "as on Linux, where it can fail")]
    pub(crate) fn open() -> Result<Self, Errno> {
        Ok(Self)
    }

    /// Looks whether root can be had again, or an id is not the new one.
    #[allow(
        clippy::unused_self,
        reason = "as on Linux, where the threads are read"
    )]
    pub(crate) fn prove_dropped(&mut self, identity: &Identity) -> Result<(), ProofError> {
        let root = Uid::from_raw(0);
        if unistd::setuid(root).is_ok() || unistd::seteuid(root).is_ok() {
            return Err(NotDropped::RootRegained.into());
        }
        let uids = [unistd::getuid(), unistd::geteuid()].map(Uid::as_raw);
        let gids = [unistd::getgid(), unistd::getegid()].map(Gid::as_raw);
        for (field, found, wanted) in [("Uid", uids, identity.uid()), ("Gid", gids, identity.gid())]
        {
            if found != [wanted; 2] {
                let (tid, found) = (process::id(), format!("{found:?}"));
                return Err(NotDropped::Thread { tid, field, found }.into());
            }
        }
        Ok(())
    }
}

/// Why the proof failed: something is left, or it could not be looked at.
#[derive(Debug)]
pub(crate) enum ProofError {
    NotDropped(NotDropped),
    #[allow(dead_code, reason = "as on Linux, where looking can fail")]
    Errno(Errno),
}

impl From<NotDropped> for ProofError {
    fn from(found: NotDropped) -> Self {
        Self::NotDropped(found)
    }
}

/// The same in a child between fork and exec: system calls, nothing allocated.
#[cfg(feature = "launcher")]
#[allow(
    dead_code,
    unused_imports,
    reason = "each of those who launch uses a part"
)]
pub(crate) mod in_child {
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::AtomicU32;

    use nix::errno::Errno;
    use nix::unistd::{self, Gid, Uid};

    pub(crate) use super::{set_gid, set_groups, set_uid};

    /// chroot(2) to an open directory, and into it.
    pub(crate) fn enter_root(dir: BorrowedFd<'_>) -> Result<(), Errno> {
        unistd::fchdir(dir)?;
        unistd::chroot(c".")
    }

    /// chdir(2) to the root.
    pub(crate) fn change_directory() -> Result<(), Errno> {
        unistd::chdir(c"/")
    }

    /// As [`Threads::prove_dropped`](super::Threads::prove_dropped). The list of groups is not compared: what getgroups(2)
    /// answers has the effective group in it on some of these systems, and on macOS what a directory
    /// service says.
    pub(crate) fn prove_dropped(
        uid: u32,
        gid: u32,
        _groups: &[u32],
        _room: &[AtomicU32],
    ) -> Result<(), Errno> {
        let root = Uid::from_raw(0);
        let regained = unistd::setuid(root).is_ok() || unistd::seteuid(root).is_ok();
        let uids = [unistd::getuid(), unistd::geteuid()] == [Uid::from_raw(uid); 2];
        let gids = [unistd::getgid(), unistd::getegid()] == [Gid::from_raw(gid); 2];
        if regained || !uids || !gids {
            return Err(Errno::EPERM);
        }
        Ok(())
    }
}
