//! One launcher (or adopter) with what it started, and the words it says.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use tempfile::TempDir;

use super::Fallible;
use super::wrappers::{Task, Wrapper};
use crate::support::process::{Reaped, await_that, status_field};
use crate::support::{HANG, Tag, Witness};

/// Dropped in this order: what is left over is killed, the launcher reaped, the folder removed.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) tag: Tag,
    launcher: Reaped,
    lines: Option<Receiver<String>>,
    dir: TempDir,
}

impl Scene {
    /// A scene with nobody in it but the launcher that `make` makes, given the path for a socket.
    pub(super) fn new(make: impl FnOnce(&Tag, PathBuf) -> Command) -> Fallible<Self> {
        let dir = TempDir::new()?;
        let tag = Tag::new();
        let mut child = make(&tag, dir.path().join("socket"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("stderr"))?)
            .spawn()?;
        let stdout = child.stdout.take();
        let mut scene = Self {
            tag,
            launcher: Reaped(child),
            lines: None,
            dir,
        };
        scene.lines = stdout.map(|stdout| {
            let (sender, receiver) = channel();
            // Ends with the launcher: nothing that it starts has this pipe.
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
            receiver
        });
        Ok(scene)
    }

    /// The launcher, which is our child and has not been reaped.
    pub(super) fn launcher(&self) -> Fallible<Witness> {
        Ok(Witness::of(self.launcher.0.id().try_into()?)?)
    }

    /// Its next line, if one comes within `limit`.
    pub(super) fn line(&self, limit: Duration) -> Fallible<Option<String>> {
        match self.lines.as_ref().ok_or("no lines")?.recv_timeout(limit) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(format!("the launcher has ended: {}", self.said()).into())
            }
        }
    }

    /// The number after `word` on the launcher's next line.
    pub(super) fn number(&self, word: &str) -> Fallible<i32> {
        let line = self.line(HANG)?;
        let number = line
            .as_deref()
            .and_then(|line| line.strip_prefix(word)?.trim().parse().ok());
        Ok(number.ok_or_else(|| format!("no {word}: {line:?}; {}", self.said()))?)
    }

    /// Tells the launcher to go on.
    pub(super) fn go_on(&mut self) -> Fallible<()> {
        let stdin = self.launcher.0.stdin.as_mut().ok_or("no stdin")?;
        Ok(writeln!(stdin)?)
    }

    /// The command, once it is in the state its task is about: whatever its wrapper arms is armed by
    /// then.
    pub(super) fn command(&self, wrapper: &Wrapper, task: Task) -> Fallible<Witness> {
        let comm = wrapper.comm(task);
        let command = self.process(comm)?;
        if comm == "nbdkit" {
            let socket = self.dir.path().join("socket");
            await_that("nbdkit's socket", || socket.exists())?;
        }
        if task == Task::ChangesUser {
            let nobody = nix::unistd::User::from_name("nobody")?.ok_or("no user nobody")?;
            ensure!(!nobody.uid.is_root(), "nobody is root");
            let uids = [nobody.uid.to_string().as_str(); 4].join("\t");
            await_that("nbdkit's change of user", || {
                status_field(command.pid, "Uid").as_ref() == Some(&uids)
            })?;
        }
        ensure!(command.alive(), "the command has ended: {}", self.said());
        Ok(command)
    }

    /// The process in a session of its own that [`Task::Tree`] starts.
    pub(super) fn grandchild(&self) -> Fallible<Witness> {
        let grandchild = self.process("tail")?;
        let session = unsafe { libc::getsid(grandchild.pid) };
        ensure!(
            session == grandchild.pid,
            "the grandchild is in session {session}"
        );
        Ok(grandchild)
    }

    fn process(&self, comm: &str) -> Fallible<Witness> {
        let found = self.tag.await_process(comm);
        Ok(found.map_err(|error| format!("{error}; {}", self.said()))?)
    }

    /// What was said on standard error, for a message.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }
}
