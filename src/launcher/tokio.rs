//! Captives for programs on [tokio](https://docs.rs/tokio): nothing here blocks a worker.
//!
//! ```no_run
//! use std::time::Duration;
//! use captive::Command;
//! use captive::launcher::{Ready, tokio as captives};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut command = Command::new("qemu-system-x86_64");
//! command.args(["-nodefaults", "-S", "-qmp", "unix:qmp,server=on,wait=off"]);
//! command.ready(Ready::UnixListener("qmp".into()));
//! let qemu = captives::spawn(command).await?;
//! qemu.wait_ready(Duration::from_secs(10)).await?;
//! // ... as many futures as one likes wait for it, signal it ...
//! let report = qemu.terminate(Duration::from_secs(5)).await?;
//! println!("{}", report.status());
//! # Ok(())
//! # }
//! ```
//!
//! # What runs where
//!
//! The end of a captive is the runtime's own event, of a copy of the captive's pidfd: a wait costs no thread. What may take
//! its time (a spawn, which waits for the exec; a look whether a captive is ready; telling the guard to let one go) runs on
//! the runtime's blocking threads. Events are sent from the crate's own thread straight into the receiver.
//!
//! Everything else is as in [`launcher`](super): a captive ends with the launcher *process*, not with the runtime, and a dropped
//! handle sends SIGKILL at once and does not wait.
//!
//! # The runtime
//!
//! Either of tokio's, with `enable_io` and `enable_time` (or `enable_all`). A handle belongs to the runtime in which it was
//! made, and may be polled from anywhere as long as that runs; once it has been shut down, waits fail with an error. Where
//! there is none, making a handle is [`AsyncError::NoRuntime`].
//!
//! # Cancel safety
//!
//! Every method says what a future that is dropped leaves. Nothing is ever lost by it: the kernel tells how a captive ended
//! once, and the handle remembers; what has been read while waiting for a line is kept for the next wait.
//!
//! A limit of its own has no wait: `tokio::time::timeout(limit, captive.wait())` does it.
//!
//! # Platforms
//!
//! As [`launcher`](super#platforms).

#![cfg_attr(
    not(any(captive_helper, captive_bsd)),
    allow(
        unreachable_code,
        unused_variables,
        unused_mut,
        reason = "there is no value of the platform's handle"
    )
)]

use std::fmt;
use std::io;
use std::sync::Arc;

use ::tokio::runtime::{Handle, TryCurrentError};
use ::tokio::task::JoinError;

use super::{Command, SpawnError};

mod captive;
mod events;
mod futures;

pub use captive::AsyncCaptive;
pub use events::{AsyncEvents, events};

/// Launches a captive on one of the runtime's blocking threads. Takes a [`Command`], or an `Arc` of one that is to be
/// spawned again.
///
/// # Cancel safety
/// The launch goes on; the captive that comes of it, if one does, gets SIGKILL at once and is reaped.
///
/// # Errors
/// [`AsyncError::NoRuntime`], [`AsyncError::Spawn`] and others.
///
/// # Panics
/// As [`AsyncCaptive::new`].
pub async fn spawn(command: impl Into<Arc<Command>>) -> Result<AsyncCaptive, AsyncError> {
    let command = command.into();
    let runtime = Handle::try_current().map_err(AsyncError::NoRuntime)?;
    let captive = runtime
        .spawn_blocking(move || command.spawn_shared())
        .await
        .map_err(AsyncError::ShutDown)?
        .map_err(AsyncError::Spawn)?;
    AsyncCaptive::on(runtime, captive).map_err(|(_, error)| error)
}

/// Why there is no [`AsyncCaptive`].
#[derive(Debug)]
#[non_exhaustive]
pub enum AsyncError {
    /// This was called outside of a runtime.
    NoRuntime(TryCurrentError),
    /// The runtime was shut down before it had done it.
    ShutDown(JoinError),
    /// The captive could not be launched.
    Spawn(SpawnError),
    /// The runtime cannot watch one of the captive's descriptors.
    Register {
        /// Which.
        what: &'static str,
        /// Why.
        errno: io::Error,
    },
}

impl fmt::Display for AsyncError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRuntime(_) => f.write_str("there is no tokio runtime here"),
            Self::ShutDown(_) => f.write_str("the runtime was shut down during the launch"),
            Self::Spawn(error) => error.fmt(f),
            Self::Register { what, .. } => {
                write!(f, "having the runtime watch the captive's {what} failed")
            }
        }
    }
}

impl std::error::Error for AsyncError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoRuntime(error) => Some(error),
            Self::ShutDown(error) => Some(error),
            Self::Spawn(error) => error.source(),
            Self::Register { errno, .. } => Some(errno),
        }
    }
}
