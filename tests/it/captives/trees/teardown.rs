//! A main process with `async_teardown`: waitable at once, while the helper that has its memory is still there.

use libtest_mimic::Trial;

use super::scene::{By, Held, KINDS};
use crate::captives::death::scene::{Scene, ends};
use crate::support::process::{await_that, state};
use crate::support::{Fallible, Outcome, Witness, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, by) in KINDS {
        let full = format!("captives::trees::async_teardown::captive_killed::{name}");
        trials.push(test(&full, by.needs(), move || captive_killed(by)));
        let full = format!("captives::trees::async_teardown::launcher_killed::{name}");
        trials.push(test(&full, by.needs(), move || launcher_killed(by)));
    }
    trials
}

/// Stopped first: one that had ended by itself, because the main process has, would be let go by the SIGKILL that comes
/// then (signal_wake_up_state in kernel/signal.c).
fn held(helper: &Witness) -> Fallible<Held> {
    helper.signal(libc::SIGSTOP);
    await_that("the stop", || state(helper.pid) == Some('T'))?;
    Held::new(helper)
}

fn captive_killed(by: By) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.tree(&format!("tree child daemon teardown {}", by.word()))?;
    let helper = tree.part("teardown");
    let held = held(helper)?;
    // Kills and waits.
    scene.session.expect("kill 0", "killed by KILL")?;
    ensure!(helper.alive(), "the helper has ended before the wait");
    scene.session.expect("wait_tree 0 100", "false")?;
    ensure!(helper.alive(), "the helper was not held");
    held.is_killed()?;
    held.release()?;
    scene.session.expect("wait_tree 0 20000", "true")?;
    for (name, witness) in &tree.parts {
        ensure!(!witness.alive(), "{name} lives");
    }
    scene.kill()?;
    scene.nothing_left()
}

fn launcher_killed(by: By) -> Outcome {
    let mut scene = Scene::by(by)?;
    let tree = scene.tree(&format!("tree child daemon teardown {}", by.word()))?;
    let held = held(tree.part("teardown"))?;
    scene.kill()?;
    ends("the main process", &tree.main)?;
    held.is_killed()?;
    held.release()?;
    tree.end()?;
    scene.nothing_left()
}
