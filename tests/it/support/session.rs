//! A conversation with a process in the role `captive`, over a socket that is its standard input and
//! output: a line a command, a line an answer. The socket's end of file is a witness: nobody who had
//! inherited it is left.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};

use super::process::{Reaped, readable_within};
use super::{HANG, Outcome, Tag, Witness};

/// The result of a step of a test.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The test's end of the conversation.
#[derive(Debug)]
pub struct Session {
    stream: BufReader<UnixStream>,
}

impl Session {
    /// With a process that has connected.
    pub fn accept(listener: &UnixListener) -> Fallible<Self> {
        ensure!(readable_within(listener.as_fd(), HANG), "nobody connects");
        Ok(Self::new(listener.accept()?.0))
    }

    fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Starts `command` with its standard input and output here.
    pub fn spawn(command: &mut Command) -> Fallible<(Self, Child)> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        let child = command
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::from(theirs))
            .spawn()?;
        // The command holds its copies of the socket until it is dropped, or given others.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok((Self::new(ours), child))
    }

    /// Says something, and does not wait for the answer.
    pub fn tell(&mut self, command: &str) -> Outcome {
        writeln!(self.stream.get_mut(), "{command}")?;
        Ok(())
    }

    /// The next line.
    pub fn answer(&mut self) -> Fallible<String> {
        let mut answer = String::new();
        while !answer.ends_with('\n') {
            ensure!(
                !self.stream.buffer().is_empty()
                    || readable_within(self.stream.get_ref().as_fd(), HANG),
                "no answer, only {answer:?}"
            );
            let read = self.stream.read_line(&mut answer)?;
            ensure!(read > 0, "the process ended instead of an answer");
        }
        Ok(answer.trim_end().to_owned())
    }

    /// The answer to a command.
    pub fn ask(&mut self, command: &str) -> Fallible<String> {
        self.tell(command)?;
        self.answer()
            .map_err(|error| format!("{command}: {error}").into())
    }

    /// As `ask`, where only one answer is right.
    pub fn expect(&mut self, command: &str, expected: &str) -> Outcome {
        let answer = self.ask(command)?;
        ensure!(
            answer == expected,
            "{command}: {answer:?}, not {expected:?}"
        );
        Ok(())
    }

    /// As `ask`, where the answer has these parts.
    pub fn expect_parts(&mut self, command: &str, parts: &[&str]) -> Outcome {
        let answer = self.ask(command)?;
        for part in parts {
            ensure!(
                answer.contains(part),
                "{command}: {answer:?} has no {part:?}"
            );
        }
        Ok(())
    }

    /// Everybody at the other end has ended.
    pub fn ended(&mut self) -> Outcome {
        let stream = self.stream.get_ref();
        ensure!(readable_within(stream.as_fd(), HANG), "it has not ended");
        let mut rest = Vec::new();
        let stream = self.stream.get_mut();
        stream.set_read_timeout(Some(HANG))?;
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            // It ended with commands unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(format!("it has not ended: {error}").into()),
        }
        ensure!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        Ok(())
    }
}

/// A launcher and what it started, which talks to the test:
///
/// ```text
/// test ── launcher ── captive (or something between them)
/// ```
#[derive(Debug)]
pub struct Launched {
    pub session: Session,
    pub launcher: Reaped,
}

impl Launched {
    /// The launcher starts the role `captive`.
    pub fn captive(tag: &Tag) -> Fallible<Self> {
        Self::through(tag, &[])
    }

    /// The launcher starts this command, and that the role `captive`.
    pub fn through(tag: &Tag, between: &[&str]) -> Fallible<Self> {
        let mut command = tag.role("launcher");
        command.args(between);
        command.arg(std::env::current_exe()?);
        command.args(["--role", "captive"]);
        let (session, launcher) = Session::spawn(&mut command)?;
        Ok(Self {
            session,
            launcher: Reaped(launcher),
        })
    }

    /// Kills and reaps the launcher.
    pub fn kill_launcher(&mut self) -> Outcome {
        self.launcher.0.kill()?;
        self.launcher.0.wait()?;
        Ok(())
    }
}

/// The output of a command that must end by itself.
pub fn output(command: &mut Command) -> Fallible<Output> {
    let mut child = Reaped(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?,
    );
    let witness = Witness::of(child.0.id() as i32)?;
    ensure!(witness.gone(), "{command:?} does not end");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let pipes = (child.0.stdout.take(), child.0.stderr.take());
    pipes.0.ok_or("a pipe")?.read_to_end(&mut stdout)?;
    pipes.1.ok_or("a pipe")?.read_to_end(&mut stderr)?;
    Ok(Output {
        status: child.0.wait()?,
        stdout,
        stderr,
    })
}
