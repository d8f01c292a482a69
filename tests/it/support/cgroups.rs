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

/// Where a cgroup can be made that this controller limits: below our own one of version 1; or, where the controller is one
/// of version 2, below the nearest that hands it on, which may not have processes and so is never our own, but for the
/// root; cgroups(7), "no internal processes".
pub fn limited_by(controller: &str) -> Option<PathBuf> {
    let hands_it_on = |group: &&Path| {
        fs::read_to_string(group.join("cgroup.subtree_control"))
            .is_ok_and(|all| all.split_whitespace().any(|name| name == controller))
    };
    version_1(controller).or_else(|| Some(version_2()?.ancestors().find(hands_it_on)?.to_owned()))
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

    /// With little memory, and no swap.
    pub fn with_memory(bytes: u32) -> Fallible<Self> {
        let group = Self::new(limited_by("memory"), &[])?;
        let (limit, swap) = if group.is_of_version_2() {
            ("memory.max", ("memory.swap.max", 0))
        } else {
            (
                "memory.limit_in_bytes",
                ("memory.memsw.limit_in_bytes", bytes),
            )
        };
        fs::write(group.0.join(limit), bytes.to_string())?;
        // There if swap is accounted for.
        let file = group.0.join(swap.0);
        if file.exists() {
            fs::write(file, swap.1.to_string())?;
        }
        Ok(group)
    }

    /// How many in it, or below, were killed for want of memory.
    pub fn oom_kills(&self) -> Fallible<u64> {
        let file = if self.is_of_version_2() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let events = fs::read_to_string(self.0.join(file))?;
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .ok_or("no oom_kill")?;
        Ok(kills.parse()?)
    }

    /// Then a launcher in it makes its captives' cgroups there.
    pub fn is_of_version_2(&self) -> bool {
        self.0.join("cgroup.subtree_control").exists()
    }

    /// The pids in it and below.
    pub fn pids(&self) -> Fallible<Vec<i32>> {
        let mut pids = Vec::new();
        let mut groups = vec![self.0.clone()];
        while let Some(group) = groups.pop() {
            let text = match fs::read_to_string(group.join("cgroup.procs")) {
                // One below that has just been removed.
                Err(_) if group != self.0 => continue,
                text => text?,
            };
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            let entries = fs::read_dir(&group).into_iter().flatten().flatten();
            groups.extend(
                entries
                    .map(|entry| entry.path())
                    .filter(|path| path.is_dir()),
            );
        }
        Ok(pids)
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
