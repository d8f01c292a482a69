//! What a `Captive` says and does: its end, what ended it, and what a launcher of an odd kind sees.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use captive::exit_with_parent::Signal;
use captive::launcher::{CaptiveError, EndedBy, ExitReport, ExitStatus, Resource, SpawnError};
use captive::launcher::{SpawnStep, Stdio};
use captive::{Captive, Command, RunWith};
use libtest_mimic::Trial;

use super::{children, descriptors_as_before, in_role, open_descriptors, shell, signal};
use crate::support::cgroups::{Group, version_1};
use crate::support::process::{Reaped, Tracer, await_that, readable_within, state};
use crate::support::seccomp::{self, Argument};
use crate::support::{Fallible, HANG, Need, Outcome, SURVIVES, Tag, Witness, test};

const FREEZER: &[Need] = &[Need::Root, Need::Freezer];

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: &str, needs: &'static [Need], body: fn() -> Outcome| {
        trials.push(test(&format!("captives::handle::{name}"), needs, body));
    };
    add("exit-statuses", &[], exit_statuses);
    add("signals", &[], signals);
    add("core-flag", &[], core_flag);
    add("usage", &[], usage);
    add("usage-max-rss-counts-the-launcher", &[], || {
        in_role("handle", "max-rss")
    });
    add("id-and-pidfd", &[], id_and_pidfd);
    add("ended-by-itself", &[], ended_by_itself);
    add("ended-by-signal", &[], ended_by_signal);
    add("a-signal-after-the-end-ended-nothing", &[], late_signal);
    add("terminate-dies", &[], terminate_dies);
    add("terminate-handles", &[], terminate_handles);
    add("terminate-ignores", &[], terminate_ignores);
    add("terminate-stopped", &[], terminate_stopped);
    add("terminate-ended", &[], terminate_ended);
    add("traced", &[], traced);
    add("stuck-traced", &[], || stuck(by_a_tracer));
    add("stuck-frozen", FREEZER, || stuck(frozen));
    add("waits", &[], waits);
    add("two-wait-a-third-signals", &[], two_wait);
    add("kill-after-the-end", &[], kill_after_the_end);
    add("kill-hits-no-other", &[Need::Root], kill_hits_no_other);
    add("drop-ends-and-reaps", &[], drop_ends);
    add("drop-of-an-ended-one", &[], drop_of_ended);
    add("drop-with-memory", &[], drop_with_memory);
    add("sigchld-ignored", &[], || {
        in_role("handle", "sigchld-ignored")
    });
    add("foreign-waiter", &[], || {
        in_role("handle", "foreign-waiter")
    });
    add("status-lost", &[], || in_role("handle", "status-lost"));
    add("forked", &[], || in_role("handle", "forked"));
    add("dumpable", &[Need::Root], || in_role("handle", "dumpable"));
    add("attacker", &[Need::Root], || in_role("handle", "attacker"));
    add("stall", &[Need::Root], || in_role("handle", "stall"));
    add("many", &[], || in_role("handle", "many"));
    add("threads-block-signals", &[], || {
        in_role("handle", "blocked")
    });
    trials
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    let outcome = match args.first().and_then(|arg| arg.to_str()) {
        Some("sigchld-ignored") => sigchld_ignored(),
        Some("foreign-waiter") => foreign_waiter(),
        Some("status-lost") => status_lost(),
        Some("forked") => forked(),
        Some("dumpable") => dumpable(),
        Some("attacker") => attacker(),
        Some("attack") => attack(),
        Some("stall") => stall(),
        Some("many") => many(),
        Some("blocked") => blocked(),
        Some("memory") => memory(),
        Some("max-rss") => max_rss(),
        _ => return 2,
    };
    super::verdict(outcome)
}

fn sleeper() -> Fallible<Captive> {
    Ok(Command::new("sleep").arg("1000").spawn()?)
}

/// The end of one that must end.
fn ended(captive: &Captive) -> Fallible<ExitReport> {
    captive
        .wait_timeout(HANG)?
        .ok_or_else(|| format!("{captive:?} does not end").into())
}

/// A captive that has said "ready" on its output.
fn ready(mut command: Command) -> Fallible<Captive> {
    let mut captive = command.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let out = captive.stdout.take().ok_or("no pipe")?;
    BufReader::new(out).read_line(&mut line)?;
    ensure!(line == "ready\n", "{line:?}");
    Ok(captive)
}

fn killed_by(report: &ExitReport) -> Option<i32> {
    report.status().signal().map(Signal::number)
}

fn exit_statuses() -> Outcome {
    for code in [0, 1, 2, 127, 128, 255] {
        let report = ended(&shell(&format!("exit {code}")).spawn()?)?;
        ensure!(report.status() == ExitStatus::Exited(code), "{report:?}");
        ensure!(report.status().code() == Some(code), "{report:?}");
        ensure!(report.status().signal().is_none(), "{report:?}");
        ensure!(report.success() == (code == 0), "{report:?}");
    }
    Ok(())
}

fn signals() -> Outcome {
    let real_time = [libc::SIGRTMIN(), libc::SIGRTMIN() + 5, libc::SIGRTMAX()];
    let usual = [libc::SIGHUP, libc::SIGTERM, libc::SIGKILL, libc::SIGUSR1];
    for number in usual.into_iter().chain(real_time) {
        let captive = sleeper()?;
        captive.signal(signal(number))?;
        let report = ended(&captive)?;
        ensure!(killed_by(&report) == Some(number), "{report:?}");
        ensure!(report.status().code().is_none(), "{report:?}");
        ensure!(!report.success(), "{report:?}");
    }
    // Nothing is taken for a deadly signal that is none.
    let captive = sleeper()?;
    captive.signal(signal(libc::SIGCHLD))?;
    ensure!(captive.wait_timeout(SURVIVES)?.is_none(), "it has ended");
    Ok(())
}

/// Whether there are core dumps depends on the machine: what std sees is the measure.
fn core_flag() -> Outcome {
    let dir = tempfile::tempdir()?;
    let script = "ulimit -c unlimited 2>/dev/null; kill -SEGV $$";
    let theirs = std::process::Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(dir.path())
        .status()?;
    let report = ended(&shell(script).current_dir(dir.path()).spawn()?)?;
    let expected = ExitStatus::Killed {
        signal: signal(libc::SIGSEGV),
        core_dumped: theirs.core_dumped(),
    };
    ensure!(report.status() == expected, "{report:?}, std: {theirs:?}");
    let mut command = shell("kill -SEGV $$");
    // A pipe in core_pattern takes no notice of 0, but of 1.
    command.resource_limit(Resource::CORE, 1, 1);
    let report = ended(&command.current_dir(dir.path()).spawn()?)?;
    ensure!(
        matches!(
            report.status(),
            ExitStatus::Killed {
                core_dumped: false,
                ..
            }
        ),
        "{report:?}"
    );
    Ok(())
}

fn usage() -> Outcome {
    let mut command = shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done");
    let usage = ended(&command.spawn()?)?.usage().ok_or("no usage")?;
    ensure!(usage.user + usage.system > Duration::ZERO, "{usage:?}");
    ensure!(usage.max_rss >= 64 * 1024, "{usage:?}");
    Ok(())
}

/// As documented: the kernel counts the memory that the child shared until its exec.
fn max_rss() -> Outcome {
    let memory = vec![1_u8; MEMORY];
    let usage = ended(&Command::new("true").spawn()?)?.usage();
    let usage = usage.ok_or("no usage")?;
    std::hint::black_box(&memory);
    ensure!(usage.max_rss >= MEMORY as u64, "{usage:?}");
    Ok(())
}

fn id_and_pidfd() -> Outcome {
    let captive = sleeper()?;
    let pid = captive.id() as i32;
    // The kernel lets the launcher go on a moment before it gives the process its new name.
    await_that("the captive's name", || {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
    })?;
    ensure!(
        !readable_within(captive.pidfd(), Duration::ZERO),
        "readable while it lives"
    );
    captive.kill()?;
    ensure!(readable_within(captive.pidfd(), HANG), "not readable");
    ensure!(captive.try_wait()?.is_some(), "readable, and not ended");
    Ok(())
}

fn ended_by_itself() -> Outcome {
    let report = ended(&Command::new("true").spawn()?)?;
    ensure!(report.ended_by() == EndedBy::Itself, "{report:?}");
    // Somebody else's signal is not the launcher's.
    let report = ended(&shell("kill -TERM $$").spawn()?)?;
    ensure!(report.ended_by() == EndedBy::Itself, "{report:?}");
    ensure!(killed_by(&report) == Some(libc::SIGTERM), "{report:?}");
    // SIGCONT ends nothing.
    let captive = shell("read line").stdin(Stdio::piped()).spawn()?;
    captive.signal(signal(libc::SIGCONT))?;
    let mut captive = captive;
    drop(captive.stdin.take());
    let report = ended(&captive)?;
    ensure!(report.ended_by() == EndedBy::Itself, "{report:?}");
    Ok(())
}

fn ended_by_signal() -> Outcome {
    let captive = sleeper()?;
    captive.signal(Signal::HUP)?;
    let report = ended(&captive)?;
    ensure!(report.ended_by() == EndedBy::Signal, "{report:?}");
    let captive = sleeper()?;
    captive.kill()?;
    let report = ended(&captive)?;
    ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
    ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
    Ok(())
}

/// "What the launcher had sent before it ended": it had ended.
fn late_signal() -> Outcome {
    for number in [libc::SIGTERM, libc::SIGKILL] {
        let captive = shell("exit 4").spawn()?;
        ensure!(readable_within(captive.pidfd(), HANG), "it does not end");
        captive.signal(signal(number))?;
        let report = ended(&captive)?;
        ensure!(report.status() == ExitStatus::Exited(4), "{report:?}");
        ensure!(report.ended_by() == EndedBy::Itself, "{report:?}");
    }
    Ok(())
}

fn terminate_dies() -> Outcome {
    let report = sleeper()?.terminate(HANG)?;
    ensure!(killed_by(&report) == Some(libc::SIGTERM), "{report:?}");
    ensure!(report.ended_by() == EndedBy::Signal, "{report:?}");
    Ok(())
}

fn terminate_handles() -> Outcome {
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let report = ready(shell(script))?.terminate(HANG)?;
    ensure!(report.status() == ExitStatus::Exited(5), "{report:?}");
    ensure!(report.ended_by() == EndedBy::Signal, "{report:?}");
    Ok(())
}

fn terminate_ignores() -> Outcome {
    let script = "trap '' TERM; echo ready; exec sleep 1000";
    for grace in [Duration::ZERO, Duration::from_millis(50)] {
        let report = ready(shell(script))?.terminate(grace)?;
        ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
        ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
    }
    // An option of the launch does the same.
    let mut command = Command::new("sleep");
    command.arg("1000").ignore_signal(Signal::TERM);
    let report = command.spawn()?.terminate(Duration::from_millis(50))?;
    ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
    Ok(())
}

fn terminate_stopped() -> Outcome {
    let captive = sleeper()?;
    let pid = captive.id() as i32;
    captive.signal(signal(libc::SIGSTOP))?;
    await_that("a stop", || state(pid) == Some('T'))?;
    // A stop is no end.
    ensure!(captive.try_wait()?.is_none(), "a stop was taken for an end");
    let report = captive.terminate(HANG)?;
    ensure!(killed_by(&report) == Some(libc::SIGTERM), "{report:?}");
    ensure!(report.ended_by() == EndedBy::Signal, "{report:?}");
    // And without SIGCONT it would have stayed.
    let captive = sleeper()?;
    let pid = captive.id() as i32;
    captive.signal(signal(libc::SIGSTOP))?;
    await_that("a stop", || state(pid) == Some('T'))?;
    captive.signal(Signal::TERM)?;
    ensure!(captive.wait_timeout(SURVIVES)?.is_none(), "it has ended");
    captive.kill()?;
    ended(&captive)?;
    Ok(())
}

fn terminate_ended() -> Outcome {
    let captive = Command::new("true").spawn()?;
    let first = ended(&captive)?;
    let second = captive.terminate(Duration::ZERO)?;
    ensure!(first == second, "{first:?} {second:?}");
    Ok(())
}

/// Its end can be seen, and how it ended is told when the tracer lets go, to who waits already too.
fn traced() -> Outcome {
    let captive = sleeper()?;
    let tracer = Tracer::of(captive.id() as i32)?;
    captive.kill()?;
    ensure!(Witness::of(captive.id() as i32)?.gone(), "it does not end");
    ensure!(captive.try_wait()?.is_none(), "a status");
    let early = captive.wait_timeout(SURVIVES)?;
    ensure!(early.is_none(), "a status while it was traced: {early:?}");
    let report = std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            captive
                .wait_timeout(HANG)
                .map_err(|error| error.to_string())
        });
        let released = tracer.release();
        let report = waits.join().map_err(|_| "a panic")??;
        released.map(|()| report)
    })?;
    let report = report.ok_or("it does not end")?;
    ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
    ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
    Ok(())
}

/// What keeps a process from its end, while it is there, and the letter of the state in which it is then.
type Hold = Box<dyn FnOnce() -> Outcome>;

/// One that SIGKILL does not end says what it is doing, and is as it was: it can be waited for.
fn stuck(hold: impl FnOnce(&Witness) -> Fallible<(char, Hold)>) -> Outcome {
    let tag = Tag::new();
    let mut command = shell("sleep 1000 & echo ready; wait");
    command.env("CAPTIVE_TEST_TAG", tag.value());
    let captive = ready(command)?;
    let pid = captive.id() as i32;
    let (expected, release) = hold(&Witness::of(pid)?)?;
    let Err(CaptiveError::Stuck(stuck)) = captive.terminate(Duration::ZERO) else {
        return Err("it has ended".into());
    };
    ensure!(stuck.pid == captive.id(), "{stuck:?}");
    ensure!(stuck.state == Some(expected), "{stuck:?}, not {expected}");
    // What has ended has no children any more.
    ensure!(
        stuck.descendants.len() == usize::from(expected != 'Z'),
        "{stuck:?}"
    );
    let text = stuck.to_string();
    ensure!(
        text.contains(&format!("process {pid} does not end"))
            && text.contains(&format!("state {expected}")),
        "{text}"
    );
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    release()?;
    let report = ended(&captive)?;
    ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
    Ok(())
}

/// It has ended, and a tracer is to be told first.
fn by_a_tracer(witness: &Witness) -> Fallible<(char, Hold)> {
    let tracer = Tracer::of(witness.pid)?;
    Ok(('Z', Box::new(|| tracer.release())))
}

/// Signals do not reach what the freezer of version 1 holds; to the world it waits in the kernel.
fn frozen(witness: &Witness) -> Fallible<(char, Hold)> {
    let group = Group::new(version_1("freezer"), &[])?;
    fs::write(group.0.join("cgroup.procs"), witness.pid.to_string())?;
    let state = group.0.join("freezer.state");
    fs::write(&state, "FROZEN")?;
    await_that("a frozen process", || {
        fs::read_to_string(&state).is_ok_and(|text| text == "FROZEN\n")
    })?;
    Ok((
        'D',
        Box::new(move || {
            fs::write(&state, "THAWED")?;
            // Removed when it is empty.
            let group = group;
            await_that("an empty cgroup", || {
                group.pids().is_ok_and(|pids| pids.is_empty())
            })
        }),
    ))
}

fn waits() -> Outcome {
    let mut captive = shell("read line; exit 9").stdin(Stdio::piped()).spawn()?;
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    let soon = Duration::from_millis(20);
    for limit in [Duration::ZERO, soon] {
        ensure!(captive.wait_timeout(limit)?.is_none(), "it has ended");
    }
    drop(captive.stdin.take());
    // A limit that no clock reaches is none.
    let first = captive.wait_timeout(Duration::MAX)?.ok_or("no end")?;
    ensure!(first.status() == ExitStatus::Exited(9), "{first:?}");
    for again in [
        captive.try_wait()?,
        captive.wait_timeout(Duration::ZERO)?,
        Some(captive.wait()?),
    ] {
        ensure!(again.as_ref() == Some(&first), "{again:?} {first:?}");
    }
    ensure!(state(captive.id() as i32) != Some('Z'), "a zombie");
    Ok(())
}

fn two_wait() -> Outcome {
    for _ in 0..20 {
        let captive = sleeper()?;
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| ended(&captive).map_err(|error| error.to_string()));
            let two = scope.spawn(|| ended(&captive).map_err(|error| error.to_string()));
            let sent = captive.signal(signal(libc::SIGUSR2));
            (one.join(), two.join().map(|report| (report, sent)))
        });
        let (two, sent) = two.map_err(|_| "a panic")?;
        let (one, two) = (one.map_err(|_| "a panic")??, two?);
        sent?;
        ensure!(one == two, "{one:?} {two:?}");
        ensure!(killed_by(&one) == Some(libc::SIGUSR2), "{one:?}");
        ensure!(one.usage().is_some(), "{one:?}");
    }
    Ok(())
}

fn kill_after_the_end() -> Outcome {
    let captive = Command::new("true").spawn()?;
    let first = ended(&captive)?;
    captive.kill()?;
    captive.signal(Signal::TERM)?;
    let second = captive.wait()?;
    ensure!(first == second, "{first:?} {second:?}");
    Ok(())
}

/// Another process with the number of one that has ended.
fn kill_hits_no_other() -> Outcome {
    const TRIES: u32 = 2000;
    let captive = Command::new("true").spawn()?;
    ended(&captive)?;
    for _ in 0..TRIES {
        fs::write(
            "/proc/sys/kernel/ns_last_pid",
            (captive.id() - 1).to_string(),
        )?;
        let other = Reaped(std::process::Command::new("sleep").arg("1000").spawn()?);
        if other.0.id() != captive.id() {
            continue;
        }
        let witness = Witness::of(other.0.id() as i32)?;
        captive.kill()?;
        captive.terminate(Duration::ZERO)?;
        drop(captive);
        ensure!(!witness.gone_within(SURVIVES), "another process was hit");
        return Ok(());
    }
    Err("the number did not come again".into())
}

fn drop_ends() -> Outcome {
    let stopped = sleeper()?;
    stopped.signal(signal(libc::SIGSTOP))?;
    let deaf = ready(shell("trap '' TERM HUP INT; echo ready; exec sleep 1000"))?;
    for captive in [sleeper()?, stopped, deaf] {
        let witness = Witness::of(captive.id() as i32)?;
        ensure!(witness.alive(), "it has ended by itself");
        drop(captive);
        ensure!(witness.gone(), "it lives on");
        reaped(&witness)?;
    }
    Ok(())
}

/// Not even a zombie is left: a signal finds nobody behind the pidfd.
fn reaped(witness: &Witness) -> Outcome {
    let path = format!("/proc/{}/stat", witness.pid);
    await_that("the end of the zombie", || {
        let stat = fs::read_to_string(&path).unwrap_or_default();
        // The number may be somebody else's by now, who is no child of ours.
        let parent = stat.rsplit(") ").next().and_then(|s| s.split(' ').nth(1));
        let parent = parent.and_then(|parent| parent.parse::<u32>().ok());
        state(witness.pid) != Some('Z') || parent != Some(std::process::id())
    })
}

fn drop_of_ended() -> Outcome {
    // A zombie that nobody has waited for, and one whose end has been seen.
    let captive = Command::new("true").spawn()?;
    let witness = Witness::of(captive.id() as i32)?;
    ensure!(witness.gone(), "it does not end");
    drop(captive);
    reaped(&witness)?;
    let captive = Command::new("true").spawn()?;
    ended(&captive)?;
    drop(captive);
    Ok(())
}

const MEMORY: usize = 256 << 20;

/// Has memory that takes a while to be torn down.
fn memory() -> Outcome {
    let memory = vec![1_u8; MEMORY];
    println!("ready");
    loop {
        std::thread::park();
        std::hint::black_box(&memory);
    }
}

fn drop_with_memory() -> Outcome {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--role", "captives", "handle", "memory"]);
    let captive = ready(command)?;
    let witness = Witness::of(captive.id() as i32)?;
    let (sender, dropped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(captive);
        let _ = sender.send(());
    });
    dropped.recv_timeout(HANG)?;
    ensure!(witness.gone(), "it lives on");
    reaped(&witness)
}

/// Whether a pidfd keeps the status of one that somebody else has reaped: Linux 6.15.
pub(super) fn status_is_kept() -> Fallible<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-', '\n']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(format!("which release is {release}?").into());
    };
    Ok((major, minor) >= (6, 15))
}

/// What is known of captives that this launcher does not reap itself.
fn statuses_of_others() -> Outcome {
    let kept = status_is_kept()?;
    for _ in 0..20 {
        let mut captive = shell("read line; exit 7").stdin(Stdio::piped()).spawn()?;
        drop(captive.stdin.take());
        let report = ended(&captive)?;
        let expected = if kept {
            ExitStatus::Exited(7)
        } else {
            ExitStatus::Unknown
        };
        ensure!(report.status() == expected, "{report:?}");
        ensure!(report.usage().is_none(), "{report:?}");
        let captive = sleeper()?;
        captive.kill()?;
        let report = ended(&captive)?;
        ensure!(
            !kept || killed_by(&report) == Some(libc::SIGKILL),
            "{report:?}"
        );
        ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
        captive.kill()?;
    }
    Ok(())
}

fn sigchld_ignored() -> Outcome {
    // Otherwise it has the usage.
    ensure!(
        ended(&Command::new("true").spawn()?)?.usage().is_some(),
        "no usage"
    );
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    statuses_of_others()?;
    // Failures too have their reason.
    let error = Command::new("/nonexistent").spawn().err().ok_or("found")?;
    ensure!(error.step() == Some(&SpawnStep::Exec), "{error:?}");
    Ok(())
}

fn foreign_waiter() -> Outcome {
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let waiter = {
        let stop = std::sync::Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } < 0 {
                    std::thread::yield_now();
                }
            }
        })
    };
    let kept = status_is_kept()?;
    // Who comes first is open; the status is there either way.
    for code in 0..50 {
        let report = ended(&shell(&format!("exit {code}")).spawn()?)?;
        ensure!(
            report.status() == ExitStatus::Exited(code)
                || (!kept && report.status() == ExitStatus::Unknown),
            "{report:?}"
        );
    }
    let error = Command::new("/nonexistent").spawn().err().ok_or("found")?;
    ensure!(error.step() == Some(&SpawnStep::Exec), "{error:?}");
    stop.store(true, Ordering::Relaxed);
    // It waits for any child: this one.
    drop(Command::new("true").spawn()?);
    // It may be waiting for the guard, which ends with us only.
    drop(waiter);
    Ok(())
}

/// A kernel that does not tell, by a filter.
fn status_lost() -> Outcome {
    const PIDFD_GET_INFO: u32 = 0xC040_FF0B;
    seccomp::deny(
        libc::SYS_ioctl as u32,
        Some(Argument {
            index: 1,
            value: PIDFD_GET_INFO,
        }),
        libc::ENOTTY as u32,
    );
    // Where it reaps, nothing is lost.
    let report = ended(&shell("exit 7").spawn()?)?;
    ensure!(report.status() == ExitStatus::Exited(7), "{report:?}");
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let report = ended(&shell("exit 7").spawn()?)?;
    ensure!(report.status() == ExitStatus::Unknown, "{report:?}");
    ensure!(report.usage().is_none() && !report.success(), "{report:?}");
    let error = shell("echo out").output().err().ok_or("a status")?;
    let lost = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<CaptiveError>());
    ensure!(
        matches!(lost, Some(CaptiveError::Wait { errno, .. })
            if errno.raw_os_error() == Some(libc::ECHILD)),
        "{error:?}"
    );
    Ok(())
}

/// In a forked child of the launcher its captives are inert.
fn forked() -> Outcome {
    let captive = sleeper()?;
    let launcher = std::process::id();
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork");
    if child == 0 {
        let forked = |answer: Result<(), CaptiveError>| matches!(answer, Err(CaptiveError::Forked { launcher: found }) if found == launcher);
        let inert = forked(captive.kill())
            && forked(captive.signal(Signal::TERM))
            && forked(captive.wait().map(drop))
            && forked(captive.try_wait().map(drop))
            && forked(captive.wait_timeout(Duration::ZERO).map(drop))
            && forked(captive.terminate(Duration::ZERO).map(drop));
        drop(captive);
        // One of its own is not.
        let own = Command::new("true").status();
        let fine = inert && own.is_ok_and(|report| report.success());
        unsafe { libc::_exit(i32::from(!fine)) }
    }
    let mut status = 0;
    ensure!(
        unsafe { libc::waitpid(child, &raw mut status, 0) } == child,
        "waitpid"
    );
    ensure!(status == 0, "the child: {status:#x}");
    ensure!(captive.wait_timeout(SURVIVES)?.is_none(), "it has ended");
    captive.kill()?;
    ended(&captive)?;
    Ok(())
}

fn nobody() -> Fallible<RunWith> {
    Ok(RunWith::parse("user=65534:65534".as_ref())?)
}

fn is_dumpable() -> bool {
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) == 1 }
}

/// A change of user in memory that is shared would make it undumpable, for good.
fn dumpable() -> Outcome {
    ensure!(is_dumpable(), "not at first");
    let done = AtomicBool::new(false);
    let nobody = nobody()?;
    let (spawned, samples) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let (mut all, mut count) = (true, 0_u64);
            while !done.load(Ordering::Relaxed) {
                all &= is_dumpable();
                count += 1;
            }
            (all, count)
        });
        let spawned = (0..50).try_for_each(|_| -> Result<(), String> {
            let mut command = Command::new("true");
            let captive = command
                .run_with(nobody.clone())
                .spawn()
                .map_err(|error| format!("{error:?}"))?;
            let report = captive.wait().map_err(|error| error.to_string())?;
            report.success().then_some(()).ok_or(format!("{report:?}"))
        });
        done.store(true, Ordering::Relaxed);
        (spawned, sampler.join())
    });
    spawned?;
    let (all, count) = samples.map_err(|_| "a panic")?;
    ensure!(count > 50, "{count} samples only");
    ensure!(all && is_dumpable(), "not throughout");
    Ok(())
}

/// Stops whatever its user may stop, of its launcher's: other tests have processes of this user.
fn attack() -> Outcome {
    let own = std::process::id();
    let launcher = std::os::unix::process::parent_id();
    println!("ready");
    loop {
        let children = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat
                .rsplit(") ")
                .next()?
                .split(' ')
                .nth(1)?
                .parse::<u32>()
                .ok()?;
            (launcher == parent && pid != own).then_some(pid)
        });
        for pid in children.chain([launcher]) {
            unsafe { libc::kill(pid as i32, libc::SIGSTOP) };
        }
    }
}

/// A launcher that is root, and a captive that is somebody and attacks the others.
fn attacker() -> Outcome {
    let mut command = Command::new("/proc/self/fd/9");
    command
        .args(["--role", "captives", "handle", "attack"])
        .descriptor(File::open(std::env::current_exe()?)?, 9)
        .run_with(nobody()?);
    let attacker = ready(command)?;
    let nobody = nobody()?;
    let finished = AtomicBool::new(false);
    let (victims, others) = std::thread::scope(|scope| {
        let victims = scope.spawn(|| {
            let victims = launch_victims(&nobody);
            finished.store(true, Ordering::Relaxed);
            victims
        });
        let others = scope.spawn(|| {
            let mut count = 0;
            while count < 50 || !finished.load(Ordering::Relaxed) {
                match Command::new("true").status() {
                    Ok(report) if report.success() => count += 1,
                    other => return Err(format!("after {count}: {other:?}")),
                }
            }
            Ok(())
        });
        (victims.join(), others.join())
    });
    others.map_err(|_| "a panic")??;
    let victims = victims.map_err(|_| "a panic")??;
    // It has done what it could: somebody is stopped, though not the launcher.
    await_that("a stopped captive", || {
        victims.is_empty()
            || victims
                .iter()
                .any(|one| state(one.id() as i32) == Some('T'))
    })?;
    for captive in &victims {
        captive.kill()?;
    }
    for captive in &victims {
        let report = ended(captive)?;
        ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
    }
    ensure!(attacker.try_wait()?.is_none(), "the attacker has ended");
    drop(attacker);
    await_that("an end of all children", || children().len() == 1)
}

/// Those that were launched; the rest was stopped on the way.
fn launch_victims(user: &RunWith) -> Result<Vec<Captive>, String> {
    let mut launched = Vec::new();
    for _ in 0..50 {
        let mut command = Command::new("sleep");
        command
            .arg("1000")
            .run_with(user.clone())
            .spawn_timeout(Duration::from_millis(200));
        match command.spawn() {
            Ok(captive) => launched.push(captive),
            Err(SpawnError::Stalled { .. }) => {}
            Err(error) => return Err(format!("{error:?}")),
        }
    }
    Ok(launched)
}

/// A mount in a namespace of this process's own, which nobody serves: who looks into it waits.
struct DeadMount {
    dir: tempfile::TempDir,
    device: Option<File>,
}

impl DeadMount {
    fn new() -> Fallible<Self> {
        let call = |answer: i32| {
            if answer == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        };
        let none = c"none".as_ptr();
        call(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let null = std::ptr::null();
        call(unsafe { libc::mount(none, c"/".as_ptr(), null, private, null.cast()) })?;
        let dir = tempfile::tempdir()?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = CString::new(format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        ))?;
        let path = CString::new(dir.path().as_os_str().as_encoded_bytes())?;
        call(unsafe {
            libc::mount(
                c"captive".as_ptr(),
                path.as_ptr(),
                c"fuse".as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        })?;
        Ok(Self {
            dir,
            device: Some(device),
        })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        // Whoever still waits there gets an error.
        drop(self.device.take());
        let path = self.dir.path().as_os_str().as_encoded_bytes();
        if let Ok(path) = CString::new(path) {
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

/// A launch that stalls says where, and holds up no other.
fn stall() -> Outcome {
    let mount = DeadMount::new()?;
    ensure!(Command::new("true").status()?.success(), "true");
    let before = (children(), open_descriptors());
    let limit = Duration::from_millis(300);
    let directory = mount.path("directory");
    let mut there = Command::new("true");
    there.current_dir(&directory).spawn_timeout(limit);
    let mut program = Command::new(mount.path("program"));
    program.spawn_timeout(limit);
    let mut staged = Command::new(mount.path("program"));
    staged.spawn_timeout(limit).run_with(nobody()?);
    let cases = [
        (there, SpawnStep::ChangeDirectory(directory)),
        (program, SpawnStep::Exec),
        (staged, SpawnStep::Exec),
    ];
    for (mut command, step) in cases {
        let done = AtomicBool::new(false);
        let (error, others) = std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    match Command::new("true").status() {
                        Ok(report) if report.success() => count += 1,
                        other => return Err(format!("after {count}: {other:?}")),
                    }
                }
                Ok(count)
            });
            let error = command.spawn();
            done.store(true, Ordering::Relaxed);
            (error, others.join())
        });
        let others = others.map_err(|_| "a panic")??;
        ensure!(others > 0, "{others} others during a stall");
        let error = error.err().ok_or("it was launched")?;
        ensure!(error.step() == Some(&step), "{error:?}, not {step:?}");
        ensure!(
            matches!(&error, SpawnError::Stalled { after, .. } if *after == limit),
            "{error:?}"
        );
        ensure!(error.to_string().contains(&step.to_string()), "{error}");
    }
    await_that("an end of all children", || children() == before.0)?;
    descriptors_as_before(&before.1)?;
    drop(mount);
    ensure!(Command::new("true").status()?.success(), "true");
    Ok(())
}

/// The threads of this process with their names.
fn threads() -> Vec<(i32, String)> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let tid = task.file_name().to_str()?.parse().ok()?;
            Some((tid, name.trim_end().to_owned()))
        })
        .collect()
}

/// 200 captives from 8 threads at once.
fn many() -> Outcome {
    const THREADS: usize = 8;
    const EACH: usize = 25;
    ensure!(Command::new("true").status()?.success(), "true");
    let guard = children();
    ensure!(guard.len() == 1, "{guard:?}");
    let before = open_descriptors();
    let captives = std::thread::scope(|scope| {
        let launchers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    (0..EACH)
                        .map(|_| sleeper().map_err(|error| error.to_string()))
                        .collect::<Result<Vec<_>, _>>()
                })
            })
            .collect();
        launchers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect::<Vec<_>>()
    });
    let mut all = Vec::new();
    for some in captives {
        all.extend(some.map_err(|_| "a panic")??);
    }
    ensure!(children().len() == 1 + THREADS * EACH, "{:?}", children());
    let named = |name: &str| threads().iter().filter(|(_, n)| n == name).count();
    let (spawners, reapers) = (named("captive-spawner"), named("captive-reaper"));
    ensure!((1..=THREADS).contains(&spawners), "{spawners} spawners");
    ensure!(reapers == 1, "{reapers} reapers");
    ensure!(
        open_descriptors().len() <= before.len() + THREADS * EACH,
        "{} descriptors, {} before",
        open_descriptors().len(),
        before.len()
    );
    // Every way to the end.
    for (number, captive) in all.into_iter().enumerate() {
        match number % 4 {
            0 => drop(captive),
            1 => ensure!(
                captive.terminate(HANG)?.ended_by() == EndedBy::Signal,
                "{captive:?}"
            ),
            2 => {
                captive.kill()?;
                ended(&captive)?;
            }
            _ => {
                captive.kill()?;
                drop(captive);
            }
        }
    }
    await_that("an end of all children", || children() == guard)?;
    descriptors_as_before(&before)?;
    await_that("threads as before", || {
        threads().len() == 1 + named("captive-spawner") + named("captive-reaper")
    })?;
    ensure!(named("captive-spawner") == spawners, "more spawners");
    // Nor do more appear.
    for _ in 0..20 {
        ensure!(Command::new("true").status()?.success(), "true");
    }
    ensure!(named("captive-spawner") == spawners, "more spawners");
    Ok(())
}

/// The threads of the crate's leave every signal to the launcher's.
fn blocked() -> Outcome {
    ensure!(Command::new("true").status()?.success(), "true");
    let mask = |tid: i32| -> Fallible<u64> {
        let status = fs::read_to_string(format!("/proc/self/task/{tid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        Ok(u64::from_str_radix(line.ok_or("no mask")?.trim(), 16)?)
    };
    let bit = |number: i32| 1_u64 << (number - 1);
    // Two that cannot be blocked, and those by which C libraries make all threads change their user.
    let mut library = bit(libc::SIGSYS) | bit(32) | bit(33);
    if cfg!(target_env = "musl") {
        library |= bit(34);
    }
    let exempt = bit(libc::SIGKILL) | bit(libc::SIGSTOP) | library;
    let mut seen = 0;
    for (tid, name) in threads() {
        if name.starts_with("captive-") {
            seen += 1;
            let found = mask(tid)?;
            ensure!(found | exempt == u64::MAX, "{name} blocks {found:x}");
            ensure!(found & library == 0, "{name} blocks {found:x}");
        } else {
            ensure!(mask(tid)? == 0, "{name} blocks {:x}", mask(tid)?);
        }
    }
    ensure!(seen == 2, "{seen} threads: {:?}", threads());
    Ok(())
}
