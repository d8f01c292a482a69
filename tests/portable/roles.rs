//! What this binary can be: launchers and captives.

use std::io::{BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use captive::exit_with_parent::{ArmError, Armed, ExitWithParent, Mechanism};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, getppid, pipe};

use crate::scene::this_program;

pub fn run(args: Vec<String>) -> i32 {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["launch", rest @ ..] => launch(rest),
        ["captive", rest @ ..] => bound(rest),
        ["idle"] => serve(),
        ["deaf"] => {
            ignore_term();
            serve()
        }
        ["user", options] => crate::options::apply(options),
        ["captives", rest @ ..] => crate::captives::role(rest),
        _ => {
            eprintln!("portable: no role {args:?}");
            2
        }
    }
}

pub fn say(word: impl std::fmt::Display) {
    println!("{word}");
    let _ = std::io::stdout().flush();
}

/// Answers pings until standard input ends; 0 then.
pub fn serve() -> i32 {
    let mut line = String::new();
    loop {
        line.clear();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) | Err(_) => return 0,
            Ok(_) => match line.trim() {
                "ping" => say("pong"),
                "exit" => return 7,
                _ => {}
            },
        }
    }
}

pub fn ignore_term() {
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.expect("SIGTERM can be ignored");
}

/// A launcher: starts a captive in a role of this binary, in a way.
fn launch(args: &[&str]) -> i32 {
    let (how, role) = args.split_first().expect("a way to launch");
    let this = std::process::id().to_string();
    let role = role.iter().map(|word| match *word {
        "LAUNCHER" => this.clone(),
        word => word.to_owned(),
    });
    let role: Vec<String> = role.collect();
    let start = move |stdin: Stdio| {
        let mut command = this_program();
        command.arg("--role").args(&role).stdin(stdin);
        command.spawn().expect("the captive starts")
    };
    match *how {
        "wait" => {
            let mut captive = start(Stdio::inherit());
            let _ = captive.wait();
            say("captive ended");
            0
        }
        "exit" => {
            start(Stdio::inherit());
            0
        }
        "thread" => {
            let captive = thread::spawn(move || start(Stdio::inherit()));
            let mut captive = captive.join().expect("the thread ends");
            say("thread ended");
            let _ = captive.wait();
            0
        }
        // Its captive's standard input is a pipe that only the launcher can write to.
        "pipe" => {
            let (read, write) = pipe_on_exec();
            let mut captive = start(Stdio::from(read));
            // Data that nobody reads.
            let _ = nix::unistd::write(&write, b"unread");
            serve();
            let _ = captive.wait();
            drop(write);
            0
        }
        _ => 2,
    }
}

/// A pipe that no other child has.
fn pipe_on_exec() -> (OwnedFd, OwnedFd) {
    let ends = pipe().expect("a pipe");
    for end in [&ends.0, &ends.1] {
        let flag = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(end, flag).expect("a descriptor of ours");
    }
    ends
}

/// A captive that binds itself, in a way, says so, and serves.
fn bound(args: &[&str]) -> i32 {
    let new = ExitWithParent::new;
    let armed: Result<Armed, ArmError> = match args {
        ["default"] => new().arm(),
        ["kill-after"] => {
            ignore_term();
            new().kill_after(Duration::from_millis(100)).arm()
        }
        ["deaf-to-term", name] => {
            ignore_term();
            new().signal(name.parse().expect("a signal")).arm()
        }
        ["expect", pid] => new().expect_parent(number(pid)).arm(),
        ["second-line"] => new().second_line().arm(),
        ["signal-only"] => new().mechanism(Mechanism::ParentDeathSignal).arm(),
        ["channel"] => {
            let (armed, parent) = match new().channel() {
                Ok(both) => both,
                Err(error) => return refused(&error),
            };
            say(format!("armed {}", armed.report()));
            let event = parent.recv().expect("the watcher tells");
            say(format!("told {:?}", event.pid));
            let again = parent.recv_timeout(Duration::from_millis(200));
            say(format!("again {}", again.is_ok()));
            return 0;
        }
        // The watcher thread may have no standard output: another one says it.
        ["callback"] => {
            let (tell, told) = std::sync::mpsc::channel();
            thread::spawn(move || {
                for pid in told {
                    say(format!("told {pid:?}"));
                }
            });
            new().callback(move |event| tell.send(event.pid).expect("somebody says it"))
        }
        ["parent-fd"] => {
            let pipe = std::io::stdin().as_fd().try_clone_to_owned();
            new().parent_fd(pipe.expect("standard input")).arm()
        }
        ["parent-fd-orphan", pid] => {
            let pipe = std::io::stdin().as_fd().try_clone_to_owned();
            wait_for_adoption(pid);
            new().parent_fd(pipe.expect("standard input")).arm()
        }
        ["orphan", pid] => {
            wait_for_adoption(pid);
            new().expect_parent(number(pid)).arm()
        }
        ["disarm"] => {
            let armed = new().arm();
            let armed = armed.expect("armed");
            say(format!("alive {}", armed.parent_is_alive()));
            armed.disarm().expect("disarmed");
            say("disarmed");
            return serve();
        }
        ["daemon"] => return daemon(),
        _ => return 2,
    };
    match armed {
        Ok(armed) => {
            say(format!("armed {}", armed.report()));
            // With a pipe in its place there is nothing to serve.
            if args[0].starts_with("parent-fd") {
                loop {
                    thread::sleep(Duration::from_secs(3600));
                }
            }
            serve()
        }
        Err(error) => refused(&error),
    }
}

/// Until the parent is another than the one with this pid.
fn wait_for_adoption(pid: &str) {
    say("waits");
    while getppid().to_string() == pid {
        thread::sleep(Duration::from_millis(1));
    }
}

fn refused(error: &ArmError) -> i32 {
    let kind = match error {
        ArmError::ParentGone { .. } => "gone",
        ArmError::ParentIsInit => "init",
        ArmError::Unsupported(_) => "unsupported",
        ArmError::NotMainThread => "thread",
        _ => "other",
    };
    say(format!("refused {kind}: {error}"));
    3
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number")
}

/// A daemon: armed by a pipe of its launcher's, it forks; the child binds itself again.
fn daemon() -> i32 {
    let pipe = std::io::stdin().as_fd().try_clone_to_owned();
    let mut armed = ExitWithParent::new()
        .parent_fd(pipe.expect("standard input"))
        .arm()
        .expect("armed");
    // SAFETY: std's own threads and locks are not held: this program's only other thread is the watcher.
    match unsafe { fork() }.expect("a fork") {
        ForkResult::Parent { .. } => 0,
        ForkResult::Child => {
            let again = armed.rearm();
            say(match again {
                Ok(()) => "rearmed".to_owned(),
                Err(error) => format!("refused {error}"),
            });
            loop {
                thread::sleep(Duration::from_secs(3600));
            }
        }
    }
}
