//! Control groups that a test makes for itself; cgroups(7).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Fallible, HANG};

/// The directory of this process's own cgroup in the hierarchy with this controller, version 1.
pub fn version_1(controller: &str) -> Option<PathBuf> {
    let has_it = |names: &str| names.split(',').any(|name| name == controller);
    own(
        |system| system[0] == "cgroup" && has_it(system[2]),
        |group| has_it(group),
    )
}

/// The directory of this process's own cgroup of version 2.
pub fn version_2() -> Option<PathBuf> {
    own(|system| system[0] == "cgroup2", str::is_empty)
}

/// Where the cgroups of version 2 are mounted: the directory of their root.
pub fn root_of_version_2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields[2] == "cgroup2").then(|| PathBuf::from(fields[1]))
    })
}

fn own(is_mount: impl Fn(&[&str]) -> bool, is_group: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (root, place) = mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let system: Vec<&str> = system.split(' ').collect();
        let fields: Vec<&str> = mount.split(' ').collect();
        is_mount(&system).then(|| (fields[3].to_owned(), fields[4].to_owned()))
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        is_group(parts.next()?).then(|| parts.next())?
    })?;
    let below = Path::new(own).strip_prefix(root).ok()?;
    Some(Path::new(&place).join(below))
}

/// A cgroup below ours, removed in the end.
#[derive(Debug)]
pub struct Group(pub PathBuf);

impl Group {
    /// One below this directory, with this in the files named.
    pub fn new(own: Option<PathBuf>, limits: &[(&str, &str)]) -> Fallible<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = own.ok_or("no such hierarchy of cgroups is mounted")?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // No name that the library would take for its own.
        let path = own.join(format!("test-captive-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        let group = Self(path);
        for (file, limit) in limits {
            let file = group.0.join(file);
            fs::write(&file, limit).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(group)
    }

    /// The pids in it, not below.
    pub fn pids(&self) -> Fallible<Vec<i32>> {
        let text = fs::read_to_string(self.0.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let deadline = Instant::now() + HANG;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
