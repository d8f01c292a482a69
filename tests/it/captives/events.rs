//! One channel for all: ends of captives, the end of the launcher's parent, signals.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio as StdStdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use captive::exit_with_parent::{ExitWithParent, Signal};
use captive::launcher::{
    CaptiveError, EndedBy, Event, Events, EventsError, ExitReport, ExitStatus, Stdio, events,
};
use captive::{Captive, Command};
use libtest_mimic::Trial;

use super::handle::status_is_kept;
use super::steps::{CONTAINMENTS, doing, needs_of};
use super::{in_role, shell, signal};
use crate::support::process::{Reaped, await_that, readable_within};
use crate::support::{Fallible, HANG, Outcome, SURVIVES, Tag, Witness, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for containment in CONTAINMENTS {
        let name = format!("captives::events::end-of-the-main-process::{containment}");
        trials.push(test(&name, needs_of(containment), move || {
            let tag = Tag::new();
            let steps = ["leave", "6", "for-ever"];
            let captive = doing(&tag, &steps)?.containment(containment).spawn()?;
            let events = events()?;
            events.watch(&captive)?;
            let (pid, report) = exited(&events)?;
            ensure!(pid == captive.id(), "{pid}");
            ensure!(report.status() == ExitStatus::Exited(6), "{report:?}");
            ensure!(captive.wait()? == report, "another report");
            nothing_more(&events)
        }));
    }
    let mut add = |name: &str, body: fn() -> Outcome| {
        trials.push(test(&format!("captives::events::{name}"), &[], body));
    };
    add("in-order", in_order);
    add("all-at-once", all_at_once);
    add("watched-then-dropped", watched_then_dropped);
    add("watched-after-its-end", watched_after_its_end);
    add("waited-for-as-well", waited_for_as_well);
    add("not-watched", not_watched);
    add("let-go", let_go);
    add("two-on-one-captive", two_on_one);
    add("receiver-dropped", receiver_dropped);
    add("receiver-outlives", receiver_outlives);
    add("from-many-threads", from_many_threads);
    add("foreign-waiter", || in_role("events", "foreign-waiter"));
    add("sigchld-ignored", || in_role("events", "sigchld-ignored"));
    add("forked", || in_role("events", "forked"));
    add("signals", || in_role("events", "signals"));
    add("signals-that-count", || in_role("events", "many-signals"));
    add("signals-refused", || in_role("events", "refused"));
    add("signals-of-two", || in_role("events", "two-for-a-signal"));
    add("signal-after-drop", || in_role("events", "dispositions"));
    add("signal-handler-before", || in_role("events", "handlers"));
    add("signal-handler-on-top", || in_role("events", "on-top"));
    add("signal-with-signal-hook", || {
        in_role("events", "signal-hook")
    });
    add("signals-of-a-forked-child", || {
        in_role("events", "forked-signals")
    });
    add("handler-is-not-inherited", || {
        in_role("events", "not-inherited")
    });
    add("system-calls-are-restarted", || {
        in_role("events", "restarted")
    });
    add("parent", parent);
    add("parent-not-after-drop", parent_not_after_drop);
    add("no-thread-and-no-descriptor-left", || {
        in_role("events", "nothing-left")
    });
    trials
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    // What hangs is ended by SIGALRM.
    unsafe { libc::alarm(60) };
    let outcome = match args.first().and_then(|arg| arg.to_str()) {
        Some("foreign-waiter") => foreign_waiter(),
        Some("sigchld-ignored") => sigchld_ignored(),
        Some("forked") => forked(),
        Some("signals") => signals(),
        Some("many-signals") => many_signals(),
        Some("refused") => refused(),
        Some("two-for-a-signal") => two_for_a_signal(),
        Some("dispositions") => after_drop(),
        Some("handlers") => handlers(),
        Some("on-top") => on_top(),
        Some("signal-hook") => signal_hook_too(),
        Some("forked-signals") => forked_signals(),
        Some("not-inherited") => not_inherited(),
        Some("restarted") => restarted(),
        Some("nothing-left") => nothing_left(),
        Some("child") => child(false),
        Some("child-without") => child(true),
        _ => return 2,
    };
    super::verdict(outcome)
}

fn sleeper() -> Fallible<Captive> {
    Ok(Command::new("sleep").arg("1000").spawn()?)
}

fn next(events: &Events) -> Fallible<Event> {
    Ok(events.receiver().recv_timeout(HANG)?)
}

fn exited(events: &Events) -> Fallible<(u32, ExitReport)> {
    match next(events)? {
        Event::Exited { pid, report } => Ok((pid, report)),
        other => Err(format!("{other:?}").into()),
    }
}

fn told(events: &Events, signal: Signal) -> Outcome {
    let event = next(events)?;
    ensure!(event == Event::Signal(signal), "{event:?}, not {signal}");
    Ok(())
}

/// Nothing that should not come. Whatever the thread has to tell of before the end of another captive is told before that.
fn nothing_more(events: &Events) -> Outcome {
    let last = shell("exit 99").spawn()?;
    events.watch(&last)?;
    let (pid, report) = exited(events)?;
    ensure!(pid == last.id(), "{pid}: {report:?}");
    let more = events.receiver().try_recv();
    ensure!(more.is_err(), "{more:?}");
    Ok(())
}

const MANY: usize = 50;

/// As they end, each once, with the report that its handle has.
fn in_order() -> Outcome {
    let events = events()?;
    let captives = (0..MANY)
        .map(|_| sleeper())
        .collect::<Result<Vec<_>, _>>()?;
    // Not in the order of their launch.
    let mut order: Vec<&Captive> = captives.iter().collect();
    for captive in &order {
        events.watch(captive)?;
    }
    order.reverse();
    order.rotate_left(MANY / 3);
    // The thread that tells knows of all of them: of those that have ended before it does, it tells in the order in which
    // it was asked to.
    nothing_more(&events)?;
    for captive in &order {
        captive.kill()?;
        ensure!(readable_within(captive.pidfd(), HANG), "it does not end");
    }
    for captive in order {
        let (pid, report) = exited(&events)?;
        ensure!(pid == captive.id(), "{pid}, not {}", captive.id());
        ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
        ensure!(report.usage().is_some(), "{report:?}");
        ensure!(captive.wait()? == report, "another report");
    }
    nothing_more(&events)
}

fn all_at_once() -> Outcome {
    let events = events()?;
    let mut captives = HashMap::new();
    let mut gates = Vec::new();
    for code in 0..MANY {
        let mut captive = shell(&format!("read line; exit {code}"))
            .stdin(Stdio::Piped)
            .spawn()?;
        gates.push(captive.stdin.take());
        events.watch(&captive)?;
        captives.insert(captive.id(), (captive, code));
    }
    drop(gates);
    for _ in 0..MANY {
        let (pid, report) = exited(&events)?;
        let (captive, code) = captives.remove(&pid).ok_or("none of them, or twice")?;
        ensure!(
            report.status() == ExitStatus::Exited(code as i32),
            "{report:?}"
        );
        ensure!(captive.wait()? == report, "another report");
    }
    nothing_more(&events)
}

fn watched_then_dropped() -> Outcome {
    let events = events()?;
    for _ in 0..20 {
        let captive = sleeper()?;
        let pid = captive.id();
        events.watch(&captive)?;
        drop(captive);
        let (found, report) = exited(&events)?;
        ensure!(found == pid, "{found}, not {pid}");
        ensure!(report.ended_by() == EndedBy::Kill, "{report:?}");
    }
    nothing_more(&events)
}

fn watched_after_its_end() -> Outcome {
    let events = events()?;
    // A zombie, and one that its handle has reaped.
    for reaped in [false, true] {
        let captive = shell("exit 3").spawn()?;
        ensure!(readable_within(captive.pidfd(), HANG), "it does not end");
        if reaped {
            captive.wait()?;
        }
        events.watch(&captive)?;
        let (pid, report) = exited(&events)?;
        ensure!(pid == captive.id(), "{pid}");
        ensure!(report.status() == ExitStatus::Exited(3), "{report:?}");
        ensure!(captive.wait()? == report, "another report");
        nothing_more(&events)?;
        // And dropped at once.
        let captive = shell("exit 4").spawn()?;
        ensure!(readable_within(captive.pidfd(), HANG), "it does not end");
        if reaped {
            captive.wait()?;
        }
        events.watch(&captive)?;
        drop(captive);
        let (_, report) = exited(&events)?;
        ensure!(report.status() == ExitStatus::Exited(4), "{report:?}");
        ensure!(report.ended_by() == EndedBy::Itself, "{report:?}");
    }
    nothing_more(&events)
}

/// Whoever reaps it.
fn waited_for_as_well() -> Outcome {
    let events = events()?;
    for number in 0..40 {
        let mut captive = shell("read line; exit 5").stdin(Stdio::Piped).spawn()?;
        events.watch(&captive)?;
        let stdin = captive.stdin.take();
        let waited = std::thread::scope(|scope| {
            let waits = scope.spawn(|| captive.wait());
            if number % 2 == 0 {
                drop(stdin);
            } else {
                let _ = captive.terminate(HANG);
            }
            waits.join()
        });
        let waited = waited.map_err(|_| "a panic")??;
        let (pid, report) = exited(&events)?;
        ensure!(
            pid == captive.id() && report == waited,
            "{report:?} {waited:?}"
        );
        ensure!(report.usage().is_some(), "{report:?}");
    }
    nothing_more(&events)
}

fn not_watched() -> Outcome {
    let events = events()?;
    ensure!(Command::new("true").status()?.success(), "true");
    drop(sleeper()?);
    ensure!(Command::new("/nonexistent").spawn().is_err(), "launched");
    nothing_more(&events)
}

fn let_go() -> Outcome {
    let events = events()?;
    let mut captive = shell("read line; exit 8")
        .detachable(true)
        .stdin(Stdio::Piped)
        .spawn()?;
    let pid = captive.id();
    let stdin = captive.stdin.take();
    events.watch(&captive)?;
    captive.detach().map_err(|(_, error)| error)?;
    ensure!(
        events.receiver().recv_timeout(SURVIVES).is_err(),
        "it has ended"
    );
    drop(stdin);
    let (found, report) = exited(&events)?;
    ensure!(found == pid, "{found}");
    ensure!(report.status() == ExitStatus::Exited(8), "{report:?}");
    Ok(())
}

fn two_on_one() -> Outcome {
    let (one, two) = (events()?, events()?);
    let captive = sleeper()?;
    let other = sleeper()?;
    one.watch(&captive)?;
    two.watch(&captive)?;
    two.watch(&other)?;
    captive.kill()?;
    for events in [&one, &two] {
        let (pid, report) = exited(events)?;
        ensure!(pid == captive.id(), "{pid}");
        ensure!(report == captive.wait()?, "another report");
    }
    drop(one);
    other.kill()?;
    ensure!(exited(&two)?.0 == other.id(), "another");
    nothing_more(&two)
}

fn receiver_dropped() -> Outcome {
    let captive = sleeper()?;
    let gone = events()?;
    gone.watch(&captive)?;
    let witness = Witness::of(captive.id() as i32)?;
    drop(gone);
    // Others are told all the same, before and after.
    let events = events()?;
    events.watch(&captive)?;
    drop(captive);
    ensure!(witness.gone(), "it lives on");
    exited(&events)?;
    nothing_more(&events)
}

/// What was asked for is told though the `Events` is gone, as long as somebody receives.
fn receiver_outlives() -> Outcome {
    let events = events()?;
    let receiver = events.receiver().clone();
    let captive = sleeper()?;
    events.watch(&captive)?;
    drop(events);
    captive.kill()?;
    let event = receiver.recv_timeout(HANG)?;
    ensure!(
        matches!(event, Event::Exited { pid, .. } if pid == captive.id()),
        "{event:?}"
    );
    // Nobody else sends.
    let last = receiver.recv_timeout(HANG);
    ensure!(
        last == Err(crossbeam_channel::RecvTimeoutError::Disconnected),
        "{last:?}"
    );
    Ok(())
}

fn from_many_threads() -> Outcome {
    let events = events()?;
    let failed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<Vec<u32>, String> {
                    let mut pids = Vec::new();
                    for _ in 0..20 {
                        let captive = Command::new("true").spawn();
                        let captive = captive.map_err(|error| error.to_string())?;
                        events.watch(&captive).map_err(|error| error.to_string())?;
                        pids.push(captive.id());
                    }
                    Ok(pids)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect::<Vec<_>>()
    });
    let mut expected = Vec::new();
    for pids in failed {
        expected.extend(pids.map_err(|_| "a panic")??);
    }
    let mut found = Vec::new();
    for _ in 0..expected.len() {
        found.push(exited(&events)?.0);
    }
    expected.sort_unstable();
    found.sort_unstable();
    ensure!(found == expected, "{found:?}, not {expected:?}");
    nothing_more(&events)
}

/// A launcher that waits for whatever child there is.
fn foreign_waiter() -> Outcome {
    let events = events()?;
    let stop = Arc::new(AtomicBool::new(false));
    let reaped = Arc::new(AtomicU32::new(0));
    {
        let (stop, reaped) = (Arc::clone(&stop), Arc::clone(&reaped));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {
                    reaped.fetch_add(1, Ordering::Relaxed);
                } else {
                    std::thread::yield_now();
                }
            }
        });
    }
    // Who is first is the scheduler's choice.
    let deadline = Instant::now() + HANG;
    while reaped.load(Ordering::Relaxed) == 0 {
        ensure!(Instant::now() < deadline, "it has reaped nobody");
        each_told_once(&events)?;
    }
    stop.store(true, Ordering::Relaxed);
    Ok(())
}

fn sigchld_ignored() -> Outcome {
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    each_told_once(&events()?)
}

/// Whoever reaps them.
fn each_told_once(events: &Events) -> Outcome {
    let kept = status_is_kept()?;
    for code in 0..MANY as i32 {
        let captive = shell(&format!("exit {code}")).spawn()?;
        events.watch(&captive)?;
        let (pid, report) = exited(events)?;
        ensure!(pid == captive.id(), "{pid}");
        ensure!(
            report.status() == ExitStatus::Exited(code)
                || (!kept && report.status() == ExitStatus::Unknown),
            "{report:?}"
        );
        ensure!(captive.wait()? == report, "another report");
    }
    nothing_more(events)
}

/// In a forked child of the launcher nothing can be asked for of its captives, and nothing is lost.
fn forked() -> Outcome {
    let events = events()?;
    let (captive, other) = (sleeper()?, sleeper()?);
    events.watch(&captive)?;
    let launcher = std::process::id();
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork");
    if child == 0 {
        let answer = events.watch(&other);
        let refused =
            matches!(answer, Err(CaptiveError::Forked { launcher: found }) if found == launcher);
        drop(captive);
        drop(other);
        drop(events);
        // It has its own.
        let own = (|| -> Outcome {
            let mut events = captive::launcher::events()?;
            events.signal(Signal::TERM)?;
            let captive = shell("exit 2").spawn()?;
            events.watch(&captive)?;
            ensure!(exited(&events)?.1.status() == ExitStatus::Exited(2), "?");
            ensure!(
                unsafe { libc::kill(libc::getpid(), libc::SIGTERM) } == 0,
                "kill"
            );
            told(&events, Signal::TERM)
        })();
        unsafe { libc::_exit(i32::from(!refused) | i32::from(own.is_err()) << 1) }
    }
    reap(child, 0)?;
    ensure!(
        events.receiver().try_recv().is_err(),
        "the child has ended it"
    );
    captive.kill()?;
    ensure!(exited(&events)?.0 == captive.id(), "another");
    nothing_more(&events)
}

fn reap(child: i32, expected: i32) -> Outcome {
    let mut status = 0;
    ensure!(
        unsafe { libc::waitpid(child, &raw mut status, 0) } == child,
        "waitpid"
    );
    ensure!(status == expected, "the child: {status:#x}");
    Ok(())
}

fn send(number: i32) -> Outcome {
    ensure!(
        unsafe { libc::kill(libc::getpid(), number) } == 0,
        "kill {number}"
    );
    Ok(())
}

/// Each is told as often as it comes, if the next comes after the last was told.
fn signals() -> Outcome {
    let mut events = events()?;
    let all = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGCHLD,
        libc::SIGTSTP,
        libc::SIGPIPE,
        libc::SIGWINCH,
        libc::SIGRTMIN(),
        libc::SIGRTMAX(),
    ];
    for number in all {
        events.signal(signal(number))?;
    }
    let chld = Event::Signal(signal(libc::SIGCHLD));
    for number in all.into_iter().chain(all) {
        send(number)?;
        told(&events, signal(number))?;
        let more = events.receiver().try_recv();
        ensure!(more.is_err(), "{number}: {more:?}");
    }
    // From a captive, to which it is no other.
    let captive = shell("kill -TERM $PPID; exec sleep 1000").spawn()?;
    told(&events, Signal::TERM)?;
    events.watch(&captive)?;
    captive.kill()?;
    // SIGCHLD is caught too, and may come before or after.
    let mut pids = Vec::new();
    while pids.is_empty() {
        match next(&events)? {
            Event::Exited { pid, .. } => pids.push(pid),
            event => ensure!(event == chld, "{event:?}"),
        }
    }
    ensure!(pids == [captive.id()], "{pids:?}");
    // By a thread that blocks everything, to the process.
    let sent = std::thread::spawn(|| {
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        }
        send(libc::SIGUSR1).is_ok()
    });
    ensure!(sent.join().is_ok_and(|sent| sent), "not sent");
    let mut event = next(&events)?;
    while event == chld {
        event = next(&events)?;
    }
    ensure!(event == Event::Signal(signal(libc::SIGUSR1)), "{event:?}");
    Ok(())
}

/// The kernel keeps real-time signals apart: none is lost, and none told twice.
fn many_signals() -> Outcome {
    const COUNT: usize = 1000;
    let mut events = events()?;
    let number = libc::SIGRTMIN() + 2;
    events.signal(signal(number))?;
    events.signal(Signal::TERM)?;
    for _ in 0..COUNT {
        send(number)?;
    }
    for _ in 0..COUNT {
        told(&events, signal(number))?;
    }
    send(libc::SIGTERM)?;
    told(&events, Signal::TERM)?;
    let more = events.receiver().try_recv();
    ensure!(more.is_err(), "{more:?}");
    Ok(())
}

fn refused() -> Outcome {
    let mut events = events()?;
    let faults = [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGBUS];
    for number in [libc::SIGKILL, libc::SIGSTOP].into_iter().chain(faults) {
        let before = disposition(number)?;
        match events.signal(signal(number)) {
            Err(EventsError::Signal {
                signal: found,
                errno,
            }) if found == signal(number) && errno.raw_os_error() == Some(libc::EINVAL) => {}
            other => return Err(format!("{number}: {other:?}").into()),
        }
        ensure!(disposition(number)? == before, "{number} is changed");
    }
    // It goes on with others.
    events.signal(Signal::TERM)?;
    send(libc::SIGTERM)?;
    told(&events, Signal::TERM)
}

fn two_for_a_signal() -> Outcome {
    let (mut one, mut two) = (events()?, events()?);
    one.signal(Signal::TERM)?;
    two.signal(Signal::TERM)?;
    two.signal(Signal::HUP)?;
    send(libc::SIGTERM)?;
    told(&one, Signal::TERM)?;
    told(&two, Signal::TERM)?;
    drop(one);
    send(libc::SIGTERM)?;
    told(&two, Signal::TERM)?;
    send(libc::SIGHUP)?;
    told(&two, Signal::HUP)?;
    let mut three = events()?;
    three.signal(Signal::HUP)?;
    let receiver = two.receiver().clone();
    drop(two);
    send(libc::SIGHUP)?;
    told(&three, Signal::HUP)?;
    nothing_more(&three)?;
    let more = receiver.try_recv();
    ensure!(more.is_err(), "after the drop: {more:?}");
    Ok(())
}

/// What a signal does: handler, flags, mask.
fn disposition(number: i32) -> Fallible<(usize, i32, Vec<i32>)> {
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let asked = unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) };
    ensure!(asked == 0, "sigaction {number}");
    let blocked = (1..=64)
        .filter(|other| unsafe { libc::sigismember(&raw const action.sa_mask, *other) } == 1)
        .collect();
    // The C library's own, which it adds.
    const SA_RESTORER: i32 = 0x0400_0000;
    Ok((action.sa_sigaction, action.sa_flags & !SA_RESTORER, blocked))
}

static CALLS: AtomicU32 = AtomicU32::new(0);
static CALLS_WITH_INFO: AtomicU32 = AtomicU32::new(0);

extern "C" fn handler(_: i32) {
    CALLS.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn handler_with_info(
    number: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    if !context.is_null() && unsafe { (*info).si_signo } == number {
        CALLS_WITH_INFO.fetch_add(1, Ordering::SeqCst);
    }
}

fn set(number: i32, action: usize, flags: i32, blocked: &[i32]) -> Outcome {
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = action;
    new.sa_flags = flags;
    for other in blocked {
        unsafe { libc::sigaddset(&raw mut new.sa_mask, *other) };
    }
    let done = unsafe { libc::sigaction(number, &raw const new, std::ptr::null_mut()) };
    ensure!(done == 0, "sigaction {number}");
    Ok(())
}

/// The handler stays, and does nothing by itself: what was ignored or by default is nothing, what was handled is.
fn after_drop() -> Outcome {
    let plain = handler as extern "C" fn(i32) as usize;
    set(libc::SIGHUP, libc::SIG_IGN, 0, &[])?;
    set(libc::SIGUSR1, plain, libc::SA_RESTART, &[])?;
    for round in 1..=3 {
        let mut events = events()?;
        let all = [libc::SIGHUP, libc::SIGUSR1, libc::SIGTERM];
        for number in all {
            events.signal(signal(number))?;
        }
        drop(events);
        for number in all {
            send(number)?;
        }
        await_that("its call", || CALLS.load(Ordering::SeqCst) == round)?;
    }
    Ok(())
}

/// A handler that was there runs as well, with what it is used to; and alone after the drop.
fn handlers() -> Outcome {
    let plain = handler as extern "C" fn(i32) as usize;
    let with_info =
        handler_with_info as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
    for (number, action, flags, calls) in [
        (libc::SIGUSR1, plain, 0, &CALLS),
        (libc::SIGUSR2, with_info, libc::SA_SIGINFO, &CALLS_WITH_INFO),
    ] {
        set(number, action, flags, &[])?;
        for round in 0..3 {
            let mut events = events()?;
            events.signal(signal(number))?;
            send(number)?;
            told(&events, signal(number))?;
            drop(events);
            send(number)?;
            // A signal to a process with one thread that does not block it comes before the call returns;
            // here the test's own thread may not be the one.
            await_that("both calls", || {
                calls.load(Ordering::SeqCst) == 2 * (round + 1)
            })?;
        }
    }
    Ok(())
}

/// A handler that somebody installs over ours stays when the events are dropped.
fn on_top() -> Outcome {
    let number = libc::SIGUSR1;
    let plain = handler as extern "C" fn(i32) as usize;
    let mut first = events()?;
    first.signal(signal(number))?;
    set(number, plain, libc::SA_RESTART, &[])?;
    let theirs = disposition(number)?;
    drop(first);
    ensure!(disposition(number)? == theirs, "it is gone");
    send(number)?;
    await_that("its call", || CALLS.load(Ordering::SeqCst) == 1)?;
    Ok(())
}

/// The crate signal-hook in the same program, before and after.
fn signal_hook_too() -> Outcome {
    let number = libc::SIGUSR1;
    let flag = || Arc::new(AtomicBool::new(false));
    let is_set = |flag: &Arc<AtomicBool>| flag.swap(false, Ordering::SeqCst);
    let before = flag();
    signal_hook::flag::register(number, Arc::clone(&before))?;
    let mut first = events()?;
    first.signal(signal(number))?;
    send(number)?;
    told(&first, signal(number))?;
    await_that("its flag", || is_set(&before))?;
    drop(first);
    send(number)?;
    await_that("its flag", || is_set(&before))?;
    // The other way round: over ours, with ours below.
    let number = libc::SIGUSR2;
    let mut first = events()?;
    first.signal(signal(number))?;
    let after = flag();
    signal_hook::flag::register(number, Arc::clone(&after))?;
    send(number)?;
    told(&first, signal(number))?;
    await_that("its flag", || is_set(&after))?;
    drop(first);
    send(number)?;
    await_that("its flag", || is_set(&after))?;
    // And once more: neither calls the other for ever.
    for _ in 0..3 {
        let mut again = events()?;
        again.signal(signal(number))?;
        send(number)?;
        told(&again, signal(number))?;
        drop(again);
        is_set(&after);
        send(number)?;
        await_that("its flag", || is_set(&after))?;
    }
    Ok(())
}

/// It has the handler, and its signals are not the launcher's.
fn forked_signals() -> Outcome {
    let mut events = events()?;
    events.signal(Signal::TERM)?;
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork");
    if child == 0 {
        for _ in 0..10 {
            unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
        }
        drop(events);
        unsafe { libc::_exit(0) };
    }
    reap(child, 0)?;
    nothing_more(&events)?;
    // The child's drop is not the launcher's.
    send(libc::SIGTERM)?;
    told(&events, Signal::TERM)?;
    // Nor is there anything else the matter with one that executes another program.
    let done = std::process::Command::new("/bin/sh")
        .args(["-c", "kill -TERM $$; exit 0"])
        .status()?;
    ensure!(done.signal() == Some(libc::SIGTERM), "{done:?}");
    nothing_more(&events)
}

fn not_inherited() -> Outcome {
    let tag = Tag::new();
    set(libc::SIGHUP, libc::SIG_IGN, 0, &[])?;
    let mut events = events()?;
    for number in [libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP] {
        events.signal(signal(number))?;
    }
    let mut commands = vec![doing(&tag, &["dispositions"])?];
    if nix::unistd::geteuid().is_root() {
        let mut command = super::steps::doing_by_descriptor(&tag, &["dispositions"])?;
        command.run_with("user=65534:65534".parse()?);
        commands.push(command);
    }
    for mut command in commands {
        let done = command.stdout(Stdio::Piped).spawn()?.wait_with_output()?;
        let text = String::from_utf8(done.stdout)?;
        for field in ["SigBlk", "SigIgn", "SigCgt"] {
            let set = text
                .lines()
                .find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"))
                .ok_or_else(|| format!("no {field} in {text:?}"))?;
            let set = u64::from_str_radix(set, 16)?;
            // std handles faults itself, and ignores SIGPIPE.
            for number in [libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP] {
                ensure!(set >> (number - 1) & 1 == 0, "{field} {number}: {text}");
            }
        }
    }
    // Nor in a captive that dies of it.
    let captive = sleeper()?;
    captive.signal(Signal::TERM)?;
    ensure!(
        captive.wait()?.status().signal() == Some(Signal::TERM),
        "it has not died of it"
    );
    let more = events.receiver().try_recv();
    ensure!(more.is_err(), "{more:?}");
    Ok(())
}

/// read(2) in the launcher goes on after a signal that is told.
fn restarted() -> Outcome {
    let mut events = events()?;
    events.signal(signal(libc::SIGUSR1))?;
    let (read, write) = nix::unistd::pipe()?;
    let (sender, begun) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let _ = sender.send(unsafe { libc::gettid() });
        let mut byte = [0];
        nix::unistd::read(&read, &mut byte)
    });
    let tid = begun.recv_timeout(HANG)?;
    let path = format!("/proc/self/task/{tid}/stat");
    await_that("a read", || {
        fs::read_to_string(&path).is_ok_and(|stat| stat.contains(") S "))
    })?;
    let own = std::process::id() as i32;
    ensure!(
        unsafe { libc::syscall(libc::SYS_tgkill, own, tid, libc::SIGUSR1) } == 0,
        "tgkill"
    );
    told(&events, signal(libc::SIGUSR1))?;
    nix::unistd::write(&write, b"x")?;
    let read = reader.join().map_err(|_| "a panic")?;
    ensure!(read == Ok(1), "{read:?}");
    Ok(())
}

/// A launcher whose parent is killed, and which says what it was told.
fn child(without: bool) -> Outcome {
    let mut events = events()?;
    events.parent(ExitWithParent::new())?;
    events.signal(Signal::TERM)?;
    let captive = sleeper()?;
    events.watch(&captive)?;
    let mut receiver = events.receiver().clone();
    if without {
        drop(events);
        receiver = crossbeam_channel::never();
    }
    println!("up");
    let mut line = String::new();
    if without {
        std::io::stdin().read_line(&mut line)?;
        println!("lives on");
        return Ok(());
    }
    match receiver.recv_timeout(HANG)? {
        Event::ParentExited(_) => println!("parent exited"),
        other => println!("{other:?}"),
    }
    // It is an event, and not what it is without.
    std::io::stdin().read_line(&mut line)?;
    captive.kill()?;
    match receiver.recv_timeout(HANG)? {
        Event::Exited { pid, .. } if pid == captive.id() => println!("captive exited"),
        other => println!("{other:?}"),
    }
    Ok(())
}

/// test ── shell (killed) ── launcher
fn with_a_parent_that_is_killed(
    role: &str,
    then: fn(&mut BufReader<std::process::ChildStdout>, &mut std::process::ChildStdin) -> Outcome,
) -> Outcome {
    let tag = Tag::new();
    let mut command = tag.command("sh");
    // Not the last thing it does: it is not to become the launcher. The background has no input but this.
    command.args(["-c", "exec 3<&0; \"$@\" <&3 & wait; exit", "sh"]);
    command.arg(std::env::current_exe()?);
    command.args(["--role", "captives", "events", role]);
    let mut shell = Reaped(
        command
            .stdin(StdStdio::piped())
            .stdout(StdStdio::piped())
            .spawn()?,
    );
    let mut input = shell.0.stdin.take().ok_or("no pipe")?;
    let mut output = BufReader::new(shell.0.stdout.take().ok_or("no pipe")?);
    says(&mut output, "up")?;
    shell.0.kill()?;
    shell.0.wait()?;
    then(&mut output, &mut input)?;
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn says(output: &mut BufReader<std::process::ChildStdout>, expected: &str) -> Outcome {
    use std::os::fd::AsFd;
    ensure!(
        !output.buffer().is_empty() || readable_within(output.get_ref().as_fd(), HANG),
        "it does not say {expected:?}"
    );
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(line.trim_end() == expected, "{line:?}, not {expected:?}");
    Ok(())
}

fn parent() -> Outcome {
    with_a_parent_that_is_killed("child", |output, input| {
        says(output, "parent exited")?;
        input.write_all(b"\n")?;
        says(output, "captive exited")
    })
}

/// Dropped events disarm: the end of the parent is nothing then.
fn parent_not_after_drop() -> Outcome {
    with_a_parent_that_is_killed("child-without", |output, input| {
        use std::os::fd::AsFd;
        ensure!(
            !readable_within(output.get_ref().as_fd(), SURVIVES),
            "it has ended"
        );
        input.write_all(b"\n")?;
        says(output, "lives on")
    })
}

/// What may be kept for the next that catches a signal.
const FEW: usize = 10;

/// 100 times all that there is.
fn nothing_left() -> Outcome {
    let count = |path: &str| fs::read_dir(path).map(Iterator::count);
    let cycle = || -> Outcome {
        let mut events = events()?;
        for number in [libc::SIGTERM, libc::SIGUSR1, libc::SIGRTMIN()] {
            events.signal(signal(number))?;
        }
        events.parent(ExitWithParent::new())?;
        let captive = Command::new("true").spawn()?;
        events.watch(&captive)?;
        exited(&events)?;
        send(libc::SIGUSR1)?;
        told(&events, signal(libc::SIGUSR1))
    };
    for _ in 0..3 {
        cycle()?;
    }
    let now =
        || -> Fallible<(usize, usize)> { Ok((count("/proc/self/fd")?, count("/proc/self/task")?)) };
    // The watcher of the parent ends in the background.
    let settled = |expected: (usize, usize)| {
        await_that("as many as before", || {
            now().is_ok_and(|found| found.0 <= expected.0 + FEW && found.1 <= expected.1)
        })
        .map_err(|error| format!("{error}: {:?}, were {expected:?}", now()))
    };
    await_that("the end of its threads", || {
        let before = now().ok();
        std::thread::sleep(Duration::from_millis(20));
        before == now().ok()
    })?;
    let before = now()?;
    for _ in 0..100 {
        cycle()?;
    }
    settled(before)?;
    // events() alone is nothing but a channel.
    let before = now()?;
    let many: Vec<Events> = (0..100).map(|_| events()).collect::<Result<_, _>>()?;
    ensure!(now()? == before, "{:?}, were {before:?}", now());
    drop(many);
    Ok(())
}
