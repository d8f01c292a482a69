//! Processes that must not outlive the program that started them.
//!
//! A *captive* process is a helper whose life belongs to its parent: a QEMU appliance, an nbdkit
//! server, a worker daemon. When the parent is gone, for whatever reason, the captive is to be gone
//! too. This crate is for both sides of that bargain, and each part can be used alone:
//!
//! - [`exit_with_parent`](mod@exit_with_parent): called by the captive itself, early in `main`.
//! - [`privileges`]: resolve a user while names can be looked up, become that user later, prove it.
//! - [`async_teardown`]: be waitable at once however much memory the process had (Linux).
//! - [`run_with`]: the three together as QEMU's `-run-with` option string, resolved while the
//!   process is privileged and applied in one order, written once.
//! - `launcher` (feature `launcher`, on by default): the parent's side. `Command` and `Captive` launch
//!   processes, and with `Containment::Tree` whole trees of them, that cannot outlive their launcher, for
//!   launchers in the style of libguestfs, VM managers and test harnesses. For programs on tokio
//!   `launcher::tokio` (feature `tokio`), for those that keep std's `Command` `launcher::CommandExt`.
//! - `clap` (feature `clap`): `--exit-with-parent` and `--run-with OPTIONS` for programs that parse
//!   their command line with clap's derive. Such a program, written out, is `docs/daemons.md`.
//! - `qemu` (feature `qemu`): for managers of QEMU guests: domains and their jobs, QMP and guest agent, QEMU as a captive.
//! - the program `run-with` (feature `cli`): all of it for programs that know nothing of this crate.
//!
//! ```no_run
//! // The process ends when its parent does.
//! let armed = captive::exit_with_parent()?;
//! println!("{}", armed.report());
//! # Ok::<(), captive::Error>(())
//! ```
//!
//! # Platforms
//!
//! Linux is where the crate is tested. For FreeBSD, macOS, NetBSD, OpenBSD and DragonFly `exit_with_parent`,
//! `run_with`, `privileges`, the launcher and the program run-with are written; they have never been run there.
//! `async_teardown` is Linux's. On other systems `exit_with_parent::is_supported()` is false and arming is an
//! error. `docs/platforms.md` has the table.
//!
//! # What this crate does not do
//!
//! It does not follow a process that the captive itself started, unless a launcher asks for its tree; it does not wake a stopped, frozen or
//! traced process; and a process that may signal any other may always end the watcher too. Each part
//! says what it does not cover.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod async_teardown;
pub mod exit_with_parent;
pub mod privileges;
pub mod run_with;

#[cfg(feature = "clap")]
#[cfg_attr(docsrs, doc(cfg(feature = "clap")))]
pub mod clap;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;

#[cfg(feature = "launcher")]
#[cfg_attr(docsrs, doc(cfg(feature = "launcher")))]
pub mod launcher;

#[cfg(feature = "qemu")]
#[cfg_attr(docsrs, doc(cfg(feature = "qemu")))]
pub mod qemu;

#[cfg(feature = "qemu")]
#[cfg_attr(docsrs, doc(cfg(feature = "qemu")))]
pub mod sync;

mod error;
mod sys;

pub use error::Error;
pub use exit_with_parent::exit_with_parent;
#[cfg(feature = "launcher")]
#[cfg_attr(docsrs, doc(cfg(feature = "launcher")))]
pub use launcher::{Captive, Command, Containment};
pub use run_with::RunWith;
