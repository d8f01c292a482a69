//! A launcher, its guard and its captives, with a witness of each.

use std::fs;

use crate::support::process::{Reaped, await_that, state, status_field};
use crate::support::session::Fallible;
use crate::support::{HANG, Outcome, SURVIVES, Session, Tag, Witness};

pub struct Scene {
    pub session: Session,
    pub launcher: Reaped,
    pub tag: Tag,
}

impl Scene {
    pub fn new() -> Fallible<Self> {
        Self::of(&["death", "launcher"])
    }

    /// With a launcher of other tests.
    pub fn of(role: &[&str]) -> Fallible<Self> {
        let tag = Tag::new();
        let mut command = tag.role("captives");
        command.args(role);
        let (session, launcher) = Session::spawn(&mut command)?;
        Ok(Self {
            session,
            launcher: Reaped(launcher),
            tag,
        })
    }

    pub fn pid(&self) -> i32 {
        self.launcher.0.id() as i32
    }

    /// A witness of whatever the command makes.
    pub fn make(&mut self, command: &str) -> Fallible<Witness> {
        let answer = self.session.ask(command)?;
        let pid = answer.parse().map_err(|_| format!("{command}: {answer}"))?;
        Ok(Witness::of(pid)?)
    }

    /// A captive of this kind, ready. `thread`: of a thread that has ended since; `stopped`: by SIGSTOP.
    pub fn captive(&mut self, kind: &str) -> Fallible<Witness> {
        let (how, kind) = match kind.strip_prefix("thread ") {
            Some(kind) => ("thread", kind),
            None => ("spawn", kind),
        };
        let (stopped, kind) = match kind.strip_prefix("stopped ") {
            Some(kind) => (true, kind),
            None => (false, kind),
        };
        let captive = self.make(&format!("{how} {kind}"))?;
        if kind.starts_with("user") || kind.starts_with("self") {
            let uids = status_field(captive.pid, "Uid").unwrap_or_default();
            ensure!(
                uids.split_whitespace().all(|uid| uid == "65534"),
                "its user is {uids}"
            );
        }
        if stopped {
            stop(&captive)?;
        }
        ensure!(captive.alive(), "it has ended before anything was done");
        Ok(captive)
    }

    /// The guard of the launcher, or of another process. It has no environment, so it carries no tag.
    pub fn guard(&self) -> Fallible<Witness> {
        guard_of(self.pid(), None)
    }

    /// The guard that has come after this one.
    pub fn guard_after(&self, old: &Witness) -> Fallible<Witness> {
        guard_of(self.pid(), Some(old.pid))
    }

    /// Kills and reaps the launcher.
    pub fn kill(&mut self) -> Outcome {
        self.launcher.0.kill()?;
        self.launcher.0.wait()?;
        Ok(())
    }

    /// Nothing that carries the tag is left.
    pub fn nothing_left(&self) -> Outcome {
        let left = self.tag.survivors(HANG);
        ensure!(left.is_empty(), "left over: {left:?}");
        Ok(())
    }
}

/// The init of a PID namespace that the launcher has made.
pub fn init_of(launcher: i32) -> Fallible<Witness> {
    let mut all = inits_of(launcher);
    ensure!(all.len() == 1, "the launcher's inits: {all:?}");
    Ok(all.remove(0))
}

pub fn inits_of(launcher: i32) -> Vec<Witness> {
    find_children(launcher, "captive-init")
}

/// The guard of `launcher`, as soon as there is one, other than `not`.
pub fn guard_of(launcher: i32, not: Option<i32>) -> Fallible<Witness> {
    let mut found = None;
    await_that("the guard", || {
        found = find_guard(launcher, not);
        found.is_some()
    })?;
    Ok(found.unwrap())
}

/// The child of `launcher` that is a guard and no zombie, other than `not`.
pub fn find_guard(launcher: i32, not: Option<i32>) -> Option<Witness> {
    let mut all = find_children(launcher, "captive-guard").into_iter();
    all.find(|guard| Some(guard.pid) != not)
}

/// The children of `launcher` that have this name and are no zombies.
fn find_children(launcher: i32, name: &str) -> Vec<Witness> {
    let mut found = Vec::new();
    let is_one = |pid: i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == name
            && status_field(pid, "PPid") == Some(launcher.to_string())
            && state(pid) != Some('Z')
    };
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if !is_one(pid) {
            continue;
        }
        if let Ok(witness) = Witness::of(pid) {
            // Again behind the pidfd: the number may have become another's.
            if is_one(pid) {
                found.push(witness);
            }
        }
    }
    found
}

/// Stops a process and waits until it is.
pub fn stop(witness: &Witness) -> Outcome {
    witness.signal(libc::SIGSTOP);
    await_that("the stop", || state(witness.pid) == Some('T'))
}

pub fn kill(witness: &Witness) -> Outcome {
    witness.signal(libc::SIGKILL);
    ensure!(witness.gone(), "it outlives SIGKILL");
    Ok(())
}

pub fn ends(what: &str, witness: &Witness) -> Outcome {
    ensure!(
        witness.gone(),
        "{what} lives on, in state {:?}",
        state(witness.pid)
    );
    Ok(())
}

pub fn lives(what: &str, witness: &Witness) -> Outcome {
    ensure!(!witness.gone_within(SURVIVES), "{what} has ended");
    Ok(())
}
