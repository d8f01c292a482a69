//! Captives of programs on tokio, on both of its runtimes.

use std::future::Future;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use captive::exit_with_parent::Signal;
use captive::launcher::tokio::{self as captives, AsyncCaptive, AsyncError, AsyncEvents};
use captive::launcher::{CaptiveError, EndedBy, Event, ExitReport, ExitStatus, ReadyError};
use captive::launcher::{Ready, SpawnError, SpawnStep, Stdio, Stream};
use captive::{Command, Containment};
use libtest_mimic::Trial;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::super::death::scene::{Scene, ends, kill, lives, stop};
use super::super::trees::scene::Held;
use super::super::{children, in_role_with, shell, signal};
use crate::support::cgroups::{Group, version_2};
use crate::support::process::{Reaped, Tracer, await_that};
use crate::support::{Fallible, HANG, Need, Outcome, SURVIVES, Tag, Witness, output, test};

/// A limit beyond that of a test: at its end there is a look, which finds what should have woken.
const LONG: Duration = Duration::from_secs(10 * HANG.as_secs());

type Test = Pin<Box<dyn Future<Output = Outcome>>>;

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    let both: [(&str, &'static [Need], fn() -> Test); 31] = [
        ("wait", &[], || Box::pin(wait())),
        ("spawn-does-not-block", &[], || Box::pin(spawn_aside())),
        ("spawn-error", &[], || Box::pin(spawn_error())),
        ("spawned-again", &[], || Box::pin(spawned_again())),
        ("terminate", &[], || Box::pin(terminate())),
        ("terminate-stopped", &[], || Box::pin(terminate_stopped())),
        ("kill", &[], || Box::pin(kills())),
        ("drop", &[], || Box::pin(drops())),
        ("wait-with-output", &[], || Box::pin(with_output())),
        ("many-waits", &[], || Box::pin(many_waits())),
        ("many-captives", &[], || Box::pin(many_captives())),
        ("cancel-wait", &[], || Box::pin(cancel_wait())),
        ("cancel-terminate", &[], || Box::pin(cancel_terminate())),
        ("cancel-ready", &[], || Box::pin(cancel_ready())),
        ("cancel-tree", &[Need::Root], || Box::pin(cancel_tree())),
        ("cancel-output", &[], || Box::pin(cancel_output())),
        ("cancel-recv", &[], || Box::pin(cancel_recv())),
        ("ready-line", &[], || Box::pin(ready_line())),
        ("ready-file", &[], || Box::pin(ready_file())),
        ("ready-socket", &[Need::Program("python3")], || {
            Box::pin(ready_python(false))
        }),
        ("ready-notify", &[Need::Program("python3")], || {
            Box::pin(ready_python(true))
        }),
        ("ready-errors", &[], || Box::pin(ready_errors())),
        ("ready-without-end", &[], || Box::pin(ready_without_end())),
        ("tree-pid-namespace", &[Need::Root], || {
            Box::pin(trees(Containment::PidNamespace))
        }),
        ("tree-cgroup", &[Need::Root, Need::Cgroups], || {
            Box::pin(trees(Containment::Cgroup))
        }),
        ("tree-marks", &[], || {
            Box::pin(trees(Containment::TreeBestEffort))
        }),
        ("tree-none", &[], || Box::pin(no_tree())),
        ("tree-removed", &[Need::Root, Need::Cgroups], || {
            Box::pin(tree_removed())
        }),
        ("events", &[], || Box::pin(events())),
        ("there-and-back", &[], || Box::pin(there_and_back())),
        ("traced", &[], || Box::pin(traced())),
    ];
    for (name, needs, body) in both {
        for (kind, make) in RUNTIMES {
            let name = format!("captives::adapters::tokio::{kind}::{name}");
            trials.push(test(&name, needs, move || {
                make().block_on(async {
                    match timeout(2 * HANG, body()).await {
                        Ok(outcome) => outcome,
                        Err(_) => Err("it hangs".into()),
                    }
                })
            }));
        }
    }
    let named: [(&str, &'static [Need], fn() -> Outcome); 11] = [
        ("cancel-spawn", &[], || in_role("cancel-spawn")),
        ("signal-event", &[], || in_role("signal-event")),
        ("no-leak", &[], || in_role("no-leak")),
        ("no-runtime", &[], no_runtime),
        ("no-descriptors", &[], || in_role("no-descriptors")),
        ("runtime-ends", &[], runtime_ends),
        ("polled-from-elsewhere", &[], polled_from_elsewhere),
        ("launcher-killed", &[Need::Root], launcher_killed),
        ("guard-then-launcher-killed", &[Need::Root], guard_killed),
        ("detach", &[], detach),
        ("example", &[Need::Root, EXAMPLE], example),
    ];
    for (name, needs, body) in named {
        let name = format!("captives::adapters::tokio::{name}");
        trials.push(test(&name, needs, body));
    }
    trials
}

const RUNTIMES: [(&str, fn() -> Runtime); 2] = [
    ("current", || {
        Builder::new_current_thread().enable_all().build().unwrap()
    }),
    ("multi", || {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().unwrap()
    }),
];

fn in_role(name: &str) -> Outcome {
    in_role_with(&["adapters", "tokio", name])
}

pub fn role(name: &str) -> Outcome {
    // What hangs is ended by SIGALRM.
    unsafe { libc::alarm(2 * HANG.as_secs() as u32) };
    match name {
        "cancel-spawn" => cancel_spawn(),
        "signal-event" => signal_event(),
        "no-leak" => no_leak(),
        "no-descriptors" => no_descriptors(),
        _ => Err(format!("no role {name}").into()),
    }
}

/// Polls once and drops; whether it was pending.
pub fn is_pending<F: Future>(future: F) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    pin!(future).poll(&mut context).is_pending()
}

/// All futures may move between threads.
fn _are_send(captive: AsyncCaptive, mut events: AsyncEvents) {
    fn is_send<T: Send>(_: &T) {}
    let limit = Duration::ZERO;
    is_send(&captives::spawn(Command::new("true")));
    is_send(&captive.wait());
    is_send(&captive.terminate(limit));
    is_send(&captive.wait_tree(limit));
    is_send(&captive.wait_ready(limit));
    is_send(&events.recv());
    fn is_send_and_sync<T: Send + Sync>(_: &T) {}
    is_send_and_sync(&captive);
    is_send(&captive.detach());
}

async fn spawn(command: Command) -> Fallible<AsyncCaptive> {
    Ok(timeout(HANG, captives::spawn(command)).await??)
}

async fn sleeper() -> Fallible<AsyncCaptive> {
    let mut command = Command::new("sleep");
    command.arg("600");
    spawn(command).await
}

async fn ended(captive: &AsyncCaptive) -> Fallible<ExitReport> {
    match timeout(HANG, captive.wait()).await {
        Ok(report) => Ok(report?),
        Err(_) => Err("it does not end".into()),
    }
}

fn witness(captive: &AsyncCaptive) -> Fallible<Witness> {
    Ok(Witness::of(captive.id() as i32)?)
}

/// One that runs this until its standard input ends or has a line.
async fn with_input(script: &str) -> Fallible<AsyncCaptive> {
    let mut command = shell(script);
    command.stdin(Stdio::piped());
    spawn(command).await
}

fn killed_by(report: &ExitReport) -> Option<i32> {
    report.status().signal().map(Signal::number)
}

async fn wait() -> Outcome {
    let captive = spawn(shell("exit 7")).await?;
    for _ in 0..3 {
        let report = ended(&captive).await?;
        ensure!(report.status() == ExitStatus::Exited(7), "{report:?}");
        ensure!(report.usage().is_some(), "{report:?}");
    }
    ensure!(captive.try_wait()?.is_some(), "try_wait");
    // A signal after the end is nobody's.
    captive.kill()?;
    // One that ends during the wait.
    let mut captive = with_input("read line; exit 8").await?;
    ensure!(is_pending(captive.wait()), "it has ended");
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    drop(captive.stdin.take());
    ensure!(ended(&captive).await?.status().code() == Some(8), "8");
    Ok(())
}

/// What waits for the exec is not the worker that polls.
async fn spawn_aside() -> Outcome {
    // A blocking thread may be faster than the poll now and then.
    for _ in 0..20 {
        let mut spawning = Box::pin(captives::spawn(shell("exit 0")));
        let mut context = Context::from_waker(Waker::noop());
        if spawning.as_mut().poll(&mut context).is_pending() {
            let captive = timeout(HANG, spawning).await??;
            ensure!(ended(&captive).await?.success(), "true");
            return Ok(());
        }
    }
    Err("it is launched by the poll".into())
}

async fn spawn_error() -> Outcome {
    let spawned = captives::spawn(Command::new("/nowhere/nothing")).await;
    let error = spawned.err().ok_or("it was launched")?;
    let is_exec = |error: &SpawnError| error.step() == Some(&SpawnStep::Exec);
    ensure!(
        matches!(&error, AsyncError::Spawn(error) if is_exec(error)),
        "{error:?}"
    );
    ensure!(error.to_string().contains("/nowhere/nothing"), "{error}");
    ensure!(std::error::Error::source(&error).is_some(), "no cause");
    Ok(())
}

async fn spawned_again() -> Outcome {
    let command = Arc::new(shell("exit 3"));
    for _ in 0..3 {
        let captive = timeout(HANG, captives::spawn(Arc::clone(&command))).await??;
        ensure!(ended(&captive).await?.status().code() == Some(3), "3");
    }
    Ok(())
}

/// A shell that has set its traps.
async fn ready(script: &str) -> Fallible<AsyncCaptive> {
    let mut command = shell(script);
    command.stdout(Stdio::piped());
    command.ready(Ready::Line(Stream::Stdout, "ready".into()));
    let captive = spawn(command).await?;
    captive.wait_ready(LONG).await?;
    Ok(captive)
}

const HANDLES: &str = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done";
const IGNORES: &str = "trap '' TERM; echo ready; while :; do sleep 1; done";

async fn terminate() -> Outcome {
    let report = sleeper().await?.terminate(HANG).await?;
    ensure!(killed_by(&report) == Some(libc::SIGTERM), "{report:?}");
    ensure!(report.ended_by() == EndedBy::Signal, "{report:?}");
    let report = ready(HANDLES).await?.terminate(HANG).await?;
    ensure!(report.status() == ExitStatus::Exited(3), "{report:?}");
    let deaf = ready(IGNORES).await?;
    let report = deaf.terminate(Duration::from_millis(50)).await?;
    ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
    ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
    // Again, of one that has ended.
    ensure!(deaf.terminate(HANG).await? == report, "another report");
    Ok(())
}

async fn terminate_stopped() -> Outcome {
    let captive = sleeper().await?;
    stop(&witness(&captive)?)?;
    let report = captive.terminate(HANG).await?;
    ensure!(killed_by(&report) == Some(libc::SIGTERM), "{report:?}");
    Ok(())
}

async fn kills() -> Outcome {
    let captive = sleeper().await?;
    captive.kill()?;
    let report = ended(&captive).await?;
    ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
    let captive = sleeper().await?;
    captive.signal(signal(libc::SIGUSR1))?;
    let report = ended(&captive).await?;
    ensure!(killed_by(&report) == Some(libc::SIGUSR1), "{report:?}");
    Ok(())
}

/// Reaped as well, by a thread of the crate's.
async fn drops() -> Outcome {
    let captive = sleeper().await?;
    let witness = witness(&captive)?;
    drop(captive);
    ends("the dropped one", &witness)?;
    await_that("the reaping", || {
        !Path::new(&format!("/proc/{}", witness.pid)).exists()
    })
}

async fn with_output() -> Outcome {
    let mut command = shell(
        "cat; i=0; while [ $i -lt 3000 ]; do echo $i-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; \
         echo $i-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb >&2; i=$((i+1)); done; exit 4",
    );
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let captive = spawn(command).await?;
    let output = timeout(HANG, captive.wait_with_output()).await??;
    ensure!(output.status.code() == Some(4), "{}", output.status);
    for (text, letter) in [(output.stdout, "a"), (output.stderr, "b")] {
        let text = String::from_utf8(text)?;
        ensure!(
            text.lines().count() == 3000,
            "{} lines",
            text.lines().count()
        );
        ensure!(text.starts_with(&format!("0-{letter}")), "the first");
        ensure!(text.ends_with(&format!("{letter}\n")), "the last");
    }
    Ok(())
}

/// Each of which is to be woken, and those that come later too.
async fn many_waits() -> Outcome {
    let mut captive = with_input("read line; exit 9").await?;
    let stdin = captive.stdin.take();
    let captive = Arc::new(captive);
    let mut tasks = Vec::new();
    for _ in 0..100 {
        let captive = Arc::clone(&captive);
        tasks.push(tokio::spawn(async move {
            captive.wait().await.map(|report| report.status())
        }));
    }
    // All are waiting: with one worker, and no wake-up so far, each has been polled once.
    tokio::task::yield_now().await;
    drop(stdin);
    for task in tasks {
        let status = timeout(HANG, task).await???;
        ensure!(status == ExitStatus::Exited(9), "{status}");
    }
    ensure!(ended(&captive).await?.status().code() == Some(9), "9");
    Ok(())
}

async fn many_captives() -> Outcome {
    let mut tasks = Vec::new();
    for code in 0..100 {
        tasks.push(tokio::spawn(async move {
            let captive = captives::spawn(shell(&format!("exit {code}")))
                .await
                .unwrap();
            captive.wait().await.unwrap().status()
        }));
    }
    for (code, task) in (0..).zip(tasks) {
        let status = timeout(HANG, task).await??;
        ensure!(status == ExitStatus::Exited(code), "{status}, not {code}");
    }
    Ok(())
}

async fn cancel_wait() -> Outcome {
    let mut captive = with_input("read line; exit 5").await?;
    for _ in 0..10 {
        ensure!(is_pending(captive.wait()), "it has ended");
        let short = timeout(Duration::from_millis(1), captive.wait());
        ensure!(short.await.is_err(), "it has ended");
    }
    drop(captive.stdin.take());
    ensure!(witness(&captive)?.gone(), "it does not end");
    ensure!(ended(&captive).await?.status().code() == Some(5), "5");
    Ok(())
}

/// As documented: no SIGKILL after the grace, and another call goes on.
async fn cancel_terminate() -> Outcome {
    let captive = ready(IGNORES).await?;
    let witness = witness(&captive)?;
    ensure!(is_pending(captive.terminate(HANG)), "it ended");
    let grace = Duration::from_millis(100);
    let cut = timeout(Duration::from_millis(10), captive.terminate(grace));
    ensure!(cut.await.is_err(), "it ended");
    lives("one whose terminate was dropped", &witness)?;
    let report = captive.terminate(grace).await?;
    ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
    Ok(())
}

/// Half a line has been read by a wait that is dropped.
async fn cancel_ready() -> Outcome {
    let mut command = shell("printf 'first\\nrea'; read line; printf 'dy\\n'; exec sleep 600");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.ready(Ready::Line(Stream::Stdout, "ready".into()));
    let mut captive = spawn(command).await?;
    ensure!(is_pending(captive.wait_ready(LONG)), "it is ready");
    // What is read in one wait, dropped or at its limit, is there in the next.
    let deadline = Instant::now() + HANG;
    loop {
        let cut = timeout(Duration::from_millis(2), captive.wait_ready(LONG));
        ensure!(cut.await.is_err(), "it is ready");
        match captive.wait_ready(Duration::from_millis(1)).await {
            Err(ReadyError::TimedOut { output, .. }) if output == b"first\nrea" => break,
            Err(ReadyError::TimedOut { .. }) if Instant::now() < deadline => {}
            other => return Err(format!("{other:?}").into()),
        }
    }
    drop(captive.stdin.take());
    let ready = captive.wait_ready(LONG).await?;
    ensure!(ready.output == b"first\nready\n", "{ready:?}");
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    Ok(())
}

async fn cancel_tree() -> Outcome {
    let mut command = shell("setsid sleep 600 & read line; exit 6");
    command.stdin(Stdio::piped());
    command.containment(Containment::PidNamespace);
    let mut captive = spawn(command).await?;
    for _ in 0..10 {
        ensure!(is_pending(captive.wait_tree(LONG)), "it has ended");
    }
    drop(captive.stdin.take());
    ensure!(captive.wait_tree(LONG).await?, "the tree is left");
    ensure!(ended(&captive).await?.status().code() == Some(6), "6");
    Ok(())
}

/// As documented: the handle is in the future.
async fn cancel_output() -> Outcome {
    let mut command = shell("echo something; exec sleep 600");
    command.stdout(Stdio::piped());
    let captive = spawn(command).await?;
    let witness = witness(&captive)?;
    let cut = timeout(Duration::from_millis(20), captive.wait_with_output());
    ensure!(cut.await.is_err(), "it ended");
    ends("one whose output was waited for", &witness)
}

async fn cancel_recv() -> Outcome {
    let mut events = captives::events()?;
    let captive = spawn(shell("exit 2")).await?;
    ensure!(is_pending(events.recv()), "an event");
    let witness = witness(&captive)?;
    events.watch(&captive)?;
    ensure!(witness.gone(), "it does not end");
    for _ in 0..10 {
        if timeout(Duration::from_micros(100), events.recv())
            .await
            .is_ok()
        {
            return Ok(());
        }
    }
    timeout(HANG, events.recv()).await?;
    Ok(())
}

/// Bytes that wait in a pipe.
fn waiting(pipe: &impl AsRawFd) -> i32 {
    let mut count = 0;
    let answer = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    assert_eq!(answer, 0);
    count
}

async fn ready_line() -> Outcome {
    // Several at a time, each with the same answer: one reads what the others have to be told of.
    for _ in 0..20 {
        let script = "echo one >&2; read line; echo the ready line >&2; echo; exec sleep 600";
        let mut command = shell(script);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.ready(Ready::Line(Stream::Stderr, "ready".into()));
        let mut captive = spawn(command).await?;
        let stdin = captive.stdin.take();
        let captive = Arc::new(captive);
        let mut tasks = Vec::new();
        for _ in 0..5 {
            let captive = Arc::clone(&captive);
            tasks.push(tokio::spawn(async move { captive.wait_ready(LONG).await }));
        }
        // Time for their first looks; whichever it is, all are told.
        tokio::time::sleep(Duration::from_millis(3)).await;
        drop(stdin);
        // Read by one before the runtime looks for events, if this is its only thread: an edge is not told of what has been
        // read since. What the shell says after the line tells that it has come, also if a look that was under way has read
        // it.
        let said = captive.stdout.as_ref().ok_or("no pipe")?;
        await_that("the line", || waiting(said) != 0)?;
        let pipe = captive.stderr.as_ref().ok_or("no pipe")?;
        let mut one = pin!(captive.wait_ready(LONG));
        let mut context = Context::from_waker(Waker::noop());
        let _ = one.as_mut().poll(&mut context);
        await_that("a look", || waiting(pipe) == 0)?;
        for task in tasks {
            let ready = timeout(HANG, task).await???;
            ensure!(ready.output == b"one\nthe ready line\n", "{ready:?}");
        }
        captive.wait_ready(Duration::ZERO).await?;
    }
    Ok(())
}

async fn ready_file() -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("pid");
    let mut command = shell("read line; echo $$ > pid; exec sleep 600");
    command.stdin(Stdio::piped()).current_dir(dir.path());
    command.ready(Ready::File(file));
    let mut captive = spawn(command).await?;
    let short = captive.wait_ready(Duration::from_millis(30)).await;
    ensure!(
        matches!(short, Err(ReadyError::TimedOut { .. })),
        "{short:?}"
    );
    drop(captive.stdin.take());
    captive.wait_ready(LONG).await?;
    // A look even without time.
    captive.wait_ready(Duration::ZERO).await?;
    Ok(())
}

/// A socket that is listened on, or a word to the notification socket.
async fn ready_python(notify: bool) -> Outcome {
    let dir = tempfile::tempdir()?;
    let script = if notify {
        "import os, socket, sys, time\n\
         sys.stdin.readline()\n\
         s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         s.sendto(b'STATUS=up\\nREADY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
         time.sleep(600)"
    } else {
        "import socket, sys, time\n\
         sys.stdin.readline()\n\
         s = socket.socket(socket.AF_UNIX)\n\
         s.bind('socket')\n\
         s.listen()\n\
         time.sleep(600)"
    };
    let mut command = Command::new("python3");
    command.args(["-c", script]).current_dir(dir.path());
    command.stdin(Stdio::piped());
    command.ready(match notify {
        true => Ready::Notify,
        false => Ready::UnixListener(dir.path().join("socket")),
    });
    let mut captive = spawn(command).await?;
    ensure!(is_pending(captive.wait_ready(LONG)), "it is ready");
    let cut = timeout(Duration::from_millis(20), captive.wait_ready(LONG));
    ensure!(cut.await.is_err(), "it is ready");
    drop(captive.stdin.take());
    let ready = captive.wait_ready(LONG).await?;
    ensure!(
        (ready.status.as_deref() == Some("up")) == notify,
        "{ready:?}"
    );
    Ok(())
}

async fn ready_errors() -> Outcome {
    let captive = sleeper().await?;
    let error = captive.wait_ready(LONG).await;
    ensure!(matches!(error, Err(ReadyError::NotAsked)), "{error:?}");
    let mut command = shell("echo not yet; exit 4");
    command.stdout(Stdio::piped());
    command.ready(Ready::Line(Stream::Stdout, "ready".into()));
    let error = spawn(command).await?.wait_ready(LONG).await;
    ensure!(
        matches!(&error, Err(ReadyError::Ended { report, output, .. })
            if report.status().code() == Some(4) && output == b"not yet\n"),
        "{error:?}"
    );
    let mut command = shell("exec sleep 600 >&-");
    command.stdout(Stdio::piped());
    command.ready(Ready::Line(Stream::Stdout, "ready".into()));
    let mut captive = spawn(command).await?;
    let error = captive.wait_ready(LONG).await;
    ensure!(matches!(error, Err(ReadyError::Closed { .. })), "{error:?}");
    captive.stdout = None;
    let error = captive.wait_ready(LONG).await;
    ensure!(matches!(error, Err(ReadyError::Look { .. })), "{error:?}");
    Ok(())
}

/// One that never stops writing does not keep the wait from its limit; nor does it the blocking one.
async fn ready_without_end() -> Outcome {
    let mut command = Command::new("yes");
    command.stdout(Stdio::piped());
    command.ready(Ready::Line(Stream::Stdout, "ready".into()));
    let captive = spawn(command).await?;
    let limit = Duration::from_millis(100);
    let error = timeout(HANG, captive.wait_ready(limit)).await?;
    ensure!(
        matches!(error, Err(ReadyError::TimedOut { .. })),
        "{}",
        error.map_or_else(|error| error.to_string(), |_| "ready".into())
    );
    // As fast as can be, and one look.
    let mut captive = captive.into_inner().map_err(|(_, error)| error)?;
    let zeroes: std::os::fd::OwnedFd = std::fs::File::open("/dev/zero")?.into();
    // Kept: `yes` does not outlive it.
    let _pipe = captive.stdout.replace(zeroes.into());
    let error = captive.wait_ready(Duration::ZERO);
    ensure!(
        matches!(error, Err(ReadyError::TimedOut { .. })),
        "{}",
        error.map_or_else(|error| error.to_string(), |_| "ready".into())
    );
    Ok(())
}

async fn trees(kind: Containment) -> Outcome {
    let tag = Tag::new();
    let mut command = shell("(trap '' TERM HUP; setsid sleep 601) & echo on; read line; exit 6");
    command.env("CAPTIVE_TEST_TAG", tag.value());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.ready(Ready::Line(Stream::Stdout, "on".into()));
    command.containment(kind);
    let mut captive = spawn(command).await?;
    ensure!(captive.containment() == kind, "{}", captive.containment());
    captive.wait_ready(LONG).await?;
    let daemon = tag.await_process("sleep")?;
    let short = captive.wait_tree(Duration::from_millis(30)).await?;
    ensure!(!short && daemon.alive(), "{kind}: it has ended");
    drop(captive.stdin.take());
    ensure!(captive.wait_tree(LONG).await?, "{kind}: something is left");
    // A walk does not find what has no memory any more, and so no environment, in the middle of its exit.
    let is_gone = match kind {
        Containment::TreeBestEffort => daemon.gone(),
        _ => !daemon.alive(),
    };
    ensure!(is_gone, "{kind}: the daemon is left");
    ensure!(captive.wait_tree(Duration::ZERO).await?, "{kind}: again");
    ensure!(ended(&captive).await?.status().code() == Some(6), "6");
    Ok(())
}

/// Its own end counts.
async fn no_tree() -> Outcome {
    let captive = sleeper().await?;
    ensure!(!captive.wait_tree(Duration::ZERO).await?, "it runs");
    captive.kill()?;
    ensure!(captive.wait_tree(LONG).await?, "it has ended");
    Ok(())
}

/// Others remove its cgroup when it is empty. The kernel says no more of that then: what would be said within 10 ms of a
/// change is said later, and forgotten with the file (cgroup_file_notify, cgroup_rm_file).
async fn tree_removed() -> Outcome {
    let group = Group::new(version_2(), &[])?;
    let tag = Tag::new();
    let mut command = shell("(trap '' TERM HUP; setsid sleep 601) & echo on; read line; exit 6");
    command.env("CAPTIVE_TEST_TAG", tag.value());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.ready(Ready::Line(Stream::Stdout, "on".into()));
    command.containment(Containment::Cgroup).cgroup(&group.0);
    let mut captive = spawn(command).await?;
    captive.wait_ready(LONG).await?;
    let held = Held::new(&tag.await_process("sleep")?)?;
    drop(captive.stdin.take());
    let mut waiting = pin!(captive.wait_tree(LONG));
    let early = timeout(SURVIVES, &mut waiting).await;
    ensure!(early.is_err(), "the end of a tree that is held");
    held.is_killed()?;
    let mut below = std::fs::read_dir(&group.0)?.flatten();
    let directory = below.find(|entry| entry.path().is_dir());
    let directory = directory.ok_or("no cgroup")?.path();
    // A change, of which it is told, and then the end.
    std::fs::write(directory.join("cgroup.freeze"), "1")?;
    let early = timeout(Duration::from_millis(2), &mut waiting).await;
    ensure!(early.is_err(), "the end of a tree that is held");
    held.release()?;
    await_that("the end of the cgroup", || {
        std::fs::remove_dir(&directory).is_ok() || !directory.exists()
    })?;
    ensure!(timeout(HANG, waiting).await??, "something is left");
    Ok(())
}

async fn events() -> Outcome {
    let mut events = captives::events()?;
    ensure!(events.try_recv().is_none(), "an event");
    let mut waiting = Vec::new();
    for code in 0..20 {
        let captive = spawn(shell(&format!("exit {code}"))).await?;
        events.watch(&captive)?;
        waiting.push((captive.id(), code));
    }
    // Those were dropped, which is SIGKILL unless they had ended.
    while !waiting.is_empty() {
        let Event::Exited { pid, report } = timeout(HANG, events.recv()).await? else {
            return Err("another event".into());
        };
        let place = waiting.iter().position(|(id, _)| *id == pid);
        let (_, code) = waiting.swap_remove(place.ok_or("nobody's event")?);
        let killed = killed_by(&report) == Some(libc::SIGKILL);
        ensure!(killed || report.status().code() == Some(code), "{report:?}");
    }
    // While somebody waits, from another task too; and of a captive that is no runtime's.
    let captive = sleeper().await?;
    events.watch(&captive)?;
    let other = Command::new("sleep").arg("600").spawn()?;
    events.watch(&other)?;
    let receiving = tokio::spawn(async move { (events.recv().await, events.recv().await) });
    tokio::task::yield_now().await;
    captive.kill()?;
    other.kill()?;
    let (one, two) = timeout(HANG, receiving).await??;
    for event in [one, two] {
        let ids = [captive.id(), other.id()];
        ensure!(
            matches!(&event, Event::Exited { pid, .. } if ids.contains(pid)),
            "{event:?}"
        );
    }
    Ok(())
}

/// From a captive that was launched otherwise, and to one.
async fn there_and_back() -> Outcome {
    let mut command = shell("cat; exit 3");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let captive = AsyncCaptive::new(command.spawn()?).map_err(|(_, error)| error)?;
    let stdin = captive.stdin.as_ref().ok_or("no pipe")?;
    stdin.writable().await?;
    ensure!(stdin.try_write(b"in")? == 2, "a short write");
    let flags = |fd: &dyn AsRawFd| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    ensure!(flags(stdin) & libc::O_NONBLOCK != 0, "it blocks");
    let mut captive = captive.into_inner().map_err(|(_, error)| error)?;
    let stdin = captive.stdin.take().ok_or("no pipe")?;
    ensure!(flags(&stdin) & libc::O_NONBLOCK == 0, "it does not block");
    drop(stdin);
    let output = captive.wait_with_output()?;
    ensure!(output.status.code() == Some(3), "{}", output.status);
    ensure!(output.stdout == b"in", "{output:?}");
    Ok(())
}

/// Its end can be seen, and the kernel does not say how it ended before the tracer lets go.
async fn traced() -> Outcome {
    let captive = sleeper().await?;
    let tracer = Tracer::of(captive.id() as i32)?;
    captive.kill()?;
    ensure!(witness(&captive)?.gone(), "it does not end");
    let early = timeout(SURVIVES, captive.wait()).await;
    // One that begins when the event has come and gone.
    let late = timeout(HANG, captive.wait());
    let mut late = pin!(late);
    let mut context = Context::from_waker(Waker::noop());
    ensure!(late.as_mut().poll(&mut context).is_pending(), "a status");
    tracer.release()?;
    ensure!(early.is_err(), "a status while it was traced");
    let report = late.await??;
    ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
    Ok(())
}

fn cancel_spawn() -> Outcome {
    for (_, make) in RUNTIMES {
        for round in 0..20 {
            let runtime = make();
            runtime.block_on(async {
                let spawning = captives::spawn({
                    let mut command = Command::new("sleep");
                    command.arg("600");
                    command
                });
                if round % 2 == 0 {
                    let _ = is_pending(spawning);
                } else {
                    let _ = timeout(Duration::from_micros(200), spawning).await;
                }
            });
            // It waits for what it has begun.
            drop(runtime);
            await_that("no child but the guard", || children().len() <= 1)?;
        }
    }
    Ok(())
}

fn signal_event() -> Outcome {
    let runtime = RUNTIMES[1].1();
    runtime.block_on(async {
        let mut events = captives::events()?;
        let usr1 = signal(libc::SIGUSR1);
        events.signal(usr1)?;
        ensure!(is_pending(events.recv()), "an event");
        unsafe { libc::raise(libc::SIGUSR1) };
        let event = timeout(HANG, events.recv()).await?;
        ensure!(event == Event::Signal(usr1), "{event:?}");
        let refused = events.signal(Signal::KILL);
        ensure!(refused.is_err(), "SIGKILL was caught");
        Ok(())
    })
}

fn no_leak() -> Outcome {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    for (kind, make) in RUNTIMES {
        let runtime = make();
        let cycle = || -> Outcome {
            runtime.block_on(async {
                let mut command = shell("echo ready; read line; exit 1");
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                command.ready(Ready::Line(Stream::Stdout, "ready".into()));
                let mut captive = spawn(command).await?;
                captive.wait_ready(LONG).await?;
                ensure!(is_pending(captive.wait()), "it has ended");
                drop(captive.stdin.take());
                ended(&captive).await?;
                drop(sleeper().await?);
                Ok(())
            })
        };
        cycle()?;
        await_that("a quiet launcher", || children().len() == 1)?;
        let before = count();
        for _ in 0..50 {
            cycle()?;
        }
        await_that("no child but the guard", || children().len() == 1)?;
        await_that("the descriptors as before", || count() <= before)
            .map_err(|error| format!("{kind}: {error}: {} > {before}", count()))?;
    }
    Ok(())
}

/// The captive is given back, with pipes that block, whichever copy there is no room for.
fn no_descriptors() -> Outcome {
    let runtime = RUNTIMES[0].1();
    let context = runtime.enter();
    let mut command = shell("cat; exit 3");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut captive = command.spawn()?;
    let kind = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, hard) = nix::sys::resource::getrlimit(kind)?;
    nix::sys::resource::setrlimit(kind, 200, hard)?;
    let mut fill = Vec::new();
    // The crate's threads may have some of their own for a moment.
    for _ in 0..20 {
        while let Ok(file) = std::fs::File::open("/dev/null") {
            fill.push(file);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for expected in ["pidfd", "pipes", "pipes"] {
        let (back, error) = AsyncCaptive::new(captive).err().ok_or("there was room")?;
        captive = back;
        let AsyncError::Register { what, errno } = &error else {
            return Err(error.into());
        };
        ensure!(*what == expected, "{what}, not {expected}");
        ensure!(errno.raw_os_error() == Some(libc::EMFILE), "{errno}");
        let pipes = (captive.stdin.as_ref(), captive.stdout.as_ref());
        let (stdin, stdout) = (pipes.0.ok_or("no pipe")?, pipes.1.ok_or("no pipe")?);
        for fd in [stdin.as_raw_fd(), stdout.as_raw_fd()] {
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            ensure!(
                flags & libc::O_NONBLOCK == 0,
                "{expected}: it does not block"
            );
        }
        fill.pop();
    }
    let captive = AsyncCaptive::new(captive).map_err(|(_, error)| error)?;
    drop((fill, context));
    let output = runtime.block_on(captive.wait_with_output())?;
    ensure!(output.status.code() == Some(3), "{}", output.status);
    Ok(())
}

/// An error that gives the captive back.
fn no_runtime() -> Outcome {
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::piped());
    let captive = command.spawn()?;
    let (captive, error) = AsyncCaptive::new(captive).err().ok_or("there was one")?;
    ensure!(matches!(error, AsyncError::NoRuntime(_)), "{error:?}");
    ensure!(error.to_string().contains("no tokio runtime"), "{error}");
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    ensure!(captive.stdin.is_some(), "its pipe is gone");
    let mut spawning = pin!(captives::spawn(command));
    let mut context = Context::from_waker(Waker::noop());
    let spawned = spawning.as_mut().poll(&mut context);
    ensure!(
        matches!(spawned, Poll::Ready(Err(AsyncError::NoRuntime(_)))),
        "{spawned:?}"
    );
    // Events need none.
    let mut events = captives::events()?;
    events.watch(&captive)?;
    captive.kill()?;
    let event = block_on(events.recv());
    ensure!(matches!(event, Event::Exited { .. }), "{event:?}");
    Ok(())
}

/// An executor of its own, which has nothing of tokio's.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut context) {
            return answer;
        }
        std::thread::park();
    }
}

/// The captive does not end with it, and waits say so.
fn runtime_ends() -> Outcome {
    for (_, make) in RUNTIMES {
        let runtime = make();
        let captive = runtime.block_on(sleeper())?;
        drop(runtime);
        ensure!(captive.try_wait()?.is_none(), "it has ended");
        let waited = block_on(captive.wait());
        ensure!(
            matches!(waited, Err(CaptiveError::Wait { .. })),
            "{waited:?}"
        );
        captive.kill()?;
        ensure!(witness(&captive)?.gone(), "it does not end");
        let report = captive.try_wait()?.ok_or("no report")?;
        ensure!(killed_by(&report) == Some(libc::SIGKILL), "{report:?}");
        ensure!(block_on(captive.wait())? == report, "another report");
        // And on to another.
        let captive = runtime_of_another(captive)?;
        ensure!(captive == report, "another report");
    }
    // What cannot be waited for can be detached from no runtime that has ended, and is not lost.
    let runtime = RUNTIMES[1].1();
    let mut command = Command::new("sleep");
    command.arg("600").detachable(true);
    let captive = runtime.block_on(spawn(command))?;
    drop(runtime);
    let (captive, error) = block_on(captive.detach()).err().ok_or("it was let go")?;
    ensure!(matches!(error, CaptiveError::Guard(_)), "{error:?}");
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    Ok(())
}

fn runtime_of_another(captive: AsyncCaptive) -> Fallible<ExitReport> {
    let captive = captive.into_inner().map_err(|(_, error)| error)?;
    RUNTIMES[0].1().block_on(async {
        let captive = AsyncCaptive::new(captive).map_err(|(_, error)| error)?;
        ended(&captive).await
    })
}

fn polled_from_elsewhere() -> Outcome {
    let runtime = RUNTIMES[1].1();
    let captive = runtime.block_on(ready(HANDLES))?;
    ensure!(
        !block_on(captive.wait_tree(Duration::from_millis(10)))?,
        "ended"
    );
    let report = block_on(captive.terminate(HANG))?;
    ensure!(report.status() == ExitStatus::Exited(3), "{report:?}");
    Ok(())
}

fn scene() -> Fallible<Scene> {
    Scene::of(&["adapters", "launcher"])
}

/// Of each runtime, and each kind.
fn six(scene: &mut Scene) -> Fallible<Vec<Witness>> {
    let mut all = Vec::new();
    for runtime in ["current", "multi"] {
        for kind in ["plain", "user", "self"] {
            all.push(scene.make(&format!("{runtime} {kind}"))?);
        }
    }
    for captive in &all {
        ensure!(captive.alive(), "one has ended");
    }
    Ok(all)
}

fn launcher_killed() -> Outcome {
    let mut scene = scene()?;
    let captives = six(&mut scene)?;
    let guard = scene.guard()?;
    scene.kill()?;
    for captive in &captives {
        ends("a captive", captive)?;
    }
    ends("the guard", &guard)?;
    scene.nothing_left()
}

fn guard_killed() -> Outcome {
    let mut scene = scene()?;
    let captives = six(&mut scene)?;
    let old = scene.guard()?;
    kill(&old)?;
    let new = scene.guard_after(&old)?;
    // It has been told of all: a launch goes through the same lock.
    scene.make("multi plain")?;
    scene.kill()?;
    for captive in &captives {
        ends("a captive", captive)?;
    }
    ends("the new guard", &new)?;
    scene.nothing_left()
}

const EXAMPLE: Need = Need::Example("launch_async");

fn example() -> Outcome {
    let tag = Tag::new();
    let program = crate::support::needs::example("launch_async");
    let mut command = tag.command(program.to_str().ok_or("a name")?);
    let done = output(command.args(["sh", "-c", "exit 3"]))?;
    ensure!(done.stdout == b"exit status 3\n", "{done:?}");
    let mut command = tag.command(program.to_str().ok_or("a name")?);
    command
        .args(["sleep", "600"])
        .stdout(std::process::Stdio::piped());
    let mut launcher = Reaped(command.spawn()?);
    let sleeping = tag.await_process("sleep")?;
    Witness::of(launcher.0.id() as i32)?.signal(libc::SIGTERM);
    ends("the command", &sleeping)?;
    ensure!(launcher.0.wait()?.success(), "the example failed");
    let mut said = String::new();
    let mut stdout = launcher.0.stdout.take().ok_or("no pipe")?;
    std::io::Read::read_to_string(&mut stdout, &mut said)?;
    ensure!(said.ends_with("in order\nkilled by TERM\n"), "{said:?}");
    Ok(())
}

fn detach() -> Outcome {
    let mut scene = scene()?;
    let free = scene.make("detach plain detachable=1")?;
    let cut = scene.make("detach-cancelled plain detachable=1")?;
    let held = scene.make("multi plain detachable=1")?;
    let refused = scene.session.ask("detach-refused plain")?;
    ensure!(refused.contains("not launched as detachable"), "{refused}");
    scene.kill()?;
    ends("the one that was not detached", &held)?;
    lives("the detached one", &free)?;
    lives("the one whose future was dropped", &cut)?;
    kill(&free)?;
    kill(&cut)?;
    scene.nothing_left()
}
