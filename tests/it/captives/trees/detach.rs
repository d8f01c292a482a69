//! A tree that is let go, or could have been.

use std::fs;

use libtest_mimic::Trial;

use super::scene::{ALL, By, KINDS, Tree, await_no_directories, directories_of, own_cgroup};
use crate::captives::death::scene::{Scene, ends, init_of, lives, stop};
use crate::support::cgroups::Group;
use crate::support::process::await_that;
use crate::support::{Fallible, Need, Outcome, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    const NEEDS: &[Need] = &[Need::Root, Need::Cgroups, Need::UserNamespaces];
    let mut trials = Vec::new();
    let mut add = |name: String, body: Box<dyn FnOnce() -> Outcome + Send>| {
        trials.push(test(
            &format!("captives::trees::detach::{name}"),
            NEEDS,
            body,
        ));
    };
    for (name, by) in KINDS {
        add(format!("done::{name}"), Box::new(move || done(by)));
        add(
            format!("main_ends::{name}"),
            Box::new(move || main_ends(by)),
        );
        let body = move || guard_is_late(by);
        add(format!("guard_is_late::{name}"), Box::new(body));
    }
    add("directory".into(), Box::new(directory));
    add(
        "directory_of_living_launcher".into(),
        Box::new(directory_of_living_launcher),
    );
    for (name, by) in ALL {
        let name = format!("captives::trees::detach::not_done::{name}");
        trials.push(test(&name, by.needs(), move || not_done(by)));
    }
    trials
}

/// It ends as any other.
fn not_done(by: By) -> Outcome {
    let mut scene = Scene::by(by)?;
    let what = format!("tree {} detachable=1 {}", by.parts(), by.word());
    let tree = scene.tree(&what)?;
    scene.kill()?;
    tree.end()?;
    scene.nothing_left()
}

/// A launcher in a cgroup of its own, where no other launcher comes by.
fn detached(by: By, group: &Group) -> Fallible<(Scene, Tree)> {
    let mut scene = Scene::within(by, group)?;
    let what = format!("tree child session daemon deep detachable=1 {}", by.word());
    let tree = scene.tree(&what)?;
    Ok((scene, tree))
}

/// All of it lives on; the init goes by itself when it is alone.
fn done(by: By) -> Outcome {
    let group = own_cgroup()?;
    let (mut scene, tree) = detached(by, &group)?;
    let init = match by.is_namespace() {
        true => Some(init_of(scene.pid())?),
        false => None,
    };
    let held = scene.tree(&format!("tree child daemon {}", by.word()))?;
    let guard = scene.guard()?;
    scene.session.expect("detach 0", "detached")?;
    scene.kill()?;
    held.end()?;
    ends("the guard", &guard)?;
    lives("the main process", &tree.main)?;
    tree.all_alive()?;
    // Each is there for the others.
    for (name, witness) in &tree.parts {
        witness.signal(libc::SIGKILL);
        ends(name, witness)?;
    }
    lives("the main process", &tree.main)?;
    if let Some(init) = &init {
        ensure!(init.alive(), "the init has left the main process alone");
    }
    tree.kill()?;
    if let Some(init) = &init {
        ends("the init", init)?;
    }
    sweep(&group)?;
    scene.nothing_left()
}

/// The launcher lives: what is let go does not end with its main process either.
fn main_ends(by: By) -> Outcome {
    let group = own_cgroup()?;
    let (mut scene, tree) = detached(by, &group)?;
    let init = match by.is_namespace() {
        true => Some(init_of(scene.pid())?),
        false => None,
    };
    scene.session.expect("detach 0", "detached")?;
    tree.main.signal(libc::SIGKILL);
    ends("the main process", &tree.main)?;
    lives("the daemon", tree.part("daemon"))?;
    tree.descendants_alive()?;
    scene.kill()?;
    lives("the daemon", tree.part("daemon"))?;
    tree.descendants_alive()?;
    tree.kill()?;
    if let Some(init) = &init {
        ends("the init", init)?;
    }
    sweep(&group)?;
    scene.nothing_left()
}

/// The guard hears at once that it is let go, and that its main process has ended.
fn guard_is_late(by: By) -> Outcome {
    let group = own_cgroup()?;
    let (mut scene, tree) = detached(by, &group)?;
    let guard = scene.guard()?;
    stop(&guard)?;
    scene.session.expect("detach 0", "detached")?;
    tree.main.signal(libc::SIGKILL);
    ends("the main process", &tree.main)?;
    guard.signal(libc::SIGCONT);
    lives("the daemon", tree.part("daemon"))?;
    tree.descendants_alive()?;
    tree.kill()?;
    scene.kill()?;
    sweep(&group)?;
    scene.nothing_left()
}

/// The next launcher in this cgroup takes away what is empty.
fn sweep(group: &Group) -> Outcome {
    let mut next = Scene::within(By::Cgroup, group)?;
    next.captive("plain")?;
    await_that("an empty cgroup", || {
        fs::read_dir(&group.0).is_ok_and(|list| list.flatten().all(|entry| !entry.path().is_dir()))
    })?;
    next.kill()
}

/// Not taken away, nor killed, as long as it has processes.
fn directory() -> Outcome {
    let group = own_cgroup()?;
    let (mut scene, tree) = detached(By::Cgroup, &group)?;
    scene.session.expect("detach 0", "detached")?;
    scene.kill()?;
    for round in 0..2 {
        let mut next = Scene::within(By::Cgroup, &group)?;
        // One that is left over goes, so the launcher has looked at all when this one has gone.
        let left = group.0.join(format!("captive-1-{round}"));
        fs::create_dir(&left)?;
        next.captive("plain")?;
        await_that("the look at the cgroups", || !left.exists())?;
        next.kill()?;
    }
    lives("the main process", &tree.main)?;
    tree.all_alive()?;
    let there = directories_of(scene.pid(), &group.0)?;
    ensure!(there.len() == 1, "its directories: {there:?}");
    tree.kill()?;
    sweep(&group)?;
    scene.nothing_left()
}

/// The launcher takes it away itself when it is empty.
fn directory_of_living_launcher() -> Outcome {
    let group = own_cgroup()?;
    let (mut scene, tree) = detached(By::Cgroup, &group)?;
    scene.session.expect("detach 0", "detached")?;
    tree.main.signal(libc::SIGKILL);
    lives("the daemon", tree.part("daemon"))?;
    let there = directories_of(scene.pid(), &group.0)?;
    ensure!(there.len() == 1, "its directories: {there:?}");
    tree.kill()?;
    await_no_directories(scene.pid(), &group.0)?;
    scene.kill()?;
    scene.nothing_left()
}
