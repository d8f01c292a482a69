//! Why a user could not be resolved, and what shows that a change did not take.

use std::fmt;
use std::io;

use super::User;

/// Why a user could not be resolved. Nothing has been changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum PrivilegeError {
    /// No user of this name is known.
    NoSuchUser(User),
    /// The lookup itself failed (an unreachable directory service, no memory).
    Lookup {
        /// Who was looked up.
        user: User,
        /// The errno.
        errno: io::Error,
    },
    /// The user has uid 0: nothing would be dropped.
    KeepsRoot(User),
}

impl fmt::Display for PrivilegeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchUser(user) => {
                write!(f, "user \"{user}\" doesn't exist (and is not uid:gid)")
            }
            Self::Lookup { user, .. } => write!(f, "looking up user \"{user}\" failed"),
            Self::KeepsRoot(user) => write!(f, "user \"{user}\" is root: nothing would be dropped"),
        }
    }
}

impl std::error::Error for PrivilegeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lookup { errno, .. } => Some(errno),
            _ => None,
        }
    }
}

/// What shows that privileges are still there after they were dropped. The process must end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotDropped {
    /// setuid(0) succeeded.
    RootRegained,
    /// A thread has other ids, groups or capabilities than it should.
    Thread {
        /// The thread's id.
        tid: u32,
        /// The line of its `status` in proc(5): `Uid`, `Gid`, `Groups`, `CapPrm`, ...
        field: &'static str,
        /// What it says.
        found: String,
    },
}

impl fmt::Display for NotDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootRegained => f.write_str("setuid(0) succeeded"),
            Self::Thread { tid, field, found } => write!(f, "thread {tid} has {field}: {found}"),
        }
    }
}

impl std::error::Error for NotDropped {}
