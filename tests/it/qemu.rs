//! Real QEMUs, paused, as the machines of a manager's domains.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use captive::qemu::Uuid;
use captive::qemu::appliance::{
    Appliance, ApplianceError, Binary, Probe, ProbeError, StopPlan, StoppedBy,
};
use captive::qemu::domain::{
    AgentJobKind, AsyncJobKind, Domain, Driver, JobError, Model, Modification, MonitorAccess,
    Reason, Wait,
};
use captive::qemu::monitor::{
    Agent, AgentOptions, Closed, MonitorError, NoEvent, Qmp, QmpEvents, QmpOptions,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::{HANG, Need, Outcome, Witness, test};

const QEMU: &str = "qemu-system-x86_64";
const NEEDS: &[Need] = &[Need::Program(QEMU), Need::Root, Need::Native];
const LONG: &[Need] = &[Need::Program(QEMU), Need::Root, Need::Native, Need::Long];

pub fn tests() -> Vec<Trial> {
    vec![
        test("qemu::probe", NEEDS, probe),
        test("qemu::probe-asks-once", &[], asks_once),
        test("qemu::probe-of-no-qemu", &[], no_qemu),
        test("qemu::monitor", NEEDS, monitor),
        test("qemu::events", NEEDS, events),
        test("qemu::descriptors", NEEDS, descriptors),
        test("qemu::ends-at-its-start", NEEDS, ends_at_its_start),
        test("qemu::stopped-at-its-start", NEEDS, stopped_at_its_start),
        test("qemu::orderly-stop", NEEDS, orderly_stop),
        test("qemu::crash", NEEDS, crash),
        test("qemu::driver-dropped", NEEDS, driver_dropped),
        test("qemu::started-again", NEEDS, started_again),
        test("qemu::destroy-beside-a-stopped-one", NEEDS, destroy_stopped),
        test("qemu::destroyed-while-it-starts", NEEDS, destroyed_at_start),
        test("qemu::agent-that-is-not-there", NEEDS, no_agent),
        test("qemu::killed-under-load", NEEDS, || killed_under_load(100)),
        test("qemu::killed-under-load-long", LONG, || {
            killed_under_load(1000)
        }),
    ]
}

/// A manager of paused machines.
struct Paused;

impl Model for Paused {
    type Config = Arc<Binary>;
    type Definition = ();
    type Live = u32;
    type Monitor = Qmp;
    type Agent = Agent;
    type Statistics = Value;
}

fn binary() -> Result<Arc<Binary>, ProbeError> {
    Probe::new().binary(Path::new(QEMU))
}

/// A machine with some memory, which executes nothing.
fn paused(binary: Arc<Binary>) -> Appliance {
    Appliance::new(binary).args(["-machine", "q35,accel=tcg", "-m", "64", "-S"])
}

fn domain() -> Result<(Driver<Paused>, Domain<Paused>), Box<dyn std::error::Error>> {
    let driver = Driver::new(binary()?);
    let domain = driver.define("guest", Uuid::from_u128(1), ())?;
    Ok((driver, domain))
}

/// Starts a domain's machine, with a channel for an agent: its process, and its events.
fn start(
    driver: &Driver<Paused>,
    domain: &mut Domain<Paused>,
) -> Result<(Witness, QmpEvents), Box<dyn std::error::Error>> {
    let appliance = paused(driver.config().clone()).agent(AgentOptions::default());
    let mut job = domain.begin_async_job(AsyncJobKind::Start)?;
    let started = appliance.start(&mut job, (), 0)?;
    let pid = i32::try_from(started.pid)?;
    Ok((Witness::of(pid)?, started.events))
}

fn probe() -> Outcome {
    let binary = binary()?;
    let version = binary.abilities.version.as_deref().unwrap_or_default();
    ensure!(version.split('.').count() >= 2, "{version}");
    ensure!(binary.path.is_absolute(), "{binary:?}");
    Ok(())
}

/// A program that prints what a QEMU does, counts its calls, and ends with a status that means nothing.
fn script(place: &Path, help: &str) -> std::io::Result<std::path::PathBuf> {
    let path = place.join("qemu");
    let calls = place.join("calls");
    let text = format!(
        "#!/bin/sh\necho >>{}\necho 'QEMU emulator version 99.1.2 (x)'\ncat <<E\n{help}\nE\nexit 3\n",
        calls.display()
    );
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

fn asks_once() -> Outcome {
    let place = tempfile::tempdir()?;
    let path = script(place.path(), "-run-with [chroot=dir]")?;
    let calls = || std::fs::read_to_string(place.path().join("calls")).map(|text| text.len());
    let probe = Probe::new();
    for _ in 0..3 {
        let binary = probe.binary(&path)?;
        ensure!(
            binary.abilities.version.as_deref() == Some("99.1.2"),
            "{binary:?}"
        );
        ensure!(binary.abilities.run_with == ["chroot"], "{binary:?}");
    }
    ensure!(calls()? == 2, "{:?}", calls());
    // Another is put in its place.
    script(place.path(), "-run-with [chroot=dir][,user=name]")?;
    let binary = probe.binary(&path)?;
    ensure!(binary.abilities.has("user"), "{binary:?}");
    ensure!(calls()? == 4, "{:?}", calls());
    Ok(())
}

fn no_qemu() -> Outcome {
    let probe = Probe::new();
    match probe.binary(Path::new("/bin/true")) {
        Err(ProbeError::NoQemu { .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    match probe.binary(Path::new("/nonexistent/qemu")) {
        Err(ProbeError::File { .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn monitor() -> Outcome {
    let running = paused(binary()?).spawn()?;
    let status = running.qmp().execute("query-status", &())?;
    ensure!(status["running"] == false, "{status}");
    let version = running.qmp().greeting().version;
    let said = binary()?.abilities.version.clone().unwrap_or_default();
    ensure!(said.starts_with(&version.major.to_string()), "{said}");
    match running.qmp().execute("nonsense", &()) {
        Err(MonitorError::Refused { cause, .. }) => {
            ensure!(cause.class == "CommandNotFound", "{cause}");
        }
        other => return Err(format!("{other:?}").into()),
    }
    // Out of band, as this QEMU offers it.
    let answer = running.qmp().execute_out_of_band("query-yank", &())?;
    ensure!(answer.is_array(), "{answer}");
    Ok(())
}

fn events() -> Outcome {
    let mut running = paused(binary()?).spawn()?;
    let events = running.take_events().ok_or("no events")?;
    for command in ["cont", "stop"] {
        running.qmp().execute(command, &())?;
    }
    for name in ["RESUME", "STOP"] {
        let event = events.next_within(HANG)?;
        ensure!(event.name == name, "{event:?}");
        ensure!(event.seconds > 1_700_000_000, "{event:?}");
    }
    // While nobody asks.
    running.captive().kill()?;
    ensure!(events.next_within(HANG) == Err(NoEvent::Closed), "an event");
    Ok(())
}

fn descriptors() -> Outcome {
    let running = paused(binary()?).spawn()?;
    let (_read, write) = nix::unistd::pipe()?;
    let added = running.qmp().execute_with_descriptors(
        "add-fd",
        &json!({ "fdset-id": 7 }),
        &[write.as_fd()],
    )?;
    ensure!(added["fdset-id"] == 7, "{added}");
    let sets = running.qmp().execute("query-fdsets", &())?;
    ensure!(
        sets[0]["fds"].as_array().is_some_and(|fds| fds.len() == 1),
        "{sets}"
    );
    Ok(())
}

fn ends_at_its_start() -> Outcome {
    let begin = Instant::now();
    match Appliance::new(binary()?).args(["-nonsense"]).spawn() {
        Err(ApplianceError::Ended { report, log }) => {
            ensure!(log.contains("nonsense"), "{log}");
            let status = report.map(|report| report.status().code());
            ensure!(status == Some(Some(1)), "{status:?}");
        }
        other => return Err(format!("{other:?}").into()),
    }
    ensure!(begin.elapsed() < HANG, "late");
    Ok(())
}

/// What listens is a process that says nothing.
fn stopped_at_its_start() -> Outcome {
    let place = tempfile::tempdir()?;
    let path = place.path().join("qemu");
    std::fs::write(
        &path,
        "#!/bin/sh\ncase $1 in -version|-help) echo 'QEMU emulator version 1.0 x';;\n\
         *) echo last words >&2; exec sleep 1000;; esac\n",
    )?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    let mut options = QmpOptions::default();
    options.deadline = Duration::from_millis(300);
    let appliance = Appliance::new(Probe::new().binary(&path)?).qmp(options);
    match appliance.spawn() {
        Err(ApplianceError::Monitor { cause, log }) => {
            ensure!(matches!(cause, MonitorError::Timeout { .. }), "{cause}");
            ensure!(log.contains("last words"), "{log}");
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}

fn plan() -> StopPlan {
    let mut plan = StopPlan::default();
    // Nothing in it hears a button.
    plan.powerdown = Some(Duration::from_millis(100));
    plan.quit = Some(HANG);
    plan.terminate = Some(Duration::from_millis(500));
    plan.kill = HANG;
    plan
}

fn orderly_stop() -> Outcome {
    let running = paused(binary()?).spawn()?;
    let stopped = running.stop(&plan());
    ensure!(stopped == StoppedBy::Quit, "{stopped:?}");
    ensure!(running.stop(&plan()) == StoppedBy::Itself, "it ran");

    // Without its monitor.
    let running = paused(binary()?).spawn()?;
    let mut without = plan();
    (without.powerdown, without.quit) = (None, None);
    without.terminate = Some(HANG);
    let stopped = running.stop(&without);
    ensure!(stopped == StoppedBy::Terminate, "{stopped:?}");

    // Stopped it hears neither.
    let running = paused(binary()?).spawn()?;
    running.captive().signal("STOP".parse()?)?;
    let mut short = plan();
    short.quit = Some(Duration::from_millis(200));
    let stopped = running.stop(&short);
    ensure!(stopped == StoppedBy::Kill, "{stopped:?}");

    // A domain's, by its jobs.
    let (driver, mut domain) = domain()?;
    let _started = start(&driver, &mut domain)?;
    let stopped = domain.stop(&plan());
    ensure!(stopped == StoppedBy::Quit, "{stopped:?}");
    ensure!(
        *domain.object().reason() == Reason::Shutdown,
        "{:?}",
        domain.object()
    );
    Ok(())
}

fn crash() -> Outcome {
    let (driver, mut domain) = domain()?;
    let (process, events) = start(&driver, &mut domain)?;
    let id = domain.object().id().ok_or("no id")?;
    ensure!(driver.find_by_id(id).is_some(), "not found by its id");
    process.signal(libc::SIGKILL);
    ensure!(domain.wait_inactive(HANG), "it runs on");
    match domain.object().reason() {
        Reason::Crashed(how) if how.contains("SIGKILL") || how.contains("KILL") => {}
        other => return Err(format!("{other:?}").into()),
    }
    ensure!(driver.find_by_id(id).is_none(), "found by its id");
    while events.next_within(HANG).is_ok() {}
    let error = domain.begin_agent_job(AgentJobKind::Query).map(drop);
    ensure!(matches!(error, Err(JobError::Inactive(_))), "{error:?}");
    Ok(())
}

/// The last handle to the driver goes: its machines are killed, though somebody has a domain.
fn driver_dropped() -> Outcome {
    let (driver, mut domain) = domain()?;
    let (process, _events) = start(&driver, &mut domain)?;
    ensure!(process.alive(), "it does not run");
    drop(driver);
    ensure!(domain.wait_inactive(HANG), "it runs on");
    ensure!(process.gone_within(HANG), "it is there");
    ensure!(
        *domain.object().reason() == Reason::Destroyed,
        "{:?}",
        domain.object()
    );
    Ok(())
}

fn started_again() -> Outcome {
    let (driver, mut domain) = domain()?;
    for _ in 0..3 {
        let (process, _events) = start(&driver, &mut domain)?;
        process.signal(libc::SIGKILL);
        ensure!(domain.wait_inactive(HANG), "it runs on");
    }
    Ok(())
}

/// Says so of a thread that does not end.
fn joined<T>(handle: thread::JoinHandle<T>) -> Result<T, Box<dyn std::error::Error>> {
    let begin = Instant::now();
    while !handle.is_finished() {
        if begin.elapsed() > HANG {
            return Err("a thread hangs".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    handle.join().map_err(|_| "a thread panicked".into())
}

/// SIGSTOPped while a normal job is in the monitor, and another waits for that.
fn destroy_stopped() -> Outcome {
    let (driver, mut domain) = domain()?;
    let (process, _events) = start(&driver, &mut domain)?;
    process.signal(libc::SIGSTOP);
    let mut holder = domain.clone();
    let holds = thread::spawn(move || {
        let mut job = holder.begin_job(Modification::Modify).ok()?;
        let monitor = job.enter_monitor().ok()?;
        monitor.execute("query-status", &()).err()
    });
    let begin = Instant::now();
    while domain.jobs().held_by.normal.is_none() {
        ensure!(begin.elapsed() < HANG, "nobody holds it");
        thread::yield_now();
    }
    let mut waiter = domain.clone();
    let waits = thread::spawn(move || waiter.begin_job(Modification::Modify).map(drop));
    let begin = Instant::now();
    while domain.jobs().waiting == 0 {
        ensure!(begin.elapsed() < HANG, "nobody waits");
        thread::yield_now();
    }
    let mut destroy = domain.destroy()?;
    ensure!(destroy.wait(HANG), "it runs on");
    drop(destroy);
    match joined(holds)? {
        Some(MonitorError::Closed {
            cause: Closed::Shut | Closed::Gone,
            ..
        }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    // It had the job between the end of destroy's and its own, or learnt of the death.
    match joined(waits)? {
        Ok(()) | Err(JobError::Died(Reason::Destroyed)) => {}
        other => return Err(format!("{other:?}").into()),
    }
    ensure!(process.gone_within(HANG), "it is there");
    ensure!(
        *domain.object().reason() == Reason::Destroyed,
        "{:?}",
        domain.object()
    );
    Ok(())
}

fn destroyed_at_start() -> Outcome {
    let (driver, mut domain) = domain()?;
    let mut destroyer = domain.clone();
    let appliance = paused(driver.config().clone());
    let mut job = domain.begin_async_job(AsyncJobKind::Start)?;
    drop(destroyer.destroy()?);
    let error = appliance.start(&mut job, (), 0).map(drop);
    ensure!(error.is_err(), "it was started");
    drop(job);
    ensure!(!domain.object().is_active(), "it runs");
    Ok(())
}

fn no_agent() -> Outcome {
    let (driver, mut domain) = domain()?;
    let _started = start(&driver, &mut domain)?;
    let mut asks = domain.clone();
    let asked = thread::spawn(move || {
        let mut job = asks.begin_agent_job(AgentJobKind::Query).ok()?;
        let agent = job.enter_agent().ok()?;
        let limit = Duration::from_millis(500);
        agent
            .execute_within::<Value>("guest-ping", &(), limit)
            .err()
    });
    let begin = Instant::now();
    while domain.jobs().held_by.agent.is_none() {
        ensure!(begin.elapsed() < HANG, "nobody asks");
        thread::yield_now();
    }
    // Beside it a normal job is had at once.
    let mut impatient = domain.clone().waiting(Wait::No);
    let mut job = impatient.begin_query()?;
    let monitor = job.enter_monitor()?;
    monitor.execute("query-status", &())?;
    monitor.exit()?;
    drop(job);
    match joined(asked)? {
        Some(MonitorError::Timeout { command, .. }) => {
            ensure!(command == "guest-ping", "{command}")
        }
        other => return Err(format!("{other:?}").into()),
    }
    Ok(())
}

/// One of a machine's users, until it says that the machine is gone.
type User = fn(&mut Domain<Paused>) -> Result<(), Box<dyn std::error::Error>>;

fn query(domain: &mut Domain<Paused>) -> Result<(), Box<dyn std::error::Error>> {
    let mut job = domain.begin_query()?;
    let monitor = job.enter_monitor()?;
    monitor.execute("query-status", &())?;
    monitor.exit()?;
    Ok(())
}

fn save(domain: &mut Domain<Paused>) -> Result<(), Box<dyn std::error::Error>> {
    let mut save = domain.begin_async_job(AsyncJobKind::Save)?;
    save.set_phase("sending memory")?;
    let mut step = save.begin_nested()?;
    let monitor = step.enter_monitor()?;
    // One may be under way, or have failed.
    let _ = monitor.execute("migrate", &json!({ "uri": "exec:cat >/dev/null" }));
    monitor.exit()?;
    drop(step);
    for _ in 0..10 {
        let mut step = save.begin_nested()?;
        let monitor = step.enter_monitor()?;
        let state = monitor.execute("query-migrate", &())?;
        monitor.exit()?;
        drop(step);
        save.set_progress(state["ram"]["transferred"].as_u64().unwrap_or(0), 64 << 20)?;
        save.pause(Duration::from_millis(2))?;
    }
    Ok(())
}

fn ask_agent(domain: &mut Domain<Paused>) -> Result<(), Box<dyn std::error::Error>> {
    let mut job = domain.begin_agent_job(AgentJobKind::Query)?;
    let agent = job.enter_agent()?;
    let answer = agent.execute_within::<Value>("guest-ping", &(), Duration::from_secs(60));
    agent.exit()?;
    answer?;
    Ok(())
}

fn button(domain: &mut Domain<Paused>) -> Result<(), Box<dyn std::error::Error>> {
    let mut job = domain.begin_job(Modification::Modify)?;
    let monitor = job.enter_monitor()?;
    monitor.execute("system_powerdown", &())?;
    monitor.exit()?;
    Ok(())
}

/// The names of this process's threads.
fn threads() -> std::io::Result<Vec<String>> {
    let tasks = std::fs::read_dir("/proc/self/task")?;
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    Ok(tasks
        .flatten()
        .filter_map(name)
        .map(|name| name.trim().to_owned())
        .collect())
}

static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Killed at a random moment while four use it: each is told, nothing stays, the name is free.
fn killed_under_load(rounds: u64) -> Outcome {
    let driver = Driver::<Paused>::new(binary()?);
    let mut watchers = Vec::new();
    for round in 0..rounds {
        let number = ROUNDS.fetch_add(1, Ordering::Relaxed);
        let mut domain = driver.create("guest", Uuid::from_u128(u128::from(number)))?;
        let (process, events) = start(&driver, &mut domain)?;
        watchers.push(format!("qemu-{}", process.pid));
        let users: [User; 4] = [query, save, ask_agent, button];
        let users = users.map(|user| {
            let mut domain = domain.clone();
            thread::spawn(move || {
                let error = loop {
                    if let Err(error) = user(&mut domain) {
                        break error;
                    }
                };
                error.to_string()
            })
        });
        // No order is to be had by this, only moments that differ.
        thread::sleep(Duration::from_micros(number * 7919 % 60_000));
        process.signal(libc::SIGKILL);
        for user in users {
            let said = joined(user)?;
            // A deadline would be some seconds later, and say so.
            ensure!(!said.contains("waited"), "round {round}: {said}");
        }
        ensure!(domain.wait_inactive(HANG), "round {round}: it runs on");
        let jobs = domain.jobs();
        let held = jobs.held_by;
        ensure!(
            held.normal.is_none() && held.agent.is_none() && held.r#async.is_none(),
            "round {round}: {held}"
        );
        ensure!(jobs.waiting == 0, "round {round}: {} wait", jobs.waiting);
        ensure!(
            driver.find_by_name("guest").is_none(),
            "round {round}: found"
        );
        ensure!(process.gone_within(HANG), "round {round}: a zombie");
        while events.try_next().is_ok() {}
        ensure!(
            events.try_next() == Err(NoEvent::Closed),
            "round {round}: events"
        );
    }
    ensure!(driver.domains().is_empty(), "{:?}", driver.domains());
    // The threads that watched.
    let begin = Instant::now();
    while threads()?.iter().any(|name| watchers.contains(name)) {
        ensure!(begin.elapsed() < HANG, "threads stay");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
