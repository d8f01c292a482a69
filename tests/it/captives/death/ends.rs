//! Each way in which a launcher ends, or goes on as something else.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use libtest_mimic::Trial;

use super::scene::{Scene, ends, guard_of, kill, lives};
use crate::support::cgroups::Group;
use crate::support::process::await_that;
use crate::support::{Need, Outcome, Witness, test};

/// Captives that are each hard to end in another way.
const KINDS: [(&str, &str); 8] = [
    ("plain", "plain"),
    ("user", "user"),
    ("self", "self"),
    ("deaf", "deaf"),
    ("stopped", "stopped plain"),
    ("stopped_self", "stopped self"),
    ("thread", "thread plain"),
    ("thread_self", "thread self"),
];

/// By what the launcher ends, and the signal or status that shows it.
const WAYS: [(&str, Result<i32, i32>); 8] = [
    ("killed", Err(libc::SIGKILL)),
    ("kill", Err(libc::SIGKILL)),
    ("exit", Ok(0)),
    ("_exit", Ok(0)),
    ("return", Ok(0)),
    ("abort", Err(libc::SIGABRT)),
    ("segv", Err(libc::SIGSEGV)),
    ("panic", Ok(101)),
];

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (way, status) in WAYS {
        for (name, kind) in KINDS {
            let name = format!("captives::death::{way}::{name}");
            let body = move || launcher_ends(way, status, kind);
            trials.push(test(&name, &[Need::Root], body));
        }
    }
    for (name, inside) in [("outside", false), ("inside", true)] {
        let name = format!("captives::death::oom::{name}");
        const NEEDS: &[Need] = &[Need::Root, Need::Controller("memory")];
        trials.push(test(&name, NEEDS, move || oom(inside)));
    }
    let named: [(&str, fn() -> Outcome); 13] = [
        ("all_kinds_at_once", all_kinds_at_once),
        ("without_captive", without_captive),
        ("thread_ends", thread_ends),
        ("detached", detached),
        ("not_detached", not_detached),
        ("execs", || execs(false)),
        ("execs_with_forked_child", || execs(true)),
        ("drops_privileges", drops_privileges),
        ("daemonises", daemonises),
        ("forked_child_ends", forked_child_ends),
        ("forked_child_is_killed", forked_child_is_killed),
        ("forked_child_has_its_own", forked_child_has_its_own),
        ("forked_child_outlives_it", forked_child_outlives_it),
    ];
    for (name, body) in named {
        let name = format!("captives::death::{name}");
        trials.push(test(&name, &[Need::Root], body));
    }
    trials
}

/// Has the launcher end, and looks at its status.
pub fn end(scene: &mut Scene, way: &str, status: Result<i32, i32>) -> Outcome {
    let launcher = Witness::of(scene.pid())?;
    if way == "killed" {
        launcher.signal(libc::SIGKILL);
    } else {
        scene.session.tell(&format!("end {way}"))?;
    }
    ends("the launcher", &launcher)?;
    let ended = scene.launcher.0.wait()?;
    let is_so = match status {
        Ok(code) => ended.code() == Some(code),
        Err(signal) => ended.signal() == Some(signal),
    };
    ensure!(is_so, "the launcher ended with {ended}");
    Ok(())
}

fn launcher_ends(way: &str, status: Result<i32, i32>, kind: &str) -> Outcome {
    let mut scene = Scene::new()?;
    let captive = scene.captive(kind)?;
    let guard = scene.guard()?;
    end(&mut scene, way, status)?;
    ends("the captive", &captive)?;
    ends("the guard", &guard)?;
    scene.nothing_left()
}

fn all_kinds_at_once() -> Outcome {
    let mut scene = Scene::new()?;
    let mut captives = Vec::new();
    for _ in 0..5 {
        for (name, kind) in KINDS {
            captives.push((name, scene.captive(kind)?));
        }
    }
    let guard = scene.guard()?;
    scene.kill()?;
    for (name, captive) in &captives {
        ends(name, captive)?;
    }
    ends("the guard", &guard)?;
    scene.nothing_left()
}

/// What a launcher starts by other means is nobody's: the tests can tell.
fn without_captive() -> Outcome {
    let mut scene = Scene::new()?;
    let captive = scene.captive("plain")?;
    let other = scene.make("std")?;
    scene.kill()?;
    ends("the captive", &captive)?;
    lives("the other process", &other)?;
    kill(&other)
}

/// The parent-death signal is a thread's; that of the caller is of no account.
fn thread_ends() -> Outcome {
    let mut scene = Scene::new()?;
    let captives = [
        scene.captive("thread plain")?,
        scene.captive("thread user")?,
        scene.captive("thread plain grace=100")?,
    ];
    for captive in &captives {
        lives("the captive", captive)?;
    }
    scene.session.expect("try 0", "runs")?;
    scene.session.expect("kill 0", "killed by KILL")?;
    ends("the killed one", &captives[0])?;
    scene.session.expect("try 1", "runs")?;
    scene.session.expect("drop 1", "dropped")?;
    ends("the dropped one", &captives[1])?;
    ensure!(captives[2].alive(), "the third ended with another");
    scene.kill()?;
    ends("the third", &captives[2])
}

fn detached() -> Outcome {
    let mut scene = Scene::new()?;
    let free = scene.captive("plain detachable=1")?;
    let own = scene.captive("self detachable=1")?;
    let held = scene.captive("plain")?;
    let guard = scene.guard()?;
    scene.session.expect("detach 0", "detached")?;
    scene.session.expect("detach 1", "detached")?;
    scene.kill()?;
    ends("the other captive", &held)?;
    ends("the guard", &guard)?;
    lives("the detached one", &free)?;
    ensure!(own.alive(), "the detached one of another user has ended");
    kill(&free)?;
    kill(&own)
}

fn not_detached() -> Outcome {
    for kind in ["plain", "user", "self", "stopped plain"] {
        let mut scene = Scene::new()?;
        let captive = scene.captive(&format!("{kind} detachable=1"))?;
        scene.kill()?;
        ends(kind, &captive)?;
        scene.nothing_left()?;
    }
    Ok(())
}

/// `twin`: with a forked child, so that no descriptor that the launcher's exec closes has its end of
/// file.
fn execs(twin: bool) -> Outcome {
    let mut scene = Scene::new()?;
    let launcher = Witness::of(scene.pid())?;
    let captives = [
        scene.captive("plain")?,
        scene.captive("user")?,
        scene.captive("self")?,
    ];
    let guard = scene.guard()?;
    // Has a copy of the guard's socket, as long as it lives.
    let twin = match twin {
        true => Some(scene.make("twin")?),
        false => None,
    };
    scene.session.tell("exec")?;
    let [plain, user, own] = &captives;
    ends("the plain one", plain)?;
    ends("the other user's", user)?;
    if let Some(twin) = &twin {
        ensure!(twin.alive(), "the forked child ended too");
        twin.signal(libc::SIGKILL);
    }
    ends("one that changed its user", own)?;
    ends("the guard", &guard)?;
    lives("the launcher", &launcher)?;
    let comm = fs::read_to_string(format!("/proc/{}/comm", launcher.pid))?;
    ensure!(comm == "sleep\n", "the launcher is {comm:?}");
    Ok(())
}

/// Its guard keeps the rights that it had, so the captives of that time are within reach. All threads
/// change their user, those of the crate too.
fn drops_privileges() -> Outcome {
    let mut scene = Scene::new()?;
    let captives = [
        scene.captive("plain")?,
        scene.captive("user")?,
        scene.captive("deaf")?,
    ];
    let guard = scene.guard()?;
    scene.session.expect("become 65534", "become")?;
    let own = scene.make("spawn plain")?;
    scene.kill()?;
    for captive in &captives {
        ends("a captive", captive)?;
    }
    ends("the new user's captive", &own)?;
    ends("the guard", &guard)?;
    scene.nothing_left()
}

fn daemonises() -> Outcome {
    let mut scene = Scene::new()?;
    let captives = [
        scene.captive("plain")?,
        scene.captive("user")?,
        scene.captive("self")?,
    ];
    let guard = scene.guard()?;
    // It has copies of all descriptors, so nothing the guard holds has an end of file.
    let daemon = scene.make("daemonise")?;
    ensure!(scene.launcher.0.wait()?.success(), "it exited otherwise");
    for captive in &captives {
        ends("a captive", captive)?;
    }
    ends("the guard", &guard)?;
    lives("the daemon", &daemon)?;
    let own = scene.captive("self")?;
    kill(&daemon)?;
    ends("the daemon's captive", &own)?;
    scene.nothing_left()
}

fn forked_child_ends() -> Outcome {
    let mut scene = Scene::new()?;
    let captives = [
        scene.captive("plain")?,
        scene.captive("user")?,
        scene.captive("self")?,
    ];
    let guard = scene.guard()?;
    let child = scene.make("fork")?;
    let forked = format!("forked from {}", scene.pid());
    for place in 0..captives.len() {
        scene.session.expect(&format!("try {place}"), &forked)?;
        scene.session.expect(&format!("kill {place}"), &forked)?;
        scene.session.expect(&format!("drop {place}"), "dropped")?;
    }
    scene.session.expect("leave", "left 0")?;
    ends("the child", &child)?;
    lives("a captive", &captives[0])?;
    for captive in &captives {
        ensure!(captive.alive(), "a captive ended with the child");
    }
    ensure!(guard.alive(), "the guard ended with the child");
    scene.session.expect("try 0", "runs")?;
    scene.session.expect("kill 0", "killed by KILL")?;
    scene.kill()?;
    for captive in &captives {
        ends("a captive", captive)?;
    }
    scene.nothing_left()
}

fn forked_child_is_killed() -> Outcome {
    let mut scene = Scene::new()?;
    let captive = scene.captive("self")?;
    let child = scene.make("fork")?;
    let own = [scene.captive("plain")?, scene.captive("self")?];
    let guard = guard_of(child.pid, None)?;
    kill(&child)?;
    let answer = scene.session.answer()?;
    ensure!(answer == "left 9", "{answer}");
    for captive in &own {
        ends("the child's captive", captive)?;
    }
    ends("the child's guard", &guard)?;
    lives("the launcher's captive", &captive)?;
    scene.session.expect("try 0", "runs")?;
    scene.kill()?;
    ends("the launcher's captive", &captive)
}

fn forked_child_has_its_own() -> Outcome {
    let mut scene = Scene::new()?;
    let captive = scene.captive("plain")?;
    let guard = scene.guard()?;
    let child = scene.make("fork")?;
    let own = [
        scene.captive("plain")?,
        scene.captive("user")?,
        scene.captive("self")?,
        scene.captive("plain")?,
    ];
    let second = guard_of(child.pid, None)?;
    ensure!(second.pid != guard.pid, "one guard for both");
    scene.session.expect("try 1", "runs")?;
    scene.session.expect("kill 1", "killed by KILL")?;
    scene.session.expect("drop 4", "dropped")?;
    ends("the dropped one", &own[3])?;
    ensure!(own[1].alive() && own[2].alive(), "others ended with it");
    scene.session.expect("leave", "left 0")?;
    ends("the child", &child)?;
    for captive in &own {
        ends("the child's captive", captive)?;
    }
    ends("the child's guard", &second)?;
    ensure!(captive.alive(), "the launcher's captive ended too");
    let next = scene.captive("plain")?;
    scene.kill()?;
    ends("the launcher's captive", &captive)?;
    ends("the launcher's next captive", &next)?;
    scene.nothing_left()
}

/// The child holds copies of the launcher's descriptors, and its own captives.
fn forked_child_outlives_it() -> Outcome {
    let mut scene = Scene::new()?;
    let captive = scene.captive("self")?;
    let guard = scene.guard()?;
    let child = scene.make("fork")?;
    let own = scene.captive("self")?;
    scene.kill()?;
    ends("the launcher's captive", &captive)?;
    ends("the launcher's guard", &guard)?;
    lives("the child's captive", &own)?;
    scene.session.expect("try 1", "runs")?;
    kill(&child)?;
    ends("the child's captive", &own)?;
    scene.nothing_left()
}

/// More than launcher, guard and captives have, less than the launcher then takes.
pub const MEMORY: u32 = 64 << 20;

/// The launcher alone in the cgroup, or with its guard and captives, which are smaller.
fn oom(inside: bool) -> Outcome {
    let group = Group::with_memory(MEMORY)?;
    let mut scene = Scene::new()?;
    let enter = format!("enter {}", group.0.display());
    if inside {
        scene.session.expect(&enter, "entered")?;
    }
    let captives = [
        scene.captive("plain")?,
        scene.captive("user")?,
        scene.captive("self")?,
    ];
    let guard = scene.guard()?;
    if !inside {
        scene.session.expect(&enter, "entered")?;
    }
    let pids = group.pids()?;
    let is_in = |pid: i32| pids.contains(&pid);
    ensure!(is_in(scene.pid()), "the launcher is not in the cgroup");
    ensure!(is_in(guard.pid) == inside, "the guard's cgroup");
    ensure!(group.oom_kills()? == 0, "somebody was killed before");
    end(&mut scene, "oom", Err(libc::SIGKILL))?;
    await_that("the count of the kill", || {
        group.oom_kills().is_ok_and(|kills| kills > 0)
    })?;
    for captive in &captives {
        ends("a captive", captive)?;
    }
    ends("the guard", &guard)?;
    scene.nothing_left()
}
