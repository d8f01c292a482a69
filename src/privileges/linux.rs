//! Linux: the process-wide calls, the look at every thread, and the same changes for a child between
//! clone and exec.

use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{self, Gid, Uid};

use super::{Identity, NotDropped};
use crate::sys::linux as sys;

/// How long a thread may take over its last instructions before it counts as one that stays.
const ENDING: Duration = Duration::from_secs(1);

/// getgrouplist(3), the primary group included.
pub(super) fn group_list(user: &CStr, gid: u32) -> Result<Vec<u32>, Errno> {
    let groups = unistd::getgrouplist(user, Gid::from_raw(gid))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// Opens a new root to enter later. O_PATH needs no permission to read it.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// chroot(2) to an open directory, and into it: the root directory belongs to all threads that share
/// their fs attributes (CLONE_FS), as all threads of the C library do. On failure the working
/// directory is what it was; on success it is the new root, seen from the old one, until chdir.
pub(crate) fn enter_root(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // Without a way back nothing is begun.
    let before = nix::fcntl::open(".", flags, Mode::empty())?;
    unistd::fchdir(dir)?;
    unistd::chroot(".").inspect_err(|_| {
        let _ = unistd::fchdir(&before);
    })
}

/// setgroups(2), by the C library for all its threads.
pub(crate) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    unistd::setgroups(&groups)
}

/// setresgid(2), by the C library for all its threads.
pub(crate) fn set_gid(gid: u32) -> Result<(), Errno> {
    let gid = Gid::from_raw(gid);
    unistd::setresgid(gid, gid, gid)
}

/// setresuid(2), by the C library for all its threads. Clears the parent-death signal, and every
/// capability if the process was root (unless SECBIT_NO_SETUID_FIXUP or SECBIT_KEEP_CAPS is set).
pub(crate) fn set_uid(uid: u32) -> Result<(), Errno> {
    let uid = Uid::from_raw(uid);
    unistd::setresuid(uid, uid, uid)
}

/// `/proc/self/task`, opened while it can be reached: a new root may have no /proc.
#[derive(Debug)]
pub(crate) struct Threads(Dir);

impl Threads {
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Dir::open("/proc/self/task", flags, Mode::empty()).map(Self)
    }

    /// Looks whether any thread, or setuid(0), shows that something of the old privileges is left.
    pub(crate) fn prove_dropped(&mut self, identity: &Identity) -> Result<(), ProofError> {
        if unistd::setuid(Uid::from_raw(0)).is_ok() {
            return Err(NotDropped::RootRegained.into());
        }
        let mut tids = Vec::new();
        for entry in self.0.iter() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            tids.extend(name.parse::<u32>());
        }
        for tid in tids {
            self.prove_thread(tid, identity)?;
        }
        Ok(())
    }

    /// A thread that is just ending is left alone by the C library when it changes all its threads
    /// (it will run nothing more), and has the old ids for a moment: what looks wrong is looked at
    /// again until it has ended, or is wrong for good.
    fn prove_thread(&self, tid: u32, identity: &Identity) -> Result<(), ProofError> {
        let deadline = Instant::now() + ENDING;
        loop {
            let found = match self.status(tid) {
                Ok(status) => check_thread(tid, &status, identity),
                // It has ended since.
                Err(Errno::ENOENT | Errno::ESRCH) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            // The calling thread does not end.
            let ending = u32::try_from(sys::gettid()) != Ok(tid) && Instant::now() < deadline;
            if found.is_ok() || !ending {
                return Ok(found?);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn status(&self, tid: u32) -> Result<String, Errno> {
        let path = format!("{tid}/status");
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(self.0.as_fd(), path.as_str(), flags, Mode::empty())?;
        let mut text = Vec::new();
        std::fs::File::from(fd)
            .read_to_end(&mut text)
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Why the proof failed: something is left, or it could not be looked at.
#[derive(Debug)]
pub(crate) enum ProofError {
    NotDropped(NotDropped),
    Errno(Errno),
}

impl From<NotDropped> for ProofError {
    fn from(found: NotDropped) -> Self {
        Self::NotDropped(found)
    }
}

impl From<Errno> for ProofError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// Compares one thread's `status` (proc_pid_status(5)) with what it should be.
fn check_thread(tid: u32, status: &str, identity: &Identity) -> Result<(), NotDropped> {
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    let ids = |text: &str| -> Vec<Option<u32>> {
        text.split_whitespace().map(|id| id.parse().ok()).collect()
    };
    let check = |name: &'static str, good: &dyn Fn(&str) -> bool| {
        let found = field(name);
        if good(&found) {
            Ok(())
        } else {
            Err(NotDropped::Thread {
                tid,
                field: name,
                found,
            })
        }
    };
    check("Uid", &|text| ids(text) == [Some(identity.uid()); 4])?;
    check("Gid", &|text| ids(text) == [Some(identity.gid()); 4])?;
    check("Groups", &|text| {
        let sorted = |mut groups: Vec<Option<u32>>| {
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        sorted(ids(text)) == sorted(identity.groups().iter().copied().map(Some).collect())
    })?;
    for name in ["CapPrm", "CapEff", "CapAmb"] {
        check(name, &|text| text.bytes().all(|b| b == b'0'))?;
    }
    Ok(())
}

/// The same changes for a child between clone and exec, which has one thread: raw system calls, no
/// allocation.
#[cfg(any(feature = "cli", all(feature = "launcher", captive_stand_in)))]
pub(crate) mod in_child {
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::AtomicU32;

    use nix::errno::Errno;

    use crate::sys::linux as sys;

    /// As [`super::enter_root`].
    pub(crate) fn enter_root(dir: BorrowedFd<'_>) -> Result<(), Errno> {
        sys::fchdir(dir)?;
        sys::chroot(c".")
    }

    /// chdir(2) to the root.
    pub(crate) fn change_directory() -> Result<(), Errno> {
        sys::chdir(c"/")
    }

    pub(crate) use sys::{set_gid, set_groups, set_uid};

    /// One thread, so its own credentials are all there are. `room` is as long as `groups`, which are
    /// sorted.
    pub(crate) fn prove_dropped(
        uid: u32,
        gid: u32,
        groups: &[u32],
        room: &[AtomicU32],
    ) -> Result<(), Errno> {
        let regained = sys::set_uid(0).is_ok();
        let ids =
            sys::uids()? == [uid; 3] && sys::gids()? == [gid; 3] && sys::has_groups(groups, room)?;
        if regained || !ids || sys::has_permitted_capabilities()? {
            return Err(Errno::EPERM);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\tx\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 9 \n\
                        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n";

    fn identity() -> Identity {
        Identity::of(7, 8, &[9, 8, 8])
    }

    #[test]
    fn each_line_counts() {
        assert_eq!(check_thread(1, GOOD, &identity()), Ok(()));
        for (from, to, field) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t0\t7", "Uid"),
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t7", "Uid"),
            ("Gid:\t8\t8\t8\t8", "Gid:\t8\t8\t8\t0", "Gid"),
            ("Groups:\t8 9 ", "Groups:\t8 9 0", "Groups"),
            ("Groups:\t8 9 ", "Groups:\t8", "Groups"),
            ("CapPrm:\t0", "CapPrm:\t1", "CapPrm"),
            ("CapEff:\t0", "CapEff:\t8", "CapEff"),
            ("CapAmb:\t0", "CapAmb:\tf", "CapAmb"),
        ] {
            let found = check_thread(1, &GOOD.replace(from, to), &identity());
            assert!(
                matches!(found, Err(NotDropped::Thread { field: f, .. }) if f == field),
                "{to}: {found:?}"
            );
        }
    }
}
