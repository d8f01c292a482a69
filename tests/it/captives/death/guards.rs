//! The guard is killed or stopped, alone or with the launcher.

use libtest_mimic::Trial;

use super::scene::{Scene, ends, kill, lives, stop};
use crate::support::{Need, Outcome, Witness, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let named: [(&str, fn() -> Outcome); 10] = [
        ("killed", killed),
        ("killed_with_crowd", || crowd(false)),
        ("stopped_with_crowd", || crowd(true)),
        ("killed_many_times", killed_many_times),
        ("killed_with_launcher", killed_with_launcher),
        ("killed_with_stopped_launcher", killed_with_stopped_launcher),
        ("stopped", stopped),
        ("stopped_while_spawning", stopped_while_spawning),
        ("killed_before_detach", || killed_near_detach(false)),
        ("killed_after_detach", || killed_near_detach(true)),
    ];
    named
        .into_iter()
        .map(|(name, body)| {
            let name = format!("captives::death::guard::{name}");
            test(&name, &[Need::Root], body)
        })
        .collect()
}

/// Plain, of another user, and one that only the guard can end.
fn three(scene: &mut Scene) -> crate::support::Fallible<[Witness; 3]> {
    Ok([
        scene.captive("plain")?,
        scene.captive("user")?,
        scene.captive("self")?,
    ])
}

fn all_end(captives: &[Witness]) -> Outcome {
    for (place, captive) in captives.iter().enumerate() {
        ends(&format!("captive {place}"), captive)?;
    }
    Ok(())
}

/// Another guard is in its place, and has been told of all: a launch goes through the same lock.
fn replaced(scene: &mut Scene, old: &Witness) -> crate::support::Fallible<Witness> {
    let new = scene.guard_after(old)?;
    scene.captive("plain")?;
    Ok(new)
}

fn killed() -> Outcome {
    let mut scene = Scene::new()?;
    let captives = three(&mut scene)?;
    let old = scene.guard()?;
    kill(&old)?;
    let new = replaced(&mut scene, &old)?;
    for captive in &captives {
        ensure!(captive.alive(), "a captive ended with the guard");
    }
    scene.kill()?;
    all_end(&captives)?;
    ends("the new guard", &new)?;
    scene.nothing_left()
}

fn killed_many_times() -> Outcome {
    let mut scene = Scene::new()?;
    let captives = three(&mut scene)?;
    let mut guard = scene.guard()?;
    for _ in 0..20 {
        kill(&guard)?;
        guard = scene.guard_after(&guard)?;
    }
    let last = scene.captive("self")?;
    scene.kill()?;
    all_end(&captives)?;
    ends("the last captive", &last)?;
    ends("the last guard", &guard)?;
    scene.nothing_left()
}

/// In the same instant: the second line. One that has changed its user itself may live on.
fn killed_with_launcher() -> Outcome {
    let mut scene = Scene::new()?;
    let [plain, user, _] = three(&mut scene)?;
    let guard = scene.guard()?;
    guard.signal(libc::SIGKILL);
    scene.kill()?;
    ends("the plain one", &plain)?;
    ends("the other user's", &user)?;
    ends("the guard", &guard)
}

/// As above, where no other guard can come between. The third shows what the guard is for.
fn killed_with_stopped_launcher() -> Outcome {
    let mut scene = Scene::new()?;
    let [plain, user, own] = three(&mut scene)?;
    let guard = scene.guard()?;
    stop(&Witness::of(scene.pid())?)?;
    kill(&guard)?;
    scene.kill()?;
    ends("the plain one", &plain)?;
    ends("the other user's", &user)?;
    lives("one that changed its user", &own)
}

/// The kernel resumes it.
fn stopped() -> Outcome {
    let mut scene = Scene::new()?;
    let captives = three(&mut scene)?;
    let guard = scene.guard()?;
    stop(&guard)?;
    scene.kill()?;
    let ended = all_end(&captives).and_then(|()| ends("the guard", &guard));
    // It has no tag by which it would be found.
    guard.signal(libc::SIGKILL);
    ended?;
    scene.nothing_left()
}

/// Its socket fills, and another one takes its place.
fn stopped_while_spawning() -> Outcome {
    let mut scene = Scene::new()?;
    let captives = three(&mut scene)?;
    let old = scene.guard()?;
    stop(&old)?;
    scene.session.expect("cycle 400", "done")?;
    let last = scene.captive("self")?;
    ends("the stopped guard", &old)?;
    let new = scene.guard_after(&old)?;
    scene.kill()?;
    all_end(&captives)?;
    ends("the last captive", &last)?;
    ends("the new guard", &new)?;
    scene.nothing_left()
}

/// The next guard is not told of a captive that was let go.
fn killed_near_detach(after: bool) -> Outcome {
    let mut scene = Scene::new()?;
    let free = scene.captive("plain detachable=1")?;
    let held = scene.captive("plain detachable=1")?;
    let old = scene.guard()?;
    if after {
        scene.session.expect("detach 0", "detached")?;
    }
    kill(&old)?;
    if !after {
        scene.session.expect("detach 0", "detached")?;
    }
    let new = replaced(&mut scene, &old)?;
    scene.kill()?;
    ends("the one that was not detached", &held)?;
    ends("the new guard", &new)?;
    lives("the detached one", &free)?;
    kill(&free)
}

/// More captives than the socket has room for messages, of those that only a guard can end: they have
/// no parent-death signal. The next guard is told of all.
fn crowd(stopped: bool) -> Outcome {
    const COUNT: usize = 400;
    let mut scene = Scene::new()?;
    scene.captive("plain order=1")?;
    let old = scene.guard()?;
    if stopped {
        stop(&old)?;
    }
    let crowd = format!("crowd {COUNT} plain order=1");
    scene.session.expect(&crowd, "done")?;
    if !stopped {
        kill(&old)?;
    }
    let new = replaced(&mut scene, &old)?;
    ends("the old guard", &old)?;
    // And the launcher, the first and the one that `replaced` launched.
    let alive = scene.tag.processes().len();
    ensure!(alive == COUNT + 3, "{alive} processes");
    scene.kill()?;
    ends("the new guard", &new)?;
    scene.nothing_left()
}
