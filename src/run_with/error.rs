//! What can be wrong with an option string.

use std::ffi::OsString;
use std::fmt;

use super::keys;
use crate::privileges::UserError;

/// Why an option string was not taken: what is wrong, with which key, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    position: usize,
    kind: OptionErrorKind,
}

/// What is wrong with an option string.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionErrorKind {
    /// Nothing is: the string asks for the keys (`help` or `?`). The message is the table of keys.
    Help,
    /// There is no such key. An empty one comes from a comma or an equals sign with no key before
    /// it.
    UnknownKey(OsString),
    /// The key `id`, with which QEMU names groups of options: there is one group here.
    Id,
    /// A key stands alone (or after QEMU's `no`), where QEMU would take it for on (or off), also
    /// as the name of a directory or user.
    MissingValue {
        /// The key.
        key: &'static str,
        /// What it takes.
        takes: &'static str,
    },
    /// Neither on, yes, true, y nor off, no, false, n.
    BadSwitch {
        /// The key.
        key: &'static str,
        /// What it was given.
        value: OsString,
    },
    /// An empty path, which names no directory.
    EmptyPath {
        /// The key.
        key: &'static str,
    },
    /// A NUL byte in a path, which no system call can take.
    NulByte {
        /// The key.
        key: &'static str,
    },
    /// A user that cannot exist.
    BadUser {
        /// The key.
        key: &'static str,
        /// Why not.
        reason: UserError,
    },
}

impl OptionError {
    pub(super) fn new(position: usize, kind: OptionErrorKind) -> Self {
        Self { position, kind }
    }

    /// Where in the option string, in bytes from its start: at the key if the key is what is
    /// wrong or has no value, else at the value.
    pub fn position(&self) -> usize {
        self.position
    }

    /// What is wrong.
    pub fn kind(&self) -> &OptionErrorKind {
        &self.kind
    }

    /// Whether this is a request for help, to be shown as an answer and not as an error.
    pub fn is_help(&self) -> bool {
        self.kind == OptionErrorKind::Help
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            OptionErrorKind::Help => return keys::help(f),
            OptionErrorKind::UnknownKey(key) if key.is_empty() => {
                f.write_str("a key is missing")?;
                one_of(f)?;
            }
            OptionErrorKind::UnknownKey(key) => {
                write!(f, "unknown key {key:?}")?;
                one_of(f)?;
            }
            OptionErrorKind::Id => {
                f.write_str("the key id, which names a group of options for QEMU, has no meaning")?;
            }
            OptionErrorKind::MissingValue { key, takes } => {
                write!(f, "{key} needs a value: {key}={takes}")?;
            }
            OptionErrorKind::BadSwitch { key, value } => {
                write!(f, "{key} expects on or off, not {value:?}")?;
            }
            OptionErrorKind::EmptyPath { key } => {
                write!(f, "{key} expects a directory, not an empty path")?;
            }
            OptionErrorKind::NulByte { key } => {
                write!(f, "{key} expects a path, which has no NUL byte")?;
            }
            OptionErrorKind::BadUser { key, reason } => write!(f, "{key}: {reason}")?,
        }
        write!(f, " (at byte {} of the option string)", self.position)
    }
}

/// The keys there are.
fn one_of(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (n, key) in keys::KEYS.iter().enumerate() {
        write!(
            f,
            "{}{}",
            if n == 0 { "; expected " } else { ", " },
            key.name
        )?;
    }
    Ok(())
}

impl std::error::Error for OptionError {}
