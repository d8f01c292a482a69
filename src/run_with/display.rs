//! [`RunWith`] back to an option string, which reads as the same options.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::RunWith;
use super::keys::{Given, KEYS};

impl RunWith {
    /// The option string of these options, byte for byte: [`RunWith::parse`] reads it as the same
    /// options, if each value is one that an option string can give (not an empty path, not a
    /// NUL byte). The keys are in the order of the alphabet; an option not given is not in it.
    pub fn to_os_string(&self) -> OsString {
        let mut text = Vec::new();
        for key in KEYS {
            let value = match key.option {
                Given::AsyncTeardown => self.get_async_teardown().map(switch),
                Given::Chroot => self.get_chroot().map(|path| path.as_os_str().to_owned()),
                Given::ExitWithParent => self.get_exit_with_parent().map(switch),
                Given::User => self.get_user().map(super::User::to_os_string),
            };
            let Some(value) = value else { continue };
            if !text.is_empty() {
                text.push(b',');
            }
            text.extend_from_slice(key.name.as_bytes());
            text.push(b'=');
            for &byte in value.as_bytes() {
                if byte == b',' {
                    text.push(b',');
                }
                text.push(byte);
            }
        }
        OsString::from_vec(text)
    }
}

fn switch(on: bool) -> OsString {
    OsStr::new(if on { "on" } else { "off" }).to_owned()
}

impl fmt::Display for RunWith {
    /// The option string; bytes that are not UTF-8 become U+FFFD, so that only
    /// [`to_os_string`](RunWith::to_os_string) is exact for every path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_os_string().to_string_lossy())
    }
}
