//! What a QEMU binary can do, by what it prints.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::launcher::Stdio;
use crate::{Captive, Command, Containment};

/// A QEMU binary, and what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself.
    pub abilities: Abilities,
}

/// What a QEMU can do, of what matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Abilities {
    /// Its version, as `-version` prints it: 7.2.22, 10.2.1.
    pub version: Option<String>,
    /// The keys of its `-run-with`; none before QEMU 9.0.
    pub run_with: Vec<String>,
}

impl Abilities {
    /// From what `-version` and `-help` print, one after the other: whatever else is in it means nothing.
    pub fn from_output(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("QEMU emulator version "))
            .and_then(|rest| rest.split(' ').next())
            .filter(|version| version.starts_with(|first: char| first.is_ascii_digit()))
            .map(str::to_owned);
        Self {
            version,
            run_with: keys(&text),
        }
    }

    /// Whether its `-run-with` has this key.
    pub fn has(&self, key: &str) -> bool {
        self.run_with.iter().any(|known| known == key)
    }
}

/// The keys in `-run-with [async-teardown=on|off][,chroot=dir]...`, which may go over several lines, all but the first
/// of which begin with blanks; what explains them is further in, and has no brackets.
fn keys(text: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| {
        let rest = line.strip_prefix("-run-with");
        !rest.is_some_and(|rest| rest.starts_with(' '))
    });
    let first = lines.next().unwrap_or_default();
    let more = lines.take_while(|line| line.starts_with(' '));
    let mut keys: Vec<String> = Vec::new();
    for line in std::iter::once(first).chain(more) {
        for part in line.split('[').skip(1) {
            let Some((inside, _)) = part.split_once(']') else {
                continue;
            };
            let key = inside.trim_start_matches(',').split(['=', ',']).next();
            let key = key.unwrap_or_default().trim();
            let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            let known = keys.iter().any(|known| known == key);
            if !key.is_empty() && !known && key.bytes().all(is_word) {
                keys.push(key.to_owned());
            }
        }
    }
    keys
}

/// By what a file is told from another that was put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Asks each binary once, as long as its file stays the same (size, time of modification, inode).
///
/// ```no_run
/// use captive::qemu::appliance::Probe;
///
/// let probe = Probe::new();
/// let qemu = probe.binary("/usr/bin/qemu-system-x86_64".as_ref())?;
/// println!("{:?}", qemu.abilities);
/// # Ok::<(), captive::qemu::appliance::ProbeError>(())
/// ```
#[derive(Debug, Default)]
pub struct Probe {
    known: Mutex<HashMap<PathBuf, (Stamp, Arc<Binary>)>>,
}

/// Why nothing is known of a binary.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProbeError {
    /// There is no such file, or it cannot be looked at.
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be executed, or not be listened to.
    Run {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did not end in time.
    Timeout {
        /// Which.
        path: PathBuf,
        /// How long it was given.
        after: Duration,
    },
    /// It is no QEMU: it names no version.
    NoQemu {
        /// Which.
        path: PathBuf,
        /// How its words begin.
        said: String,
    },
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => write!(f, "{} cannot be looked at", path.display()),
            Self::Run { path, .. } => write!(f, "{} cannot be asked", path.display()),
            Self::Timeout { path, after } => {
                write!(f, "{} did not answer within {after:.1?}", path.display())
            }
            Self::NoQemu { path, said } => {
                write!(f, "{} is no QEMU: it says {said:?}", path.display())
            }
        }
    }
}

impl std::error::Error for ProbeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } | Self::Run { source, .. } => Some(source),
            Self::Timeout { .. } | Self::NoQemu { .. } => None,
        }
    }
}

/// For both questions together.
const PATIENCE: Duration = Duration::from_secs(30);

/// `-help` is 40 KiB.
const LONGEST: u64 = 1 << 20;

impl Probe {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The binary at this path. A name without a slash is looked for on PATH.
    ///
    /// # Errors
    ///
    /// [`ProbeError`]; the next call asks again.
    pub fn binary(&self, path: &Path) -> Result<Arc<Binary>, ProbeError> {
        let path = on_path(path);
        let stamp = stamp(&path)?;
        if let Some((known, binary)) = self.known().get(&path) {
            if *known == stamp {
                return Ok(binary.clone());
            }
        }
        // Two at once ask twice, and neither waits for the other.
        let mut said = ask(&path, "-version")?;
        said.extend(ask(&path, "-help")?);
        let abilities = Abilities::from_output(&said);
        if abilities.version.is_none() {
            let said = said[..said.len().min(100)].escape_ascii().to_string();
            return Err(ProbeError::NoQemu { path, said });
        }
        let binary = Arc::new(Binary {
            path: path.clone(),
            abilities,
        });
        self.known().insert(path, (stamp, binary.clone()));
        Ok(binary)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Stamp, Arc<Binary>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn on_path(path: &Path) -> PathBuf {
    if path.as_os_str().as_encoded_bytes().contains(&b'/') {
        return path.to_owned();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join(path))
        .find(|file| file.is_file())
        .unwrap_or_else(|| path.to_owned())
}

fn stamp(path: &Path) -> Result<Stamp, ProbeError> {
    let file = fs::metadata(path).map_err(|source| ProbeError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(Stamp {
        device: file.dev(),
        inode: file.ino(),
        size: file.size(),
        modified: (file.mtime(), file.mtime_nsec()),
    })
}

/// What it prints. Its status means nothing: a QEMU that was built without a display may end with 1.
fn ask(path: &Path, question: &str) -> Result<Vec<u8>, ProbeError> {
    let fail = |source| ProbeError::Run {
        path: path.to_owned(),
        source,
    };
    let mut captive = Command::new(OsStr::new(path))
        .arg(question)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .containment(Containment::Process)
        .spawn()
        .map_err(|error| fail(io::Error::other(error)))?;
    let begin = Instant::now();
    let output = captive.stdout.take();
    let (tell, told) = crossbeam_channel::bounded(1);
    let reader = std::thread::Builder::new()
        .name("captive-probe".to_owned())
        .spawn(move || {
            let mut bytes = Vec::new();
            let read = output.map(|output| output.take(LONGEST).read_to_end(&mut bytes));
            let _ = tell.send(read.unwrap_or(Ok(0)).map(|_| bytes));
        });
    let reader = reader.map_err(fail)?;
    let Ok(bytes) = told.recv_timeout(PATIENCE) else {
        // Its end closes the pipe, and so ends the thread: unless something else has it, which keeps it.
        drop(captive);
        return Err(ProbeError::Timeout {
            path: path.to_owned(),
            after: begin.elapsed(),
        });
    };
    let _ = reader.join();
    end(&captive);
    bytes.map_err(fail)
}

/// It has said all it has to say.
fn end(captive: &Captive) {
    let _ = captive.kill();
    let _ = captive.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_the_help_of_each_version() {
        let help = "-chroot dir     chroot to dir\n-runas user     change to user\n";
        assert!(Abilities::from_output(help.as_bytes()).run_with.is_empty());
        let help = "QEMU emulator version 9.0.2 (Debian 1:9.0.2)\n\
            -readconfig <file>\n\
            -run-with [async-teardown=on|off][,chroot=dir]\n\
            \x20               Set miscellaneous QEMU process lifecycle options:\n\
            \x20               async-teardown=on enables asynchronous teardown (Linux only)\n\
            -tb-size n [x=y]\n";
        let nine = Abilities::from_output(help.as_bytes());
        assert_eq!(nine.version.as_deref(), Some("9.0.2"));
        assert_eq!(nine.run_with, ["async-teardown", "chroot"]);
        let help = "QEMU emulator version 10.2.0\n\
            -run-with [async-teardown=on|off][,chroot=dir][,user=username|uid:gid]\n\
            \x20         [,exit-with-parent=on|off]\n";
        let later = Abilities::from_output(help.as_bytes());
        assert!(later.has("user") && later.has("exit-with-parent") && later.has("chroot"));
        assert!(!later.has("async"));
    }

    #[test]
    fn what_is_no_help_has_no_keys() {
        for text in [
            "-run-without [a=b]",
            "-run-with",
            "-run-with [",
            "-run-with []",
            "-run-with [,]",
        ] {
            let abilities = Abilities::from_output(text.as_bytes());
            assert_eq!(abilities, Abilities::default(), "{text}");
        }
    }
}
