//! Another signal than SIGKILL, a grace, an order.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::scene::{Scene, ends, lives};
use crate::support::{Outcome, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let named: [(&str, fn() -> Outcome); 8] = [
        ("handled", || handled("")),
        ("handled_after_stop", || handled("stopped ")),
        ("handled_with_exit", handled_with_exit),
        ("deaf", || killed_after_grace("deaf")),
        ("deaf_and_stopped", || killed_after_grace("stopped deaf")),
        ("not_before_launcher_exit", not_before),
        ("order", order),
        ("order_after_kill", order_after_kill),
    ];
    named
        .into_iter()
        .map(|(name, body)| test(&format!("captives::death::signal::{name}"), &[], body))
        .collect()
}

fn handled(how: &str) -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let mut scene = Scene::new()?;
    let path = file.path().display();
    let captive = scene.captive(&format!("{how}line {path} a 20 grace=60000"))?;
    let guard = scene.guard()?;
    scene.kill()?;
    ends("the captive", &captive)?;
    ends("the guard", &guard)?;
    let lines = fs::read_to_string(file.path())?;
    ensure!(lines == "a term\na end\n", "it wrote {lines:?}");
    scene.nothing_left()
}

fn handled_with_exit() -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let mut scene = Scene::new()?;
    let path = file.path().display();
    let captive = scene.captive(&format!("line {path} a 20 grace=60000"))?;
    scene.session.tell("end exit")?;
    ends("the captive", &captive)?;
    let lines = fs::read_to_string(file.path())?;
    ensure!(lines == "a term\na end\n", "it wrote {lines:?}");
    scene.nothing_left()
}

fn killed_after_grace(kind: &str) -> Outcome {
    const GRACE: Duration = Duration::from_millis(300);
    let mut scene = Scene::new()?;
    let captive = scene.captive(&format!("{kind} grace={}", GRACE.as_millis()))?;
    let guard = scene.guard()?;
    let began = Instant::now();
    scene.kill()?;
    ends("the captive", &captive)?;
    let took = began.elapsed();
    // The guard's clock has milliseconds.
    ensure!(
        took + Duration::from_millis(2) > GRACE,
        "it was killed after {took:?}"
    );
    ends("the guard", &guard)?;
    scene.nothing_left()
}

/// Nothing is sent while the launcher lives.
fn not_before() -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let mut scene = Scene::new()?;
    let path = file.path().display();
    let captive = scene.captive(&format!("line {path} a 0 grace=100"))?;
    lives("the captive", &captive)?;
    let lines = fs::read_to_string(file.path())?;
    ensure!(lines.is_empty(), "it wrote {lines:?}");
    scene.kill()?;
    ends("the captive", &captive)
}

/// Launched in another order than that in which they end.
fn order() -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let mut scene = Scene::new()?;
    let path = file.path().display();
    let mut captives = Vec::new();
    for (name, order) in [("c", 2), ("b1", 1), ("a1", 0), ("b2", 1), ("a2", 0)] {
        let kind = format!("line {path} {name} 100 grace=60000 order={order}");
        captives.push(scene.captive(&kind)?);
    }
    let guard = scene.guard()?;
    scene.kill()?;
    for captive in &captives {
        ends("a captive", captive)?;
    }
    ends("the guard", &guard)?;
    let text = fs::read_to_string(file.path())?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.len() == 10, "they wrote {lines:?}");
    let place = |line: &str| lines.iter().position(|other| *other == line);
    for (first, then) in [
        ("a1 end", "b1 term"),
        ("a2 end", "b1 term"),
        ("a1 end", "b2 term"),
        ("a2 end", "b2 term"),
        ("b1 end", "c term"),
        ("b2 end", "c term"),
    ] {
        ensure!(place(first) < place(then), "{then} too early: {lines:?}");
    }
    scene.nothing_left()
}

/// One that must be killed holds up those after it for its grace.
fn order_after_kill() -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let mut scene = Scene::new()?;
    let path = file.path().display();
    let second = scene.captive(&format!("line {path} b 0 grace=60000 order=7"))?;
    let last = scene.captive("plain order=4000000000")?;
    let first = scene.captive("deaf grace=200")?;
    scene.kill()?;
    ends("the second", &second)?;
    ensure!(!first.alive(), "the first outlives the second");
    ends("the last", &last)?;
    let lines = fs::read_to_string(file.path())?;
    ensure!(lines == "b term\nb end\n", "it wrote {lines:?}");
    scene.nothing_left()
}
