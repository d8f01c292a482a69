//! A small manager of QEMU guests: many at once, queried beside each other, saved to files with a bar and an abort, one
//! whose agent never answers. Killed, it leaves nothing running; started again, it finds its guests again.
//!
//!     vm_manager FOLDER
//!
//! Commands are lines of standard input, and are carried out beside each other; the answer to each is a line of standard
//! output that begins with it. `wait` waits for those before it.
//!
//!     define NAME        a guest of 64 MiB, paused
//!     start NAME         from its file, if it has been saved
//!     query NAME         what QEMU says of it
//!     agent NAME         pings its agent, of which there is none
//!     save NAME [RATE]   to a file, RATE bytes a second
//!     abort NAME         the save
//!     stop NAME          in order
//!     destroy NAME       at once
//!     list               all guests, and who holds their jobs
//!
//! What is defined stands in FOLDER, a file for each guest, and what was saved beside it. That is all there is to find
//! again: the machines themselves are captives, and end with this program however it ends.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::iter;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use captive::qemu::Uuid;
use captive::qemu::appliance::{Appliance, Binary, Probe, StopPlan};
use captive::qemu::domain::{
    AgentJobKind, AsyncJob, AsyncJobKind, Domain, Driver, Model, MonitorAccess,
};
use captive::qemu::monitor::{Agent, AgentOptions, Qmp};
use serde_json::{Value, json};

/// The manager's types: see `captive::qemu::domain::Model`.
#[derive(Debug)]
struct Guests;

impl Model for Guests {
    type Config = Config;
    type Definition = Definition;
    type Live = ();
    type Monitor = Qmp;
    type Agent = Agent;
    type Statistics = Value;
}

#[derive(Debug)]
struct Config {
    folder: PathBuf,
    qemu: Arc<Binary>,
}

/// What a guest is made of.
#[derive(Debug, Clone)]
struct Definition {
    memory_mib: u64,
    /// It was saved, and starts from there.
    saved: bool,
}

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        say("usage: vm_manager FOLDER");
        return ExitCode::from(2);
    };
    match manage(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&describe(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Not `println!`, which panics if nobody reads. One line is one write.
fn say(line: &str) {
    let _ = io::stdout().write_all(format!("{line}\n").as_bytes());
}

fn describe(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |all, cause| format!("{all}: {cause}"))
}

fn manage(folder: &Path) -> Fallible<()> {
    fs::create_dir_all(folder)?;
    let qemu = Probe::new().binary("qemu-system-x86_64".as_ref())?;
    let driver = Driver::new(Config {
        folder: folder.to_owned(),
        qemu,
    });
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            find_again(&driver, &path)?;
        }
    }
    say(&format!("ready, {} guests", driver.domains().len()));
    thread::scope(|scope| {
        let mut running = Vec::new();
        for line in io::stdin().lock().lines() {
            let line = line?;
            if line.trim() == "wait" {
                for command in running.drain(..) {
                    let _ = thread::ScopedJoinHandle::join(command);
                }
                say("wait: done");
                continue;
            }
            let driver = &driver;
            running.push(scope.spawn(move || {
                let answer = obey(driver, &line).unwrap_or_else(|error| describe(&*error));
                say(&format!("{line}: {answer}"));
            }));
        }
        Ok(())
    })
}

impl Config {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name).with_extension("json")
    }

    fn image(&self, name: &str) -> PathBuf {
        self.folder.join(name).with_extension("saved")
    }

    /// Writes it whole, or not at all.
    fn keep(&self, name: &str, uuid: &Uuid, definition: &Definition) -> io::Result<()> {
        let text = json!({ "name": name, "uuid": uuid.to_string(),
            "memory": definition.memory_mib, "saved": definition.saved });
        let new = self.file(name).with_extension("new");
        fs::write(&new, text.to_string())?;
        fs::rename(new, self.file(name))
    }
}

fn find_again(driver: &Driver<Guests>, path: &Path) -> Fallible<()> {
    let text: Value = serde_json::from_slice(&fs::read(path)?)?;
    let definition = Definition {
        memory_mib: text["memory"].as_u64().ok_or("no memory")?,
        saved: text["saved"] == true,
    };
    let name = text["name"].as_str().ok_or("no name")?;
    driver.define(
        name,
        text["uuid"].as_str().ok_or("no uuid")?.parse()?,
        definition,
    )?;
    Ok(())
}

fn obey(driver: &Driver<Guests>, line: &str) -> Fallible<String> {
    let mut words = line.split_whitespace();
    let command = words.next().unwrap_or_default();
    if command == "list" {
        return Ok(list(driver));
    }
    let name = words.next().ok_or("which guest?")?;
    if command == "define" {
        return define(driver, name);
    }
    let mut domain = driver.find_by_name(name).ok_or("no such guest")?;
    match command {
        "start" => start(driver.config(), &mut domain),
        "query" => query(&mut domain),
        "agent" => agent(&mut domain),
        "save" => {
            let rate = words.next().map_or(Ok(64 << 20), str::parse)?;
            save(driver.config(), &mut domain, rate)
        }
        "abort" => match domain.abort_async_job() {
            Some(kind) => Ok(format!("the {kind} job was told")),
            None => Ok("there is nothing to abort".to_owned()),
        },
        "stop" => {
            let mut plan = StopPlan::default();
            // A guest without a system hears no button.
            plan.powerdown = None;
            Ok(format!("{:?}", domain.stop(&plan)))
        }
        "destroy" => {
            let mut job = domain.destroy()?;
            let gone = job.wait(Duration::from_secs(10));
            Ok(if gone { "gone" } else { "it does not die" }.to_owned())
        }
        _ => Err("no such command".into()),
    }
}

fn list(driver: &Driver<Guests>) -> String {
    let mut lines: Vec<String> = driver
        .domains()
        .iter()
        .map(|domain| {
            let state = if domain.object().is_active() {
                "runs"
            } else {
                "rests"
            };
            format!(
                "{} {state}, jobs held by {}",
                domain.name(),
                domain.jobs().held_by
            )
        })
        .collect();
    lines.sort();
    lines.join("; ")
}

fn define(driver: &Driver<Guests>, name: &str) -> Fallible<String> {
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err("a name is of letters and digits".into());
    }
    let definition = Definition {
        memory_mib: 64,
        saved: false,
    };
    // Of the name: that is unique here.
    let mut bytes = [0_u8; 16];
    for (place, byte) in name.bytes().enumerate() {
        let slot = &mut bytes[place % 16];
        *slot = byte.wrapping_add(slot.wrapping_mul(31));
    }
    let uuid = Uuid::from_bytes(bytes);
    driver.define(name, uuid, definition.clone())?;
    driver.config().keep(name, &uuid, &definition)?;
    Ok("defined".to_owned())
}

fn start(config: &Config, domain: &mut Domain<Guests>) -> Fallible<String> {
    let (name, uuid) = (domain.name().to_owned(), *domain.uuid());
    let mut job = domain.begin_async_job(AsyncJobKind::Start)?;
    let definition = job.object().definition().cloned().ok_or("not defined")?;
    let mut appliance = Appliance::new(config.qemu.clone())
        .args(["-machine", "q35,accel=tcg", "-S", "-name", &name])
        .args(["-m", &definition.memory_mib.to_string()])
        .agent(AgentOptions::default());
    if definition.saved {
        appliance = appliance
            .args(["-incoming", "fd:9"])
            .descriptor(File::open(config.image(&name))?, 9);
    }
    let from = if definition.saved {
        "its file"
    } else {
        "nothing"
    };
    let started = appliance.start(&mut job, definition, ())?;
    if let Some(definition) = job.object_mut()?.persistent_mut() {
        definition.saved = false;
        config.keep(&name, &uuid, definition)?;
    }
    Ok(format!("runs, from {from}, pid {}", started.pid))
}

fn query(domain: &mut Domain<Guests>) -> Fallible<String> {
    let mut job = domain.begin_query()?;
    let monitor = job.enter_monitor()?;
    let status = monitor.execute("query-status", &())?;
    monitor.exit()?;
    drop(job);
    // For who only watches, and asks nobody.
    domain.publish_statistics(status.clone());
    Ok(status.to_string())
}

fn agent(domain: &mut Domain<Guests>) -> Fallible<String> {
    let mut job = domain.begin_agent_job(AgentJobKind::Query)?;
    let agent = job.enter_agent()?;
    let answer = agent.execute_within::<Value>("guest-ping", &(), Duration::from_secs(1));
    agent.exit()?;
    Ok(answer?.to_string())
}

/// Saves it, and ends it.
fn save(config: &Config, domain: &mut Domain<Guests>, rate: u64) -> Fallible<String> {
    let (name, uuid) = (domain.name().to_owned(), *domain.uuid());
    let new = config.image(&name).with_extension("saving");
    let mut job = domain.begin_async_job(AsyncJobKind::Save)?;
    let sent = send(&mut job, &File::create(&new)?, rate, &name);
    if let Err(error) = sent {
        cancel(&mut job);
        let _ = fs::remove_file(new);
        return Err(error);
    }
    fs::rename(new, config.image(&name))?;
    if let Some(definition) = job.object_mut()?.persistent_mut() {
        definition.saved = true;
        config.keep(&name, &uuid, definition)?;
    }
    drop(job);
    domain.destroy()?.wait(Duration::from_secs(10));
    Ok("saved".to_owned())
}

/// Has QEMU write its state into a file, and waits for it.
fn send(job: &mut AsyncJob<'_, Guests>, file: &File, rate: u64, name: &str) -> Fallible<()> {
    job.set_phase("sending memory")?;
    let mut step = job.begin_nested()?;
    let monitor = step.enter_monitor()?;
    let speed = json!({ "max-bandwidth": rate });
    monitor.execute("migrate-set-parameters", &speed)?;
    let named = json!({ "fdname": "save" });
    monitor.execute_with_descriptors("getfd", &named, &[file.as_fd()])?;
    monitor.execute("migrate", &json!({ "uri": "fd:save" }))?;
    monitor.exit()?;
    drop(step);
    loop {
        let mut step = job.begin_nested()?;
        let monitor = step.enter_monitor()?;
        let state = monitor.execute("query-migrate", &())?;
        monitor.exit()?;
        drop(step);
        let ram = |key: &str| state["ram"][key].as_u64().unwrap_or(0);
        let (left, total) = (ram("remaining"), ram("total").max(1));
        job.set_progress(total.saturating_sub(left), total)?;
        let tenths = usize::try_from(10 - (left * 10).div_ceil(total)).unwrap_or(0);
        say(&format!("save {name} [{:<10}]", "#".repeat(tenths)));
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => return Err(state.to_string().into()),
            // Others have their turn; an abort, or the domain's end, is noticed here.
            _ => job.pause(Duration::from_millis(100))?,
        }
    }
}

/// Has QEMU give it up, if there is one still, and waits until it has.
fn cancel(job: &mut AsyncJob<'_, Guests>) {
    for command in iter::once("migrate_cancel").chain(iter::repeat_n("query-migrate", 100)) {
        let Ok(mut step) = job.begin_nested() else {
            return;
        };
        let Ok(monitor) = step.enter_monitor() else {
            return;
        };
        match monitor.execute(command, &()) {
            Ok(state) if state["status"] == "cancelled" => return,
            Ok(_) => {}
            Err(_) => return,
        }
        drop(step);
        // An abort has been heard already: a pause would end at once.
        thread::sleep(Duration::from_millis(50));
    }
}
