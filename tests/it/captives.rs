//! `Command` and `Captive`: what a launcher starts ends with it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use captive::Command;
use captive::exit_with_parent::Signal;
use libtest_mimic::Trial;

use crate::support::process::await_that;
use crate::support::{Fallible, HANG, Outcome, Tag, output};

mod adapters;
mod command;
mod containment;
mod death;
mod events;
mod handle;
mod itself;
mod listen;
mod ready;
mod steps;
mod trees;

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = command::tests();
    trials.extend(containment::tests());
    trials.extend(adapters::tests());
    trials.extend(death::tests());
    trials.extend(events::tests());
    trials.extend(handle::tests());
    trials.extend(itself::tests());
    trials.extend(trees::tests());
    trials.extend(listen::tests());
    trials.extend(ready::tests());
    trials
}

/// The roles of these tests: the first argument says whose.
pub fn role(args: &[OsString]) -> i32 {
    match args[0].to_str() {
        Some("adapters") => adapters::role(&args[1..]),
        Some("command") => command::role(&args[1..]),
        Some("containment") => containment::role(&args[1..]),
        Some("death") => death::role(&args[1..]),
        Some("itself") => itself::role(&args[1..]),
        Some("events") => events::role(&args[1..]),
        Some("listen") => listen::role(&args[1..]),
        Some("handle") => handle::role(&args[1..]),
        Some("trees") => trees::role(&args[1..]),
        Some("ready") => ready::role(&args[1..]),
        Some("steps") => steps::role(&args[1..]),
        _ => 2,
    }
}

/// A launcher of its own, which fails with what is wrong and leaves nothing.
fn in_role(whose: &str, name: &str) -> Outcome {
    in_role_with(&[whose, name])
}

fn in_role_with(args: &[&str]) -> Outcome {
    let tag = Tag::new();
    let done = output(tag.role("captives").args(args))?;
    ensure!(
        done.status.success(),
        "{:?}: {}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// The exit status of such a launcher.
fn verdict(outcome: Outcome) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

/// The children of all threads, zombies too.
fn children() -> Vec<i32> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let mut all: Vec<i32> = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect();
    all.sort_unstable();
    all
}

/// The descriptors of this process, but the one that lists them.
fn open_descriptors() -> Vec<(i32, PathBuf)> {
    (0..2048)
        .filter_map(|fd| Some((fd, fs::read_link(format!("/proc/self/fd/{fd}")).ok()?)))
        .collect()
}

/// Nothing is open that was not. What was may have been the sweep's of other launchers' cgroups, and is closed since.
fn descriptors_as_before(before: &[(i32, PathBuf)]) -> Outcome {
    let mut new = Vec::new();
    await_that("the descriptors as before", || {
        new = open_descriptors();
        new.retain(|fd| !before.contains(fd));
        new.is_empty()
    })
    .map_err(|error| format!("{error}: {new:?}").into())
}

/// What it says up to a success.
fn says(command: &mut Command) -> Fallible<String> {
    let done = command.output()?;
    ensure!(
        done.status.success(),
        "{:?}: {}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(String::from_utf8(done.stdout)?)
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

fn signal(number: i32) -> Signal {
    Signal::try_from(number).expect("a signal")
}
