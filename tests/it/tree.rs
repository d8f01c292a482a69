//! `run-with --tree`: what the command has started ends with it, whoever ends first.
//!
//! ```text
//! test ── launcher ── run-with ──┬── command ── setsid'ed child, daemon (double fork)
//!                                ├── captive-init (in a namespace)
//!                                └── run-with-guard
//! ```

use std::path::PathBuf;
use std::process::Stdio;

use libtest_mimic::Trial;

use crate::support::process::{Reaped, await_that, run_with_path, state, status_field};
use crate::support::session::Fallible;
use crate::support::{HANG, Need, Outcome, Tag, Witness, output, test};

/// By what the tree is held, and as which user run-with runs.
const WAYS: [(&str, &[&str]); 4] = [
    ("any", &["--tree"]),
    ("pid-namespace", &["--tree-by", "pid-namespace"]),
    ("user-namespace", &["--tree-by", "user-namespace"]),
    ("cgroup", &["--tree-by", "cgroup"]),
];

fn needs(flags: &[&str]) -> &'static [Need] {
    if flags.contains(&"cgroup") {
        &[Need::Root, Need::Cgroups]
    } else {
        &[Need::Root]
    }
}

pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, flags) in WAYS {
        let bodies: [(&str, fn(&[&str]) -> Outcome); 9] = [
            ("command_exits", command_exits),
            ("command_is_killed", command_is_killed),
            ("run_with_killed", |flags| run_with_killed(flags, false)),
            ("run_with_killed_unbound", |flags| {
                run_with_killed(flags, true)
            }),
            ("guard_killed", guard_killed),
            ("launcher_killed", launcher_killed),
            ("run_with_stopped", run_with_stopped),
            ("not_found", not_found),
            ("signal_is_passed_on", signal_is_passed_on),
        ];
        for (what, body) in bodies {
            let name = format!("tree::{what}::{name}");
            trials.push(test(&name, needs(flags), move || body(flags)));
        }
        // Not where there are no other users.
        if !flags.contains(&"user-namespace") {
            let name = format!("tree::other_user::{name}");
            trials.push(test(&name, needs(flags), move || other_user(flags)));
        }
    }
    trials.push(test("tree::not_root", &[Need::Root], not_root));
    trials.push(test("tree::refused_with_exec", &[], refused_with_exec));
    trials.push(test("tree::without", &[Need::Root], without));
    trials
}

/// A process in a session of its own, a daemon, and the command.
const TREE: &str = "setsid sleep 1000 & (setsid sleep 1000 &); exec sleep 1000";

struct Scene {
    launcher: Reaped,
    run_with: Witness,
    guard: Witness,
    command: Witness,
    rest: Vec<Witness>,
    tag: Tag,
}

/// A launcher (a shell, which waits) with a run-with whose command has a tree.
fn scene(flags: &[&str], options: &[&str]) -> Fallible<Scene> {
    let tag = Tag::new();
    let mut launcher = tag.command("sh");
    // Not the last thing it does: it is not to become run-with.
    launcher.args(["-c", "\"$@\"; exit $?", "sh", run_with_path()]);
    launcher.args(flags).args(options).arg("--");
    launcher.args(["sh", "-c", TREE]);
    let launcher = Reaped(
        launcher
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let run_with = tag.await_process("run-with")?;
    let guard = tag.await_process("run-with-guard")?;
    let is_command = |pid: i32| {
        status_field(pid, "PPid").is_some_and(|parent| parent == run_with.pid.to_string())
    };
    let mut sleeps = Vec::new();
    await_that("three sleeps", || {
        let processes = tag.processes();
        sleeps = processes
            .into_iter()
            .filter(|(_, name)| name == "sleep")
            .map(|(pid, _)| pid)
            .collect();
        sleeps.len() == 3
    })?;
    let (command, rest): (Vec<i32>, Vec<i32>) =
        sleeps.into_iter().partition(|pid| is_command(*pid));
    let [command] = command[..] else {
        return Err(format!("the command is one of {command:?}, {rest:?}").into());
    };
    Ok(Scene {
        command: Witness::of(command)?,
        rest: rest
            .into_iter()
            .map(Witness::of)
            .collect::<Result<_, _>>()?,
        launcher,
        run_with,
        guard,
        tag,
    })
}

impl Scene {
    fn tree_ends(&self) -> Outcome {
        ensure!(self.command.gone(), "the command lives on");
        for process in &self.rest {
            ensure!(
                process.gone(),
                "a descendant lives on, in state {:?}",
                state(process.pid)
            );
        }
        Ok(())
    }

    /// Nothing of it is left, neither processes nor directories.
    fn all_ends(&self) -> Outcome {
        self.tree_ends()?;
        ensure!(self.run_with.gone(), "run-with lives on");
        ensure!(self.guard.gone(), "the guard lives on");
        nothing_left(&self.tag, self.run_with.pid)
    }

    /// How run-with ended, by the launcher's word.
    fn status(&mut self) -> Fallible<i32> {
        let status = self.launcher.0.wait()?;
        status.code().ok_or_else(|| format!("{status}").into())
    }
}

fn nothing_left(tag: &Tag, run_with: i32) -> Outcome {
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "left over: {left:?}");
    await_that("the end of its directories", || {
        directories(run_with).is_empty()
    })
}

/// Its cgroups that are still there.
fn directories(run_with: i32) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let prefix = format!("captive-{run_with}-");
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            (fields.next() == Some("cgroup2")).then(|| PathBuf::from(point))
        })
        .flat_map(|point| std::fs::read_dir(point).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .collect()
}

fn command_exits(flags: &[&str]) -> Outcome {
    let tag = Tag::new();
    let script = "setsid sleep 1000 & (setsid sleep 1000 &) ; exit 5";
    let mut run_with = tag.run_with();
    run_with.args(flags).args(["--", "sh", "-c", script]);
    let run_with = run_with.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = Reaped(run_with.spawn()?);
    let status = child.0.wait()?;
    ensure!(status.code() == Some(5), "{status}");
    // At once: run-with waits for the last of them.
    let left = tag.processes();
    ensure!(left.is_empty(), "left over: {left:?}");
    let directories = directories(child.0.id() as i32);
    ensure!(directories.is_empty(), "left over: {directories:?}");
    Ok(())
}

fn command_is_killed(flags: &[&str]) -> Outcome {
    let mut scene = scene(flags, &[])?;
    scene.command.signal(libc::SIGKILL);
    scene.all_ends()?;
    let status = scene.status()?;
    ensure!(status == 128 + libc::SIGKILL, "status {status}");
    Ok(())
}

fn run_with_killed(flags: &[&str], unbound: bool) -> Outcome {
    let options: &[&str] = if unbound {
        &[]
    } else {
        &["exit-with-parent=on"]
    };
    let scene = scene(flags, options)?;
    scene.run_with.signal(libc::SIGKILL);
    scene.all_ends()
}

fn guard_killed(flags: &[&str]) -> Outcome {
    let scene = scene(flags, &["exit-with-parent=on"])?;
    scene.guard.signal(libc::SIGKILL);
    ensure!(scene.guard.gone(), "it outlives SIGKILL");
    let other = scene.tag.await_process("run-with-guard")?;
    ensure!(scene.command.alive(), "the command ended with the guard");
    scene.run_with.signal(libc::SIGKILL);
    ensure!(other.gone(), "the other guard lives on");
    scene.all_ends()
}

fn launcher_killed(flags: &[&str]) -> Outcome {
    let mut scene = scene(flags, &["exit-with-parent=on"])?;
    scene.launcher.0.kill()?;
    scene.launcher.0.wait()?;
    scene.all_ends()
}

/// The guard acts in its place.
fn run_with_stopped(flags: &[&str]) -> Outcome {
    let mut scene = scene(flags, &["exit-with-parent=on"])?;
    scene.run_with.signal(libc::SIGSTOP);
    await_that("the stop", || state(scene.run_with.pid) == Some('T'))?;
    scene.launcher.0.kill()?;
    scene.launcher.0.wait()?;
    scene.all_ends()
}

fn not_found(flags: &[&str]) -> Outcome {
    let tag = Tag::new();
    let mut run_with = tag.run_with();
    let run_with = run_with.args(flags).args(["--", "/nowhere/at/all"]);
    let mut child = Reaped(run_with.stderr(Stdio::null()).spawn()?);
    let status = child.0.wait()?;
    ensure!(status.code() == Some(127), "{status}");
    nothing_left(&tag, child.0.id() as i32)
}

/// To a command in a namespace too.
fn signal_is_passed_on(flags: &[&str]) -> Outcome {
    let mut scene = scene(flags, &["exit-with-parent=on"])?;
    scene.run_with.signal(libc::SIGTERM);
    scene.all_ends()?;
    let status = scene.status()?;
    ensure!(status == 128 + libc::SIGTERM, "status {status}");
    Ok(())
}

/// The command has another user, so a cgroup would do; as root a namespace comes first.
fn other_user(flags: &[&str]) -> Outcome {
    let scene = scene(flags, &["exit-with-parent=on,user=nobody"])?;
    let uids = status_field(scene.command.pid, "Uid").unwrap_or_default();
    ensure!(
        uids.split_whitespace().all(|uid| uid == "65534"),
        "its user is {uids}"
    );
    scene.run_with.signal(libc::SIGKILL);
    scene.all_ends()?;
    Ok(())
}

/// Without privileges: a user namespace. What cannot be had is named.
fn not_root() -> Outcome {
    let tag = Tag::new();
    let unprivileged = |flags: &[&str]| {
        let mut command = tag.command("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            run_with_path(),
        ]);
        command
            .args(flags)
            .args(["--", "sh", "-c", "id -u; setsid sleep 1000 & exit 3"]);
        output(&mut command)
    };
    let done = unprivileged(&["--tree"])?;
    ensure!(
        done.status.code() == Some(3) && done.stdout == b"65534\n",
        "{done:?}"
    );
    nothing_left(&tag, -1)?;
    for (flags, missing) in [
        (["--tree-by", "pid-namespace"], "CAP_SYS_ADMIN is missing"),
        (["--tree-by", "cgroup"], "Permission denied"),
    ] {
        let done = unprivileged(&flags)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(
            done.status.code() == Some(125) && said.contains(missing),
            "{done:?}"
        );
        ensure!(said.contains("UserNamespace"), "what is available: {said}");
    }
    nothing_left(&tag, -1)
}

fn refused_with_exec() -> Outcome {
    for flags in [&["--tree"][..], &["--tree-by=cgroup"]] {
        let mut command = Tag::new().run_with();
        let done = output(command.args(flags).args(["--exec", "--", "true"]))?;
        ensure!(done.status.code() == Some(125), "{done:?}");
    }
    let mut command = Tag::new().run_with();
    let done = output(command.args(["--tree-by=walk", "--", "true"]))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(
        done.status.code() == Some(125) && said.contains("cgroup"),
        "{done:?}"
    );
    Ok(())
}

/// It is the flag that does it.
fn without() -> Outcome {
    let scene = scene(&[], &["exit-with-parent=on"])?;
    scene.run_with.signal(libc::SIGKILL);
    ensure!(scene.command.gone(), "the command lives on");
    for process in &scene.rest {
        ensure!(process.alive(), "a descendant ended too");
    }
    // The tag ends them.
    Ok(())
}
