//! Linux with less than the tests' machine has: system calls that are not there or not let through, a hidden `/proc`, no
//! cgroups.
//!
//! On each, every promise holds, by another mechanism if need be, or what was asked for fails with an error that says
//! what is missing. Nothing hangs, and nothing is left over. docs/degraded.md says what comes of what.
//!
//! ```text
//! test ── parent ── subject (filtered) ── what it starts
//! ```

use std::ffi::OsString;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::support::process::{Reaped, run_with_path};
use crate::support::seccomp::{Answer, Rule};
use crate::support::{Fallible, HANG, Need, Outcome, Session, Tag, Witness, test};

mod calls;
mod matrix;
mod parts;
mod places;
mod systems;

pub fn tests() -> Vec<Trial> {
    let mut trials = systems::tests();
    trials.extend(matrix::tests());
    trials
}

/// The processes of these tests.
pub fn role(args: &[OsString]) -> i32 {
    let args: Vec<String> = args
        .iter()
        .map(|arg| arg.to_str().unwrap().to_owned())
        .collect();
    match args[0].as_str() {
        "parent" => parent(&args[1..]),
        "subject" => subject(&args[1], &args[2..]),
        "server" => parts::server(&args[1..]),
        _ => 2,
    }
}

/// Starts a command, says its pid, and what became of it; ends when it is killed.
fn parent(command: &[String]) -> i32 {
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .spawn()
        .unwrap();
    println!("pid {}", child.id());
    let status = child.wait().unwrap();
    println!("status {}", status.into_raw());
    loop {
        unsafe { libc::pause() };
    }
}

/// On such a system, a part or a command.
fn subject(missing: &str, what: &[String]) -> i32 {
    // SIGSYS leaves no core.
    let limit = nix::sys::resource::Resource::RLIMIT_CORE;
    nix::sys::resource::setrlimit(limit, 0, 0).unwrap();
    for missing in missing.split(',').filter(|missing| !missing.is_empty()) {
        match missing.parse::<Rule>() {
            Ok(rule) => rule.take_effect(),
            Err(_) => places::take_away(missing),
        }
    }
    if what[0] == "exec" {
        let error = Command::new(&what[1]).args(&what[2..]).exec();
        eprintln!("it: {error}");
        return 124;
    }
    match parts::run(&what[0]) {
        Ok((text, kept)) => {
            println!("held {text}");
            loop {
                unsafe { libc::pause() };
                let _ = &kept;
            }
        }
        Err(error) => {
            println!("error {error}");
            3
        }
    }
}

/// What was seen of a subject.
#[derive(Debug)]
struct Seen {
    /// What it said, if it holds.
    held: Option<String>,
    /// What it said instead, on standard output or error.
    said: String,
    /// How it ended by itself.
    status: Option<ExitStatus>,
    /// Who is left when it is gone, or its parent.
    left: Vec<(i32, String)>,
}

/// Who goes, in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    Parent,
    Subject,
}

/// What is tried, and whose end is to be that of all.
#[derive(Clone, Copy, Debug)]
struct Part {
    name: &'static str,
    goes: Goes,
    /// For run-with; else the name is what [`parts::run`] takes.
    args: &'static [&'static str],
}

const SLEEPER: &str = "echo held; exec sleep 1000";
const TREE: &str = "setsid sleep 1000 & echo held; exec sleep 1000";

const fn itself(name: &'static str, goes: Goes) -> Part {
    let args = &[];
    Part { name, goes, args }
}

const fn run_with(name: &'static str, goes: Goes, args: &'static [&'static str]) -> Part {
    Part { name, goes, args }
}

const PARTS: &[Part] = &[
    itself("arm", Goes::Parent),
    itself("arm second", Goes::Parent),
    itself("arm grace", Goes::Parent),
    itself("arm channel", Goes::Parent),
    itself("arm signal", Goes::Parent),
    itself("apply exit-with-parent=on", Goes::Parent),
    itself("apply user=65534:65534", Goes::Subject),
    itself("teardown", Goes::Subject),
    itself("tree process", Goes::Subject),
    itself("tree pid", Goes::Subject),
    itself("tree user", Goes::Subject),
    itself("tree cgroup", Goes::Subject),
    itself("tree marks", Goes::Subject),
    itself("tree", Goes::Subject),
    itself("tree of-another-user", Goes::Subject),
    itself("stage", Goes::Subject),
    itself("terminate", Goes::Subject),
    itself("output", Goes::Subject),
    itself("events", Goes::Subject),
    itself("detach", Goes::Subject),
    itself("std", Goes::Subject),
    itself("ready unix", Goes::Subject),
    itself("ready tcp", Goes::Subject),
    itself("ready file", Goes::Subject),
    itself("ready line", Goes::Subject),
    itself("ready notify", Goes::Subject),
    #[cfg(feature = "tokio")]
    itself("tokio", Goes::Subject),
    run_with(
        "run-with",
        Goes::Parent,
        &["exit-with-parent=on", "--", "sh", "-c", SLEEPER],
    ),
    run_with(
        "run-with killed",
        Goes::Subject,
        &[
            "exit-with-parent=on,user=65534:65534",
            "--",
            "sh",
            "-c",
            SLEEPER,
        ],
    ),
    run_with(
        "run-with --exec",
        Goes::Parent,
        &["--exec", "exit-with-parent=on", "--", "sh", "-c", SLEEPER],
    ),
    run_with(
        "run-with --tree",
        Goes::Subject,
        &["--tree", "--", "sh", "-c", TREE],
    ),
    run_with(
        "run-with --tree of-another-user",
        Goes::Subject,
        &["--tree", "user=65534:65534", "--", "sh", "-c", TREE],
    ),
    run_with(
        "run-with --tree-by cgroup",
        Goes::Subject,
        &["--tree-by", "cgroup", "--", "sh", "-c", TREE],
    ),
    run_with(
        "run-with --server",
        Goes::Subject,
        &[
            "--server=echo x; exec sleep 1000",
            "--ready=line:x",
            "exit-with-parent=on",
            "--",
            "sh",
            "-c",
            SLEEPER,
        ],
    ),
    run_with("run-with --mechanisms", Goes::Subject, &["--mechanisms"]),
];

/// Tries it where so much is missing.
fn see(missing: &str, part: &Part) -> Fallible<Seen> {
    let tag = Tag::new();
    let mut errors = tempfile::tempfile()?;
    let mut command = tag.role("degraded");
    command
        .arg("parent")
        .arg(std::env::current_exe()?)
        .args(["--role", "degraded", "subject", missing])
        .stderr(errors.try_clone()?);
    if part.args.is_empty() {
        command.arg(part.name);
    } else {
        command.args(["exec", run_with_path()]).args(part.args);
    }
    let (mut session, parent) = Session::spawn(&mut command)?;
    let mut parent = Reaped(parent);
    let parent_pid = parent.0.id() as i32;
    let mut seen = Seen {
        held: None,
        said: String::new(),
        status: None,
        left: Vec::new(),
    };
    let mut subject = None;
    while subject.is_none() || (seen.held.is_none() && seen.status.is_none()) {
        let line = session
            .answer()
            .map_err(|error| format!("{error}: {seen:?}, {:?}", tag.processes()))?;
        if let Some(pid) = line.strip_prefix("pid ") {
            // It may have ended, and been reaped.
            subject = Some(Witness::of(pid.parse()?).ok());
        } else if let Some(status) = line.strip_prefix("status ") {
            seen.status = Some(ExitStatus::from_raw(status.parse()?));
        } else if let Some(text) = line.strip_prefix("held") {
            seen.held = Some(text.trim_start().to_owned());
        } else {
            seen.said.push_str(&line);
            seen.said.push('\n');
        }
    }
    if seen.held.is_some() {
        match part.goes {
            Goes::Parent => {
                parent.0.kill()?;
                parent.0.wait()?;
            }
            Goes::Subject => subject
                .iter()
                .flatten()
                .for_each(|subject| subject.signal(libc::SIGKILL)),
        }
    }
    let deadline = Instant::now() + HANG;
    loop {
        seen.left = tag.processes();
        seen.left.retain(|(pid, _)| *pid != parent_pid);
        if seen.left.is_empty() || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    errors.rewind()?;
    errors.read_to_string(&mut seen.said)?;
    Ok(seen)
}

/// What is promised of every part, wherever.
fn nothing_is_wrong(seen: &Seen) -> Outcome {
    ensure!(seen.left.is_empty(), "left over: {seen:?}");
    ensure!(!seen.said.contains("panicked"), "a panic: {}", seen.said);
    let killed = seen.status.and_then(|status| status.signal());
    ensure!(
        killed.is_none_or(|signal| signal == libc::SIGSYS),
        "ended otherwise: {seen:?}"
    );
    let silent = seen.held.is_none() && killed.is_none() && seen.said.trim().is_empty();
    ensure!(!silent, "it says nothing: {seen:?}");
    Ok(())
}
