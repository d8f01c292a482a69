//! What is told on the side: `--status-fd` and `--pidfile`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use super::super::Failure;

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

    /// Writes one line, in one write. A reader that has gone is no error.
    pub(super) fn tell(&mut self, event: Event) {
        let Some(file) = &mut self.0 else { return };
        let line = match event {
            Event::Started(pid) => format!("{{\"event\":\"started\",\"pid\":{pid}}}\n"),
            Event::ParentExited => "{\"event\":\"parent-exited\"}\n".to_owned(),
            Event::Exited(status) => format!("{{\"event\":\"exited\",\"status\":{status}}}\n"),
            Event::Killed(signal) => format!("{{\"event\":\"killed\",\"signal\":{signal}}}\n"),
        };
        let _ = file.write_all(line.as_bytes());
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
    /// Whether it has its name.
    shown: bool,
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
            shown: false,
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
        let written = file
            .write_all(format!("{pid}\n").as_bytes())
            .and_then(|()| fs::rename(&self.temporary, &self.path));
        written.map_err(|error| failure(&self.path, &error))?;
        self.shown = true;
        Ok(())
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::own(format!("--pidfile: {}: {error}", path.display()))
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        let _ = fs::remove_file(if self.shown {
            &self.path
        } else {
            &self.temporary
        });
    }
}
