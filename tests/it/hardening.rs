//! What a review of run-with brought to light: whoever stops, kills, traces or does not read, the
//! command ends with its parent, and nobody else is hurt or held up.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::races::phase::{children, guard};
use crate::races::{namespace, trace};
use crate::support::process::{Reaped, await_that, run_with_path, state, status_field};
use crate::support::{Fallible, Need, Outcome, SURVIVES, Tag, Witness, output, test};
use crate::terminal::{CTRL_C, CTRL_Z, Terminal, both_stop, on_pty};

mod scene;

use scene::{
    BOUND, COMMAND, NOBODY, Scene, await_text, child_of, guard_of, is_before_exec, kill, launch,
};

const ROOT: &[Need] = &[Need::Root];
const PRLIMIT: &[Need] = &[Need::Root, Need::Program("prlimit")];
const BASH: &[Need] = &[Need::Program("bash")];

pub fn tests() -> Vec<Trial> {
    vec![
        test("hardening::recycled_guard", PRLIMIT, recycled_guard),
        test("hardening::guard_again", PRLIMIT, guard_again),
        test("hardening::killer_of_guards", &[], killer_of_guards),
        test("hardening::claim_of_run_with", &[], claim_of_run_with),
        test("hardening::claim_of_guard", &[], claim_of_guard),
        test(
            "hardening::start_at_a_terminal",
            &[Need::Program("bash"), Need::Native],
            || on_pty(start_at_a_terminal),
        ),
        test("hardening::stopped_start_signals", ROOT, || {
            stopped_start(signals_reach_it)
        }),
        test("hardening::stopped_start_launcher_dies", ROOT, || {
            stopped_start(launcher_dies)
        }),
        test("hardening::resumed_without_guard", BASH, || {
            on_pty(resumed_without_guard)
        }),
        test("hardening::announced_before_it_stops", BASH, || {
            on_pty(announced_before_it_stops)
        }),
        test("hardening::traced_guard", &[], traced_guard),
        test("hardening::full_status_pipe", &[], full_status_pipe),
        test("hardening::pidfile_of_another", &[], pidfile_of_another),
        test(
            "hardening::refused_signal",
            &[Need::Root, Need::Program("setpriv")],
            refused_signal,
        ),
    ]
}

// The guard dies.

/// A user with no other processes, who can be at the limit of processes.
const LONELY: u32 = 61234;

/// run-with as that user, with a pipe for what it says.
fn lonely(command: &mut Command) -> Fallible<Reaped> {
    let child = command
        .uid(LONELY)
        .gid(LONELY)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok(Reaped(child))
}

/// Kills the guard while there can be no other; waits until run-with has said so.
fn kill_guard_for_good(run_with: &mut Child) -> Fallible<i32> {
    let pid = i32::try_from(run_with.id())?;
    let mut found = None;
    await_that("the guard and the command", || {
        found = guard_of(pid);
        found.is_some() && scene::command_of(pid).is_some()
    })?;
    let guard = Witness::of(found.ok_or("a guard")?)?;
    limit_processes(pid, 0)?;
    guard.signal(libc::SIGKILL);
    let says = run_with.stderr.as_mut().ok_or("a pipe")?;
    await_text(says, "cannot be replaced")?;
    Ok(guard.pid)
}

/// The soft limit, as the user himself may set it: root without CAP_SYS_RESOURCE may not.
fn limit_processes(pid: i32, limit: u32) -> Outcome {
    let mut prlimit = Command::new("prlimit");
    prlimit.args([format!("--pid={pid}"), format!("--nproc={limit}:")]);
    let done = prlimit.uid(LONELY).gid(LONELY).status()?;
    ensure!(done.success(), "{prlimit:?}: {done}");
    Ok(())
}

/// A PID namespace's pids can be chosen.
fn recycled_guard() -> Outcome {
    let tag = Tag::new();
    let out = output(&mut tag.role("hardening-recycle"))?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "{said}{:?}", out);
    Ok(())
}

/// The role `hardening-recycle`: the guard dies and cannot be replaced, another process gets its pid,
/// and that one must outlive run-with.
pub fn recycle() -> i32 {
    let body = || match outlives_run_with() {
        Ok(()) => 0,
        Err(error) => {
            println!("{error}");
            1
        }
    };
    namespace::run(body).unwrap_or_else(|error| {
        println!("a PID namespace: {error}");
        3
    })
}

fn outlives_run_with() -> Outcome {
    let mut run_with = lonely(Command::new(run_with_path()).arg(BOUND).args(COMMAND))?;
    let pid = i32::try_from(run_with.0.id())?;
    let stale = kill_guard_for_good(&mut run_with.0)?;
    fs::write("/proc/sys/kernel/ns_last_pid", (stale - 1).to_string())?;
    let bystander = lonely(Command::new("sleep").arg("1000"))?;
    let bystander = Witness::of(i32::try_from(bystander.0.id())?).map(|it| (it, bystander))?;
    ensure!(bystander.0.pid == stale, "the pid was not recycled");
    let command = Witness::of(scene::command_of(pid).ok_or("no command")?)?;
    command.signal(libc::SIGKILL);
    ensure!(Witness::of(pid)?.gone(), "run-with stays");
    ensure!(
        !bystander.0.gone_within(SURVIVES),
        "run-with has killed another"
    );
    Ok(())
}

/// Tried again and again, until it succeeds.
fn guard_again() -> Outcome {
    let tag = Tag::new();
    let mut run_with = lonely(tag.run_with().arg(BOUND).args(COMMAND))?;
    let pid = i32::try_from(run_with.0.id())?;
    kill_guard_for_good(&mut run_with.0)?;
    let says = run_with.0.stderr.as_mut().ok_or("a pipe")?;
    await_text(says, "cannot be replaced")?;
    limit_processes(pid, 100)?;
    await_that("another guard", || guard_of(pid).is_some())?;
    // It guards.
    let command = Witness::of(scene::command_of(pid).ok_or("no command")?)?;
    run_with.0.kill()?;
    ensure!(command.gone(), "the command stays");
    Ok(())
}

/// The interval between guards is run-with's: a slow machine makes fewer.
fn killer_of_guards() -> Outcome {
    let mut it = Scene::new(&[&[BOUND][..], &COMMAND].concat())?;
    let run_with = it.run_with.pid;
    let mut killed = BTreeSet::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        for (pid, _) in children(run_with) {
            if pid != it.command.pid && killed.insert(pid) {
                if let Ok(guard) = Witness::of(pid) {
                    guard.signal(libc::SIGKILL);
                }
            }
        }
    }
    let most = start.elapsed().as_millis() as usize / 10 + 5;
    ensure!(
        killed.len() <= most,
        "{} guards, at most {most}",
        killed.len()
    );
    ensure!(killed.len() > 1, "no guard was replaced");
    await_that("a guard that lives", || guard_of(run_with).is_some())?;
    it.kill_launcher()?;
    it.is_over()
}

// Whoever is to send the signal for the parent's exit is held, or killed, just before.

const NO_GRACE: [&str; 3] = ["-k", "0", BOUND];

fn claim_of_run_with() -> Outcome {
    let mut it = Scene::new(&[&NO_GRACE[..], &COMMAND].concat())?;
    trace::seize(it.run_with.pid)?;
    it.kill_launcher()?;
    trace::await_call(it.run_with.pid, libc::SYS_pidfd_send_signal)?;
    ensure!(it.command.gone(), "run-with is held, and the command stays");
    trace::detach(it.run_with.pid, 0);
    it.is_over()
}

fn claim_of_guard() -> Outcome {
    let mut it = Scene::new(&[&NO_GRACE[..], &COMMAND].concat())?;
    trace::seize(it.guard.pid)?;
    it.run_with.signal(libc::SIGSTOP);
    await_that("run-with's stop", || state(it.run_with.pid) == Some('T'))?;
    it.kill_launcher()?;
    trace::await_call(it.guard.pid, libc::SYS_pidfd_send_signal)?;
    it.guard.signal(libc::SIGKILL);
    trace::await_end(it.guard.pid)?;
    ensure!(it.command.alive(), "the guard has sent it after all");
    it.run_with.signal(libc::SIGCONT);
    it.is_over()
}

// The command's process is stopped before its exec.

/// So many places to look for the command that there is time to stop it.
fn long_path() -> String {
    format!("{}/bin:/usr/bin", ":".repeat(120_000))
}

/// How often to try to stop it in time.
const TRIES: usize = 20;

fn start_at_a_terminal(it: &mut Terminal) -> Outcome {
    it.line("cd /; P=$(printf ':%.0s' {1..120000})/bin:/usr/bin; echo set$((1+1))")?;
    it.expect("set2")?;
    it.expect("outer> ")?;
    for _ in 0..TRIES {
        it.line(&format!(
            "PATH=$P {} --status-fd 2 -- sleep 1000",
            run_with_path()
        ))?;
        let mut found = None;
        await_that("the command's process", || {
            let all = it.tag.processes();
            found = all
                .iter()
                .filter(|(_, name)| name == "run-with")
                .find_map(|(pid, _)| Some((*pid, children(*pid).pop()?)))
                .filter(|(pid, _)| is_before_exec(*pid));
            found.is_some()
        })?;
        it.keys(CTRL_Z)?;
        let (run_with, (command, _)) = found.ok_or("a process")?;
        await_that("its stop", || state(command) == Some('T'))?;
        let in_time = is_before_exec(command);
        it.expect("Stopped")?;
        it.expect("outer> ")?;
        both_stop(&Witness::of(run_with)?, &Witness::of(command)?)?;
        it.line("fg")?;
        if in_time {
            it.expect("\"event\":\"started\"")?;
        } else {
            await_that("its going on", || state(command) == Some('S'))?;
        }
        it.keys(CTRL_C)?;
        it.expect("outer> ")?;
        if in_time {
            return Ok(());
        }
    }
    Err("it was never stopped in time".into())
}

/// Stopped by the user it has changed to.
fn stopped_start(then: fn(Reaped, &Witness, &Witness) -> Outcome) -> Outcome {
    for _ in 0..TRIES {
        let tag = Tag::new();
        let options = format!("{BOUND},user={NOBODY}:{NOBODY}");
        let args = [&["-k", "0", &options][..], &COMMAND].concat();
        let launcher = launch(&tag, &args, |it| {
            it.env("PATH", long_path());
        })?;
        let run_with = child_of(&launcher)?;
        let mut found = None;
        await_that("the command's process", || {
            // The guard is the first.
            found = children(run_with.pid).get(1).map(|(pid, _)| *pid);
            found.is_some()
        })?;
        let command = Witness::of(found.ok_or("a process")?)?;
        await_that("its change of user", || {
            status_field(command.pid, "Uid").is_some_and(|ids| ids.starts_with("65534"))
        })?;
        let stop = format!("kill -STOP {}", command.pid);
        let stop = Command::new("sh")
            .args(["-c", &stop])
            .uid(NOBODY)
            .status()?;
        ensure!(stop.success(), "nobody may not stop it");
        await_that("its stop", || state(command.pid) == Some('T'))?;
        if is_before_exec(command.pid) {
            then(launcher, &run_with, &command)?;
            ensure!(command.gone(), "the command stays");
            ensure!(run_with.gone(), "run-with stays");
            return Ok(());
        }
    }
    Err("it was never stopped in time".into())
}

fn signals_reach_it(_launcher: Reaped, run_with: &Witness, command: &Witness) -> Outcome {
    run_with.signal(libc::SIGTERM);
    run_with.signal(libc::SIGCONT);
    ensure!(command.gone(), "the command stays");
    ensure!(run_with.gone(), "run-with stays");
    Ok(())
}

/// The guard is stopped: run-with has to act.
fn launcher_dies(mut launcher: Reaped, run_with: &Witness, _command: &Witness) -> Outcome {
    let guard = Witness::of(guard(run_with.pid).ok_or("no guard")?)?;
    guard.signal(libc::SIGSTOP);
    await_that("the guard's stop", || state(guard.pid) == Some('T'))?;
    kill(&mut launcher)
}

/// The guard's end is news of a child, which comes before the SIGCONT: it must not stop run-with again.
fn resumed_without_guard(it: &mut Terminal) -> Outcome {
    let (run_with, command) = it.count("group")?;
    it.keys(CTRL_Z)?;
    it.expect("Stopped")?;
    it.expect("outer> ")?;
    both_stop(&run_with, &command)?;
    // It may not have run yet.
    await_that("the guard", || guard_of(run_with.pid).is_some())?;
    let guard = Witness::of(guard_of(run_with.pid).ok_or("no guard")?)?;
    guard.signal(libc::SIGKILL);
    ensure!(guard.gone(), "the guard stays");
    it.line("fg")?;
    let got = it.up_to(libc::SIGCONT)?;
    ensure!(got.is_empty(), "{got:?} before SIGCONT");
    await_that("another guard", || guard_of(run_with.pid).is_some())
}

/// A command that stops first thing: run-with stops with it, but not before the pidfile is there.
/// Which of the two comes first is a race, so several times.
fn announced_before_it_stops(it: &mut Terminal) -> Outcome {
    let dir = tempfile::tempdir()?;
    for _ in 0..12 {
        let pidfile = dir.path().join("pid");
        let shown = pidfile.display();
        it.line(&format!(
            "{} --pidfile {shown} exit-with-parent=on sh -c 'kill -STOP $$'",
            run_with_path()
        ))?;
        it.expect("Stopped")?;
        it.expect("outer> ")?;
        ensure!(pidfile.exists(), "stopped, and no pidfile");
        it.line("fg")?;
        it.expect("outer> ")?;
        ensure!(!pidfile.exists(), "the pidfile stays");
    }
    Ok(())
}

// Others that hold something.

/// Traced by this thread, which does not look: a dead guard is the tracer's to reap.
fn traced_guard() -> Outcome {
    let mut it = Scene::new(&[&[BOUND][..], &COMMAND].concat())?;
    trace::seize(it.guard.pid)?;
    it.command.signal(libc::SIGKILL);
    ensure!(it.run_with.gone(), "run-with waits for the tracer");
    trace::await_end(it.guard.pid)?;
    it.is_over()
}

/// A pipe in which there is no room, and its read end.
fn full_pipe() -> Fallible<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut file = File::from(write);
    while file.write(b"x").is_ok() {}
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((read, file.into()))
}

fn full_status_pipe() -> Outcome {
    for how in ["the command ends", "a signal", "the launcher dies"] {
        let (_read, write) = full_pipe()?;
        let mut it = Scene::of(
            &[&["--status-fd", "1", BOUND][..], &COMMAND].concat(),
            |it| {
                it.stdout(write);
            },
        )?;
        match how {
            "the command ends" => it.command.signal(libc::SIGKILL),
            "a signal" => it.run_with.signal(libc::SIGTERM),
            _ => it.kill_launcher()?,
        }
        it.is_over().map_err(|error| format!("{how}: {error}"))?;
    }
    Ok(())
}

fn pidfile_of_another() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("pid");
    let start = || -> Fallible<(Reaped, String)> {
        let before = fs::read_to_string(&file).unwrap_or_default();
        let mut run_with = tag.run_with();
        let child = run_with.arg("--pidfile").arg(&file).args(COMMAND).spawn()?;
        let mut there = String::new();
        await_that("the pidfile", || {
            there = fs::read_to_string(&file).unwrap_or_default();
            !there.is_empty() && there != before
        })?;
        Ok((Reaped(child), there))
    };
    let end = |(mut run_with, pid): (Reaped, String)| -> Outcome {
        Witness::of(pid.trim().parse()?)?.signal(libc::SIGTERM);
        ensure!(
            Witness::of(run_with.0.id() as i32)?.gone(),
            "run-with stays"
        );
        ensure!(
            run_with.0.wait()?.signal() == Some(libc::SIGTERM),
            "another end"
        );
        Ok(())
    };
    let first = start()?;
    let second = start()?;
    end(first)?;
    let there = fs::read_to_string(&file)?;
    ensure!(
        there == second.1,
        "the pidfile says {there:?}, not {:?}",
        second.1
    );
    end(second)?;
    ensure!(!file.exists(), "the pidfile stays");
    Ok(())
}

// A command that is another user's.

/// A directory in which set-user-ID means something.
fn directory_with_set_user_id() -> Fallible<tempfile::TempDir> {
    let places = [
        std::env::temp_dir(),
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        PathBuf::from("/var/tmp"),
    ];
    let honours =
        |place: &PathBuf| statvfs(place).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_NOSUID));
    let place = places.into_iter().find(honours);
    Ok(tempfile::tempdir_in(
        place.ok_or("nosuid wherever files can be made")?,
    )?)
}

/// A copy of setpriv that makes anybody root: only one group may get at it, which nobody is in.
fn refused_signal() -> Outcome {
    let dir = directory_with_set_user_id()?;
    let becomes_root = dir.path().join("becomes-root");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let setpriv = std::env::split_paths(&path)
        .map(|dir| dir.join("setpriv"))
        .find(|file| file.is_file());
    std::os::unix::fs::chown(dir.path(), None, Some(LONELY))?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o710))?;
    fs::copy(setpriv.ok_or("no setpriv")?, &becomes_root)?;
    fs::set_permissions(&becomes_root, fs::Permissions::from_mode(0o4755))?;
    let becomes_root = becomes_root.to_str().ok_or("a path")?;
    let command = ["--", becomes_root, "--reuid=0", "sleep", "1000"];
    let mut it = Scene::of(&[&NO_GRACE[..], &command].concat(), |it| {
        it.uid(LONELY).gid(LONELY).stderr(Stdio::piped());
    })?;
    await_that("the command's change of user", || {
        status_field(it.command.pid, "Uid").is_some_and(|ids| ids.starts_with("0\t0\t0"))
    })?;
    it.kill_launcher()?;
    let mut says = it.launcher.0.stderr.take().ok_or("a pipe")?;
    await_text(
        &mut says,
        &format!("TERM to the command (pid {}): EPERM", it.command.pid),
    )?;
    ensure!(it.command.alive(), "the signal was not refused");
    it.command.signal(libc::SIGKILL);
    it.is_over()
}
