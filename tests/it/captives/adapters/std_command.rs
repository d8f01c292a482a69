//! Children of std's that end with their launcher.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use captive::launcher::{CommandExt as _, SpawnError, SpawnStep};
use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::super::death::scene::{Scene, ends, find_guard, guard_of, kill, lives, stop};
use super::super::{children, in_role_with};
use crate::support::process::{await_that, close_from};
use crate::support::{Fallible, HANG, Need, Outcome, Witness, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: &str, needs: &'static [Need], body: fn() -> Outcome| {
        trials.push(test(
            &format!("captives::adapters::std::{name}"),
            needs,
            body,
        ));
    };
    add("statuses", &[], statuses);
    add("output", &[], output);
    add("drop-ends-nothing", &[], drop_ends_nothing);
    add("launcher-killed", &[Need::Root], launcher_killed);
    add("guard-then-launcher-killed", &[Need::Root], guard_killed);
    add("guard-stopped", &[Need::Root], guard_stopped);
    add("thread-ends", &[], thread_ends);
    add("spawned-again", &[], spawned_again);
    add("launcher-killed-while-spawning", &[], churn);
    add("launcher-killed-before-the-hook", &[], held);
    add("no-leak", &[], || in_role("no-leak"));
    add("sigchld-ignored", &[], || in_role("sigchld-ignored"));
    add("missing-program", &[], || in_role("missing-program"));
    add("hooks-before", &[], || in_role("hooks-before"));
    add("hook-closes-all", &[], || in_role("hook-closes-all"));
    add("hook-forks", &[], || in_role("hook-forks"));
    add("guard-without-room", &[], || in_role("guard-without-room"));
    add("no-room-for-its-pidfd", &[], || {
        in_role("no-room-for-its-pidfd")
    });
    trials
}

fn in_role(name: &str) -> Outcome {
    in_role_with(&["adapters", "std", name])
}

pub fn role(name: &str) -> Outcome {
    // What hangs is ended by SIGALRM.
    unsafe { libc::alarm(2 * HANG.as_secs() as u32) };
    match name {
        "no-leak" => no_leak(),
        "sigchld-ignored" => sigchld_ignored(),
        "missing-program" => missing_program(),
        "hooks-before" => hooks_before(),
        "hook-closes-all" => hook_closes_all(),
        "hook-forks" => hook_forks(),
        "guard-without-room" => guard_without_room(),
        "no-room-for-its-pidfd" => no_room(),
        _ => Err(format!("no role {name}").into()),
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::null());
    command
}

fn own_guard() -> Fallible<Witness> {
    guard_of(std::process::id() as i32, None)
}

/// Nobody but std reaps it: not when it has ended long before the wait either.
fn statuses() -> Outcome {
    let mut child = shell("exit 7").spawn_captive()?;
    let witness = Witness::of(child.id() as i32)?;
    ensure!(witness.gone(), "it has not ended");
    // The crate's thread has seen that, and so has seen an end that came after it.
    ensure!(
        captive::Command::new("true").status()?.success(),
        "a captive"
    );
    ensure!(child.try_wait()?.and_then(|s| s.code()) == Some(7), "7");
    let mut child = sleeper().spawn_captive()?;
    ensure!(child.try_wait()?.is_none(), "it runs");
    child.kill()?;
    ensure!(child.wait()?.signal() == Some(libc::SIGKILL), "SIGKILL");
    let status = shell("kill -TERM $$").spawn_captive()?.wait()?;
    ensure!(status.signal() == Some(libc::SIGTERM), "{status}");
    Ok(())
}

fn output() -> Outcome {
    let mut command = shell("cat; echo err >&2; exit 3");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn_captive()?;
    io::Write::write_all(&mut child.stdin.take().ok_or("no pipe")?, b"in")?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.code() == Some(3) && output.stdout == b"in" && output.stderr == b"err\n",
        "{output:?}"
    );
    Ok(())
}

/// As with std.
fn drop_ends_nothing() -> Outcome {
    let child = sleeper().spawn_captive()?;
    let witness = Witness::of(child.id() as i32)?;
    drop(child);
    lives("the child", &witness)?;
    kill(&witness)?;
    // Ours still.
    let pid = nix::unistd::Pid::from_raw(witness.pid);
    nix::sys::wait::waitpid(pid, None)?;
    Ok(())
}

fn scene() -> Fallible<Scene> {
    Scene::of(&["adapters", "launcher"])
}

/// Plain, of another user that std changes to, one that changes its user itself, a deaf one.
fn four(scene: &mut Scene) -> Fallible<[Witness; 4]> {
    let [plain, user, own, deaf] =
        ["plain", "user", "self", "deaf"].map(|kind| scene.make(&format!("std {kind}")));
    let all = [plain?, user?, own?, deaf?];
    for captive in &all {
        ensure!(captive.alive(), "one has ended");
    }
    let uids = crate::support::process::status_field(all[1].pid, "Uid").unwrap_or_default();
    ensure!(
        uids.split_whitespace().all(|uid| uid == "65534"),
        "its user is {uids}"
    );
    Ok(all)
}

fn all_end(captives: &[Witness]) -> Outcome {
    for (place, captive) in captives.iter().enumerate() {
        ends(&format!("child {place}"), captive)?;
    }
    Ok(())
}

fn launcher_killed() -> Outcome {
    let mut scene = scene()?;
    let captives = four(&mut scene)?;
    stop(&captives[0])?;
    let guard = scene.guard()?;
    scene.kill()?;
    all_end(&captives)?;
    ends("the guard", &guard)?;
    scene.nothing_left()
}

/// The next guard is told by the launcher.
fn guard_killed() -> Outcome {
    let mut scene = scene()?;
    let captives = four(&mut scene)?;
    let old = scene.guard()?;
    kill(&old)?;
    let new = scene.guard_after(&old)?;
    // It has been told of all: a spawn goes through the same lock.
    let last = scene.make("std plain")?;
    for captive in &captives {
        ensure!(captive.alive(), "a child ended with the guard");
    }
    scene.kill()?;
    all_end(&captives)?;
    ends("the last one", &last)?;
    ends("the new guard", &new)?;
    scene.nothing_left()
}

fn guard_stopped() -> Outcome {
    let mut scene = scene()?;
    let captives = four(&mut scene)?;
    let guard = scene.guard()?;
    stop(&guard)?;
    let last = scene.make("std self")?;
    scene.kill()?;
    let ended = all_end(&captives).and_then(|()| ends("the last one", &last));
    // It has no tag by which it would be found.
    guard.signal(libc::SIGKILL);
    ended?;
    scene.nothing_left()
}

/// As a parent-death signal would have it.
fn thread_ends() -> Outcome {
    let mut scene = scene()?;
    let captive = scene.make("std-thread plain")?;
    lives("the child", &captive)?;
    scene.kill()?;
    ends("the child", &captive)
}

/// Each is told of, and one that was spawned plainly is not.
fn spawned_again() -> Outcome {
    let mut scene = scene()?;
    let mut captives = Vec::new();
    let mut others = Vec::new();
    for _ in 0..3 {
        captives.push(scene.make("again captive")?);
        others.push(scene.make("again plain")?);
    }
    scene.kill()?;
    all_end(&captives)?;
    for other in &others {
        lives("the plain one", other)?;
        kill(other)?;
    }
    scene.nothing_left()
}

/// Without a second line: whoever is not told of ends by itself.
fn churn() -> Outcome {
    for round in 0..20 {
        let mut scene = scene()?;
        scene.session.expect("churn", "churns")?;
        // Somewhere in a spawn.
        std::thread::sleep(Duration::from_micros(3_000 + 770 * round));
        scene.kill()?;
        scene.nothing_left()?;
    }
    Ok(())
}

/// Its guard is still there, and reads no more.
fn held() -> Outcome {
    let mut scene = scene()?;
    scene.session.tell("held")?;
    let answer = scene.session.answer()?;
    ensure!(answer == "held", "{answer}");
    scene.kill()?;
    scene.nothing_left()
}

fn descriptors(pid: &OsStr) -> io::Result<usize> {
    let entries = fs::read_dir(std::path::Path::new("/proc").join(pid).join("fd"))?;
    Ok(entries.count())
}

fn no_leak() -> Outcome {
    let mut command = shell("exit 0");
    let mut once = || {
        command
            .spawn_captive()
            .map(|mut child| child.wait().is_ok())
    };
    ensure!(once()?, "a child");
    let guard = own_guard()?;
    let guards = guard.pid.to_string();
    let counts =
        || -> io::Result<_> { Ok((descriptors("self".as_ref())?, descriptors(guards.as_ref())?)) };
    // The first one's are closed a moment after its end.
    let mut before = counts()?;
    await_that("a quiet launcher", || {
        std::mem::replace(&mut before, counts().unwrap()) == before && children() == [guard.pid]
    })?;
    for _ in 0..50 {
        ensure!(once()?, "a child");
    }
    await_that("the descriptors as before", || {
        counts().is_ok_and(|now| now <= before)
    })?;
    await_that("no children but the guard", || children() == [guard.pid])?;
    // A new guard is told of none of them; in the order of the socket, so of all when it knows the last.
    let live = sleeper().spawn_captive()?;
    guard.signal(libc::SIGKILL);
    let mut new = None;
    await_that("another guard", || {
        new = find_guard(std::process::id() as i32, Some(guard.pid));
        new.is_some()
    })?;
    let new = new.ok_or("no guard")?;
    let last = sleeper().spawn_captive()?;
    let mut expected = [std::process::id(), live.id(), last.id()].map(|pid| pid as i32);
    expected.sort_unstable();
    await_that("a guard that knows the last", || {
        known_to(new.pid).contains(&(last.id() as i32))
    })?;
    let known = known_to(new.pid);
    ensure!(known == expected, "{known:?}, not {expected:?}");
    Ok(())
}

/// The processes of which it has pidfds; -1 for those that have been reaped.
fn known_to(guard: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{guard}/fdinfo"));
    let mut known: Vec<i32> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter_map(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
            line.trim().parse().ok()
        })
        .collect();
    known.sort_unstable();
    known
}

/// The kernel reaps.
fn sigchld_ignored() -> Outcome {
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let mut ended = shell("exit 0").spawn_captive()?;
    ensure!(ended.wait().is_err(), "there was a status");
    let lives_on = sleeper().spawn_captive()?;
    let witness = Witness::of(lives_on.id() as i32)?;
    let old = own_guard()?;
    old.signal(libc::SIGKILL);
    let new = guard_of(std::process::id() as i32, Some(old.pid))?;
    await_that("a guard that knows it", || {
        known_to(new.pid).contains(&witness.pid)
    })?;
    ensure!(witness.alive(), "it ended");
    Ok(())
}

fn step_of(error: &SpawnError) -> Option<(SpawnStep, Option<i32>)> {
    match error {
        SpawnError::Step { step, errno, .. } => Some((step.clone(), errno.raw_os_error())),
        _ => None,
    }
}

fn missing_program() -> Outcome {
    let mut command = Command::new("/nowhere/nothing");
    let error = command.spawn_captive().err().ok_or("it was spawned")?;
    ensure!(
        step_of(&error) == Some((SpawnStep::StdSpawn, Some(libc::ENOENT))),
        "{error:?}"
    );
    ensure!(error.to_string().contains("/nowhere/nothing"), "{error}");
    let cause = std::error::Error::source(&error).ok_or("no cause")?;
    ensure!(cause.to_string().contains("os error 2"), "{cause}");
    // std says so itself, before there is a child.
    let mut command = Command::new("nul\0");
    let began = Instant::now();
    let error = command.spawn_captive().err().ok_or("it was spawned")?;
    ensure!(
        matches!(step_of(&error), Some((SpawnStep::StdSpawn, None))),
        "{error:?}"
    );
    ensure!(began.elapsed() < HANG, "it waited");
    let guard = own_guard()?;
    ensure!(children() == [guard.pid], "{:?}", children());
    Ok(())
}

/// What programs do in a hook: low descriptors of their own, a group.
fn hooks_before() -> Outcome {
    let (read, write) = nix::unistd::pipe()?;
    let source = write.as_raw_fd();
    let mut command =
        shell("for fd in 3 4 5 6 7 8 9; do eval \"echo $fd >&$fd\"; done; exec sleep 600");
    unsafe {
        command.pre_exec(move || {
            for target in 3..100 {
                if target != source && libc::dup2(source, target) != target {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut child = command.spawn_captive()?;
    drop(write);
    let mut said = [0; 14];
    fs::File::from(read).read_exact(&mut said)?;
    ensure!(&said == b"3\n4\n5\n6\n7\n8\n9\n", "{said:?}");
    ensure!(child.try_wait()?.is_none(), "it has ended");
    // The guard knows it: it ends with this process, as `in_role` sees.
    Ok(())
}

/// Neither std nor we would hear of it.
fn hook_closes_all() -> Outcome {
    let mut command = sleeper();
    unsafe {
        command.pre_exec(|| {
            close_from(3);
            Ok(())
        });
    }
    command.stderr(Stdio::null());
    let error = command.spawn_captive().err().ok_or("it was spawned")?;
    ensure!(
        matches!(step_of(&error), Some((SpawnStep::StdSpawn, Some(_)))),
        "{error:?}"
    );
    let guard = own_guard()?;
    await_that("no child", || children() == [guard.pid])
}

fn hook_forks() -> Outcome {
    let mut command = sleeper();
    unsafe {
        command.pre_exec(|| match libc::fork() {
            0 => Ok(()),
            _ => libc::_exit(0),
        });
    }
    let error = command.spawn_captive().err().ok_or("it was spawned")?;
    ensure!(
        matches!(step_of(&error), Some((SpawnStep::LookAtParent, _))),
        "{error:?}"
    );
    Ok(())
}

/// A guard that is dead, and one that reads no more: there is another for the child.
fn guard_without_room() -> Outcome {
    let mut first = shell("exit 0").spawn_captive()?;
    first.wait()?;
    let guard = own_guard()?;
    stop(&guard)?;
    let mut kept = Vec::new();
    while guard.alive() {
        ensure!(kept.len() < 400, "there is still room");
        kept.push(sleeper().spawn_captive()?);
    }
    for mut child in kept {
        ensure!(child.try_wait()?.is_none(), "one has ended");
    }
    Ok(())
}

/// What the child sends of itself comes without its pidfd where there is no number for that: it is opened by its pid.
fn no_room() -> Outcome {
    let mut first = shell("exit 0").spawn_captive()?;
    first.wait()?;
    let guard = own_guard()?;
    let own = std::process::id() as i32;
    let before = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The number that the spawn's first socket will have is the last one that may be had from the hook on.
    let lowest = fs::File::open("/dev/null")?.as_raw_fd();
    let limit = libc::rlimit {
        rlim_cur: lowest as libc::rlim_t + 1,
        rlim_max: before.1,
    };
    let mut command = sleeper();
    unsafe {
        command.pre_exec(move || {
            match libc::prlimit(
                own,
                libc::RLIMIT_NOFILE,
                &raw const limit,
                std::ptr::null_mut(),
            ) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    let spawned = command.spawn_captive();
    let lowered = getrlimit(Resource::RLIMIT_NOFILE)?.0;
    setrlimit(Resource::RLIMIT_NOFILE, before.0, before.1)?;
    ensure!(lowered == limit.rlim_cur, "the hook has not been run");
    let mut child = spawned?;
    ensure!(child.try_wait()?.is_none(), "it has ended");
    let child = child.id() as i32;
    await_that("a guard that knows it", || {
        known_to(guard.pid).contains(&child)
    })?;
    // The launcher knows it as well: it tells the next guard.
    guard.signal(libc::SIGKILL);
    let new = guard_of(own, Some(guard.pid))?;
    await_that("another guard that knows it", || {
        known_to(new.pid).contains(&child)
    })
}
