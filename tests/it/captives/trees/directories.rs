//! The directories of cgroups are gone when their trees are.

use std::fs;

use libtest_mimic::Trial;

use super::scene::{By, Held, await_no_directories, directories_of, own_cgroup};
use crate::captives::death::scene::{Scene, ends, kill, stop};
use crate::support::cgroups::Group;
use crate::support::{Fallible, Need, Outcome, Witness, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let named: [(&str, fn() -> Outcome); 6] = [
        ("captive_ends", || captive_ends("tell")),
        ("captive_killed", || captive_ends("kill")),
        ("captive_dropped", || captive_ends("drop")),
        ("launcher_killed", launcher_killed),
        ("launcher_and_guard_killed", launcher_and_guard_killed),
        ("guard_waits_for_the_last", guard_waits_for_the_last),
    ];
    named
        .into_iter()
        .map(|(name, body)| {
            let name = format!("captives::trees::directory::{name}");
            test(&name, &[Need::Root, Need::Cgroups], body)
        })
        .collect()
}

/// Two trees, one of which has made cgroups of its own.
fn scene(group: &Group) -> Fallible<Scene> {
    let mut scene = Scene::within(By::Cgroup, group)?;
    for _ in 0..2 {
        scene.tree("tree child daemon tree=Cgroup")?;
    }
    let there = directories_of(scene.pid(), &group.0)?;
    ensure!(there.len() == 2, "its directories: {there:?}");
    fs::create_dir_all(there[0].join("one").join("below"))?;
    Ok(scene)
}

fn captive_ends(how: &str) -> Outcome {
    let group = own_cgroup()?;
    let mut scene = scene(&group)?;
    for place in 0..2 {
        match how {
            "drop" => scene.session.expect(&format!("drop {place}"), "dropped")?,
            "kill" => scene
                .session
                .expect(&format!("kill {place}"), "killed by KILL")?,
            _ => {
                let tree = scene.tree("tree child daemon tree=Cgroup")?;
                tree.main.signal(libc::SIGTERM);
                tree.end()?;
                scene
                    .session
                    .expect(&format!("kill {place}"), "killed by KILL")?;
            }
        }
    }
    await_no_directories(scene.pid(), &group.0)?;
    scene.kill()?;
    scene.nothing_left()
}

fn launcher_killed() -> Outcome {
    let group = own_cgroup()?;
    let mut scene = scene(&group)?;
    let guard = scene.guard()?;
    scene.kill()?;
    ends("the guard", &guard)?;
    let left = directories_of(scene.pid(), &group.0)?;
    ensure!(left.is_empty(), "the guard has left {left:?}");
    scene.nothing_left()
}

fn launcher_and_guard_killed() -> Outcome {
    let group = own_cgroup()?;
    let mut scene = scene(&group)?;
    let guard = scene.guard()?;
    stop(&Witness::of(scene.pid())?)?;
    kill(&guard)?;
    scene.kill()?;
    let left = directories_of(scene.pid(), &group.0)?;
    ensure!(left.len() == 2, "its directories: {left:?}");
    let mut next = Scene::within(By::Cgroup, &group)?;
    next.captive("plain")?;
    await_no_directories(scene.pid(), &group.0)?;
    next.kill()?;
    scene.nothing_left()
}

/// A directory with a process that is still ending cannot be removed; another launcher leaves it alone.
fn guard_waits_for_the_last() -> Outcome {
    let group = own_cgroup()?;
    let mut scene = Scene::within(By::Cgroup, &group)?;
    let tree = scene.tree("tree child daemon tree=Cgroup")?;
    let guard = scene.guard()?;
    let held = Held::new(tree.part("daemon"))?;
    scene.kill()?;
    held.is_killed()?;
    ensure!(guard.alive(), "the guard has not waited");
    held.release()?;
    tree.end()?;
    ends("the guard", &guard)?;
    let left = directories_of(scene.pid(), &group.0)?;
    ensure!(left.is_empty(), "the guard has left {left:?}");
    scene.nothing_left()
}
