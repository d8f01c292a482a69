//! The guard is killed or stopped, alone or with the launcher.

use libtest_mimic::Trial;

use super::scene::{ALL, By, Tree, await_no_directories, directories_of, own_cgroup};
use crate::captives::death::scene::{Scene, ends, init_of, kill, lives, stop};
use crate::support::cgroups::{Group, version_2};
use crate::support::{Fallible, Outcome, Witness, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: String, by: By, body: Box<dyn FnOnce() -> Outcome + Send>| {
        let name = format!("captives::trees::guard::{name}");
        trials.push(test(&name, by.needs(), body));
    };
    for (name, by) in ALL {
        add(format!("killed::{name}"), by, Box::new(move || killed(by)));
        add(
            format!("stopped::{name}"),
            by,
            Box::new(move || stopped(by)),
        );
        add(
            format!("killed_then_captive::{name}"),
            by,
            Box::new(move || killed_then_captive(by)),
        );
        if by.is_namespace() {
            for (how, main) in [("", ""), ("_changed_user", " nobody")] {
                // There is no other user there.
                if main.is_empty() || by.mechanism() != "UserNamespace" {
                    let name = format!("killed_with_launcher{how}::{name}");
                    add(name, by, Box::new(move || with_launcher(by, main)));
                }
            }
        }
    }
    add(
        "killed_with_launcher::cgroup".into(),
        By::Cgroup,
        Box::new(with_launcher_in_cgroup),
    );
    add(
        "killed_with_launcher_changed_user::cgroup".into(),
        By::Cgroup,
        Box::new(with_launcher_in_cgroup_changed_user),
    );
    add(
        "init_killed".into(),
        By::PidNamespace,
        Box::new(init_killed),
    );
    trials
}

/// Another guard is in its place, and has been told of all: a launch goes through the same lock.
fn replaced(scene: &mut Scene, old: &Witness) -> Fallible<Witness> {
    let new = scene.guard_after(old)?;
    scene.make("spawn plain")?;
    Ok(new)
}

fn killed(by: By) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.whole_tree(by)?;
    let old = scene.guard()?;
    kill(&old)?;
    replaced(&mut scene, &old)?;
    tree.all_alive()?;
    scene.kill()?;
    tree.end()?;
    await_no_directories(scene.pid(), &version_2().ok_or("no cgroup")?)?;
    scene.nothing_left()
}

/// The new guard knows what is to end with the main process.
fn killed_then_captive(by: By) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.whole_tree(by)?;
    let old = scene.guard()?;
    kill(&old)?;
    replaced(&mut scene, &old)?;
    tree.main.signal(libc::SIGKILL);
    tree.end()?;
    scene.kill()?;
    scene.nothing_left()
}

/// The kernel resumes it when the launcher ends.
fn stopped(by: By) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.whole_tree(by)?;
    let guard = scene.guard()?;
    stop(&guard)?;
    scene.kill()?;
    let ended = tree.end();
    // It has no tag by which it would be found.
    if ended.is_err() {
        guard.signal(libc::SIGKILL);
    }
    ended?;
    scene.nothing_left()
}

/// In the same instant: where no other guard can come between.
fn both_killed(scene: &mut Scene) -> Outcome {
    let guard = scene.guard()?;
    stop(&Witness::of(scene.pid())?)?;
    kill(&guard)?;
    scene.kill()
}

/// `main`: what the main process does itself.
fn with_launcher(by: By, main: &str) -> Outcome {
    let mut scene = Scene::by(by)?;
    let what = format!("tree {}{main} {}", by.parts(), by.word());
    let tree = scene.tree(&what)?;
    let init = init_of(scene.pid())?;
    both_killed(&mut scene)?;
    tree.end()?;
    // It waits for whoever adopts the main process to reap it: slow on some systems.
    if by == By::PidNamespace {
        ends("the init", &init)?;
    }
    scene.nothing_left()
}

/// A launcher in the same cgroup, which needs no containment itself, ends what another has left.
fn next_launcher(group: &Group) -> Fallible<Scene> {
    let mut next = Scene::within(By::Cgroup, group)?;
    next.captive("plain")?;
    Ok(next)
}

fn with_launcher_in_cgroup() -> Outcome {
    let group = own_cgroup()?;
    let mut scene = Scene::within(By::Cgroup, &group)?;
    let tree = scene.whole_tree(By::Cgroup)?;
    both_killed(&mut scene)?;
    ends("the main process", &tree.main)?;
    what_is_left(&scene, &group, &tree)
}

fn with_launcher_in_cgroup_changed_user() -> Outcome {
    let group = own_cgroup()?;
    let mut scene = Scene::within(By::Cgroup, &group)?;
    let tree = scene.tree("tree child daemon nobody tree=Cgroup")?;
    both_killed(&mut scene)?;
    lives("the main process", &tree.main)?;
    what_is_left(&scene, &group, &tree)?;
    ends("the main process", &tree.main)
}

/// The limit is real, and the next launcher makes it good.
fn what_is_left(scene: &Scene, group: &Group, tree: &Tree) -> Outcome {
    lives("the daemon", tree.part("daemon"))?;
    tree.descendants_alive()?;
    let left = directories_of(scene.pid(), &group.0)?;
    ensure!(left.len() == 1, "the cgroup's directories: {left:?}");
    let mut next = next_launcher(group)?;
    tree.descendants_end()?;
    await_no_directories(scene.pid(), &group.0)?;
    next.kill()?;
    scene.nothing_left()
}

/// A tree whose init somebody kills has ended, its main process with it.
fn init_killed() -> Outcome {
    let mut scene = Scene::new()?;
    let tree = scene.whole_tree(By::PidNamespace)?;
    // It waits for the launcher to reap the main process: not for its end.
    init_of(scene.pid())?.signal(libc::SIGKILL);
    tree.end()?;
    scene.session.expect("wait 0", "killed by KILL")?;
    scene.session.expect("drop 0", "dropped")?;
    scene.kill()?;
    scene.nothing_left()
}
