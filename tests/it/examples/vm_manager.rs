//! The example `vm_manager`: many guests, a save with an abort, an agent that never answers; killed it leaves nothing
//! running, started again it finds its guests.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use libtest_mimic::Trial;

use super::Fallible;
use crate::support::needs::example;
use crate::support::process::Reaped;
use crate::support::{HANG, Need, Outcome, Witness, test};

const NAME: &str = "vm_manager";
const NEEDS: &[Need] = &[
    Need::Example(NAME),
    Need::Program("qemu-system-x86_64"),
    Need::Root,
    Need::Native,
];

pub fn tests() -> Vec<Trial> {
    vec![
        test("examples::vm_manager", NEEDS, manages),
        test("examples::vm_manager_killed", NEEDS, killed),
    ]
}

struct Manager {
    process: Reaped,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Manager {
    fn new(folder: &Path) -> Fallible<Self> {
        let mut child = Command::new(example(NAME))
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (tell, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            process: Reaped(child),
            input,
            lines,
        })
    }

    fn say(&mut self, line: &str) -> Outcome {
        writeln!(self.input, "{line}")?;
        Ok(())
    }

    /// The next line that begins so, without that.
    fn hear(&self, begins: &str) -> Fallible<String> {
        loop {
            let line = self.lines.recv_timeout(HANG)?;
            if let Some(rest) = line.strip_prefix(begins) {
                return Ok(rest.to_owned());
            }
        }
    }

    fn ask(&mut self, line: &str) -> Fallible<String> {
        self.say(line)?;
        self.hear(&format!("{line}: "))
    }

    /// Starts a guest: its process.
    fn start(&mut self, name: &str) -> Fallible<(Witness, String)> {
        let said = self.ask(&format!("start {name}"))?;
        let pid = said.rsplit("pid ").next().unwrap_or_default().parse()?;
        Ok((Witness::of(pid)?, said))
    }
}

fn manages() -> Outcome {
    let place = tempfile::tempdir()?;
    let mut manager = Manager::new(place.path())?;
    manager.hear("ready, 0 guests")?;
    for name in ["a", "b", "c"] {
        ensure!(
            manager.ask(&format!("define {name}"))? == "defined",
            "{name}"
        );
    }
    let (a, said) = manager.start("a")?;
    ensure!(said.contains("from nothing"), "{said}");
    let (_b, _) = manager.start("b")?;
    // The agent's deadline is a second: the query beside it has its answer before.
    manager.say("agent a")?;
    let said = manager.ask("query a")?;
    ensure!(said.contains("prelaunch"), "{said}");
    let said = manager.hear("agent a: ")?;
    ensure!(said.contains("for the agent to synchronise"), "{said}");

    // Slow enough to be there when it is looked at.
    manager.say("save a 20000")?;
    manager.hear("save a [")?;
    let said = manager.ask("list")?;
    ensure!(said.contains("async save job (sending memory)"), "{said}");
    let said = manager.ask("query a")?;
    ensure!(said.contains("prelaunch"), "{said}");
    let said = manager.ask("abort a")?;
    ensure!(said.contains("the save job was told"), "{said}");
    let said = manager.hear("save a 20000: ")?;
    ensure!(said.contains("aborted"), "{said}");
    ensure!(!place.path().join("a.saved").exists(), "a file is left");

    let said = manager.ask("save a")?;
    ensure!(said == "saved", "{said}");
    ensure!(a.gone_within(HANG), "it runs on");
    let said = manager.ask("query a")?;
    ensure!(said.contains("does not run"), "{said}");
    drop(manager.input);
    let status = manager.process.0.wait()?;
    ensure!(status.success(), "{status}");

    // Another finds them again, and what was saved.
    let mut manager = Manager::new(place.path())?;
    manager.hear("ready, 3 guests")?;
    let (a, said) = manager.start("a")?;
    ensure!(said.contains("from its file"), "{said}");
    let said = manager.ask("query a")?;
    ensure!(!said.contains("does not run"), "{said}");
    ensure!(manager.ask("stop a")? == "Quit", "it did not quit");
    ensure!(a.gone_within(HANG), "it runs on");
    Ok(())
}

fn killed() -> Outcome {
    let place = tempfile::tempdir()?;
    let mut manager = Manager::new(place.path())?;
    let mut guests = Vec::new();
    for name in ["a", "b", "c", "d"] {
        manager.ask(&format!("define {name}"))?;
        guests.push(manager.start(name)?.0);
    }
    manager.say("save a 20000")?;
    manager.say("agent b")?;
    manager.hear("save a [")?;
    Witness::of(manager.process.0.id() as i32)?.signal(libc::SIGKILL);
    for guest in guests {
        ensure!(guest.gone_within(HANG), "{} runs on", guest.pid);
    }
    let manager = Manager::new(place.path())?;
    manager.hear("ready, 4 guests")?;
    Ok(())
}
