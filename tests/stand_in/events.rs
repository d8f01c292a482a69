//! One channel for what a launcher waits for; and the same from tokio.

use std::time::Duration;

use captive::Containment;
use captive::exit_with_parent::Signal;
use captive::launcher::{EndedBy, Event, ExitStatus, Stdio, events, tokio as captives};
use libtest_mimic::Trial;

use crate::ensure;
use crate::processes::{await_that, children, is_freebsd, kill};
use crate::roles::{Process, sh, trials};
use crate::scene::{HANG, Outcome};

pub fn tests() -> Vec<Trial> {
    trials(PROCESSES)
}

pub const PROCESSES: &[Process] = &[
    ("events::ends", false, ends),
    ("events::end_before_the_trees", false, end_before_the_trees),
    ("events::signals", false, signals),
    ("events::tokio", false, in_tokio),
];

fn ends() -> Outcome {
    let events = events()?;
    let captive = sh("read line; exit 5").stdin(Stdio::piped()).spawn()?;
    events.watch(&captive)?;
    ensure!(events.receiver().try_recv().is_err(), "it has ended");
    let pid = captive.id();
    let mut captive = captive;
    drop(captive.stdin.take());
    let Event::Exited { pid: found, report } = events.receiver().recv_timeout(HANG)? else {
        return Err("another event".into());
    };
    ensure!(
        found == pid && report.status() == ExitStatus::Exited(5),
        "{report:?}"
    );
    ensure!(captive.try_wait()? == Some(report), "another report");
    // One that has ended is told at once, and one that is dropped too.
    events.watch(&captive)?;
    events.receiver().recv_timeout(HANG)?;
    await_that("the end of all children", || children().is_empty())?;
    events.watch(&captive)?;
    events.receiver().recv_timeout(HANG)?;
    let captive = sh("exec sleep 1000").spawn()?;
    events.watch(&captive)?;
    drop(captive);
    let Event::Exited { report, .. } = events.receiver().recv_timeout(HANG)? else {
        return Err("another event".into());
    };
    ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
    Ok(())
}

/// What is left of a tree does not hold up the word of its main process's end. (It may be gone by then.)
fn end_before_the_trees() -> Outcome {
    let events = events()?;
    let containment = if is_freebsd() {
        Containment::Tree
    } else {
        Containment::TreeBestEffort
    };
    let captive = sh("sleep 1000 & exit 4").containment(containment).spawn()?;
    events.watch(&captive)?;
    let Event::Exited { report, .. } = events.receiver().recv_timeout(HANG)? else {
        return Err("another event".into());
    };
    ensure!(report.status() == ExitStatus::Exited(4), "{report:?}");
    ensure!(captive.wait_tree(HANG)?, "the tree lives on");
    Ok(())
}

fn signals() -> Outcome {
    let mut events = events()?;
    let own = std::process::id() as i32;
    for name in ["TERM", "USR1", "CHLD", "WINCH"] {
        let signal: Signal = name.parse()?;
        events.signal(signal)?;
        for _ in 0..3 {
            kill(own, nix::sys::signal::Signal::try_from(signal.number())?)?;
            let told = events.receiver().recv_timeout(HANG)?;
            ensure!(told == Event::Signal(signal), "{told:?}");
        }
    }
    ensure!(events.signal(Signal::KILL).is_err(), "SIGKILL is told");
    // A captive does not inherit the handler, nor does its supervisor act on it.
    let captive = sh("kill -TERM $$; exec sleep 1000").spawn()?;
    let report = captive.wait_timeout(HANG)?.ok_or("it lives on")?;
    ensure!(report.status().signal() == Some(Signal::TERM), "{report:?}");
    Ok(())
}

fn in_tokio() -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // More waits than threads, and each is told.
        let mut waits = Vec::new();
        for code in 0..20 {
            let captive = captives::spawn(sh(&format!("sleep 0.1; exit {code}"))).await?;
            waits.push(tokio::spawn(async move { captive.wait().await }));
        }
        for (code, wait) in waits.into_iter().enumerate() {
            let limit = tokio::time::timeout(HANG, wait).await;
            let report = limit???;
            ensure!(
                report.status() == ExitStatus::Exited(code as i32),
                "{report:?}"
            );
        }
        let captive = captives::spawn(sh("trap '' TERM; while :; do sleep 0.1; done")).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let report = captive.terminate(Duration::from_millis(100)).await?;
        ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
        if is_freebsd() {
            let mut command = sh("setsid sleep 1000 & exec sleep 1000");
            command.containment(Containment::Tree);
            let captive = captives::spawn(command).await?;
            ensure!(
                !captive.wait_tree(Duration::from_millis(50)).await?,
                "it has ended"
            );
            captive.kill()?;
            ensure!(captive.wait_tree(HANG).await?, "the tree lives on");
        }
        let mut command = sh("exec sleep 1000");
        command.detachable(true);
        let captive = captives::spawn(command).await?;
        let pid = captive.id() as i32;
        captive.detach().await.map_err(|(_, error)| error)?;
        // Nobody has waited for it: the number is its own.
        kill(pid, nix::sys::signal::Signal::SIGKILL)
    })?;
    await_that("the end of all children", || children().is_empty())
}
