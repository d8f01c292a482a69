//! The supervisor's own life: killed, stopped.

use std::time::{Duration, Instant};

use captive::exit_with_parent::Signal;
use captive::launcher::{CaptiveError, EndedBy, ExitStatus};
use libtest_mimic::Trial;
use nix::sys::signal::Signal as Sig;

use crate::ensure;
use crate::lives::launched;
use crate::processes::{await_that, children, is_freebsd, kill, parent, state};
use crate::roles::{Process, scenes, sh, trials};
use crate::scene::{HANG, Outcome};

pub fn tests() -> Vec<Trial> {
    [scenes(SCENES), trials(PROCESSES)]
        .into_iter()
        .flatten()
        .collect()
}

const SCENES: &[Process] = &[
    ("supervisor::killed", false, killed),
    (
        "supervisor::killed_with_the_launcher",
        false,
        killed_with_the_launcher,
    ),
    (
        "supervisor::stopped_when_the_launcher_is_killed",
        false,
        stopped,
    ),
];

pub const PROCESSES: &[Process] = &[
    ("supervisor::killed_is_told", false, killed_is_told),
    ("supervisor::killed_at_random", false, killed_at_random),
    (
        "supervisor::killed_of_one_let_go",
        false,
        killed_of_one_let_go,
    ),
    (
        "supervisor::stopped_carries_out_orders",
        false,
        stopped_carries_out_orders,
    ),
    (
        "supervisor::stopped_and_dropped",
        false,
        stopped_and_dropped,
    ),
];

/// It alone is killed: the captive ends, at once, and the launcher says that it does not know how.
fn killed() -> Outcome {
    let (scene, captive) = launched("plain")?;
    kill(parent(captive).ok_or("no supervisor")?, Sig::SIGKILL)?;
    let said = scene.all_gone()?;
    ensure!(said == ["ended ended, status unknown"], "{said:?}");
    Ok(())
}

/// Both at once: where there are process descriptors the kernel ends the captive; elsewhere nobody is left who could.
fn killed_with_the_launcher() -> Outcome {
    let (mut scene, captive) = launched("plain")?;
    let supervisor = parent(captive).ok_or("no supervisor")?;
    // A stopped launcher does nothing between the two.
    scene.signal(Sig::SIGSTOP)?;
    kill(supervisor, Sig::SIGKILL)?;
    scene.kill()?;
    if is_freebsd() {
        return scene.all_gone().map(drop);
    }
    scene.lives_on()?;
    scene.ping()?;
    scene.close()
}

/// It acts when it is resumed, which nobody does in the launcher's place.
fn stopped() -> Outcome {
    let (mut scene, captive) = launched("plain")?;
    let supervisor = parent(captive).ok_or("no supervisor")?;
    kill(supervisor, Sig::SIGSTOP)?;
    await_that("a stopped supervisor", || state(supervisor) == Some('T'))?;
    scene.lives_on()?;
    scene.kill()?;
    scene.lives_on()?;
    kill(supervisor, Sig::SIGCONT)?;
    scene.all_gone().map(drop)
}

fn killed_is_told() -> Outcome {
    let events = captive::launcher::events()?;
    let captive = sh("exec sleep 1000").spawn()?;
    events.watch(&captive)?;
    let pid = captive.id() as i32;
    kill(parent(pid).ok_or("no supervisor")?, Sig::SIGKILL)?;
    let since = Instant::now();
    let report = captive.wait_timeout(HANG)?.ok_or("it lives on")?;
    ensure!(
        since.elapsed() < Duration::from_secs(2),
        "after {:?}",
        since.elapsed()
    );
    ensure!(report.status() == ExitStatus::Unknown, "{report:?}");
    ensure!(report.usage().is_none(), "{report:?}");
    ensure!(report.ended_by() == EndedBy::Itself, "{report:?}");
    // What is said to have ended has.
    ensure!(matches!(state(pid), None | Some('Z')), "it lives on");
    match events.receiver().recv_timeout(HANG)? {
        captive::launcher::Event::Exited { pid: found, .. } => {
            ensure!(found == captive.id(), "{found}");
        }
        other => return Err(format!("{other:?}").into()),
    }
    // Nobody else gets a signal.
    captive.signal(Signal::TERM)?;
    captive.kill()?;
    await_that("the end of all children", || children().is_empty())
}

/// From its first moments on, also before the captive's exec: an error or a captive, and both end.
fn killed_at_random() -> Outcome {
    for round in 0..40_u64 {
        let before = Instant::now();
        let killer = std::thread::spawn(move || {
            while before.elapsed() < HANG {
                if let Some(supervisor) = children().first().copied() {
                    std::thread::sleep(Duration::from_micros(round * 211 % 4000));
                    return nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(supervisor),
                        Sig::SIGKILL,
                    )
                    .is_ok();
                }
            }
            false
        });
        match sh("exec sleep 1000").spawn() {
            Ok(captive) => {
                let pid = captive.id() as i32;
                ensure!(
                    captive.wait_timeout(HANG)?.is_some(),
                    "round {round}: it lives on"
                );
                ensure!(
                    matches!(state(pid), None | Some('Z')),
                    "round {round}: {pid} lives on"
                );
            }
            Err(captive::launcher::SpawnError::Step { errno, .. }) => {
                let errno = errno.raw_os_error();
                ensure!(
                    errno == Some(nix::libc::ECANCELED),
                    "round {round}: {errno:?}"
                );
            }
            Err(error) => return Err(format!("round {round}: {error:?}").into()),
        }
        ensure!(killer.join().map_err(|_| "a panic")?, "nobody was killed");
        await_that("the end of all children", || children().is_empty())?;
    }
    Ok(())
}

/// One that has been let go has no need of it.
fn killed_of_one_let_go() -> Outcome {
    let mut captive = sh("read line; echo $line; exec sleep 1000")
        .stdin(captive::launcher::Stdio::piped())
        .stdout(captive::launcher::Stdio::piped())
        .detachable(true)
        .spawn()?;
    let pid = captive.id() as i32;
    let supervisor = parent(pid).ok_or("no supervisor")?;
    let (mut input, mut output) = (
        captive.stdin.take().ok_or("no pipe")?,
        captive.stdout.take().ok_or("no pipe")?,
    );
    captive.detach().map_err(|(_, error)| error)?;
    kill(supervisor, Sig::SIGKILL)?;
    await_that("the end of all children", || children().is_empty())?;
    std::io::Write::write_all(&mut input, b"here\n")?;
    let mut word = [0; 5];
    std::io::Read::read_exact(&mut output, &mut word)?;
    // It is ours to end: nobody else has its number, as it answered just now.
    kill(pid, Sig::SIGKILL)
}

/// An order resumes it.
fn stopped_carries_out_orders() -> Outcome {
    let captive = sh("exec sleep 1000").spawn()?;
    let supervisor = parent(captive.id() as i32).ok_or("no supervisor")?;
    kill(supervisor, Sig::SIGSTOP)?;
    await_that("a stopped supervisor", || state(supervisor) == Some('T'))?;
    captive.signal(Signal::TERM)?;
    let report = captive.wait_timeout(HANG)?.ok_or("it lives on")?;
    ensure!(report.status().signal() == Some(Signal::TERM), "{report:?}");
    // In a fork all of it is refused, without a word to the supervisor.
    let captive = sh("exec sleep 1000").spawn()?;
    // SAFETY: the child makes a few calls that refuse, and ends.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            let refused = matches!(captive.kill(), Err(CaptiveError::Forked { .. }))
                && matches!(captive.try_wait(), Err(CaptiveError::Forked { .. }));
            std::process::exit(if refused { 0 } else { 1 });
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None)?;
            let expected = nix::sys::wait::WaitStatus::Exited(child, 0);
            ensure!(status == expected, "{status:?}");
        }
    }
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    Ok(())
}

fn stopped_and_dropped() -> Outcome {
    let captive = sh("exec sleep 1000").spawn()?;
    let pid = captive.id() as i32;
    let supervisor = parent(pid).ok_or("no supervisor")?;
    kill(supervisor, Sig::SIGSTOP)?;
    await_that("a stopped supervisor", || state(supervisor) == Some('T'))?;
    let since = Instant::now();
    drop(captive);
    ensure!(since.elapsed() < Duration::from_secs(1), "the drop waited");
    await_that("the end of all children", || children().is_empty())?;
    await_that("the captive's end", || state(pid).is_none())
}
