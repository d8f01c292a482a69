//! A tree that forks as fast as it can, in a cgroup that bounds it.

use libtest_mimic::Trial;

use super::scene::{By, KINDS};
use crate::captives::death::scene::{Scene, ends, kill, stop};
use crate::support::cgroups::{Group, limited_by};
use crate::support::process::await_that;
use crate::support::{Fallible, Need, Outcome, Witness, test};

const MOST: usize = 200;

/// All of them.
pub fn tests() -> Vec<Trial> {
    const NEEDS: &[Need] = &[
        Need::Root,
        Need::Controller("pids"),
        Need::Cgroups,
        Need::UserNamespaces,
    ];
    let ways: [(&str, fn(By) -> Outcome); 3] = [
        ("launcher_killed", launcher_killed),
        ("captive_killed", captive_killed),
        ("guard_and_launcher_killed", both_killed),
    ];
    let mut trials = Vec::new();
    for (way, body) in ways {
        for (name, by) in KINDS {
            // Forks faster than it is found; and in a cgroup the second line is the main process's alone.
            let is_held =
                by != By::Marks && (way != "guard_and_launcher_killed" || by.is_namespace());
            if is_held {
                let name = format!("captives::trees::bomb::{way}::{name}");
                trials.push(test(&name, NEEDS, move || body(by)));
            }
        }
    }
    trials
}

/// A launcher with a bomb that has reached its bounds.
fn scene(by: By, group: &Group) -> Fallible<(Scene, super::scene::Tree)> {
    let mut scene = Scene::within(by, group)?;
    let tree = scene.tree(&format!("tree child bomb {}", by.word()))?;
    await_that("the bomb", || {
        group.pids().is_ok_and(|pids| pids.len() > MOST / 2)
    })?;
    Ok((scene, tree))
}

fn group() -> Fallible<Group> {
    Group::new(limited_by("pids"), &[("pids.max", &MOST.to_string())])
}

/// Nothing but zombies that nobody has reaped yet; the cgroup lists none.
fn all_gone(scene: &Scene, group: &Group) -> Outcome {
    await_that("the end of the bomb", || {
        group.pids().is_ok_and(|pids| pids.is_empty())
    })?;
    scene.nothing_left()
}

fn launcher_killed(by: By) -> Outcome {
    let group = group()?;
    let (mut scene, tree) = scene(by, &group)?;
    scene.kill()?;
    ends("the main process", &tree.main)?;
    all_gone(&scene, &group)
}

fn captive_killed(by: By) -> Outcome {
    let group = group()?;
    let (mut scene, tree) = scene(by, &group)?;
    scene.session.expect("kill 0", "killed by KILL")?;
    scene.session.expect("wait_tree 0 20000", "true")?;
    tree.end()?;
    let left = scene.tag.processes();
    ensure!(left.len() == 1, "besides the launcher: {left:?}");
    scene.kill()?;
    all_gone(&scene, &group)
}

fn both_killed(by: By) -> Outcome {
    let group = group()?;
    let (mut scene, tree) = scene(by, &group)?;
    let guard = scene.guard()?;
    stop(&Witness::of(scene.pid())?)?;
    kill(&guard)?;
    scene.kill()?;
    ends("the main process", &tree.main)?;
    all_gone(&scene, &group)
}
