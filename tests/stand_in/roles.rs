//! What this binary can be: launchers and captives.

use std::io::{BufRead, Write};
use std::time::Duration;

use captive::Command;
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::scene::{Outcome, Scene, root_test, test};

pub fn run(args: Vec<String>) -> i32 {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["idle"] => idle(),
        ["deaf"] => {
            // SAFETY: no handler is installed.
            unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.expect("ignored");
            idle()
        }
        ["user"] => {
            // Only root can; by itself, after it has been launched.
            nix::unistd::setgid(65534.into()).expect("setgid");
            nix::unistd::setuid(65534.into()).expect("setuid");
            idle()
        }
        ["daemons"] => crate::trees::daemons(),
        ["launch", how] => crate::lives::launch(how),
        ["self", name] => verdict(&in_this_process(name)),
        _ => {
            eprintln!("stand_in: no role {args:?}");
            2
        }
    }
}

/// A test of a process of its own, by the name of a function.
fn in_this_process(name: &str) -> Outcome {
    for tests in [
        crate::supervisor::PROCESSES,
        crate::lives::PROCESSES,
        crate::trees::PROCESSES,
        crate::trees::OF_REAPERS,
        crate::errors::PROCESSES,
        crate::events::PROCESSES,
        crate::ready::PROCESSES,
    ] {
        if let Some((_, _, run)) = tests.iter().find(|(found, _, _)| *found == name) {
            return run();
        }
    }
    Err(format!("no test {name}").into())
}

/// What is to be run in a process of its own: its name, whether it needs root, and what it does.
pub type Process = (&'static str, bool, fn() -> Outcome);

fn verdict(outcome: &Outcome) -> i32 {
    match outcome {
        Ok(()) => say("passed"),
        Err(failed) => say(format!("failed: {}", failed.message().unwrap_or(""))),
    }
    0
}

/// The tests of a list, each in a process of its own, of which nothing must be left.
pub fn trials(list: &'static [Process]) -> Vec<Trial> {
    let trial = |(name, needs_root, _): &Process| {
        let (name, needs_root) = (*name, *needs_root);
        let run = move || {
            let scene = Scene::role(&["self", name])?;
            let word = scene.word()?;
            if word != "passed" {
                return Err(Failed::from(word));
            }
            scene.all_gone().map(drop)
        };
        Trial::test(name, run).with_ignored_flag(needs_root && !nix::unistd::geteuid().is_root())
    };
    list.iter().map(trial).collect()
}

/// Tests that are scenes of several processes.
pub fn scenes(list: &'static [Process]) -> Vec<Trial> {
    let trial = |(name, needs_root, run): &Process| match needs_root {
        true => root_test(name, *run),
        false => test(name, *run),
    };
    list.iter().map(trial).collect()
}

pub fn say(word: impl std::fmt::Display) {
    println!("{word}");
    let _ = std::io::stdout().flush();
}

/// Says who it is, and answers pings until standard input ends.
pub fn idle() -> i32 {
    say(format!("pid {}", std::process::id()));
    serve()
}

pub fn serve() -> i32 {
    let mut line = String::new();
    loop {
        line.clear();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) | Err(_) => return 0,
            Ok(_) if line.trim() == "ping" => say("pong"),
            Ok(_) => {}
        }
    }
}

pub fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// This binary in a role.
pub fn this(role: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.arg("--role").args(role);
    command
}

pub fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}
