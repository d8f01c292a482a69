//! Which mechanism holds a captive's tree, what the captive sees of it, and what is left: nothing.
//!
//! Every test is a launcher of its own (a role), which becomes another user, or whose system calls are filtered.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use captive::launcher::{
    Containment, ContainmentError, ExitReport, ExitStatus, Missing, SpawnError, Stdio,
};
use captive::{Captive, Command, RunWith};
use libtest_mimic::Trial;

use super::{children, descriptors_as_before, open_descriptors, says, shell, verdict};
use crate::support::process::{Reaped, state};
use crate::support::seccomp::{self, Argument};
use crate::support::{self, Fallible, Need, Outcome, Tag, cgroups, test};

mod choice;
mod fallbacks;
mod groups;
mod handles;
mod limits;
mod nested;
mod seen;

/// A test: its name, what it needs, and what its launcher does.
type Case = (&'static str, &'static [Need], fn() -> Outcome);

fn cases() -> impl Iterator<Item = &'static Case> {
    let modules: [&'static [Case]; 7] = [
        choice::CASES,
        fallbacks::CASES,
        groups::CASES,
        handles::CASES,
        limits::CASES,
        nested::CASES,
        seen::CASES,
    ];
    modules.into_iter().flatten()
}

/// All of them.
pub fn tests() -> Vec<Trial> {
    cases()
        .map(|(name, needs, _)| {
            let full = format!("captives::containment::{name}");
            test(&full, needs, move || in_role(name))
        })
        .collect()
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    let Some(name) = args.first().and_then(|arg| arg.to_str()) else {
        return 2;
    };
    if let Some(status) = nested::role(name) {
        return status;
    }
    let Some((_, _, body)) = cases().find(|(own, _, _)| *own == name) else {
        return 2;
    };
    verdict(body().and_then(|()| nothing_left()))
}

/// The launcher succeeds, and neither processes nor cgroups are left when it is gone.
fn in_role(name: &str) -> Outcome {
    let tag = Tag::new();
    // Files, whose ends are there whatever else has them open.
    let (mut said, mut errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut command = tag.role("captives");
    command
        .args(["containment", name])
        .stdin(std::process::Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(errors.try_clone()?);
    let mut launcher = Reaped(command.spawn()?);
    let pid = launcher.0.id();
    let in_time = support::Witness::of(pid as i32)?.gone();
    let text = |file: &mut File| -> Fallible<String> {
        let mut text = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let (said, errors) = (text(&mut said)?, text(&mut errors)?);
    ensure!(in_time, "{name} does not end: {errors}{said}");
    let status = launcher.0.wait()?;
    ensure!(status.success(), "{status}: {errors}{said}");
    let left = tag.survivors(support::HANG);
    ensure!(left.is_empty(), "left behind: {left:?}");
    await_that("an end of its cgroups", || directories_of(pid).is_empty())
}

/// All but `Process`, and what is not for every kernel.
const MECHANISMS: [Containment; 4] = [
    Containment::PidNamespace,
    Containment::UserNamespace,
    Containment::Cgroup,
    Containment::TreeBestEffort,
];

/// How long anything may take here: less than the whole launcher may, so that it can say what hangs.
const HANG: Duration = Duration::from_secs(20);

/// Waits for what no descriptor tells.
fn await_that(what: &str, mut is_so: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + HANG;
    while !is_so() {
        ensure!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A process that is to end, by its pidfd.
#[derive(Debug)]
struct Witness(support::Witness);

impl Witness {
    fn of(pid: i32) -> std::io::Result<Self> {
        support::Witness::of(pid).map(Self)
    }

    fn gone(&self) -> bool {
        self.0.gone_within(HANG)
    }

    fn alive(&self) -> bool {
        self.0.alive()
    }
}

impl std::ops::Deref for Witness {
    type Target = support::Witness;

    fn deref(&self) -> &support::Witness {
        &self.0
    }
}

const NOBODY: u32 = 65534;

/// Gives up every privilege. `dumpable`: what a launcher that has been started without them is.
fn become_nobody(dumpable: bool) -> Outcome {
    unsafe {
        ensure!(libc::setgroups(0, std::ptr::null()) == 0, "setgroups");
        ensure!(libc::setresgid(NOBODY, NOBODY, NOBODY) == 0, "setresgid");
        ensure!(libc::setresuid(NOBODY, NOBODY, NOBODY) == 0, "setresuid");
        let dumpable = libc::c_ulong::from(dumpable);
        ensure!(
            libc::prctl(libc::PR_SET_DUMPABLE, dumpable, 0, 0, 0) == 0,
            "prctl"
        );
    }
    Ok(())
}

fn as_nobody() -> Fallible<RunWith> {
    Ok(RunWith::parse("user=65534:65534".as_ref())?)
}

/// From now on no init of a PID namespace can be made, with a user namespace or without.
fn deny_namespaces(user: bool, errno: i32) {
    let child = libc::CLONE_PIDFD | libc::CLONE_VFORK | libc::CLONE_VM | libc::SIGCHLD;
    let user = if user { libc::CLONE_NEWUSER } else { 0 };
    let value = (child | libc::CLONE_NEWPID | user) as u32;
    let argument = Some(Argument { index: 0, value });
    seccomp::deny_in_all_threads(libc::SYS_clone as u32, argument, errno as u32);
}

/// The children that are not the guard.
fn captives() -> Vec<(i32, String)> {
    children()
        .into_iter()
        .map(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, comm.trim_end().to_owned())
        })
        .filter(|(_, comm)| comm != "captive-guard")
        .collect()
}

/// Neither a process, nor a zombie, nor a cgroup of this launcher's.
fn nothing_left() -> Outcome {
    let own = std::process::id();
    await_that("an end of all", || {
        captives().is_empty() && directories_of(own).is_empty()
    })
    .map_err(|error| {
        let (left, cgroups) = (captives(), directories_of(own));
        let states: Vec<_> = left.iter().map(|(pid, _)| state(*pid)).collect();
        format!("{error}: {left:?} {states:?} {cgroups:?}").into()
    })
}

/// Where cgroups (version 2) are.
fn mount() -> Fallible<PathBuf> {
    cgroups::root_of_version_2().ok_or_else(|| "no cgroup2 is mounted".into())
}

/// The cgroup of a process, as /proc says it: from the root, without the slash.
fn cgroup_of(process: &str) -> Fallible<String> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(line
        .ok_or_else(|| format!("no cgroup2 in {text}"))?
        .to_owned())
}

/// The launcher's own cgroup.
fn own_cgroup() -> Fallible<PathBuf> {
    cgroups::version_2().ok_or_else(|| "no cgroup2 is mounted".into())
}

/// The cgroups of a launcher's captives, wherever they are.
fn directories_of(pid: u32) -> Vec<PathBuf> {
    fn walk(directory: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    found.push(entry.path());
                }
                walk(&entry.path(), prefix, found);
            }
        }
    }
    let mut found = Vec::new();
    if let Ok(mount) = mount() {
        walk(&mount, &format!("captive-{pid}-"), &mut found);
    }
    found
}

/// A cgroup of the test's own, at the root.
struct Group {
    path: PathBuf,
}

impl Group {
    fn new() -> Fallible<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-captive-{}-{number}", std::process::id());
        let path = mount()?.join(name);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// As systemd gives one to a user.
    fn delegate(&self) -> Outcome {
        let nobody = Some(NOBODY);
        std::os::unix::fs::chown(&self.path, nobody, nobody)?;
        for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            match std::os::unix::fs::chown(self.path.join(file), nobody, nobody) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves this process there.
    fn enter(&self) -> Outcome {
        fs::write(self.path.join("cgroup.procs"), "0")?;
        Ok(())
    }

    /// Neither processes nor cgroups are in it.
    fn is_empty(&self) -> Outcome {
        await_that("an empty cgroup", || {
            fs::read(self.path.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty())
                && below(&self.path).is_empty()
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whatever is left there: the test has failed already.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let _ = await_that("a removed cgroup", || {
            fs::remove_dir(&self.path).is_ok() || !self.path.exists()
        });
    }
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn ended(captive: &Captive) -> Fallible<ExitReport> {
    captive
        .wait_timeout(HANG)?
        .ok_or_else(|| format!("{captive:?} does not end").into())
}

fn tree_ended(captive: &Captive) -> Outcome {
    ensure!(captive.wait_tree(HANG)?, "{captive:?}: its tree lives on");
    Ok(())
}

fn contained(mut command: Command, containment: Containment) -> Command {
    command.containment(containment);
    command
}

fn sleeper(containment: Containment) -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000").containment(containment);
    command
}

/// By which mechanism this is contained, with an end as it should be.
fn chosen(command: &mut Command) -> Fallible<Containment> {
    let captive = command.spawn()?;
    let report = ended(&captive)?;
    ensure!(report.success(), "{command:?}: {report:?}");
    tree_ended(&captive)?;
    Ok(captive.containment())
}

/// The first lines that it says, and the captive, which lives on.
fn says_first(command: &mut Command, lines: usize) -> Fallible<(Captive, Vec<String>)> {
    let mut captive = command.stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(captive.stdout.take().ok_or("no pipe")?);
    let mut said = Vec::new();
    for _ in 0..lines {
        let mut line = String::new();
        out.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "{line:?} after {said:?}");
        said.push(line.trim_end().to_owned());
    }
    Ok((captive, said))
}

fn refused(command: &mut Command) -> Fallible<SpawnError> {
    match command.spawn() {
        Ok(captive) => Err(format!("{command:?} was launched: {captive:?}").into()),
        Err(error) => Ok(error),
    }
}

/// The error of a captive that cannot be contained; nothing is left then.
fn uncontained(command: &mut Command) -> Fallible<ContainmentError> {
    let error = refused(command)?;
    nothing_left()?;
    ensure!(error.step().is_none(), "{error:?}");
    match error {
        SpawnError::Containment(error) => Ok(error),
        error => Err(format!("{error:?}").into()),
    }
}

/// What is missing for one mechanism.
fn lacking(error: &ContainmentError, containment: Containment) -> Fallible<&Missing> {
    let mut of_it = error
        .missing
        .iter()
        .filter(|missing| missing.containment == containment);
    match (of_it.next(), of_it.next()) {
        (Some(missing), None) => Ok(missing),
        _ => Err(format!("{containment} is not there once: {error:?}").into()),
    }
}

fn errno(missing: &Missing) -> Option<i32> {
    missing.errno.as_ref()?.raw_os_error()
}

/// All descendants of a process, it included, that are no zombies.
fn descendants(pid: i32) -> Vec<Witness> {
    let mut found: Vec<Witness> = Witness::of(pid).into_iter().collect();
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            found.extend(child.parse().map(descendants).unwrap_or_default());
        }
    }
    found
}

/// This binary, for any user: by a descriptor.
fn ourselves(role: &[&str]) -> Fallible<Command> {
    let mut command = Command::new("/proc/self/fd/500");
    command
        .args(["--role", "captives"])
        .args(role)
        .descriptor(File::open(std::env::current_exe()?)?, 500);
    Ok(command)
}

fn killed_by_kill(report: &ExitReport) -> bool {
    matches!(report.status(), ExitStatus::Killed { signal, .. } if signal.number() == libc::SIGKILL)
}
