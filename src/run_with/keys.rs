//! The keys of the option string, written once: the parser, `help` and the documents use this table.

use std::fmt;

/// One key of the option string.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes, as a pattern: `on|off`, `dir`, `username|uid:gid`.
    pub takes: &'static str,
    /// Where it works.
    pub platforms: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    pub(super) option: Given,
}

/// The option that a key gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    AsyncTeardown,
    Chroot,
    ExitWithParent,
    User,
}

/// Every key, in the order of the alphabet.
pub const KEYS: &[Key] = &[
    Key {
        name: "async-teardown",
        takes: "on|off",
        platforms: "Linux",
        summary: "free the memory after the exit, which is then immediate",
        option: Given::AsyncTeardown,
    },
    Key {
        name: "chroot",
        takes: "dir",
        platforms: "every Unix",
        summary: "make this directory the root",
        option: Given::Chroot,
    },
    Key {
        name: "exit-with-parent",
        takes: "on|off",
        platforms: "Linux, FreeBSD, macOS, NetBSD, OpenBSD, DragonFly",
        summary: "end when the parent process does",
        option: Given::ExitWithParent,
    },
    Key {
        name: "user",
        takes: "username|uid:gid",
        platforms: "every Unix",
        summary: "become this user",
        option: Given::User,
    },
];

/// The key of this name, if there is one.
pub(super) fn find(name: &[u8]) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name.as_bytes() == name)
}

/// Writes the table of keys, a line each, without a newline at the end.
pub(super) fn help(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("options (KEY=VALUE, separated by commas; a comma in a value is written twice):")?;
    for key in KEYS {
        let usage = format!("{}={}", key.name, key.takes);
        write!(f, "\n  {usage:<24}  {} [{}]", key.summary, key.platforms)?;
    }
    Ok(())
}
