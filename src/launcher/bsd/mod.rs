//! FreeBSD, macOS, NetBSD, OpenBSD, DragonFly: a supervisor process for each captive. **Never run there**, see
//! `docs/platforms.md`: what is here is run on Linux, on real processes, against the stand-in for those systems' calls.
//!
//! ```text
//! Command::spawn ── request (all allocated) ── fork ── supervisor ── fork ── captive .. exec
//!                                                │  page, orders        (FreeBSD: pdfork, SIGKILL on close)
//! Captive ── process (page, sockets) ── reaper thread
//! ```

use super::SpawnError;
use super::command::{Command, Defaults};
use super::stdio::Pipes;
pub(super) use crate::sys::bsd as sys;

mod caught;
mod child;
mod contained;
pub(super) mod probe;
mod process;
mod reaper;
mod request;
mod runtime;
mod supervisor;
mod words;

pub(super) use super::handle::{Handle, start};
#[cfg(feature = "tokio")]
pub(super) use super::observer::Observer;
pub(super) use super::watch::Streams;
#[cfg(feature = "tokio")]
pub(super) use super::watch::{LAST_WORDS, Look, PAUSE};
pub(super) use caught::Caught;
pub(super) use process::Process;
pub(super) use runtime::Runtime;

pub(super) fn is_supported() -> bool {
    true
}

pub(super) fn spawn(command: &Command, defaults: &Defaults) -> Result<(Handle, Pipes), SpawnError> {
    Handle::spawn(command, defaults)
}

pub(super) fn spawn_std(
    _command: &mut std::process::Command,
) -> Result<std::process::Child, SpawnError> {
    Err(SpawnError::Unsupported(
        "std's child is the launcher's own, and tells no guard of itself on this system: use captive::Command",
    ))
}
