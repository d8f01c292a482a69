//! The launcher: `Command` and `Captive`.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use captive::exit_with_parent::Signal;
use captive::launcher::{EndedBy, ExitStatus, LauncherExit, SpawnError, SpawnStep};
use captive::{Captive, Command, Containment};
use libtest_mimic::{Failed, Trial};
use nix::unistd::{ForkResult, fork, setsid};

use crate::ensure;
use crate::roles::{say, serve};
use crate::scene::{HANG, Outcome, SURVIVES, Scene, root_test, test};

/// Where captives can be launched.
const LAUNCHER: bool = cfg!(any(
    target_os = "linux",
    target_os = "freebsd",
    target_os = "macos",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly",
));

/// Where `Containment::Tree` can be had: on Linux (by root, here), also where it stands in for FreeBSD, and there.
fn has_tree() -> bool {
    let stands_in = cfg!(captive_stand_in)
        && std::env::var_os("CAPTIVE_STAND_IN").is_some_and(|kind| kind == "kqueue");
    cfg!(any(target_os = "linux", target_os = "freebsd")) && !stands_in
}

pub fn tests() -> Vec<Trial> {
    if !LAUNCHER {
        return vec![test("launcher::is_refused", is_refused)];
    }
    vec![
        test("launcher::is_supported", || {
            ensure!(captive::launcher::is_supported(), "it is not");
            Ok(())
        }),
        test("launcher::exit_status", exit_status),
        test("launcher::killed", killed),
        test("launcher::output", output),
        test("launcher::wait_timeout", wait_timeout),
        test("launcher::terminate_after_grace", terminate),
        test("launcher::no_such_program", no_such_program),
        test("launcher::no_such_directory", no_such_directory),
        test("launcher::dropped", dropped),
        test("launcher::descriptors", descriptors),
        test("launcher::launcher_killed", || ends_with("hold")),
        test("launcher::launcher_exits", || ends_by_itself("exit")),
        test("launcher::launcher_aborts", || ends_by_itself("abort")),
        test("launcher::launchers_thread_ends", thread_ends),
        test("launcher::launcher_killed_signal_first", || {
            ends_with("signal-first")
        }),
        test("launcher::detached", detached),
        test("launcher::handles_in_a_fork", handles_in_a_fork),
        test("launcher::random_kills", random_kills),
        test("launcher::process_leaves_descendants", descendants_live),
        root_test("launcher::tree", tree),
        root_test("launcher::tree_launcher_killed", tree_launcher_killed),
        root_test("launcher::launcher_killed_another_user", another_user),
    ]
}

/// Where there is no launcher, it says so.
fn is_refused() -> Outcome {
    ensure!(!captive::launcher::is_supported(), "it is supported");
    match sh("exit 0").spawn() {
        Err(SpawnError::Unsupported(_)) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Where a copy of this binary is that another user may execute.
const COPY: &str = "PORTABLE_COPY";

/// This binary in a role.
fn this(role: &[&str]) -> Command {
    let this: PathBuf = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(std::env::var_os(COPY).map_or(this, PathBuf::from));
    command.arg("--role").args(role);
    command
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// The roles: launchers with one captive, and what the captives are.
pub fn role(args: &[&str]) -> i32 {
    match args {
        ["daemons"] => daemons(),
        ["descriptors"] => open_descriptors(),
        [how] => launch(how),
        _ => 2,
    }
}

fn launch(how: &str) -> i32 {
    let mut command = match how {
        "signal-first" => this(&["deaf"]),
        "tree" | "process" => this(&["captives", "daemons"]),
        _ => this(&["idle"]),
    };
    match how {
        "signal-first" => {
            command.launcher_exit(LauncherExit::Signal {
                signal: Signal::TERM,
                kill_after: Duration::from_millis(100),
            });
        }
        "detached" => {
            command.detachable(true);
        }
        "tree" => {
            command.containment(Containment::Tree);
        }
        "user" => {
            command.run_with("user=nobody".parse().expect("options"));
        }
        _ => {}
    }
    if how == "thread" {
        let captive = thread::spawn(move || command.spawn()).join();
        return hold(&captive.expect("the thread ends").expect("spawned"));
    }
    let captive = match command.spawn() {
        Ok(captive) => captive,
        Err(error) => {
            say(format!("refused {error}"));
            return 3;
        }
    };
    match how {
        "exit" => {
            say("spawned");
            std::process::exit(0)
        }
        "abort" => {
            say("spawned");
            std::process::abort()
        }
        "detached" => {
            if let Err((_, error)) = captive.detach() {
                say(format!("refused {error}"));
                return 3;
            }
            say("spawned");
            loop {
                thread::sleep(Duration::from_secs(3600));
            }
        }
        "fork" => in_a_fork(captive),
        _ => hold(&captive),
    }
}

fn hold(captive: &Captive) -> i32 {
    say("spawned");
    let report = captive.wait().expect("waited");
    say(format!("ended {}", report.status()));
    0
}

/// A forked child of the launcher drops its copy of the handle, and ends.
fn in_a_fork(captive: Captive) -> i32 {
    // SAFETY: the child drops one value, which in a fork does nothing, and ends.
    match unsafe { fork() }.expect("a fork") {
        ForkResult::Child => {
            let inert = captive.kill().is_err();
            drop(captive);
            say(format!("inert {inert}"));
            0
        }
        ForkResult::Parent { child } => {
            let _ = nix::sys::wait::waitpid(child, None);
            hold(&captive)
        }
    }
}

/// A main process with a daemon of the classical kind: two forks, a session of its own.
fn daemons() -> i32 {
    // SAFETY: this process has one thread.
    if let ForkResult::Child = unsafe { fork() }.expect("a fork") {
        let _ = setsid();
        // SAFETY: as above.
        if let ForkResult::Child = unsafe { fork() }.expect("a fork") {
            say("daemon");
            return serve();
        }
        return 0;
    }
    // What does not read standard input: the daemon does.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn open_descriptors() -> i32 {
    // SAFETY: only asked whether there is one.
    let is_open = |fd: &i32| unsafe { nix::libc::fcntl(*fd, nix::libc::F_GETFD) } >= 0;
    let open: Vec<i32> = (3..256).filter(is_open).collect();
    say(format!("open {open:?}"));
    0
}

fn exit_status() -> Outcome {
    let captive = sh("exit 3").spawn()?;
    let report = captive.wait()?;
    ensure!(report.status() == ExitStatus::Exited(3), "{report:?}");
    ensure!(report.usage().is_some(), "no usage");
    ensure!(report.ended_by() == EndedBy::Itself, "{report:?}");
    // Asked again it says the same.
    ensure!(
        captive.wait()?.status() == report.status(),
        "another status"
    );
    Ok(())
}

fn killed() -> Outcome {
    let captive = sh("exec sleep 1000").spawn()?;
    captive.kill()?;
    let report = captive.wait()?;
    ensure!(report.status().signal() == Some(Signal::KILL), "{report:?}");
    ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
    Ok(())
}

fn output() -> Outcome {
    let output = sh("echo out; echo err >&2; exit 1").output()?;
    ensure!(output.stdout == b"out\n", "{output:?}");
    ensure!(output.stderr == b"err\n", "{output:?}");
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(())
}

fn wait_timeout() -> Outcome {
    let captive = sh("exec sleep 1000").spawn()?;
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    let begin = Instant::now();
    ensure!(
        captive.wait_timeout(Duration::from_millis(50))?.is_none(),
        "it has ended"
    );
    ensure!(begin.elapsed() >= Duration::from_millis(50), "too early");
    captive.signal(Signal::TERM)?;
    let report = captive.wait_timeout(HANG)?.ok_or("it lives on")?;
    ensure!(report.status().signal() == Some(Signal::TERM), "{report:?}");
    Ok(())
}

fn terminate() -> Outcome {
    let mut captive = sh("trap '' TERM; echo deaf; while :; do sleep 0.1; done")
        .stdout(captive::launcher::Stdio::piped())
        .spawn()?;
    let mut word = [0; 5];
    let output = captive.stdout.as_mut().ok_or("no pipe")?;
    output.read_exact(&mut word)?;
    let report = captive.terminate(Duration::from_millis(100))?;
    ensure!(report.status().signal() == Some(Signal::KILL), "{report:?}");
    Ok(())
}

fn no_such_program() -> Outcome {
    match Command::new("/nonexistent/program").spawn() {
        Err(error @ SpawnError::Step { .. }) => {
            ensure!(error.step() == Some(&SpawnStep::Exec), "{error:?}");
            let errno = std::error::Error::source(&error).map(ToString::to_string);
            ensure!(
                errno
                    .as_ref()
                    .is_some_and(|text| text.contains("No such file")),
                "{error:?}"
            );
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}

fn no_such_directory() -> Outcome {
    let spawned = sh("exit 0").current_dir("/nonexistent/directory").spawn();
    let step = spawned.as_ref().err().and_then(SpawnError::step);
    ensure!(
        matches!(step, Some(SpawnStep::ChangeDirectory(_))),
        "{spawned:?}"
    );
    Ok(())
}

fn dropped() -> Outcome {
    let mut captive = sh("echo here; exec sleep 1000")
        .stdout(captive::launcher::Stdio::piped())
        .spawn()?;
    let mut output = captive.stdout.take().ok_or("no pipe")?;
    output.read_exact(&mut [0; 5])?;
    drop(captive);
    // The pipe's end is the captive's.
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || tell.send(output.read_to_end(&mut Vec::new()).is_ok()));
    ensure!(told.recv_timeout(HANG) == Ok(true), "it lives on");
    Ok(())
}

fn descriptors() -> Outcome {
    // Two that a program would inherit.
    let (_read, _write) = nix::unistd::pipe()?;
    let output = this(&["captives", "descriptors"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said == "open []\n", "{said}");
    Ok(())
}

/// A launcher with its captive, which has been spawned.
fn launched(how: &str) -> Result<Scene, Failed> {
    let scene = Scene::role(&["captives", how])?;
    scene.expect("spawned")?;
    Ok(scene)
}

fn ends_with(how: &str) -> Outcome {
    let mut scene = launched(how)?;
    scene.ping()?;
    scene.lives_on()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn another_user() -> Outcome {
    let place = tempfile::tempdir()?;
    let copy = place.path().join("portable");
    std::fs::copy(std::env::current_exe()?, &copy)?;
    for path in [place.path(), &copy] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
    }
    let mut launcher = crate::scene::this_program();
    launcher
        .args(["--role", "captives", "user"])
        .env(COPY, copy);
    let mut scene = Scene::start(&mut launcher)?;
    scene.expect("spawned")?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn ends_by_itself(how: &str) -> Outcome {
    launched(how)?.all_gone().map(drop)
}

fn thread_ends() -> Outcome {
    let mut scene = launched("thread")?;
    scene.ping()?;
    scene.lives_on()?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn detached() -> Outcome {
    let mut scene = launched("detached")?;
    scene.kill()?;
    scene.lives_on()?;
    scene.ping()?;
    scene.close()
}

fn handles_in_a_fork() -> Outcome {
    let mut scene = Scene::role(&["captives", "fork"])?;
    scene.expect("inert true")?;
    scene.expect("spawned")?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

/// The launcher is killed at moments from before its spawn to after it.
fn random_kills() -> Outcome {
    for round in 0..40_u32 {
        let mut scene = Scene::role(&["captives", "hold"])?;
        // No order is to be had by this, only moments that differ.
        thread::sleep(Duration::from_micros(u64::from(round * 397 % 12000)));
        scene.kill()?;
        scene
            .all_gone()
            .map_err(|failed| format!("round {round}: {}", failed.message().unwrap_or("")))?;
    }
    Ok(())
}

/// With the default a descendant lives on: so the test of the tree can fail.
fn descendants_live() -> Outcome {
    let mut scene = Scene::role(&["captives", "process"])?;
    expect_both(&scene)?;
    scene.kill()?;
    thread::sleep(SURVIVES);
    scene.ping()?;
    scene.close()
}

/// "spawned" and "daemon", in any order.
fn expect_both(scene: &Scene) -> Outcome {
    let mut words = [scene.word()?, scene.word()?];
    words.sort();
    ensure!(words == ["daemon", "spawned"], "{words:?}");
    Ok(())
}

/// Where there is none it is refused, with what is missing.
fn tree_is_refused() -> Outcome {
    match sh("exit 0").containment(Containment::Tree).spawn() {
        Err(SpawnError::Containment(error)) => {
            ensure!(!error.to_string().is_empty(), "nothing is said");
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}

fn tree() -> Outcome {
    if !has_tree() {
        return tree_is_refused();
    }
    let mut captive = this(&["captives", "daemons"])
        .stdin(captive::launcher::Stdio::piped())
        .stdout(captive::launcher::Stdio::piped())
        .containment(Containment::Tree)
        .spawn()?;
    let mut output = captive.stdout.take().ok_or("no pipe")?;
    output.read_exact(&mut [0; 7])?;
    captive.kill()?;
    captive.wait()?;
    ensure!(captive.wait_tree(HANG)?, "the tree lives on");
    // The daemon holds the pipe.
    let mut rest = Vec::new();
    output.read_to_end(&mut rest)?;
    Ok(())
}

fn tree_launcher_killed() -> Outcome {
    if !has_tree() {
        return tree_is_refused();
    }
    let mut scene = Scene::role(&["captives", "tree"])?;
    expect_both(&scene)?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}
