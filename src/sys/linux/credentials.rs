//! Root directory, ids and capabilities of the calling *thread*: for a child that has only one.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use super::{fd_arg, plain, syscall};

/// fchdir(2).
pub(crate) fn fchdir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    plain(libc::SYS_fchdir, [fd_arg(dir), 0, 0, 0, 0, 0]).map(drop)
}

/// A system call whose one argument is a path.
fn with_path(number: libc::c_long, path: &CStr) -> Result<(), Errno> {
    // SAFETY: the path is NUL-terminated and outlives the call, which only reads it.
    unsafe { syscall(number, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// chroot(2): the caller's working directory stays where it is, and is a way out until chdir.
pub(crate) fn chroot(path: &CStr) -> Result<(), Errno> {
    with_path(libc::SYS_chroot, path)
}

/// chdir(2).
pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    with_path(libc::SYS_chdir, path)
}

/// setgroups(2) for the calling *thread* alone: only for a child with one thread.
pub(crate) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many gids as the slice has.
    unsafe {
        syscall(
            SETGROUPS,
            [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0],
        )
    }
    .map(drop)
}

/// setresgid(2) of all three ids, for the calling *thread* alone.
pub(crate) fn set_gid(gid: u32) -> Result<(), Errno> {
    let id = gid as usize;
    plain(SETRESGID, [id, id, id, 0, 0, 0]).map(drop)
}

/// setresuid(2) of all three ids, for the calling *thread* alone. Clears its parent-death signal.
pub(crate) fn set_uid(uid: u32) -> Result<(), Errno> {
    let id = uid as usize;
    plain(SETRESUID, [id, id, id, 0, 0, 0]).map(drop)
}

/// The calling thread's real, effective and saved user ids.
pub(crate) fn uids() -> Result<[u32; 3], Errno> {
    three_ids(GETRESUID)
}

/// The calling thread's real, effective and saved group ids.
pub(crate) fn gids() -> Result<[u32; 3], Errno> {
    three_ids(GETRESGID)
}

fn three_ids(number: libc::c_long) -> Result<[u32; 3], Errno> {
    let mut ids = [u32::MAX; 3];
    let [real, effective, saved] = &mut ids;
    let place = |id: &mut u32| &raw mut *id as usize;
    // SAFETY: the kernel writes one id to each of three places that live in `ids`.
    unsafe {
        syscall(
            number,
            [place(real), place(effective), place(saved), 0, 0, 0],
        )
    }?;
    Ok(ids)
}

/// Whether the calling thread's supplementary groups are those in `sorted` and no others.
///
/// getgroups(2): EINVAL if there are more than `room`, which is as long as `sorted`, has places for.
/// The kernel keeps doubles, and an order of its own.
pub(crate) fn has_groups(sorted: &[u32], room: &[AtomicU32]) -> Result<bool, Errno> {
    let args = [room.len(), room.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: the kernel writes at most `room.len()` ids to atomics that are borrowed for the call.
    match unsafe { syscall(GETGROUPS, args) } {
        Ok(count) => Ok(count == sorted.len()
            && room
                .iter()
                .all(|group| sorted.binary_search(&group.load(Ordering::Relaxed)).is_ok())),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether the calling thread has any permitted capability.
pub(crate) fn has_permitted_capabilities() -> Result<bool, Errno> {
    capabilities().map(|[_, low, _, _, high, _]| low != 0 || high != 0)
}

/// The calling thread's effective capabilities, a bit each by their number in capabilities(7).
pub(crate) fn effective_capabilities() -> Result<u64, Errno> {
    capabilities().map(|[low, _, _, high, _, _]| u64::from(high) << 32 | u64::from(low))
}

/// Two triples (effective, permitted, inheritable), for the low and the high 32 capabilities of the
/// calling thread; capget(2), version 3.
fn capabilities() -> Result<[u32; 6], Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    let mut data = [0_u32; 6];
    let (header, place) = (&raw mut header, &raw mut data);
    // SAFETY: both live until after the call, and have the sizes that version 3 reads and writes.
    unsafe {
        syscall(
            libc::SYS_capget,
            [header as usize, place as usize, 0, 0, 0, 0],
        )
    }?;
    Ok(data)
}

// The 32-bit ABIs of old have 16-bit ids under the plain names.
cfg_if::cfg_if! {
    if #[cfg(any(target_arch = "x86", target_arch = "arm"))] {
        use libc::{
            SYS_getgroups32 as GETGROUPS, SYS_getresgid32 as GETRESGID, SYS_getresuid32 as GETRESUID,
            SYS_setgroups32 as SETGROUPS, SYS_setresgid32 as SETRESGID,
            SYS_setresuid32 as SETRESUID,
        };
    } else {
        use libc::{
            SYS_getgroups as GETGROUPS, SYS_getresgid as GETRESGID, SYS_getresuid as GETRESUID, SYS_setgroups as SETGROUPS,
            SYS_setresgid as SETRESGID, SYS_setresuid as SETRESUID,
        };
    }
}
