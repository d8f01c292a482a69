//! What ends with a captive beside itself.

use std::io::Read;
use std::thread;

use captive::Containment;
use captive::launcher::{SpawnError, Stdio};
use libtest_mimic::Trial;
use nix::sys::signal::Signal as Sig;
use nix::unistd::{ForkResult, fork, setsid};

use crate::ensure;
use crate::lives::launched;
use crate::processes::{await_that, children, is_freebsd, kill, parent};
use crate::roles::{Process, idle, scenes, sh, sleep_for_ever, this, trials};
use crate::scene::{HANG, Outcome, SURVIVES};

pub fn tests() -> Vec<Trial> {
    let mut tests = trials(PROCESSES);
    if is_freebsd() {
        tests.extend(trials(OF_REAPERS));
        tests.extend(scenes(SCENES));
    }
    tests
}

const SCENES: &[Process] = &[
    ("trees::launcher_killed", false, launcher_killed),
    ("trees::supervisor_killed", false, supervisor_killed),
];

pub const OF_REAPERS: &[Process] = &[
    ("trees::reaper", false, reaper),
    ("trees::reaper_ends_by_itself", false, ends_by_itself),
    ("trees::orphans_are_reaped", false, orphans_are_reaped),
];

pub const PROCESSES: &[Process] = &[
    ("trees::group", false, group),
    ("trees::refused", false, refused),
];

/// A main process with a daemon of the classical kind: two forks, a session of its own. The daemon reads standard input.
pub fn daemons() -> i32 {
    // SAFETY: this process has one thread.
    if let ForkResult::Child = unsafe { fork() }.expect("a fork") {
        let _ = setsid();
        // SAFETY: as above.
        if let ForkResult::Child = unsafe { fork() }.expect("a fork") {
            return idle();
        }
        return 0;
    }
    sleep_for_ever()
}

fn launcher_killed() -> Outcome {
    let (mut scene, _) = launched("tree")?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

/// The kernel ends the main process. The daemon goes to the next reaper and lives: nobody else holds the tree.
fn supervisor_killed() -> Outcome {
    let (mut scene, daemon) = launched("tree")?;
    // An orphan's parent is the reaper.
    let mut supervisor = None;
    await_that("an adoption", || {
        supervisor = parent(daemon);
        supervisor.is_some_and(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            pid != 1 && name.is_ok() && parent(pid) == Some(scene.id() as i32)
        })
    })?;
    kill(supervisor.ok_or("no supervisor")?, Sig::SIGKILL)?;
    scene.expect("ended ended, status unknown")?;
    thread::sleep(SURVIVES);
    scene.ping()?;
    scene.close()
}

fn reaper() -> Outcome {
    for asked in [Containment::Tree, Containment::Reaper] {
        let mut captive = this(&["daemons"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .containment(asked)
            .spawn()?;
        ensure!(
            captive.containment() == Containment::Reaper,
            "{:?}",
            captive.containment()
        );
        let mut output = captive.stdout.take().ok_or("no pipe")?;
        output.read_exact(&mut [0; 4])?;
        ensure!(
            !captive.wait_tree(std::time::Duration::ZERO)?,
            "it has ended"
        );
        captive.kill()?;
        captive.wait()?;
        ensure!(captive.wait_tree(HANG)?, "the tree lives on");
        output.read_to_end(&mut Vec::new())?;
        drop(captive);
        await_that("the end of all children", || children().is_empty())?;
    }
    Ok(())
}

/// However the main process ends, the rest does.
fn ends_by_itself() -> Outcome {
    let mut captive = sh("setsid sh -c 'echo here; exec sleep 1000' & read line")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .containment(Containment::Tree)
        .spawn()?;
    let mut output = captive.stdout.take().ok_or("no pipe")?;
    output.read_exact(&mut [0; 5])?;
    drop(captive.stdin.take());
    let report = captive.wait_timeout(HANG)?.ok_or("it lives on")?;
    ensure!(report.status().code().is_some(), "{report:?}");
    ensure!(captive.wait_tree(HANG)?, "the tree lives on");
    output.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The group ends with the main process; who has left it does not.
fn group() -> Outcome {
    let mut captive = sh("sh -c 'echo member; exec sleep 1000' & read line")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .containment(Containment::TreeBestEffort)
        .spawn()?;
    ensure!(
        captive.containment() == Containment::TreeBestEffort,
        "{:?}",
        captive.containment()
    );
    let pid = nix::unistd::Pid::from_raw(captive.id() as i32);
    ensure!(nix::unistd::getpgid(Some(pid))? == pid, "it leads no group");
    let mut output = captive.stdout.take().ok_or("no pipe")?;
    output.read_exact(&mut [0; 7])?;
    drop(captive.stdin.take());
    captive.wait()?;
    ensure!(captive.wait_tree(HANG)?, "the group lives on");
    output.read_to_end(&mut Vec::new())?;
    let mut captive = this(&["daemons"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .containment(Containment::TreeBestEffort)
        .spawn()?;
    let mut output = captive.stdout.take().ok_or("no pipe")?;
    let mut input = captive.stdin.take().ok_or("no pipe")?;
    output.read_exact(&mut [0; 4])?;
    captive.kill()?;
    captive.wait()?;
    thread::sleep(SURVIVES);
    std::io::Write::write_all(&mut input, b"ping\n")?;
    let mut words = std::io::BufRead::lines(std::io::BufReader::new(output));
    let word = words.find(|word| word.as_ref().is_ok_and(|word| word == "pong"));
    ensure!(word.is_some(), "the daemon has ended");
    Ok(())
}

/// The supervisor waits for those that it has adopted, while the main process runs.
fn orphans_are_reaped() -> Outcome {
    let captive =
        sh("i=0; while [ $i -lt 20 ]; do (sleep 0.01 &); i=$((i+1)); done; exec sleep 1000")
            .containment(Containment::Tree)
            .spawn()?;
    let pid = captive.id() as i32;
    let supervisor = parent(pid).ok_or("no supervisor")?;
    let all = || {
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| parent(*pid) == Some(supervisor)).count()
    };
    await_that("the main process alone", || {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name == "sleep\n" && all() == 1
    })?;
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    Ok(())
}

fn refused() -> Outcome {
    let mut asked = vec![
        Containment::PidNamespace,
        Containment::UserNamespace,
        Containment::Cgroup,
        Containment::PidfdAutokill,
    ];
    if !is_freebsd() {
        asked.extend([Containment::Tree, Containment::Reaper]);
    }
    for containment in asked {
        match sh("exit 0").containment(containment).spawn() {
            Err(SpawnError::Containment(error)) => {
                ensure!(error.asked == containment, "{error:?}");
                ensure!(error.missing.len() == 1, "{error:?}");
                ensure!(
                    error.available.contains(&Containment::TreeBestEffort),
                    "{error:?}"
                );
            }
            other => return Err(format!("{containment}: {other:?}").into()),
        }
    }
    let spawned = sh("exit 0")
        .containment(Containment::TreeBestEffort)
        .process_group(1)
        .spawn();
    ensure!(
        matches!(spawned, Err(SpawnError::Invalid { .. })),
        "{spawned:?}"
    );
    ensure!(children().is_empty(), "{:?}", children());
    Ok(())
}
