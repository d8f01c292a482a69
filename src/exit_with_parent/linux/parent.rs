//! Who the parent is, held by a descriptor so that nobody else can be mistaken for it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::exit_with_parent::known::{Who, current, gone, hold, pid_of, unsaid_parent};
use crate::exit_with_parent::pipe::{self, is_fifo, may_write};
use crate::exit_with_parent::watcher::Refused;
use crate::exit_with_parent::{ArmError, ArmStep, Expected, Known};
use crate::sys::linux as sys;

/// The parent, behind a pidfd or the read end of a pipe.
#[derive(Debug)]
pub(crate) struct Parent {
    fd: OwnedFd,
    events: PollFlags,
    known: Known,
    /// Device and inode: which pipe, or (Linux 6.9; before, all pidfds have one inode) which pidfd.
    file: Option<(libc::dev_t, libc::ino_t)>,
}

impl Parent {
    /// Finds the parent and holds it.
    ///
    /// A pid from `getppid` is safe to open as a pidfd if `getppid` still says the same afterwards
    /// ([`hold`]): a child is reparented when its parent exits, *before* the parent can be reaped and
    /// its pid be used again, and always to an older process (find_new_reaper, kernel/exit.c).
    pub(crate) fn open(expected: Expected) -> Result<Self, ArmError> {
        let known = match expected {
            Expected::Fd(fd) => return Self::from_fd(fd),
            Expected::Pid(pid) => Known::Expected(pid),
            Expected::Unsaid => Known::Unsaid(unsaid_parent()?),
        };
        let pid = pid_of(known).unwrap_or(0);
        let who = Who {
            known,
            step: ArmStep::OpenPidfd(pid),
            may_be_hidden: false,
        };
        let fd = hold(who, current, || {
            sys::pidfd_open(i32::try_from(pid).unwrap_or(0)).map_err(Refused::Parent)
        })?;
        Ok(Self {
            file: file_of(fd.as_fd()),
            fd,
            events: PollFlags::POLLIN,
            known,
        })
    }

    fn from_fd(fd: OwnedFd) -> Result<Self, ArmError> {
        let raw = fd.as_raw_fd();
        let step = ArmStep::ParentFd(raw);
        let events = if is_pidfd(fd.as_fd()) {
            PollFlags::POLLIN
        } else {
            check_pipe(fd.as_fd())?;
            // Data in the pipe means nothing: only its end does, and POLLHUP needs no asking.
            PollFlags::empty()
        };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(ArmError::os(step))?;
        let parent = Self {
            file: file_of(fd.as_fd()),
            fd,
            events,
            known: Known::Descriptor,
        };
        if parent.has_ended().map_err(ArmError::os(step))? {
            return Err(gone(parent.known, None));
        }
        Ok(parent)
    }

    /// Whether the parent has ended. EINVAL if RLIMIT_NOFILE is 0: then poll(2) looks at nothing.
    pub(crate) fn has_ended(&self) -> Result<bool, Errno> {
        let mut fds = [self.poll_fd()];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                answer => return answer.map(|ready| ready > 0),
            }
        }
    }

    /// As [`has_ended`](Self::has_ended); one that cannot be looked at has if our parent is another.
    #[cfg(all(feature = "cli", not(captive_stand_in)))]
    pub(crate) fn is_gone(&self) -> bool {
        self.has_ended()
            .unwrap_or_else(|_| crate::exit_with_parent::known::still_parent(self.known).is_err())
    }

    /// Whether the number still means what it meant, as far as the file itself tells.
    pub(super) fn is_open_here(&self) -> bool {
        let fd = self.fd.as_fd();
        file_of(fd) == self.file && (self.is_pipe() || is_pidfd(fd))
    }

    /// What to poll for: any answer at all means that the parent is gone.
    pub(crate) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.fd.as_fd(), self.events)
    }

    pub(crate) fn known(&self) -> Known {
        self.known
    }

    /// Its pid, unless only a descriptor was given.
    pub(crate) fn pid(&self) -> Option<u32> {
        pid_of(self.known)
    }

    /// Whether the descriptor is a pipe.
    pub(crate) fn is_pipe(&self) -> bool {
        self.events.is_empty()
    }
}

fn file_of(fd: BorrowedFd<'_>) -> Option<(libc::dev_t, libc::ino_t)> {
    fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// waitid(2) answers EBADF for what is no pidfd, and something else (ECHILD, mostly) for one.
fn is_pidfd(fd: BorrowedFd<'_>) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(
        waitid(Id::PIDFd(fd), flags),
        Err(Errno::EBADF | Errno::EINVAL)
    )
}

fn check_pipe(fd: BorrowedFd<'_>) -> Result<(), ArmError> {
    let stat = pipe::check_read_end(fd)?;
    let raw = fd.as_raw_fd();
    match writer_here(raw, (stat.st_dev, stat.st_ino)) {
        Some(writer) => Err(ArmError::WriterHeldHere { fd: raw, writer }),
        None => Ok(()),
    }
}

/// A descriptor of ours that can write to the pipe. Without /proc the answer is none: the caller's
/// report names other writers as a limit in any case.
fn writer_here(reader: RawFd, pipe: (libc::dev_t, libc::ino_t)) -> Option<RawFd> {
    let numbers = fs::read_dir("/proc/self/fd")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    numbers.filter(|fd| *fd != reader).find(|fd| {
        sys::with_raw_fd(*fd, |fd| {
            fstat(fd).is_ok_and(|s| is_fifo(&s) && (s.st_dev, s.st_ino) == pipe)
                && may_write(fd).unwrap_or(false)
        })
    })
}
