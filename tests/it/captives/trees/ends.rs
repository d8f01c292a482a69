//! Each way in which a captive ends, or its launcher.

use std::path::PathBuf;

use libtest_mimic::Trial;

use super::scene::{ALL, By, KINDS, await_no_directories};
use crate::captives::death::ends::{MEMORY, end};
use crate::captives::death::scene::{Scene, ends, lives};
use crate::support::cgroups::{Group, version_2};
use crate::support::{Need, Outcome, test};

/// By what the launcher ends, and what shows it.
const WAYS: [(&str, Result<i32, i32>); 5] = [
    ("killed", Err(libc::SIGKILL)),
    ("panic", Ok(101)),
    ("exit", Ok(0)),
    ("return", Ok(0)),
    ("abort", Err(libc::SIGABRT)),
];

const NEEDS: &[Need] = &[Need::Root, Need::Cgroups, Need::UserNamespaces];

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: String, needs, body: Box<dyn FnOnce() -> Outcome + Send>| {
        trials.push(test(&format!("captives::trees::{name}"), needs, body));
    };
    for (name, by) in ALL {
        for (way, status) in WAYS {
            let body = move || launcher_ends(by, way, status);
            add(
                format!("launcher::{way}::{name}"),
                by.needs(),
                Box::new(body),
            );
        }
        let ways: [(&str, fn(By) -> Outcome); 4] = [
            ("killed", killed),
            ("killed_from_outside", killed_from_outside),
            ("ends_by_itself", ends_by_itself),
            ("dropped", dropped),
        ];
        for (way, body) in ways {
            let name = format!("captive::{way}::{name}");
            add(name, by.needs(), Box::new(move || body(by)));
        }
    }
    for (name, by) in KINDS {
        let body = move || other_user(by);
        add(
            format!("launcher::drops_privileges::{name}"),
            by.needs(),
            Box::new(body),
        );
    }
    let named: [(&str, fn() -> Outcome); 5] = [
        ("only_the_process", only_the_process),
        ("leaves_its_cgroup::tree", || leaves(By::Tree)),
        ("leaves_its_cgroup::pid_namespace", || {
            leaves(By::PidNamespace)
        }),
        ("leaves_its_cgroup::both", || leaves(By::Both)),
        ("leaves_its_cgroup::cgroup_is_escaped", escapes),
    ];
    for (name, body) in named {
        add(name.into(), NEEDS, Box::new(body));
    }
    add(
        "marks_are_cleared".into(),
        By::Marks.needs(),
        Box::new(marks_are_cleared),
    );
    for (name, by) in KINDS {
        const NEEDS: &[Need] = &[
            Need::Root,
            Need::Controller("memory"),
            Need::Cgroups,
            Need::UserNamespaces,
        ];
        let name = format!("captives::trees::launcher::oom::{name}");
        trials.push(test(&name, NEEDS, move || oom(by)));
    }
    trials
}

/// The launcher's own cgroup, where its captives' are.
fn base() -> PathBuf {
    version_2().expect("a cgroup of version 2")
}

fn launcher_ends(by: By, way: &str, status: Result<i32, i32>) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.whole_tree(by)?;
    let guard = scene.guard()?;
    end(&mut scene, way, status)?;
    tree.end()?;
    // It waits for the namespace's init, and that for whoever adopts the main process to reap it: slow on some systems.
    if (way == "killed" && by == By::PidNamespace) || !by.is_namespace() {
        ends("the guard", &guard)?;
    }
    await_no_directories(scene.pid(), &base())?;
    scene.nothing_left()
}

/// The launcher lives on: nothing of the tree does, and nothing of it is left in the launcher.
fn captive_ends(by: By, end: impl FnOnce(&mut Scene, &super::scene::Tree) -> Outcome) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.whole_tree(by)?;
    let other = scene.tree(&format!("tree child daemon {}", by.word()))?;
    end(&mut scene, &tree)?;
    tree.end()?;
    other.all_alive()?;
    scene.session.expect("kill 1", "killed by KILL")?;
    scene.session.expect("wait_tree 1 20000", "true")?;
    other.end()?;
    await_no_directories(scene.pid(), &base())?;
    scene.kill()?;
    scene.nothing_left()
}

fn killed(by: By) -> Outcome {
    captive_ends(by, |scene, tree| {
        scene.session.expect("kill 0", "killed by KILL")?;
        // But for the sibling, which is a child of the launcher's that nobody waits for: a namespace's init waits for
        // that too.
        tree.end()
    })
}

/// Nobody waits for it: the guard has seen its end.
fn killed_from_outside(by: By) -> Outcome {
    captive_ends(by, |_, tree| {
        tree.main.signal(libc::SIGKILL);
        tree.end()
    })
}

fn ends_by_itself(by: By) -> Outcome {
    captive_ends(by, |scene, tree| {
        tree.main.signal(libc::SIGTERM);
        tree.end()?;
        scene.session.expect("wait 0", "killed by TERM")
    })
}

fn dropped(by: By) -> Outcome {
    captive_ends(by, |scene, _| scene.session.expect("drop 0", "dropped"))
}

/// The launcher changes its user between the launch and its end.
fn other_user(by: By) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.whole_tree(by)?;
    scene.session.expect("become 65534", "become")?;
    scene.kill()?;
    tree.end()?;
    await_no_directories(scene.pid(), &base())?;
    scene.nothing_left()
}

/// Without containment a descendant lives on: the tests can tell.
fn only_the_process() -> Outcome {
    let mut scene = Scene::new()?;
    let tree = scene.tree("tree child daemon")?;
    scene.session.expect("containment 0", "Process")?;
    scene.kill()?;
    ends("the main process", &tree.main)?;
    lives("the daemon", tree.part("daemon"))?;
    tree.kill()
}

fn leaves(by: By) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.tree(&format!("tree leaver {}", by.word()))?;
    scene.kill()?;
    tree.end()?;
    scene.nothing_left()
}

/// What `Cgroup` by name does not hold, and `Tree` does not use it for.
fn escapes() -> Outcome {
    // Where there is something to leave.
    let group = super::scene::own_cgroup()?;
    let mut scene = Scene::within(By::Cgroup, &group)?;
    let tree = scene.tree("tree child leaver tree=Cgroup")?;
    scene.kill()?;
    ends("the main process", &tree.main)?;
    ends("the one that stayed", tree.part("child"))?;
    lives("the one that left", tree.part("leaver"))?;
    tree.kill()?;
    scene.nothing_left()
}

/// What `TreeBestEffort` does not hold.
fn marks_are_cleared() -> Outcome {
    let mut scene = Scene::new()?;
    let tree = scene.tree("tree child bare tree=TreeBestEffort")?;
    scene.kill()?;
    ends("the main process", &tree.main)?;
    ends("the one with its mark", tree.part("child"))?;
    lives("the one without", tree.part("bare"))?;
    tree.kill()?;
    scene.nothing_left()
}

fn oom(by: By) -> Outcome {
    let group = Group::with_memory(MEMORY)?;
    let mut scene = Scene::new()?;
    let enter = format!("enter {}", group.0.display());
    scene.session.expect(&enter, "entered")?;
    if by.is_of_nobody() {
        scene.session.expect("become 65534", "become")?;
    }
    let tree = scene.whole_tree(by)?;
    end(&mut scene, "oom", Err(libc::SIGKILL))?;
    tree.end()?;
    let base = if group.is_of_version_2() {
        group.0.clone()
    } else {
        base()
    };
    await_no_directories(scene.pid(), &base)?;
    scene.nothing_left()
}
