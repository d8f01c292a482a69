//! A launcher killed at a random moment of launching, dropping, killing and waiting.
//!
//! ```text
//! test ── rounds (adopts what is orphaned) ── launcher ──┬── captive-guard
//!                                                        └── captives
//! ```
//!
//! Whoever outlives the launcher becomes a child of `rounds`, tag or no tag, so that this has no
//! children left proves that neither a captive nor a guard is, and leaves no zombie to an init that
//! may be slow.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use captive::Captive;
use libtest_mimic::Trial;

use super::launcher::{command, failed};
use super::scene::find_guard;
use crate::support::cgroups::{Group, version_2};
use crate::support::process::{state, status_field};
use crate::support::{HANG, Need, Outcome, Tag, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, who) in [("random", "launcher"), ("random_with_guard", "guard")] {
        let name = format!("captives::death::{name}");
        let long = format!("{name}_long");
        trials.push(test(&name, &[Need::Root, Need::Cgroups], || many(who, 150)));
        trials.push(test(
            &long,
            &[Need::Root, Need::Cgroups, Need::Long],
            || many(who, 1000),
        ));
    }
    trials
}

/// `who` is killed: the launcher, or its guard first.
fn many(who: &str, count: u32) -> Outcome {
    let tag = Tag::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = now.as_nanos() as u64;
    let mut command = tag.role("captives");
    command.args(["death", "rounds", who]);
    command.args([seed.to_string(), count.to_string()]);
    // Where no other launcher takes away what these leave.
    let group = Group::new(version_2(), &[])?;
    command.arg(&group.0);
    // Each round has a limit of its own.
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "seed {seed}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "seed {seed}: left over: {left:?}");
    let directories = directories(&group.0);
    ensure!(
        directories.is_empty(),
        "seed {seed}: left over: {directories:?}"
    );
    Ok(())
}

/// Of the cgroups of captives below this one.
fn directories(group: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(group).unwrap().flatten();
    let paths = list.map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

struct Random(u64);

impl Random {
    /// Below `limit`; splitmix64.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % limit
    }

    fn pause(&mut self, most: Duration) {
        let most = most.as_micros() as u64;
        std::thread::sleep(Duration::from_micros(self.below(most)));
    }
}

pub fn rounds(who: &str, seed: u64, count: u64, group: &Path) -> i32 {
    fs::write(group.join("cgroup.procs"), "0").unwrap();
    assert_eq!(
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) },
        0
    );
    let mut random = Random(seed);
    let mut adopted = 0;
    for round in 0..count {
        let start = Instant::now();
        let mut launcher = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--role", "captives", "death", "churn", who])
            .arg(random.below(u64::MAX).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut begun = [0];
        let read = launcher.stdout.as_mut().unwrap().read_exact(&mut begun);
        // Where a program takes long to start, so does all that it does.
        random.pause(Duration::from_millis(30).max(start.elapsed() * 3));
        if who == "guard" {
            for _ in 0..=random.below(3) {
                if let Some(guard) = find_guard(launcher.id() as i32, None) {
                    guard.signal(libc::SIGKILL);
                }
                random.pause(Duration::from_millis(4));
            }
        }
        launcher.kill().unwrap();
        let status = launcher.wait().unwrap();
        // Nobody else has the pipe.
        let mut said = String::new();
        let stdout = launcher.stdout.as_mut().unwrap();
        stdout.read_to_string(&mut said).unwrap();
        if read.is_err() || !said.is_empty() || status.signal() != Some(libc::SIGKILL) {
            println!("round {round}: the launcher ended with {status}: {said}");
            return 1;
        }
        // In a cgroup, the second line is the main process's alone.
        let mut next = Some(Instant::now() + NEXT).filter(|_| who == "guard");
        let deadline = Instant::now() + HANG;
        loop {
            if next.take_if(|next| Instant::now() > *next).is_some() {
                next_launcher(group);
            }
            match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
                // No children.
                -1 => break,
                0 if Instant::now() > deadline => {
                    println!("round {round}: left over: {}", children());
                    return 1;
                }
                0 => std::thread::sleep(Duration::from_micros(200)),
                _ => adopted += 1,
            }
        }
    }
    next_launcher(group);
    println!("{count} rounds, {adopted} orphans");
    // At the least the guard, in most of the rounds.
    i32::from(adopted < count / 2)
}

/// How long what is left after launcher and guard may take to go by itself.
const NEXT: Duration = Duration::from_millis(50);

/// Another launcher in the same cgroup.
fn next_launcher(group: &Path) {
    let mut next = std::process::Command::new(std::env::current_exe().unwrap());
    next.args(["--role", "captives", "death", "next"])
        .arg(group);
    assert!(next.status().unwrap().success());
}

/// Launches something, and lives until the others' directories are gone.
pub fn next(group: &Path) -> i32 {
    captive::Command::new("true").status().unwrap();
    let deadline = Instant::now() + HANG;
    while !directories(group).is_empty() {
        if Instant::now() > deadline {
            println!("left over: {:?}", directories(group));
            return 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    0
}

/// What they are.
fn children() -> String {
    let own = std::process::id().to_string();
    let mut text = String::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if status_field(pid, "PPid").as_ref() == Some(&own) {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let name = status_field(pid, "Name");
            let uid = status_field(pid, "Uid");
            text += &format!("{pid} {name:?} {:?} {uid:?} {command}\n", state(pid));
        }
    }
    text
}

const KINDS: [&[&str]; 18] = [
    &["plain"],
    &["plain", "grace=10"],
    &["user"],
    &["user", "grace=10"],
    &["deaf"],
    &["tree", "child", "daemon", "tree=Tree"],
    &["tree", "child", "daemon", "tree=UserNamespace"],
    &["tree", "child", "daemon", "tree=Cgroup"],
    // From here on: what only a guard can end.
    &["deaf", "grace=20"],
    &["plain", "order=1"],
    &["plain", "detachable=1"],
    &["user", "order=3"],
    &["self"],
    &["self", "order=2"],
    &["self", "detachable=1"],
    &["tree", "child", "daemon", "grace=10", "tree=Tree"],
    &["tree", "child", "daemon", "order=2", "tree=UserNamespace"],
    &["tree", "daemon", "nobody", "detachable=1", "tree=Cgroup"],
];

/// Those that the parent-death signal ends, or the end of the init, or the next launcher.
const WITHOUT_GUARD: usize = 8;

/// Until it is killed. The captives are not waited for to be ready.
pub fn churn(who: &str, seed: u64) -> i32 {
    let mut random = Random(seed);
    let kinds = match who {
        "guard" => &KINDS[..WITHOUT_GUARD],
        _ => &KINDS[..],
    };
    std::io::stdout().write_all(b"!").unwrap();
    std::io::stdout().flush().unwrap();
    loop {
        let mut captives: Vec<Captive> = Vec::new();
        for _ in 0..=random.below(3) {
            let mut command = command(kinds[random.below(kinds.len() as u64) as usize]);
            let captive = if random.below(4) == 0 {
                std::thread::spawn(move || command.spawn()).join().unwrap()
            } else {
                command.spawn()
            };
            match captive {
                Ok(captive) => captives.push(captive),
                Err(error) => failed(&error),
            }
        }
        random.pause(Duration::from_millis(5));
        for captive in captives {
            match random.below(4) {
                0 => drop(captive),
                1 => {
                    captive.kill().unwrap();
                    captive.wait().unwrap();
                }
                2 => {
                    let limit = Duration::from_millis(random.below(4));
                    captive.wait_timeout(limit).unwrap();
                }
                _ => {
                    captive.terminate(Duration::from_millis(5)).unwrap();
                }
            }
        }
    }
}
