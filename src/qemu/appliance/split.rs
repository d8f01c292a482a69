//! Who does what of `-run-with`: this QEMU what it knows, the launcher the rest.

use std::fmt;

use super::probe::Abilities;
use crate::RunWith;

/// An option string in two parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Split {
    /// What QEMU is told.
    pub(super) qemu: RunWith,
    /// What the launcher does before it executes QEMU.
    pub(super) launcher: RunWith,
}

/// Why these options cannot be had with this QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitError {
    /// It has no async teardown, and nobody can do that for it: nothing of one survives exec.
    NoAsyncTeardown,
    /// It would have to change its user after the process that frees its memory was made: that one would keep root's
    /// rights, and share the memory of a process without them.
    TeardownKeepsRoot,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAsyncTeardown => "this QEMU has no -run-with async-teardown",
            Self::TeardownKeepsRoot => {
                "async-teardown with chroot and user would leave a root process that shares QEMU's memory"
            }
        })
    }
}

impl std::error::Error for SplitError {}

/// Splits them.
///
/// | option | QEMU, if it knows it | the launcher |
/// |---|---|---|
/// | exit-with-parent | yes, as a second line | always: the captive ends with its launcher |
/// | async-teardown | yes | never |
/// | chroot | yes: after it has opened its files | else: the binary is looked for below the new root |
/// | user | yes, but with async-teardown | else |
///
/// A root that QEMU changes by itself needs root's rights: then the user is QEMU's to change as well, if it can; if not,
/// the launcher does both.
pub(super) fn split(asked: &RunWith, can: &Abilities) -> Result<Split, SplitError> {
    let mut split = Split::default();
    if asked.get_exit_with_parent() == Some(true) && can.has("exit-with-parent") {
        split.qemu = split.qemu.exit_with_parent(true);
    }
    let teardown = asked.get_async_teardown() == Some(true);
    if teardown {
        if !can.has("async-teardown") {
            return Err(SplitError::NoAsyncTeardown);
        }
        split.qemu = split.qemu.async_teardown(true);
    }
    let user_by_qemu = can.has("user");
    let chroot_by_qemu =
        can.has("chroot") && (asked.get_user().is_none() || (user_by_qemu && !teardown));
    if let Some(root) = asked.get_chroot() {
        if chroot_by_qemu {
            split.qemu = split.qemu.chroot(root);
        } else if teardown && asked.get_user().is_some() && can.has("chroot") && user_by_qemu {
            return Err(SplitError::TeardownKeepsRoot);
        } else {
            split.launcher = split.launcher.chroot(root);
        }
    }
    if let Some(user) = asked.get_user() {
        let with_qemu_s_root = asked.get_chroot().is_some() && chroot_by_qemu;
        if user_by_qemu && !teardown && (asked.get_chroot().is_none() || with_qemu_s_root) {
            split.qemu = split.qemu.user(user.clone());
        } else {
            split.launcher = split.launcher.user(user.clone());
        }
    }
    Ok(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(asked: &str, keys: &str) -> Result<(String, String), SplitError> {
        let can = Abilities {
            version: None,
            run_with: keys.split_whitespace().map(str::to_owned).collect(),
        };
        let split = split(&asked.parse().expect("options"), &can)?;
        Ok((split.qemu.to_string(), split.launcher.to_string()))
    }

    #[allow(clippy::unnecessary_wraps, reason = "to be compared with")]
    fn both(qemu: &str, launcher: &str) -> Result<(String, String), SplitError> {
        Ok((qemu.to_owned(), launcher.to_owned()))
    }

    const ALL: &str = "async-teardown chroot exit-with-parent user";

    #[test]
    fn an_old_one_is_told_nothing() {
        let asked = "exit-with-parent=on,chroot=/srv,user=nobody";
        assert_eq!(parts(asked, ""), both("", "chroot=/srv,user=nobody"));
        let error = parts("async-teardown=on", "");
        assert_eq!(error, Err(SplitError::NoAsyncTeardown));
        assert_eq!(parts("async-teardown=off", ""), both("", ""));
    }

    #[test]
    fn a_new_one_does_what_it_knows() {
        let asked = "exit-with-parent=on,chroot=/srv,user=nobody";
        assert_eq!(
            parts(asked, ALL),
            both("chroot=/srv,exit-with-parent=on,user=nobody", "")
        );
        assert_eq!(parts("user=nobody", ALL), both("user=nobody", ""));
    }

    #[test]
    fn one_that_cannot_change_its_user_changes_no_root_either() {
        let keys = "async-teardown chroot";
        assert_eq!(parts("chroot=/srv", keys), both("chroot=/srv", ""));
        assert_eq!(
            parts("chroot=/srv,user=nobody", keys),
            both("", "chroot=/srv,user=nobody")
        );
    }

    #[test]
    fn no_root_process_shares_memory_with_another_user() {
        assert_eq!(
            parts("async-teardown=on,user=nobody", ALL),
            both("async-teardown=on", "user=nobody")
        );
        assert_eq!(
            parts("async-teardown=on,user=nobody,chroot=/srv", ALL),
            Err(SplitError::TeardownKeepsRoot)
        );
        assert_eq!(
            parts(
                "async-teardown=on,user=nobody,chroot=/srv",
                "async-teardown chroot"
            ),
            both("async-teardown=on", "chroot=/srv,user=nobody")
        );
    }
}
