//! `exit_with_parent`: the captive ends when its parent process does, and only then.

use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::ensure;
use crate::scene::{Outcome, Scene, root_test, test};

/// Where the kernel's parent-death signal is used.
const DEATH_SIGNAL: bool = cfg!(any(target_os = "linux", target_os = "freebsd"));

pub fn tests() -> Vec<Trial> {
    vec![
        test("exit_with_parent::is_supported", || {
            ensure!(captive::exit_with_parent::is_supported(), "it is not");
            Ok(())
        }),
        test("exit_with_parent::launcher_killed", || {
            ends_with(&["default"])
        }),
        test(
            "exit_with_parent::launcher_killed_captive_expected_it",
            || ends_with(&["expect", "LAUNCHER"]),
        ),
        test("exit_with_parent::launcher_exits", launcher_exits),
        test("exit_with_parent::launchers_thread_ends", thread_ends),
        test("exit_with_parent::another_signal", || {
            ends_with(&["deaf-to-term", "INT"])
        }),
        test("exit_with_parent::kill_after_grace", || {
            ends_with(&["kill-after"])
        }),
        test("exit_with_parent::channel", || told_once("channel")),
        test("exit_with_parent::callback", callback),
        test("exit_with_parent::disarm", disarm),
        test("exit_with_parent::wrong_parent_expected", wrong_parent),
        test("exit_with_parent::orphan", orphan),
        test(
            "exit_with_parent::parent_fd_pipe_with_unread_data",
            parent_fd,
        ),
        test("exit_with_parent::parent_fd_of_the_dead", parent_fd_orphan),
        test("exit_with_parent::parent_fd_survives_daemonising", daemon),
        test("exit_with_parent::parent_death_signal_by_name", signal_only),
        test("exit_with_parent::second_line", second_line),
        test("exit_with_parent::random_kills", random_kills),
        root_test("exit_with_parent::after_a_change_of_user", after_setuid),
    ]
}

/// Starts a captive in a way and waits until it is armed; the report.
fn armed(how: &str, captive: &[&str]) -> Result<(Scene, String), libtest_mimic::Failed> {
    let scene = Scene::role(&[&["launch", how, "captive"], captive].concat())?;
    let report = scene.expect("armed")?;
    Ok((scene, report))
}

fn ends_with(captive: &[&str]) -> Outcome {
    let (mut scene, _) = armed("wait", captive)?;
    scene.ping()?;
    scene.lives_on()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

/// The launcher returns from its main right after the start: before the captive armed, or after.
fn launcher_exits() -> Outcome {
    for _ in 0..20 {
        let scene = Scene::role(&["launch", "exit", "captive", "expect", "LAUNCHER"])?;
        for word in scene.all_gone()? {
            ensure!(
                word.starts_with("armed") || word.starts_with("refused gone"),
                "{word}"
            );
        }
    }
    Ok(())
}

fn thread_ends() -> Outcome {
    let mut scene = Scene::role(&["launch", "thread", "captive", "default"])?;
    let mut words = [scene.word()?, scene.word()?];
    words.sort();
    ensure!(
        words[0].starts_with("armed") && words[1] == "thread ended",
        "{words:?}"
    );
    scene.ping()?;
    scene.lives_on()?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn told_once(captive: &str) -> Outcome {
    let (mut scene, _) = armed("wait", &[captive])?;
    let launcher = scene.id();
    scene.kill()?;
    scene.expect(&format!("told Some({launcher})"))?;
    scene.expect("again false")?;
    scene.all_gone().map(drop)
}

fn callback() -> Outcome {
    let (mut scene, _) = armed("wait", &["callback"])?;
    let launcher = scene.id();
    scene.kill()?;
    scene.expect(&format!("told Some({launcher})"))?;
    // It decides for itself.
    scene.ping()?;
    scene.close()
}

fn disarm() -> Outcome {
    let mut scene = Scene::role(&["launch", "wait", "captive", "disarm"])?;
    scene.expect("alive true")?;
    scene.expect("disarmed")?;
    scene.kill()?;
    scene.lives_on()?;
    scene.ping()?;
    scene.close()
}

fn wrong_parent() -> Outcome {
    // The test's own pid: a living process, and not the captive's parent.
    let this = std::process::id().to_string();
    let scene = Scene::role(&["launch", "wait", "captive", "expect", &this])?;
    scene.expect("refused gone")?;
    scene.expect("captive ended")?;
    scene.close()
}

fn orphan() -> Outcome {
    let mut scene = Scene::role(&["launch", "wait", "captive", "orphan", "LAUNCHER"])?;
    scene.expect("waits")?;
    scene.kill()?;
    scene.expect("refused gone")?;
    scene.all_gone().map(drop)
}

fn parent_fd() -> Outcome {
    let (mut scene, report) = armed("pipe", &["parent-fd"])?;
    ensure!(report.contains("descriptor"), "{report}");
    scene.lives_on()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn parent_fd_orphan() -> Outcome {
    let mut scene = Scene::role(&["launch", "pipe", "captive", "parent-fd-orphan", "LAUNCHER"])?;
    scene.expect("waits")?;
    scene.kill()?;
    // Armed or refused, it ends.
    scene.all_gone().map(drop)
}

fn daemon() -> Outcome {
    let mut scene = Scene::role(&["launch", "pipe", "captive", "daemon"])?;
    scene.expect("rearmed")?;
    scene.lives_on()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn signal_only() -> Outcome {
    if DEATH_SIGNAL {
        return ends_with(&["signal-only"]);
    }
    let scene = Scene::role(&["launch", "wait", "captive", "signal-only"])?;
    scene.expect("refused unsupported")?;
    scene.close()
}

fn second_line() -> Outcome {
    if DEATH_SIGNAL {
        let (mut scene, report) = armed("wait", &["second-line"])?;
        ensure!(report.contains("and parent-death signal"), "{report}");
        scene.kill()?;
        return scene.all_gone().map(drop);
    }
    let scene = Scene::role(&["launch", "wait", "captive", "second-line"])?;
    scene.expect("refused unsupported")?;
    scene.close()
}

/// The launcher is killed at moments from before the captive's first instruction to after its arming.
fn random_kills() -> Outcome {
    for round in 0..40_u32 {
        let mut scene = Scene::role(&["launch", "wait", "captive", "expect", "LAUNCHER"])?;
        // No order is to be had by this, only moments that differ.
        thread::sleep(Duration::from_micros(u64::from(round * 397 % 8000)));
        scene.kill()?;
        scene
            .all_gone()
            .map_err(|failed| format!("round {round}: {}", failed.message().unwrap_or("")))?;
    }
    Ok(())
}

fn after_setuid() -> Outcome {
    let mut scene = Scene::role(&["launch", "wait", "user", "exit-with-parent=on,user=nobody"])?;
    let applied = scene.expect("applied")?;
    ensure!(!applied.starts_with("uid 0"), "{applied}");
    scene.ping()?;
    scene.lives_on()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}
