//! A launcher and its captive as the tests see them: two pipes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

/// The result of a test; any error fails it with its message.
pub type Outcome = Result<(), Failed>;

/// How long anything may take before it counts as hung. Never a measure of speed.
pub const HANG: Duration = Duration::from_secs(20);

/// How long a process that nobody ends must go on living to count as not ended.
pub const SURVIVES: Duration = Duration::from_millis(400);

/// Fails the test with a message.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+).into());
        }
    };
}

/// A test.
pub fn test(name: &str, run: fn() -> Outcome) -> Trial {
    Trial::test(name, run)
}

/// A test that needs root: without it, it is listed as ignored.
pub fn root_test(name: &str, run: fn() -> Outcome) -> Trial {
    Trial::test(name, run).with_ignored_flag(!nix::unistd::geteuid().is_root())
}

/// A process of this binary in a role, or another program, between two pipes: it and all that it starts
/// share its standard input and output.
#[derive(Debug)]
pub struct Scene {
    child: Child,
    input: Option<ChildStdin>,
    words: Receiver<String>,
}

impl Scene {
    /// This binary in a role.
    pub fn role(args: &[&str]) -> Result<Self, Failed> {
        let this = std::env::current_exe()?;
        Self::start(Command::new(this).arg("--role").args(args))
    }

    pub fn start(command: &mut Command) -> Result<Self, Failed> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("no standard output")?;
        let (tell, words) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            input,
            words,
        })
    }

    /// The launcher's pid.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next word.
    pub fn word(&self) -> Result<String, Failed> {
        match self.words.recv_timeout(HANG) {
            Ok(word) => Ok(word),
            Err(RecvTimeoutError::Timeout) => Err("no word within the limit".into()),
            Err(RecvTimeoutError::Disconnected) => {
                Err("all have ended, a word was expected".into())
            }
        }
    }

    /// The next word must begin so; the rest of it.
    pub fn expect(&self, start: &str) -> Result<String, Failed> {
        let word = self.word()?;
        match word.strip_prefix(start) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(format!("{start:?} was expected, got {word:?}").into()),
        }
    }

    pub fn say(&mut self, word: &str) -> Outcome {
        let input = self.input.as_mut().ok_or("standard input is closed")?;
        Ok(writeln!(input, "{word}")?)
    }

    /// Whoever reads standard input there answers.
    pub fn ping(&mut self) -> Outcome {
        self.say("ping")?;
        self.expect("pong").map(drop)
    }

    /// SIGKILL to the launcher, which is reaped. Its pid is its own until then.
    pub fn kill(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Outcome {
        let pid = i32::try_from(self.child.id())?;
        // Not reaped yet, so the pid is its own.
        Ok(nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            signal,
        )?)
    }

    pub fn wait(&mut self) -> Result<std::process::ExitStatus, Failed> {
        Ok(self.child.wait()?)
    }

    /// Nobody holds standard output any more: all have ended. What was said meanwhile.
    pub fn all_gone(&self) -> Result<Vec<String>, Failed> {
        let mut said = Vec::new();
        loop {
            match self.words.recv_timeout(HANG) {
                Ok(word) => said.push(word),
                Err(RecvTimeoutError::Disconnected) => return Ok(said),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("somebody lives on; said meanwhile: {said:?}").into());
                }
            }
        }
    }

    /// Whether nobody says anything, and somebody lives, for as long as counts as surviving.
    pub fn lives_on(&self) -> Outcome {
        match self.words.recv_timeout(SURVIVES) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(word) => Err(format!("{word:?} was said").into()),
            Err(RecvTimeoutError::Disconnected) => Err("all have ended".into()),
        }
    }

    /// Ends who reads standard input; all must end then.
    pub fn close(mut self) -> Outcome {
        drop(self.input.take());
        self.all_gone().map(drop)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This binary.
pub fn this_program() -> Command {
    Command::new(std::env::current_exe().expect("this program has a path"))
}
