//! The read end of a pipe whose end of file is the parent's exit.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, SFlag, fstat};

use super::{ArmError, ArmStep};

/// What `fd` is, if it is the read end of a pipe; an error if not.
pub(super) fn check_read_end(fd: BorrowedFd<'_>) -> Result<FileStat, ArmError> {
    let raw = fd.as_raw_fd();
    let step = ArmStep::ParentFd(raw);
    let stat = fstat(fd).map_err(ArmError::os(step))?;
    let not_one = |found| ArmError::NotAParentFd { fd: raw, found };
    if !is_fifo(&stat) {
        return Err(not_one("neither"));
    }
    if may_write(fd).map_err(ArmError::os(step))? {
        return Err(not_one("open for writing"));
    }
    Ok(stat)
}

/// Whether this is a pipe.
pub(super) fn is_fifo(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits()
}

/// Whether the descriptor was opened for writing.
pub(super) fn may_write(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(flags & OFlag::O_ACCMODE != OFlag::O_RDONLY)
}
