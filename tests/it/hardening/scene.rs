//! A launcher, run-with, its guard and its command, each with a witness:
//!
//! ```text
//! test ── launcher ── run-with ── guard, command
//! ```

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::races::phase::{children, comm};
use crate::support::process::{Reaped, await_that, readable_within, run_with_path};
use crate::support::{Fallible, HANG, Outcome, Tag, Witness};

pub const BOUND: &str = "exit-with-parent=on";

/// What every run-with here is to run.
pub const COMMAND: [&str; 3] = ["--", "sleep", "1000"];

/// The user of the tests that are not root's.
pub const NOBODY: u32 = 65534;

/// All of them, once the command has been executed.
#[derive(Debug)]
pub struct Scene {
    pub launcher: Reaped,
    pub run_with: Witness,
    pub guard: Witness,
    pub command: Witness,
    pub tag: Tag,
}

impl Scene {
    /// Of run-with with these arguments.
    pub fn new(args: &[&str]) -> Fallible<Self> {
        Self::of(args, |_| {})
    }

    /// The same, with something changed about the launcher's start.
    pub fn of(args: &[&str], change: impl FnOnce(&mut Command)) -> Fallible<Self> {
        let tag = Tag::new();
        let launcher = launch(&tag, args, change)?;
        let run_with = child_of(&launcher)?;
        let (mut guard, mut command) = (None, None);
        await_that("the guard and the command", || {
            guard = guard_of(run_with.pid);
            command = command_of(run_with.pid);
            guard.is_some() && command.is_some()
        })?;
        Ok(Self {
            launcher,
            run_with,
            guard: Witness::of(guard.ok_or("a guard")?)?,
            command: Witness::of(command.ok_or("a command")?)?,
            tag,
        })
    }

    pub fn kill_launcher(&mut self) -> Outcome {
        kill(&mut self.launcher)
    }

    /// Command, run-with and guard have ended, or do so within the limit. Ends the launcher after them.
    pub fn is_over(&mut self) -> Outcome {
        ensure!(self.command.gone(), "the command stays");
        ensure!(self.run_with.gone(), "run-with stays");
        self.kill_launcher()?;
        let left = self.tag.survivors(HANG);
        ensure!(left.is_empty(), "{left:?} stay");
        Ok(())
    }
}

/// A launcher of run-with with these arguments, in the root directory; it leaves the descriptors it is
/// given to run-with.
pub fn launch(tag: &Tag, args: &[&str], change: impl FnOnce(&mut Command)) -> io::Result<Reaped> {
    let mut launcher = tag.role("launcher");
    launcher
        .arg(run_with_path())
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    change(&mut launcher);
    Ok(Reaped(launcher.spawn()?))
}

pub fn kill(launcher: &mut Reaped) -> Outcome {
    launcher.0.kill()?;
    launcher.0.wait()?;
    Ok(())
}

/// The launcher's child, once it is run-with.
pub fn child_of(launcher: &Reaped) -> Fallible<Witness> {
    let launcher = i32::try_from(launcher.0.id())?;
    let mut found = None;
    await_that("run-with", || {
        let mut children = children(launcher).into_iter();
        found = children.find(|(_, name)| name == "run-with");
        found.is_some()
    })?;
    Ok(Witness::of(found.ok_or("run-with")?.0)?)
}

/// run-with's guard, once it has taken its name.
pub fn guard_of(run_with: i32) -> Option<i32> {
    let mut children = children(run_with).into_iter();
    Some(children.find(|(_, name)| name == "run-with-guard")?.0)
}

/// run-with's command, once it has been executed.
pub fn command_of(run_with: i32) -> Option<i32> {
    let mut children = children(run_with).into_iter();
    Some(children.find(|(_, name)| !name.starts_with("run-with"))?.0)
}

/// Whether `pid` has not executed its command yet.
pub fn is_before_exec(pid: i32) -> bool {
    comm(pid).is_some_and(|name| name == "run-with")
}

/// Reads until this has been written.
pub fn await_text<R: Read + AsFd>(from: &mut R, what: &str) -> Outcome {
    let deadline = Instant::now() + HANG;
    let mut text = String::new();
    while !text.contains(what) {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(
            readable_within(from.as_fd(), left),
            "no {what:?}, only {text:?}"
        );
        let mut some = [0; 4096];
        let count = from.read(&mut some)?;
        ensure!(count > 0, "the end of {text:?}, without {what:?}");
        text.push_str(&String::from_utf8_lossy(&some[..count]));
    }
    Ok(())
}
