//! The launcher: a line a command, a line an answer.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio as StdStdio;
use std::time::Duration;

use captive::exit_with_parent::Signal;
use captive::launcher::{CaptiveError, Containment, LauncherExit, SpawnError, Stdio};
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
            // Not by its path: the launcher may have become a user who may not go there.
            let mut command = Command::new("/proc/self/exe");
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
        match key {
            "tree" => {
                command.containment(containment(value));
                continue;
            }
            "cgroup" => {
                command.cgroup(value);
                continue;
            }
            _ => {}
        }
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

fn containment(name: &str) -> Containment {
    match name {
        "Tree" => Containment::Tree,
        "PidNamespace" => Containment::PidNamespace,
        "UserNamespace" => Containment::UserNamespace,
        "Cgroup" => Containment::Cgroup,
        "TreeBestEffort" => Containment::TreeBestEffort,
        _ => panic!("{name}?"),
    }
}

/// Launches it, and waits until it is ready; what it says of itself then.
pub fn spawn(words: &[&str]) -> (Captive, String) {
    let mut captive = match command(words).spawn() {
        Ok(captive) => captive,
        Err(error) => failed(&error),
    };
    let mut line = "ready\n".to_owned();
    if let Some(stdout) = captive.stdout.take() {
        line.clear();
        BufReader::new(stdout).read_line(&mut line).unwrap();
    }
    let said = line.strip_prefix("ready").expect(&line).trim_end();
    (captive, said.to_owned())
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
                    captives.push(Some(spawn(what).0));
                }
                "done".into()
            }
            ["drop", index] => {
                captives[number(index)] = None;
                "dropped".into()
            }
            ["wait", index] => {
                let report = captives[number(index)].as_ref().unwrap().wait();
                report.unwrap().status().to_string()
            }
            ["wait_tree", index, millis] => {
                let limit = Duration::from_millis(millis.parse().unwrap());
                let captive = captives[number(index)].as_ref().unwrap();
                captive.wait_tree(limit).unwrap().to_string()
            }
            ["containment", index] => {
                let captive = captives[number(index)].as_ref().unwrap();
                captive.containment().to_string()
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

fn keep(captives: &mut Vec<Option<Captive>>, (captive, said): (Captive, String)) -> String {
    let pid = captive.id();
    captives.push(Some(captive));
    format!("{pid}{said}")
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
        let (captive, _) = spawn(&["plain"]);
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
