//! A user, looked up: ids and the whole group list.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use nix::unistd;

use super::{PrivilegeError, User, group_list};

/// The ids a process is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Identity {
    /// Looks a user up, now: in the present root, with the present name service.
    ///
    /// A name gets the user's primary group and every group that getgrouplist(3) lists. `uid:gid`
    /// gets that one group and needs no lookup.
    ///
    /// # Errors
    /// [`PrivilegeError`]; a user that does not exist, that is root, or whose lookup failed.
    pub fn resolve(user: &User) -> Result<Self, PrivilegeError> {
        let identity = match user {
            User::Ids { uid, gid } => Self {
                uid: *uid,
                gid: *gid,
                groups: vec![*gid],
            },
            User::Name(name) => Self::look_up(user, name)?,
        };
        if identity.uid == 0 {
            return Err(PrivilegeError::KeepsRoot(user.clone()));
        }
        Ok(identity)
    }

    fn look_up(user: &User, name: &OsStr) -> Result<Self, PrivilegeError> {
        let unknown = || PrivilegeError::NoSuchUser(user.clone());
        let failed = |errno: nix::Error| PrivilegeError::Lookup {
            user: user.clone(),
            errno: errno.into(),
        };
        // passwd(5) names are ASCII; one that is not even UTF-8 is nobody's.
        let text = name.to_str().ok_or_else(unknown)?;
        let name = CString::new(name.as_bytes()).map_err(|_| unknown())?;
        let entry = unistd::User::from_name(text)
            .map_err(failed)?
            .ok_or_else(unknown)?;
        let groups = group_list(&name, entry.gid.as_raw()).map_err(failed)?;
        Ok(Self {
            uid: entry.uid.as_raw(),
            gid: entry.gid.as_raw(),
            groups,
        })
    }

    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn of(uid: u32, gid: u32, groups: &[u32]) -> Self {
        Self {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    /// The user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The primary group's id.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// The supplementary groups, as setgroups(2) gets them.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_need_no_lookup() {
        let identity = Identity::resolve(&User::Ids { uid: 65534, gid: 7 }).unwrap();
        assert_eq!(
            (identity.uid(), identity.gid(), identity.groups()),
            (65534, 7, &[7][..])
        );
    }

    #[test]
    fn what_cannot_be_dropped_to() {
        let resolve = |user: User| Identity::resolve(&user).map(drop).unwrap_err().to_string();
        assert!(resolve(User::Ids { uid: 0, gid: 0 }).contains("is root"));
        assert!(resolve(User::Name("root".into())).contains("is root"));
        assert!(resolve(User::Name("no-such-user".into())).contains("doesn't exist"));
    }
}
