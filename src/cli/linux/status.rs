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
}

impl Pidfile {
    /// Makes sure that the file can be made, before there is a command.
    pub(super) fn prepare(path: &Path) -> Result<Self, Failure> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let it = Self {
            path: path.to_owned(),
            temporary: temporary.into(),
        };
        it.create().map_err(|error| it.failure(&error))?;
        Ok(it)
    }

    fn create(&self) -> io::Result<File> {
        // Not ours: somebody else's file, or a symbolic link to one.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&self.temporary)
    }

    /// Makes the file appear, whole.
    pub(super) fn write(&self, pid: i32) -> Result<(), Failure> {
        let written = fs::write(&self.temporary, format!("{pid}\n"))
            .and_then(|()| fs::rename(&self.temporary, &self.path));
        written.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &io::Error) -> Failure {
        Failure::own(format!("--pidfile: {}: {error}", self.path.display()))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // The second is there only if the first has not been renamed.
        if fs::remove_file(&self.temporary).is_err() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
