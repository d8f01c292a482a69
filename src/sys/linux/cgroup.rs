//! Control groups, version 2: what needs the bare system call; cgroups(7).

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, RawFd};

use nix::errno::Errno;

use super::{fd_arg, int_arg, plain, syscall};

/// Moves the calling process into a cgroup, by its directory; cgroups(7), cgroup.procs. For where clone3 is
/// filtered: a move waits for a grace period of the kernel's, some milliseconds.
pub(crate) fn join_cgroup(directory: RawFd) -> Result<(), Errno> {
    // 0 stands for the writing process.
    super::with_raw_fd(directory, |directory| {
        write_one(directory, c"cgroup.procs", c"0")
    })
}

/// Ends everything in a cgroup and below it, what is just being forked there too; by its directory, cgroup.kill, Linux
/// 5.14 (ENOENT before, and in the root cgroup). ENODEV or ENOENT: it has been removed, so nothing is in it.
pub(crate) fn kill_cgroup(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    write_one(directory, c"cgroup.kill", c"1")
}

/// Removes a cgroup that has this name in the one above; rmdir(2). EBUSY as long as there is something in it.
pub(crate) fn remove_cgroup(directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = int_arg(libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
    let args = [fd_arg(directory), c"..".as_ptr() as usize, flags, 0, 0, 0];
    // SAFETY: the kernel reads a NUL-terminated string.
    let parent = unsafe { syscall(libc::SYS_openat, args) }?;
    let remove = int_arg(libc::AT_REMOVEDIR);
    // SAFETY: as above.
    let removed = unsafe {
        syscall(
            libc::SYS_unlinkat,
            [parent, name.as_ptr() as usize, remove, 0, 0, 0],
        )
    };
    let _ = plain(libc::SYS_close, [parent, 0, 0, 0, 0, 0]);
    removed.map(drop)
}

/// Takes the lock of an open file if it is free; flock(2). It is the *open file's*: a copy of the descriptor in another
/// process holds it too, and it is free when the last copy is closed.
pub(crate) fn try_lock(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let how = int_arg(libc::LOCK_EX | libc::LOCK_NB);
    match plain(libc::SYS_flock, [fd_arg(fd), how, 0, 0, 0, 0]) {
        Ok(_) => Ok(true),
        Err(Errno::EWOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Writes the first byte of `text` to a file of a directory.
fn write_one(directory: BorrowedFd<'_>, file: &CStr, text: &CStr) -> Result<(), Errno> {
    let flags = int_arg(libc::O_WRONLY | libc::O_CLOEXEC);
    let args = [fd_arg(directory), file.as_ptr() as usize, flags, 0, 0, 0];
    // SAFETY: the kernel reads a NUL-terminated string.
    let fd = unsafe { syscall(libc::SYS_openat, args) }?;
    // SAFETY: the kernel reads one byte, which is there: at the least the NUL.
    let written = unsafe { syscall(libc::SYS_write, [fd, text.as_ptr() as usize, 1, 0, 0, 0]) };
    let _ = plain(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
    written.map(drop)
}
