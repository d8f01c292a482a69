//! Control groups (version 2) of captives: directories `captive-PID-N` below the launcher's own cgroup, or below
//! one it is given.
//!
//! Each is locked (flock(2)) as long as somebody has it open who will remove it: launcher or guard. One that is not
//! has lost both, and the next launcher in the same cgroup ends what is in it and removes it. One that has been let
//! go has the sticky bit, and is removed when it is empty.

use std::collections::hash_map::RandomState;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::super::protocol::Name;
use crate::sys::linux as sys;

/// What failed, with its operand, and the errno if a system call said so.
pub(in super::super) type Why = (String, Option<Errno>);

#[derive(Debug)]
pub(in super::super) struct Cgroup {
    directory: OwnedFd,
    name: CString,
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Every cgroup has it.
const PROCS: &str = "cgroup.procs";

/// Others may look at the files in it, and not open it: they could take its lock.
const MODE: Mode = Mode::S_IRWXU.union(Mode::S_IXGRP).union(Mode::S_IXOTH);

/// How often a name is taken before it is given up.
const TRIES: u32 = 100;

impl Cgroup {
    /// Makes one below our own, `base`; the second is the number in its name.
    pub(super) fn make(base: &Path) -> Result<(Self, u64), Why> {
        // Whoever may write there may move processes from it to what is below it.
        Self::make_by(base, Some(&base.join(PROCS)))
    }

    /// The same below another.
    pub(super) fn make_below(base: &Path) -> Result<(Self, u64), Why> {
        Self::make_by(base, way_to(base).as_deref())
    }

    /// `way`: see [`way_to`].
    fn make_by(base: &Path, way: Option<&Path>) -> Result<(Self, u64), Why> {
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |errno: Errno| (what, Some(errno))
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = nix::fcntl::open(base, flags, Mode::empty()).map_err(failed(base))?;
        // Nothing is made in a directory that is none.
        if let Err(errno) = nix::sys::stat::fstatat(&parent, PROCS, AtFlags::empty()) {
            return Err((base.join(PROCS).display().to_string(), Some(errno)));
        }
        for _ in 0..TRIES {
            let number = next_number();
            let name = CString::new(Name::of(number).bytes()).unwrap_or_default();
            let path = base.join(OsStr::from_bytes(name.as_bytes()));
            match nix::sys::stat::mkdirat(&parent, name.as_c_str(), MODE) {
                Ok(()) => {}
                Err(Errno::EEXIST) => continue,
                Err(errno) => return Err((format!("mkdir {}", path.display()), Some(errno))),
            }
            match lock(&parent, &name) {
                Ok(Some(directory)) => {
                    let cgroup = Self { directory, name };
                    if let Err(why) = cgroup.can_hold(base, &path, way) {
                        cgroup.remove();
                        return Err(why);
                    }
                    return Ok((cgroup, number));
                }
                // Another launcher has taken it for one that is left over.
                Ok(None) => {}
                Err(errno) => {
                    let _ = unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir);
                    return Err((format!("flock {}", path.display()), Some(errno)));
                }
            }
        }
        Err((
            format!("a directory in {}", base.display()),
            Some(Errno::EEXIST),
        ))
    }

    /// Whether a process of ours can enter it, and be ended there. What the kernel asks when one is born there or moved:
    /// cgroup_attach_permissions and cgroup_migrate_vet_dst in kernel/cgroup/cgroup.c.
    fn can_hold(&self, base: &Path, path: &Path, way: Option<&Path>) -> Result<(), Why> {
        let kill = "cgroup.kill";
        // Not where the version is another, nor before Linux 5.14.
        nix::sys::stat::fstatat(self, kill, AtFlags::empty())
            .map_err(|errno| (path.join(kill).display().to_string(), Some(errno)))?;
        if !self.takes_processes() {
            let what = format!(
                "a cgroup below {} would take no process (its cgroup.type is \"domain invalid\"): \
                 that one is threaded, or has processes and hands on controllers",
                base.display()
            );
            return Err((what, Some(Errno::EOPNOTSUPP)));
        }
        match way {
            Some(way) => {
                may_write(way).map_err(|errno| (format!("writing {}", way.display()), Some(errno)))
            }
            // It is not known, and the kernel will say.
            None => Ok(()),
        }
    }

    /// Not below a threaded one, nor below one that has threaded cgroups or would have to: one with processes that hands
    /// on controllers, which only threaded ones (`pids`, `cpu`) let it; cgroups(7), "thread mode".
    fn takes_processes(&self) -> bool {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut text = [0; 32];
        let read = openat(&self.directory, "cgroup.type", flags, Mode::empty())
            .and_then(|file| nix::unistd::read(&file, &mut text));
        // What cannot be read, the move into it will tell.
        !read.is_ok_and(|length| text.get(..length) == Some(b"domain invalid\n"))
    }

    /// SIGKILL to all that is in it.
    pub(super) fn kill(&self) {
        // One that has been removed is empty.
        let _ = sys::kill_cgroup(self.as_fd());
    }

    pub(super) fn is_empty(&self) -> bool {
        match self.open_events() {
            Ok(events) => events.say_empty(),
            // It has been removed. Anything else (EMFILE) says nothing of it.
            Err(errno) => [Errno::ENOENT, Errno::ENODEV].contains(&errno),
        }
    }

    /// What tells of its becoming empty; `None` if it has been removed, or where there is no descriptor for it.
    pub(in super::super) fn events(&self) -> Option<Events> {
        self.open_events().ok()
    }

    fn open_events(&self) -> Result<Events, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(&self.directory, "cgroup.events", flags, Mode::empty()).map(|fd| Events(fd.into()))
    }

    /// Removes it and what is below, as far as it is empty.
    pub(super) fn remove(&self) {
        remove_below(self.as_fd(), DEPTH);
        let _ = sys::remove_cgroup(self.as_fd(), &self.name);
    }

    /// Nobody is to end what is in it.
    pub(super) fn let_go(&self) {
        let _ = fchmod(&self.directory, MODE.union(Mode::S_ISVTX));
    }
}

/// Whether a cgroup has processes, here or below; cgroups(7), `cgroup.events`.
#[derive(Debug)]
pub(in super::super) struct Events(File);

#[cfg(feature = "tokio")]
impl From<Events> for std::os::fd::OwnedFd {
    fn from(events: Events) -> Self {
        events.0.into()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Events {
    /// Also so where it cannot be read any more: then it has been removed.
    pub(in super::super) fn say_empty(&self) -> bool {
        let mut text = [0; 256];
        let read = self.0.read_at(&mut text, 0).unwrap_or(0);
        !text
            .get(..read)
            .unwrap_or_default()
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"populated 1")
    }

    /// Waits for its end, or for another change.
    pub(super) fn wait(&self, limit: Duration) -> Result<bool, Errno> {
        // The kernel tells of what has changed since this very descriptor was read: at once, always, if it never was.
        if self.say_empty() {
            return Ok(true);
        }
        sys::poll_within(self.as_fd(), libc::POLLPRI, limit)
    }
}

/// The number of a new tree: our pid, and one that counts up.
pub(super) fn next_number() -> u64 {
    // From anywhere: a launcher that has executed another program has the same pid as before, and processes of before may
    // still carry a mark.
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| {
        let random = RandomState::new().build_hasher().finish();
        AtomicU32::new((random >> 32) as u32)
    });
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    u64::from(sys::getpid().unsigned_abs()) << 32 | u64::from(number)
}

fn open_directory(at: impl AsFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    openat(at, name, flags, Mode::empty())
}

/// The directory, if it is nobody's and is still there.
fn lock(parent: &OwnedFd, name: &std::ffi::CStr) -> Result<Option<OwnedFd>, Errno> {
    let directory = match open_directory(parent, name) {
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(None),
        answer => answer?,
    };
    if !sys::try_lock(directory.as_fd())? {
        return Ok(None);
    }
    // Removed between the two.
    let there = nix::sys::stat::fstatat(&directory, PROCS, AtFlags::empty());
    Ok(there.is_ok().then_some(directory))
}

/// As deep as cgroups below one are removed.
const DEPTH: u32 = 32;

/// Removes the cgroups below, which a captive may have made.
fn remove_below(directory: BorrowedFd<'_>, depth: u32) {
    let Ok(mut list) = open_directory(directory, c".").and_then(Dir::from_fd) else {
        return;
    };
    for entry in list.iter().flatten() {
        let name = entry.file_name();
        if entry.file_type() != Some(Type::Directory) || name == c"." || name == c".." {
            continue;
        }
        if depth > 0 {
            if let Ok(below) = open_directory(directory, name) {
                remove_below(below.as_fd(), depth - 1);
            }
        }
        let _ = unlinkat(directory, name, UnlinkatFlags::RemoveDir);
    }
}

/// Whether a launcher has made the cgroup of this name: [`Name`]. Others that begin with `captive` are their owners'.
fn is_ours(name: &[u8]) -> bool {
    let numbers = || {
        let text = std::str::from_utf8(name).ok()?;
        let (pid, number) = text.strip_prefix("captive-")?.split_once('-')?;
        Some(u64::from(pid.parse::<u32>().ok()?) << 32 | u64::from(number.parse::<u32>().ok()?))
    };
    // No sign, no zero before the digits.
    numbers().is_some_and(|tree| Name::of(tree).bytes() == name)
}

/// Ends and removes what launchers that are no more have left below `base`.
fn sweep(base: &Path) {
    /// How long what is left over may take to go.
    const LIMIT: Duration = Duration::from_secs(5);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(parent) = nix::fcntl::open(base, flags, Mode::empty()) else {
        return;
    };
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !is_ours(name.as_bytes()) {
            continue;
        }
        let Ok(name) = CString::new(name.as_bytes()) else {
            continue;
        };
        let Ok(Some(directory)) = lock(&parent, &name) else {
            continue;
        };
        let let_go = fstat(&directory).map_or(true, |stat| stat.st_mode & libc::S_ISVTX != 0);
        let cgroup = Cgroup { directory, name };
        if !let_go {
            cgroup.kill();
            if let Some(events) = cgroup.events() {
                while !events.say_empty() && events.wait(LIMIT) == Ok(true) {}
            }
        }
        // One that lives on may have made others, which are empty only for now.
        if cgroup.is_empty() {
            cgroup.remove();
        }
    }
}

/// The same in the launcher's own cgroup, if it has one where it may.
pub(in super::super) fn sweep_own() {
    if let Ok(base) = own() {
        sweep(&base);
    }
}

/// The same where captives' cgroups are to be made that is not the launcher's own, once for each.
pub(super) fn sweep_given(base: &Path) {
    static SWEPT: std::sync::Mutex<Vec<PathBuf>> = std::sync::Mutex::new(Vec::new());
    let mut swept = SWEPT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if !swept.iter().any(|path| path == base) {
        swept.push(base.to_owned());
        drop(swept);
        sweep(base);
    }
}

/// The launcher's own cgroup, as a directory: the path of `/proc/self/cgroup` in a mount of `/proc/self/mountinfo`.
pub(in super::super) fn own() -> Result<PathBuf, Why> {
    let read = |path: &str| {
        fs::read(path).map_err(|error: io::Error| {
            (path.to_owned(), error.raw_os_error().map(Errno::from_raw))
        })
    };
    let groups = read("/proc/self/cgroup")?;
    let Some(group) = groups
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))
    else {
        return Err(("the launcher is in no cgroup of version 2".to_owned(), None));
    };
    let mounts = read("/proc/self/mountinfo")?;
    let found = mounts
        .split(|byte| *byte == b'\n')
        .filter_map(mount_of_version_2)
        .find_map(|(root, point)| {
            let below = Path::new(OsStr::from_bytes(group))
                .strip_prefix(&root)
                .ok()?;
            // A mount over it hides it.
            let path = point.join(below);
            path.join("cgroup.procs").exists().then_some(path)
        });
    found.ok_or_else(|| {
        let group = String::from_utf8_lossy(group);
        (
            format!("no cgroup2 file system with the launcher's cgroup {group} is mounted"),
            None,
        )
    })
}

/// The root and the mount point of a line of mountinfo, if it is of type cgroup2; proc_pid_mountinfo(5).
fn mount_of_version_2(line: &[u8]) -> Option<(PathBuf, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = fields.nth(3)?;
    let point = fields.next()?;
    // Optional fields, then a hyphen.
    fields.find(|field| *field == b"-")?;
    (fields.next()? == b"cgroup2").then(|| (unescaped(root), unescaped(point)))
}

/// A path of mountinfo, in which blanks and the like are octal.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*byte));
        rest = match octal {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

/// Who may move processes from our cgroup to one below `base` may write this file: that of the last cgroup which both have
/// above them, or are.
fn way_to(base: &Path) -> Option<PathBuf> {
    let base = base.canonicalize().ok()?;
    let own = own().ok()?.canonicalize().ok()?;
    let common = base
        .ancestors()
        .find(|directory| own.starts_with(directory))?;
    let procs = common.join(PROCS);
    // Where the two are in different mounts, it is none.
    procs.exists().then_some(procs)
}

/// Only what is forbidden counts.
fn may_write(file: &Path) -> Result<(), Errno> {
    let how = nix::unistd::AccessFlags::W_OK;
    match nix::unistd::faccessat(nix::fcntl::AT_FDCWD, file, how, AtFlags::AT_EACCESS) {
        Err(Errno::EACCES) => Err(Errno::EACCES),
        _ => Ok(()),
    }
}

/// Whether processes of this user may write the `cgroup.procs` of `base` or of a cgroup above it; also if that cannot
/// be known.
pub(super) fn may_leave(base: &Path, uid: u32) -> bool {
    if uid == 0 {
        return true;
    }
    // The directories above it, not those above a link to it. Where it cannot be found none is made either.
    let Ok(mut directory) = base.canonicalize() else {
        return false;
    };
    while let Ok(file) = fs::metadata(directory.join(PROCS)) {
        // Groups are not looked at one by one.
        if file.uid() == uid || file.mode() & 0o022 != 0 {
            return true;
        }
        if !directory.pop() {
            break;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let of = |tree| String::from_utf8_lossy(Name::of(tree).bytes()).into_owned();
        assert_eq!(of(0), "captive-0-0");
        assert_eq!(of(10 << 32 | 9), "captive-10-9");
        assert_eq!(of(u64::MAX), "captive-4294967295-4294967295");
        assert_eq!(of(u64::MAX << 32), "captive-4294967295-0");
        assert_eq!(of(1_000_000_000), "captive-0-1000000000");
        for name in [
            "captive-",
            "captive-1",
            "captive-1-",
            "captive--1",
            "captive-vms",
            "captive-1-2-3",
            "captive-1-x",
            "captive-+1-2",
            "captive-01-2",
            "captive-1-4294967296",
            "xcaptive-1-2",
            "captive-1-2 ",
        ] {
            assert!(!is_ours(name.as_bytes()), "{name}");
        }
        assert!(!is_ours(b"captive-1-\xff"));
    }

    proptest::proptest! {
        #[test]
        fn names_are_as_printed(pid: u32, number: u32) {
            let name = Name::of(u64::from(pid) << 32 | u64::from(number));
            let printed = format!("captive-{pid}-{number}");
            proptest::prop_assert_eq!(name.bytes(), printed.as_bytes());
            proptest::prop_assert!(is_ours(name.bytes()));
        }
    }

    #[test]
    fn mounts() {
        let line =
            b"30 25 0:26 /a\\040b /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        let (root, point) = mount_of_version_2(line).expect("a mount");
        assert_eq!(root, Path::new("/a b"));
        assert_eq!(point, Path::new("/sys/fs/cgroup/unified"));
        let line = b"30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup2 rw,memory";
        assert_eq!(mount_of_version_2(line), None);
        assert_eq!(mount_of_version_2(b""), None);
        assert_eq!(unescaped(b"\\1\\9z"), Path::new("\\1\\9z"));
    }
}
