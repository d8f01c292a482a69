//! A user as someone wrote it down: a name, or two numbers.
//!
//! The promise: what is read here is either certainly two ids, or a name that only the system's
//! user database can judge; what can be neither is refused here, before anything is looked up.
//! Numbers are plain decimal, because a second reading of the same digits would be another user:
//! `010` is eight where a leading zero means octal (QEMU), and ten elsewhere.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

/// A user to become: by name, or by uid and gid.
///
/// Nothing is looked up here: that [`User::Name`] exists is found out when the change is prepared.
///
/// ```
/// use captive::privileges::User;
///
/// assert_eq!("65534:65534".parse(), Ok(User::Ids { uid: 65534, gid: 65534 }));
/// assert_eq!("nobody".parse(), Ok(User::Name("nobody".into())));
/// assert!("nobody:nogroup".parse::<User>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum User {
    /// A name in the user database; its group list comes from there. A number without a colon
    /// (`65534`) is a name as well, as it is for QEMU.
    Name(OsString),
    /// Two ids that need not be in any database. There are no supplementary groups.
    Ids {
        /// The user id.
        uid: u32,
        /// The group id.
        gid: u32,
    },
}

/// Why a text can be no user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UserError {
    /// It is empty.
    Empty,
    /// It has a colon, which no user name has, but is not two plain decimal ids: digits only, no
    /// leading zero, each from 0 to 4294967294 (4294967295 is setresuid's "leave unchanged").
    NotIds(OsString),
    /// It has a NUL byte, which no name in a C interface can carry.
    NulByte,
}

impl User {
    /// Reads `name` or `uid:gid`.
    ///
    /// # Errors
    ///
    /// What can be refused without a look-up: see [`UserError`].
    pub fn parse(text: &OsStr) -> Result<Self, UserError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(UserError::Empty);
        }
        if bytes.contains(&0) {
            return Err(UserError::NulByte);
        }
        let Some(colon) = bytes.iter().position(|&b| b == b':') else {
            return Ok(Self::Name(text.to_owned()));
        };
        match (id(&bytes[..colon]), id(&bytes[colon + 1..])) {
            (Some(uid), Some(gid)) => Ok(Self::Ids { uid, gid }),
            _ => Err(UserError::NotIds(text.to_owned())),
        }
    }

    /// The text that [`User::parse`] reads as this user, byte for byte.
    ///
    /// A hand-made value that no text means (an empty name, a name with a colon, the id
    /// 4294967295) comes out as a text that is refused, never as one that means another user:
    /// except a name of the form `uid:gid`, which no user database holds.
    pub fn to_os_string(&self) -> OsString {
        match self {
            Self::Name(name) => name.clone(),
            Self::Ids { uid, gid } => OsString::from_vec(format!("{uid}:{gid}").into_bytes()),
        }
    }
}

/// A plain decimal id that setresuid takes for an id.
fn id(digits: &[u8]) -> Option<u32> {
    let plain = match digits {
        [] | [b'0', _, ..] => false,
        _ => digits.iter().all(u8::is_ascii_digit),
    };
    if !plain {
        return None;
    }
    let value: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (value != u32::MAX).then_some(value)
}

impl FromStr for User {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        Self::parse(text.as_ref())
    }
}

impl fmt::Display for User {
    /// The text form; bytes that are not UTF-8 become U+FFFD.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_os_string().to_string_lossy())
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the user is empty; a user name or uid:gid is expected"),
            Self::NotIds(text) => write!(
                f,
                "user {text:?} cannot exist (a name has no colon) and is not uid:gid \
                 (two plain decimal numbers below 4294967295)"
            ),
            Self::NulByte => f.write_str("the user has a NUL byte, which no user name can have"),
        }
    }
}

impl std::error::Error for UserError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_plain_numbers_are_ids() {
        for (text, uid, gid) in [
            ("0:0", 0, 0),
            ("1:2", 1, 2),
            ("65534:100", 65534, 100),
            ("4294967294:4294967294", u32::MAX - 1, u32::MAX - 1),
        ] {
            assert_eq!(text.parse(), Ok(User::Ids { uid, gid }), "{text}");
        }
    }

    #[test]
    fn without_a_colon_it_is_a_name() {
        for text in ["nobody", "65534", "-1", " ", "a b", "0x10"] {
            assert_eq!(text.parse(), Ok(User::Name(text.into())), "{text}");
        }
        let odd = OsStr::from_bytes(b"\xff,=");
        assert_eq!(User::parse(odd), Ok(User::Name(odd.to_owned())));
    }

    #[test]
    fn a_colon_without_two_plain_numbers_is_refused() {
        for text in [
            ":",
            "12:",
            ":12",
            "1:2:3",
            "-1:5",
            "+1:5",
            "1:-5",
            " 1:5",
            "1: 5",
            "1:5 ",
            "0x1:5",
            "010:5",
            "1:05",
            "00:0",
            "4294967295:1",
            "1:4294967295",
            "4294967296:1",
            "99999999999999999999:1",
            "nobody:nogroup",
            "nobody:100",
            "٣:1",
        ] {
            let refused = Err(UserError::NotIds(text.into()));
            assert_eq!(text.parse::<User>(), refused, "{text}");
        }
    }

    #[test]
    fn empty_and_nul_are_refused() {
        assert_eq!("".parse::<User>(), Err(UserError::Empty));
        assert_eq!("no\0body".parse::<User>(), Err(UserError::NulByte));
        assert_eq!("1:\0".parse::<User>(), Err(UserError::NulByte));
    }

    #[test]
    fn the_text_form_reads_back() {
        for text in ["nobody", "1:2", "65534"] {
            assert_eq!(text.parse::<User>().unwrap().to_string(), text);
        }
    }
}
