//! What is told on the side: `--status-fd` and `--pidfile`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Failure;
use super::writing::write;

/// An event for the status descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    Started(i32),
    ParentExited,
    Exited(i32),
    Killed(i32),
}

/// The status descriptor, if there is one.
#[derive(Debug)]
pub(super) struct StatusFd(Option<File>);

impl StatusFd {
    pub(super) fn new(fd: Option<OwnedFd>) -> Self {
        Self(fd.map(File::from))
    }

    pub(super) fn raw_fd(&self) -> Option<RawFd> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Writes one line, in one write. A reader that has gone is no error; one that does not read
    /// loses the line: whoever waits for it must not hold up the command's end.
    pub(super) fn tell(&mut self, event: Event) {
        let Some(file) = &mut self.0 else { return };
        let line = match event {
            Event::Started(pid) => format!("{{\"event\":\"started\",\"pid\":{pid}}}\n"),
            Event::ParentExited => "{\"event\":\"parent-exited\"}\n".to_owned(),
            Event::Exited(status) => format!("{{\"event\":\"exited\",\"status\":{status}}}\n"),
            Event::Killed(signal) => format!("{{\"event\":\"killed\",\"signal\":{signal}}}\n"),
        };
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            let _ = write(file, &line);
        }
    }
}

/// A pidfile that is being made, or is there; removed on drop.
#[derive(Debug)]
pub(super) struct Pidfile {
    path: PathBuf,
    temporary: PathBuf,
    /// The temporary file, until it is written: whoever may write to the directory could have put
    /// another in its place.
    file: Option<File>,
    /// Once it has its name: which file it is.
    shown: Option<(u64, u64)>,
}

impl Pidfile {
    /// Makes sure that the file can be made, before there is a command.
    pub(super) fn prepare(path: &Path) -> Result<Self, Failure> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        // Not ours: somebody else's file, or a symbolic link to one.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary);
        let file = file.map_err(|error| failure(path, &error))?;
        let it = Self {
            path: path.to_owned(),
            temporary,
            file: Some(file),
            shown: None,
        };
        if it.path.is_dir() {
            return Err(failure(path, &io::ErrorKind::IsADirectory.into()));
        }
        Ok(it)
    }

    /// The descriptor that must stay open until the file is written.
    pub(super) fn raw_fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Makes the file appear, whole.
    pub(super) fn write(&mut self, pid: i32) -> Result<(), Failure> {
        let Some(mut file) = self.file.take() else {
            return Ok(());
        };
        let written = write(&mut file, &format!("{pid}\n"))
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .and_then(|()| file.metadata());
        let metadata = written.map_err(|error| failure(&self.path, &error))?;
        self.shown = Some((metadata.dev(), metadata.ino()));
        Ok(())
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::own(format!("--pidfile: {}: {error}", path.display()))
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        let Some(shown) = self.shown else {
            let _ = fs::remove_file(&self.temporary);
            return;
        };
        // Another run-with may have put its own there since.
        let there = fs::symlink_metadata(&self.path);
        if there.is_ok_and(|file| (file.dev(), file.ino()) == shown) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
