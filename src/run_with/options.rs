//! The option string: bytes to [`RunWith`].
//!
//! The grammar is that of QEMU's own parser. An element runs up to a comma; its key up to the
//! first equals sign or comma, so only in a value is a comma written twice. Elements are judged
//! from left to right and the first that is wrong is the error, so that help asked for after a
//! mistake is not given, as in QEMU.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::keys::{self, Given, Key};
use super::{OptionError, OptionErrorKind, RunWith};
use crate::privileges::User;

/// Reads an option string.
pub(super) fn parse(text: &OsStr) -> Result<RunWith, OptionError> {
    let text = text.as_bytes();
    let mut options = RunWith::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let end = rest
            .iter()
            .position(|b| matches!(b, b'=' | b','))
            .unwrap_or(rest.len());
        let name = &rest[..end];
        if rest.get(end) != Some(&b'=') {
            return Err(OptionError::new(at, no_value(name)));
        }
        let Some(key) = keys::find(name) else {
            return Err(OptionError::new(at, no_such_key(name)));
        };
        let value_at = at + end + 1;
        let (value, next) = value(text, value_at);
        options = give(options, key, value).map_err(|kind| OptionError::new(value_at, kind))?;
        at = next;
    }
    Ok(options)
}

/// What an element without an equals sign is: never an option.
fn no_value(name: &[u8]) -> OptionErrorKind {
    if matches!(name, b"help" | b"?") {
        return OptionErrorKind::Help;
    }
    // QEMU's short forms: `key` for on, `nokey` for off.
    let positive = name.strip_prefix(b"no").unwrap_or(name);
    match keys::find(positive) {
        Some(key) => OptionErrorKind::MissingValue {
            key: key.name,
            takes: key.takes,
        },
        None if positive == b"id" => OptionErrorKind::Id,
        None => no_such_key(name),
    }
}

fn no_such_key(name: &[u8]) -> OptionErrorKind {
    if name == b"id" {
        OptionErrorKind::Id
    } else {
        OptionErrorKind::UnknownKey(OsStr::from_bytes(name).to_owned())
    }
}

/// The value that starts at `at`, its doubled commas made single, and where the next element
/// starts.
fn value(text: &[u8], at: usize) -> (OsString, usize) {
    let mut value = Vec::new();
    let mut next = at;
    while let Some(&byte) = text.get(next) {
        next += 1;
        if byte == b',' {
            if text.get(next) != Some(&b',') {
                break;
            }
            next += 1;
        }
        value.push(byte);
    }
    (OsString::from_vec(value), next)
}

/// Gives one option its value. Every value is checked, also one that a later one replaces.
fn give(options: RunWith, key: &'static Key, value: OsString) -> Result<RunWith, OptionErrorKind> {
    Ok(match key.option {
        Given::AsyncTeardown => options.async_teardown(switch(key, value)?),
        Given::Chroot => options.chroot(path(key, value)?),
        Given::ExitWithParent => options.exit_with_parent(switch(key, value)?),
        Given::User => {
            options.user(
                User::parse(&value).map_err(|reason| OptionErrorKind::BadUser {
                    key: key.name,
                    reason,
                })?,
            )
        }
    })
}

fn switch(key: &'static Key, value: OsString) -> Result<bool, OptionErrorKind> {
    match value.as_bytes() {
        b"on" | b"yes" | b"true" | b"y" => Ok(true),
        b"off" | b"no" | b"false" | b"n" => Ok(false),
        _ => Err(OptionErrorKind::BadSwitch {
            key: key.name,
            value,
        }),
    }
}

fn path(key: &'static Key, value: OsString) -> Result<OsString, OptionErrorKind> {
    if value.is_empty() {
        Err(OptionErrorKind::EmptyPath { key: key.name })
    } else if value.as_bytes().contains(&0) {
        Err(OptionErrorKind::NulByte { key: key.name })
    } else {
        Ok(value)
    }
}
