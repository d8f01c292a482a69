//! The launcher: a line a command, a line an answer.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio as StdStdio;
use std::time::Duration;

use captive::exit_with_parent::Signal;
use captive::launcher::{CaptiveError, LauncherExit, SpawnError, Stdio};
use captive::{Captive, Command};

/// A captive to be launched, from words: a kind and its operands, then options.
pub fn command(words: &[&str]) -> Command {
    let mut command = match words[0] {
        "plain" | "user" => {
            let mut command = Command::new("sleep");
            command.arg("600").stdout(Stdio::Null);
            command
        }
        _ => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--role", "captives", "death", "captive"]);
            command.args(words.iter().take_while(|word| !word.contains('=')));
            command.stdout(Stdio::Piped);
            command
        }
    };
    command.stdin(Stdio::Null);
    if words[0] == "user" {
        command.run_with("user=65534:65534".parse().unwrap());
    }
    for (key, value) in words.iter().filter_map(|word| word.split_once('=')) {
        let number: u32 = value.parse().unwrap();
        match key {
            "grace" => command.launcher_exit(LauncherExit::Signal {
                signal: Signal::TERM,
                kill_after: Duration::from_millis(number.into()),
            }),
            "order" => command.order(number),
            "detachable" => command.detachable(number == 1),
            _ => panic!("{key}?"),
        };
    }
    command
}

/// Launches it, and waits until it is ready.
fn spawn(words: &[&str]) -> Captive {
    let mut captive = match command(words).spawn() {
        Ok(captive) => captive,
        Err(error) => failed(&error),
    };
    if let Some(stdout) = captive.stdout.take() {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }
    captive
}

/// Says why, instead of an answer, and ends.
pub fn failed(error: &SpawnError) -> ! {
    println!("{error}: {:?}", error.source().map(ToString::to_string));
    std::process::exit(4)
}

pub fn run() -> i32 {
    // Never dropped but on demand: no end of this process is to be mistaken for a drop.
    let captives: &mut Vec<Option<Captive>> = Box::leak(Box::default());
    let stdin = std::io::stdin();
    for line in stdin.lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words.as_slice() {
            ["spawn", what @ ..] => keep(captives, spawn(what)),
            ["thread", what @ ..] => {
                let captive = std::thread::scope(|scope| scope.spawn(|| spawn(what)).join());
                keep(captives, captive.unwrap())
            }
            ["std"] => {
                let mut other = std::process::Command::new("sleep");
                other.arg("600").stdin(StdStdio::null());
                other.stdout(StdStdio::null());
                other.spawn().unwrap().id().to_string()
            }
            ["cycle", count] => cycle(count.parse().unwrap()),
            ["crowd", count, what @ ..] => {
                for _ in 0..number(count) {
                    captives.push(Some(spawn(what)));
                }
                "done".into()
            }
            ["drop", index] => {
                captives[number(index)] = None;
                "dropped".into()
            }
            ["try", index] => tried(captives[number(index)].as_ref().unwrap()),
            ["kill", index] => {
                let captive = captives[number(index)].as_ref().unwrap();
                match captive.kill() {
                    Ok(()) => format!("{}", captive.wait().unwrap().status()),
                    Err(error) => short(&error),
                }
            }
            ["detach", index] => match captives[number(index)].take().unwrap().detach() {
                Ok(()) => "detached".into(),
                Err((_, error)) => panic!("{error}"),
            },
            ["fork"] => match unsafe { libc::fork() } {
                0 => unsafe { libc::getpid() }.to_string(),
                child => {
                    // The child has the conversation until it leaves.
                    let mut status = 0;
                    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                    format!("left {status}")
                }
            },
            // One that does nothing, and holds copies of all descriptors.
            ["twin"] => match unsafe { libc::fork() } {
                0 => loop {
                    unsafe { libc::pause() };
                },
                child => child.to_string(),
            },
            ["leave"] => unsafe { libc::_exit(0) },
            ["daemonise"] => match unsafe { libc::fork() } {
                0 => unsafe { libc::getpid() }.to_string(),
                _ => unsafe { libc::_exit(0) },
            },
            ["exec"] => {
                let error = std::process::Command::new("sleep").arg("600").exec();
                panic!("{error}")
            }
            ["become", user] => {
                let user = user.parse().unwrap();
                assert_eq!(unsafe { libc::setresuid(user, user, user) }, 0);
                "become".into()
            }
            ["enter", group] => {
                fs::write(format!("{group}/cgroup.procs"), "0").unwrap();
                "entered".into()
            }
            ["end", how] => return end(how),
            _ => panic!("{line}?"),
        };
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{answer}").unwrap();
    }
    0
}

fn number(word: &str) -> usize {
    word.parse().unwrap()
}

fn keep(captives: &mut Vec<Option<Captive>>, captive: Captive) -> String {
    let pid = captive.id();
    captives.push(Some(captive));
    pid.to_string()
}

fn short(error: &CaptiveError) -> String {
    match error {
        CaptiveError::Forked { launcher } => format!("forked from {launcher}"),
        other => other.to_string(),
    }
}

fn tried(captive: &Captive) -> String {
    match captive.try_wait() {
        Ok(None) => "runs".into(),
        Ok(Some(report)) => report.status().to_string(),
        Err(error) => short(&error),
    }
}

/// So many captives, one after another; every twentieth is left running.
fn cycle(count: usize) -> String {
    for index in 0..count {
        let captive = spawn(&["plain"]);
        if index % 20 == 0 {
            Box::leak(Box::new(captive));
        } else {
            captive.kill().unwrap();
            captive.wait().unwrap();
        }
    }
    "done".into()
}

fn end(how: &str) -> i32 {
    match how {
        "kill" => unsafe {
            libc::raise(libc::SIGKILL);
        },
        "exit" => std::process::exit(0),
        "_exit" => unsafe { libc::_exit(0) },
        "return" => return 0,
        "abort" => std::process::abort(),
        "panic" => {
            std::panic::set_hook(Box::new(|_| {}));
            panic!("as told");
        }
        // std's handler lets a raised one pass.
        "segv" => {
            unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
            unsafe { libc::raise(libc::SIGSEGV) };
        }
        // Touches memory until the cgroup has none left.
        "oom" => {
            let mut all = Vec::new();
            for _ in 0..256 {
                all.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        _ => panic!("{how}?"),
    }
    3
}
