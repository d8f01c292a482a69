//! Another signal than SIGKILL for the main process, and an order.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use libtest_mimic::Trial;
use tempfile::NamedTempFile;

use super::scene::{ALL, By, Held, KINDS};
use crate::captives::death::scene::{Scene, ends, lives};
use crate::support::{Fallible, Outcome, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, by) in ALL {
        let name = format!("captives::trees::graceful::main_first::{name}");
        trials.push(test(&name, by.needs(), move || main_first(by)));
    }
    for (name, by) in KINDS {
        let full = format!("captives::trees::graceful::order::{name}");
        trials.push(test(&full, by.needs(), move || order(by)));
        let full = format!("captives::trees::graceful::deaf::{name}");
        trials.push(test(&full, by.needs(), move || deaf(by)));
    }
    trials
}

/// Which a captive may write that is not root.
fn file() -> Fallible<NamedTempFile> {
    let file = NamedTempFile::new()?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o666))?;
    Ok(file)
}

/// The descendants live until the main process has ended.
fn main_first(by: By) -> Outcome {
    let file = file()?;
    let mut scene = Scene::by(by)?;
    let path = file.path().display();
    let what = format!(
        "graceful {path} a 50 child daemon deaf grace=60000 {}",
        by.word()
    );
    let tree = scene.tree(&what)?;
    scene.kill()?;
    tree.end()?;
    let lines = fs::read_to_string(file.path())?;
    ensure!(lines == "a term 3\na end 3\n", "it wrote {lines:?}");
    scene.nothing_left()
}

/// One that must be killed: the rest with it.
fn deaf(by: By) -> Outcome {
    let file = file()?;
    let mut scene = Scene::by(by)?;
    let path = file.path().display();
    let what = format!(
        "graceful {path} a 60000 child daemon grace=100 {}",
        by.word()
    );
    let tree = scene.tree(&what)?;
    scene.kill()?;
    tree.end()?;
    let lines = fs::read_to_string(file.path())?;
    ensure!(lines == "a term 2\n", "it wrote {lines:?}");
    scene.nothing_left()
}

/// As long as one descendant of the first is there, the second has not been told.
fn order(by: By) -> Outcome {
    let file = file()?;
    let mut scene = Scene::by(by)?;
    let path = file.path().display();
    let word = by.word();
    let second = format!("graceful {path} b 0 child order=1 grace=60000 {word}");
    let second = scene.tree(&second)?;
    let first = format!("graceful {path} a 0 child daemon grace=60000 {word}");
    let first = scene.tree(&first)?;
    let held = Held::new(first.part("daemon"))?;
    scene.kill()?;
    ends("the first", &first.main)?;
    held.is_killed()?;
    lives("the second", &second.main)?;
    second.descendants_alive()?;
    let lines = fs::read_to_string(file.path())?;
    ensure!(lines == "a term 2\na end 2\n", "they wrote {lines:?}");
    held.release()?;
    first.end()?;
    second.end()?;
    let lines = fs::read_to_string(file.path())?;
    let all = "a term 2\na end 2\nb term 1\nb end 1\n";
    ensure!(lines == all, "they wrote {lines:?}");
    scene.nothing_left()
}
