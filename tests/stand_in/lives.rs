//! Captives' lives: what their launcher's end, their own, and being let go means.

use std::thread;
use std::time::{Duration, Instant};

use captive::exit_with_parent::Signal;
use captive::launcher::{EndedBy, ExitStatus, LauncherExit, Stdio};
use captive::{Captive, Command};
use libtest_mimic::{Failed, Trial};

use crate::ensure;
use crate::processes::{await_that, children, descriptors, kill, mappings, parent, state};
use crate::roles::{Process, say, scenes, serve, sh, this, trials};
use crate::scene::{HANG, Outcome, SURVIVES, Scene};

pub fn tests() -> Vec<Trial> {
    [scenes(SCENES), trials(PROCESSES)]
        .into_iter()
        .flatten()
        .collect()
}

const SCENES: &[Process] = &[
    (
        "lives::user_changed_by_itself",
        true,
        user_changed_by_itself,
    ),
    ("lives::grace", false, grace),
    (
        "lives::stopped_captive_has_its_grace",
        false,
        stopped_captive,
    ),
    (
        "lives::launcher_executes_another_program",
        false,
        launcher_executes,
    ),
    ("lives::a_fork_holds_its_descriptors", false, a_fork_holds),
    ("lives::let_go", false, let_go),
    ("lives::many_launcher_killed", false, many_killed),
    ("lives::random_kills_with_a_grace", false, random_kills),
];

pub const PROCESSES: &[Process] = &[
    ("lives::dropped_leaves_no_zombie", false, dropped),
    ("lives::nothing_leaks", false, nothing_leaks),
    ("lives::many", false, many),
    ("lives::foreign_wait", false, foreign_wait),
    ("lives::sigchld_ignored", false, sigchld_ignored),
    ("lives::session_and_group", false, session_and_group),
    ("lives::let_go_is_reaped", false, let_go_is_reaped),
    ("lives::threads", false, threads),
];

/// A launcher with captives that share its standard input and output.
pub fn launch(how: &str) -> i32 {
    let mut command = match how {
        "user" => this(&["user"]),
        "grace-deaf" | "random" => this(&["deaf"]),
        _ => this(&["idle"]),
    };
    match how {
        "grace-deaf" | "grace" => {
            command.launcher_exit(LauncherExit::Signal {
                signal: Signal::TERM,
                kill_after: Duration::from_secs(1),
            });
        }
        "random" => {
            command.launcher_exit(LauncherExit::Signal {
                signal: Signal::TERM,
                kill_after: Duration::from_millis(30),
            });
        }
        "let-go" => {
            command.detachable(true);
        }
        "best-effort" => {
            command.containment(captive::Containment::TreeBestEffort);
        }
        "tree" => {
            command = this(&["daemons"]);
            command.containment(captive::Containment::Tree);
        }
        _ => {}
    }
    let awaited = nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGUSR1);
    awaited.thread_block().expect("blocked");
    let count = if how == "many" { 40 } else { 1 };
    let spawned: Result<Vec<Captive>, _> = (0..count).map(|_| command.spawn()).collect();
    let mut captives = match spawned {
        Ok(captives) => captives,
        Err(error) => {
            say(format!("refused {error}"));
            return 3;
        }
    };
    match how {
        "exec" => {
            use std::os::unix::process::CommandExt;
            say("spawned");
            // The captive has to say who it is first.
            awaited.wait().expect("a signal");
            // Goes on as one that only reads.
            let error = std::process::Command::new("sleep").arg("1000").exec();
            say(error);
            return 3;
        }
        "fork" => {
            // SAFETY: the child sleeps in system calls, and ends with standard input.
            if let nix::unistd::ForkResult::Child = unsafe { nix::unistd::fork() }.expect("a fork")
            {
                // Which does nothing.
                drop(captives);
                say("forked");
                return serve();
            }
        }
        "let-go" => {
            for captive in captives.drain(..) {
                captive
                    .detach()
                    .map_err(|(_, error)| error)
                    .expect("let go");
            }
        }
        _ => {}
    }
    say("spawned");
    for captive in &captives {
        let report = captive.wait().expect("waited");
        say(format!("ended {}", report.status()));
    }
    if how == "let-go" {
        crate::roles::sleep_for_ever();
    }
    0
}

/// The captive's pid, and that it has been spawned, in any order.
pub fn launched(how: &str) -> Result<(Scene, i32), Failed> {
    let scene = Scene::role(&["launch", how])?;
    let mut pid = None;
    let mut spawned = false;
    while pid.is_none() || !spawned {
        let word = scene.word()?;
        match word.strip_prefix("pid ") {
            Some(number) => pid = Some(number.parse()?),
            None if word == "spawned" => spawned = true,
            None => return Err(word.into()),
        }
    }
    Ok((scene, pid.ok_or("no pid")?))
}

fn user_changed_by_itself() -> Outcome {
    let (mut scene, _) = launched("user")?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

/// SIGTERM, then nothing for the grace, then SIGKILL; and one that SIGTERM ends has no need of the rest.
fn grace() -> Outcome {
    let (mut scene, _) = launched("grace-deaf")?;
    scene.kill()?;
    let since = Instant::now();
    scene.lives_on()?;
    scene.ping()?;
    scene.all_gone()?;
    let took = since.elapsed();
    ensure!(took >= Duration::from_millis(900), "after {took:?}");
    let (mut scene, _) = launched("grace")?;
    scene.kill()?;
    let since = Instant::now();
    scene.all_gone()?;
    ensure!(
        since.elapsed() < Duration::from_millis(900),
        "the grace was waited for"
    );
    Ok(())
}

fn stopped_captive() -> Outcome {
    let (mut scene, captive) = launched("grace")?;
    kill(captive, nix::sys::signal::Signal::SIGSTOP)?;
    await_that("a stopped captive", || state(captive) == Some('T'))?;
    scene.kill()?;
    let since = Instant::now();
    scene.all_gone()?;
    ensure!(
        since.elapsed() < Duration::from_millis(900),
        "it was not resumed"
    );
    Ok(())
}

/// The launcher's process goes on as another program: its captives end, which a ping that is not answered shows.
fn launcher_executes() -> Outcome {
    let (mut scene, captive) = launched("exec")?;
    scene.signal(nix::sys::signal::Signal::SIGUSR1)?;
    await_that("the captive's end", || {
        matches!(state(captive), None | Some('Z'))
    })?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

/// A forked child that does not execute anything has copies of all descriptors. It keeps no captive alive.
fn a_fork_holds() -> Outcome {
    let scene = Scene::role(&["launch", "fork"])?;
    let mut words = vec![scene.word()?, scene.word()?, scene.word()?];
    words.sort();
    let captive: i32 = words[1]
        .strip_prefix("pid ")
        .ok_or(words.join(" "))?
        .parse()?;
    ensure!(words[0] == "forked" && words[2] == "spawned", "{words:?}");
    let mut scene = scene;
    scene.kill()?;
    await_that("the captive's end", || {
        matches!(state(captive), None | Some('Z'))
    })?;
    // The fork is still there, and answers.
    scene.ping()?;
    scene.close()
}

/// Lives on when its launcher ends, and its supervisor does not.
fn let_go() -> Outcome {
    let (mut scene, captive) = launched("let-go")?;
    let supervisor = parent(captive).ok_or("no supervisor")?;
    ensure!(supervisor != 1, "no supervisor");
    scene.kill()?;
    scene.lives_on()?;
    scene.ping()?;
    await_that("the supervisor's end", || {
        parent(captive) != Some(supervisor)
    })?;
    scene.ping()?;
    scene.close()
}

fn many_killed() -> Outcome {
    let mut scene = Scene::role(&["launch", "many"])?;
    while scene.word()? != "spawned" {}
    scene.kill()?;
    scene.all_gone().map(drop)
}

/// The launcher is killed at moments from before its spawn to after it; the captive ignores the signal.
fn random_kills() -> Outcome {
    for round in 0..40_u32 {
        let mut scene = Scene::role(&["launch", "random"])?;
        // No order is to be had by this, only moments that differ.
        thread::sleep(Duration::from_micros(u64::from(round * 397 % 12000)));
        scene.kill()?;
        scene
            .all_gone()
            .map_err(|failed| format!("round {round}: {}", failed.message().unwrap_or("")))?;
    }
    Ok(())
}

fn no_child_is_left() -> Outcome {
    await_that("the end of all children", || children().is_empty())
}

fn dropped() -> Outcome {
    let captives: Result<Vec<_>, _> = (0..20).map(|_| sh("exec sleep 1000").spawn()).collect();
    let pids: Vec<i32> = captives?
        .iter()
        .map(|captive| captive.id() as i32)
        .collect();
    let since = Instant::now();
    no_child_is_left()?;
    ensure!(
        since.elapsed() < Duration::from_secs(5),
        "that took {:?}",
        since.elapsed()
    );
    for pid in pids {
        // Reaped by its supervisor, or by whoever has adopted it since.
        await_that("the end of a captive", || state(pid).is_none())?;
    }
    Ok(())
}

fn nothing_leaks() -> Outcome {
    sh("exit 0").status()?;
    no_child_is_left()?;
    let before = (descriptors(), mappings());
    for round in 0..200 {
        let captive = sh("exit 0").stdout(Stdio::piped()).spawn()?;
        if round % 2 == 0 {
            captive.wait()?;
        }
    }
    no_child_is_left()?;
    // The reaper lets go of them after it has waited.
    await_that("as many descriptors as before", || {
        descriptors() == before.0
    })?;
    // A new thread's stack or an allocator's arena may come; not one page a captive.
    ensure!(
        mappings() < before.1 + 50,
        "{} mappings, before {}",
        mappings(),
        before.1
    );
    Ok(())
}

/// More than the queue of the stand-in has room for, so that some are looked at from time to time.
fn many() -> Outcome {
    const COUNT: usize = 150;
    let captives: Result<Vec<_>, _> = (0..COUNT).map(|_| sh("exec sleep 1000").spawn()).collect();
    let captives = captives?;
    ensure!(children().len() == COUNT, "{} children", children().len());
    for captive in &captives {
        captive.signal(Signal::TERM)?;
    }
    for captive in &captives {
        let report = captive.wait_timeout(HANG)?.ok_or("it lives on")?;
        ensure!(report.status().signal() == Some(Signal::TERM), "{report:?}");
        ensure!(report.ended_by() == EndedBy::Signal, "{report:?}");
    }
    no_child_is_left()
}

/// Somebody in the launcher waits for any child: the status comes all the same.
fn foreign_wait() -> Outcome {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let own = std::sync::Arc::clone(&stop);
    let waiter = thread::spawn(move || {
        while !own.load(std::sync::atomic::Ordering::Relaxed) {
            let flags = nix::sys::wait::WaitPidFlag::WNOHANG;
            let _ = nix::sys::wait::waitpid(None::<nix::unistd::Pid>, Some(flags));
        }
    });
    for code in 0..50 {
        let report = sh(&format!("exit {code}")).status()?;
        ensure!(report.status() == ExitStatus::Exited(code), "{report:?}");
        ensure!(report.usage().is_some(), "no usage");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    waiter.join().map_err(|_| "a panic")?;
    no_child_is_left()
}

/// A launcher that ignores SIGCHLD: the status comes, and the captive ignores it too.
fn sigchld_ignored() -> Outcome {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    let report = sh("exit 7").status()?;
    ensure!(report.status() == ExitStatus::Exited(7), "{report:?}");
    let ignored = |command: &mut Command| -> Result<bool, Failed> {
        let output = command.output()?;
        let said = String::from_utf8(output.stdout)?;
        let set = said.rsplit('\t').next().ok_or("no set")?.trim().to_owned();
        Ok(u64::from_str_radix(&set, 16)? & 1 << (Signal::SIGCHLD as i32 - 1) != 0)
    };
    let mut command = Command::new("grep");
    command.args(["SigIgn", "/proc/self/status"]);
    ensure!(ignored(&mut command)?, "it has another disposition");
    command.default_signal("CHLD".parse()?);
    ensure!(!ignored(&mut command)?, "it is ignored");
    no_child_is_left()
}

/// The captive is of the launcher's session and group, its supervisor in a group of its own.
fn session_and_group() -> Outcome {
    use nix::unistd::{Pid, getpgid, getsid};
    let captive = sh("exec sleep 1000").spawn()?;
    let pid = captive.id() as i32;
    let supervisor = parent(pid).ok_or("no supervisor")?;
    let of = |pid: i32| -> Result<_, Failed> {
        let pid = Pid::from_raw(pid);
        Ok((getsid(Some(pid))?, getpgid(Some(pid))?))
    };
    let own = of(0)?;
    ensure!(of(pid)? == own, "{:?}, not {own:?}", of(pid)?);
    ensure!(
        of(supervisor)?.1.as_raw() == supervisor,
        "{:?}",
        of(supervisor)?
    );
    // Nothing of the launcher's is open there.
    // Two sockets, the queue with what it owns (a pidfd of the launcher, of the captive, and the captive's descriptor).
    await_that("six descriptors in the supervisor", || {
        let open = std::fs::read_dir(format!("/proc/{supervisor}/fd"));
        open.is_ok_and(|open| open.count() <= 6)
    })
}

/// It is nobody's who waits: no zombie is left, and its end is told.
fn let_go_is_reaped() -> Outcome {
    let events = captive::launcher::events()?;
    let captive = sh("read line; exit 3")
        .stdin(Stdio::piped())
        .detachable(true)
        .spawn()?;
    events.watch(&captive)?;
    let pid = captive.id();
    let mut captive = captive;
    let input = captive.stdin.take();
    captive.detach().map_err(|(_, error)| error)?;
    ensure!(
        events.receiver().recv_timeout(SURVIVES).is_err(),
        "it has ended"
    );
    drop(input);
    match events.receiver().recv_timeout(HANG)? {
        captive::launcher::Event::Exited { pid: found, report } => {
            ensure!(found == pid, "{found}, not {pid}");
            ensure!(report.status() == ExitStatus::Exited(3), "{report:?}");
        }
        other => return Err(format!("{other:?}").into()),
    }
    no_child_is_left()
}

/// Spawns of many threads at once, whose ends mean nothing.
fn threads() -> Outcome {
    let spawners: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(|| -> Result<Vec<Captive>, String> {
                (0..10)
                    .map(|_| {
                        sh("exec sleep 1000")
                            .spawn()
                            .map_err(|error| error.to_string())
                    })
                    .collect()
            })
        })
        .collect();
    let mut captives = Vec::new();
    for spawner in spawners {
        captives.extend(spawner.join().map_err(|_| "a panic")??);
    }
    thread::sleep(SURVIVES);
    for captive in &captives {
        ensure!(captive.try_wait()?.is_none(), "it has ended");
    }
    drop(captives);
    no_child_is_left()
}
