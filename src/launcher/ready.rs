//! When a captive is ready to serve.
//!
//! Best is not to ask: a socket that listens before the captive runs ([`Command::listen`](super::Command::listen)) can be
//! connected to at once. Where the captive opens its own, it is looked for without a connect, which some servers take for
//! their one client (QEMU's `-qmp ...,wait=on`).
//!
//! All wait with a deadline, and fail at once when the captive ends first. A look at `/proc` or at a file is repeated
//! after 1 ms, then ever later, up to 20 ms; lines, notifications and the captive's end wake at once.
//!
//! Whose a socket is, and who has sent a message, only Linux tells: elsewhere [`Ready::UnixListener`], [`Ready::TcpListener`] and
//! [`Ready::Notify`] are [`SpawnError::Invalid`](super::SpawnError::Invalid).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::ExitReport;

/// What says that a captive is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ready {
    /// A process of its tree listens on the Unix socket that is this file. Found by the kernel's list of sockets and the
    /// descriptors of the captive and its descendants, which the launcher must be allowed to see (the same user, or
    /// CAP_SYS_PTRACE): a socket that is left over from another process is not taken for it.
    UnixListener(PathBuf),
    /// A process of its tree listens on this TCP port, on any address, in the captive's own network namespace.
    TcpListener(u16),
    /// This file is there, and is another than was there before the spawn: made, replaced or written since.
    File(PathBuf),
    /// It has written a line that contains this text. The stream must be [`Stdio::Piped`](super::Stdio::Piped), and not
    /// have been taken out of the [`Captive`](super::Captive). What is read meanwhile is in [`Readiness::output`].
    Line(Stream, String),
    /// It has said `READY=1` by sd_notify(3); a message of a process outside its tree is ignored. So is one whose sender
    /// has ended when it is read, which may be as late as [`Captive::wait_ready`](super::Captive::wait_ready): a child has to
    /// wait (systemd-notify does), the captive itself need not. The variable is NOTIFY_SOCKET, the address an abstract one: not with
    /// [`network_namespace`](super::Command::network_namespace).
    Notify,
    /// A connection to the Unix socket at this path can be made; it is closed again at once. Not for a server that
    /// takes it for its client.
    ConnectUnix(PathBuf),
    /// The same with TCP, from the launcher's network namespace.
    ConnectTcp(SocketAddr),
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnixListener(path) => write!(f, "a listener on {}", path.display()),
            Self::TcpListener(port) => write!(f, "a listener on TCP port {port}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Line(stream, text) => write!(f, "a line with {text:?} on its {stream}"),
            Self::Notify => f.write_str("READY=1 by sd_notify"),
            Self::ConnectUnix(path) => write!(f, "a connection to {}", path.display()),
            Self::ConnectTcp(address) => write!(f, "a connection to {address}"),
        }
    }
}

/// A stream of the captive's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "standard output",
            Self::Stderr => "standard error",
        })
    }
}

/// A captive that is ready, and what it said on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// With [`Ready::Line`]: everything that was read from the stream, the line and what came with it.
    pub output: Vec<u8>,
    /// With [`Ready::Notify`]: the last `STATUS=` there was.
    pub status: Option<String>,
}

/// Why a captive is not known to be ready. It is as it was.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadyError {
    /// The launch did not say what to wait for: [`Command::ready`](super::Command::ready).
    NotAsked,
    /// It has ended first.
    Ended {
        /// What was waited for.
        ready: Ready,
        /// How it ended.
        report: ExitReport,
        /// With [`Ready::Line`]: what was read until then.
        output: Vec<u8>,
    },
    /// Not within this time.
    TimedOut {
        /// What was waited for.
        ready: Ready,
        /// How long.
        after: Duration,
        /// What there was instead, if anything.
        instead: Option<String>,
        /// With [`Ready::Line`]: what was read until then.
        output: Vec<u8>,
    },
    /// It closed the stream on which the line was to come, and runs on.
    Closed {
        /// What was waited for.
        ready: Ready,
        /// What was read until then.
        output: Vec<u8>,
    },
    /// It cannot be looked for.
    Look {
        /// What was waited for.
        ready: Ready,
        /// What failed, with its operand.
        what: String,
        /// Why.
        errno: io::Error,
    },
    /// Waiting for it failed.
    Captive(super::CaptiveError),
}

impl fmt::Display for ReadyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => f.write_str("nothing was said to tell that the captive is ready"),
            Self::Ended { ready, report, .. } => write!(
                f,
                "the captive ended ({}) before there was {ready}",
                report.status()
            ),
            Self::TimedOut {
                ready,
                after,
                instead,
                ..
            } => {
                write!(f, "there was not {ready} within {after:?}")?;
                match instead {
                    Some(instead) => write!(f, ": {instead}"),
                    None => Ok(()),
                }
            }
            Self::Closed { ready, .. } => {
                write!(f, "the captive closed the stream before there was {ready}")
            }
            Self::Look { ready, what, .. } => write!(f, "looking for {ready}: {what} failed"),
            Self::Captive(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReadyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Look { errno, .. } => Some(errno),
            Self::Captive(error) => error.source(),
            _ => None,
        }
    }
}

impl From<super::CaptiveError> for ReadyError {
    fn from(error: super::CaptiveError) -> Self {
        Self::Captive(error)
    }
}
