//! QEMU's `-run-with` for any program: what a process is to be bound to and reduced to before its
//! work starts.
//!
//! [`RunWith`] is the wish: made with a builder or read from an option string, and nothing happens
//! by making one. The promise of the option string: what is accepted means what it means to QEMU;
//! what QEMU refuses is refused; what is refused *here only* is listed in `docs/options.md`, and a
//! test holds that list against the real program.
//!
//! # Platforms
//!
//! Linux: tested. FreeBSD, macOS, NetBSD, OpenBSD, DragonFly: written, never run; `async-teardown=on` is an error there.

mod display;
mod error;
mod keys;
mod options;
mod plan;

pub use error::{OptionError, OptionErrorKind};
pub use keys::{KEYS, Key};
#[cfg(any(feature = "cli", feature = "launcher"))]
#[allow(unused_imports, reason = "nobody launches on other systems")]
pub(crate) use plan::Plan;
cfg_if::cfg_if! {
    if #[cfg(all(feature = "launcher", captive_bsd))] {
        pub(crate) use plan::InChild;
    }
}
pub use plan::{Applied, PrepareError, Prepared, Step, StepCause, StepError};

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::privileges::User;

/// What to run with. Everything is off by default.
///
/// The switches take a `bool`, as [`std::fs::OpenOptions`]' do: the setter's name says what is
/// switched, and on and off are all that the option string knows. An option that was never given
/// differs from one that was given as `off`, because of several option strings the later ones win
/// ([`merge`](Self::merge)): hence the `Option`s of the getters.
///
/// ```
/// use captive::RunWith;
///
/// let options: RunWith = "exit-with-parent=on,chroot=/srv/a,,b".parse()?;
/// assert_eq!(options, RunWith::new().exit_with_parent(true).chroot("/srv/a,b"));
/// assert_eq!(options.to_string(), "chroot=/srv/a,,b,exit-with-parent=on");
/// # Ok::<(), captive::run_with::OptionError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[doc(alias = "-run-with")]
pub struct RunWith {
    async_teardown: Option<bool>,
    chroot: Option<PathBuf>,
    exit_with_parent: Option<bool>,
    user: Option<User>,
}

impl RunWith {
    /// No option given.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an option string, such as `chroot=/srv,user=nobody`. The empty string gives nothing.
    ///
    /// The whole grammar is in `docs/options.md`. `FromStr` is the same for text that is UTF-8;
    /// this one takes any path.
    ///
    /// # Errors
    ///
    /// The first thing in the string that is no option, with its key and position. A string that
    /// asks for help (`help` or `?` where a key stands) is the kind [`OptionErrorKind::Help`],
    /// whose message is the table of keys: show it, and carry nothing out.
    pub fn parse(text: &OsStr) -> Result<Self, OptionError> {
        options::parse(text)
    }

    /// Whether the process's memory is freed by another process after its end, so that it can be
    /// waited for at once however much memory it had. Linux only. Default: off.
    #[must_use]
    pub fn async_teardown(mut self, on: bool) -> Self {
        self.async_teardown = Some(on);
        self
    }

    /// The directory that becomes the process's root. Default: the root stays.
    ///
    /// An empty path, and one with a NUL byte, name no directory: the option string refuses them,
    /// this setter leaves that to the preparation.
    #[must_use]
    pub fn chroot(mut self, directory: impl Into<PathBuf>) -> Self {
        self.chroot = Some(directory.into());
        self
    }

    /// Whether the process ends when its parent does. Default: off.
    #[must_use]
    pub fn exit_with_parent(mut self, on: bool) -> Self {
        self.exit_with_parent = Some(on);
        self
    }

    /// The user that the process becomes. Default: the user stays.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// What [`async_teardown`](Self::async_teardown) was given, if it was.
    pub fn get_async_teardown(&self) -> Option<bool> {
        self.async_teardown
    }

    /// The directory that [`chroot`](Self::chroot) was given, if it was.
    pub fn get_chroot(&self) -> Option<&Path> {
        self.chroot.as_deref()
    }

    /// What [`exit_with_parent`](Self::exit_with_parent) was given, if it was.
    pub fn get_exit_with_parent(&self) -> Option<bool> {
        self.exit_with_parent
    }

    /// The user that [`user`](Self::user) was given, if it was.
    pub fn get_user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// Whether no option was given. An explicit `off` is given: see [`is_noop`](Self::is_noop).
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there is nothing to do: every option is absent or off.
    pub fn is_noop(&self) -> bool {
        self.async_teardown != Some(true)
            && self.chroot.is_none()
            && self.exit_with_parent != Some(true)
            && self.user.is_none()
    }

    /// Adds what a later option string says: where both give an option, the later one wins, also
    /// with an `off`. So several strings on one command line mean what one string with a comma
    /// between them would.
    pub fn merge(&mut self, later: Self) {
        let Self {
            async_teardown,
            chroot,
            exit_with_parent,
            user,
        } = later;
        self.async_teardown = async_teardown.or(self.async_teardown);
        self.chroot = chroot.or(self.chroot.take());
        self.exit_with_parent = exit_with_parent.or(self.exit_with_parent);
        self.user = user.or(self.user.take());
    }
}

impl FromStr for RunWith {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        Self::parse(text.as_ref())
    }
}

#[cfg(test)]
mod tests;
