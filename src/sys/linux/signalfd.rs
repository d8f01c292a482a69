//! Signals read from a descriptor.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::{ALL_SIGNALS, int_arg, syscall};

/// A descriptor from which signals that this thread blocks can be read; signalfd(2).
#[derive(Debug)]
pub(crate) struct SignalFd(OwnedFd);

/// One signal, as siginfo says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) signal: i32,
    /// Whether the kernel itself sent it (SI_KERNEL): a terminal, mostly.
    pub(crate) from_kernel: bool,
    /// Who sent it, if a process did; 0 for one outside our PID namespace.
    pub(crate) sender: i32,
}

impl SignalFd {
    /// For every signal that is blocked.
    pub(crate) fn new() -> Result<Self, Errno> {
        Self::of(ALL_SIGNALS)
    }

    /// For those in the set; close-on-exec, and never waiting.
    pub(crate) fn of(set: u64) -> Result<Self, Errno> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        let args = [
            int_arg(-1),
            &raw const set as usize,
            size_of::<u64>(),
            int_arg(flags),
            0,
            0,
        ];
        // SAFETY: the kernel reads the eight bytes of the set.
        let fd = unsafe { syscall(libc::SYS_signalfd4, args) }?;
        // SAFETY: just made by the kernel for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// The next signal, if there is one.
    pub(crate) fn read(&self) -> Option<Received> {
        read(self.0.as_fd().as_raw_fd())
    }
}

/// Takes all that there are from a signalfd that is somebody else's.
pub(super) fn drain(fd: RawFd) {
    while read(fd).is_some() {}
}

fn read(fd: RawFd) -> Option<Received> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    let args = [int_arg(fd), info.as_mut_ptr() as usize, size, 0, 0, 0];
    // SAFETY: the kernel writes at most the size of one structure.
    unsafe { syscall(libc::SYS_read, args) }.ok()?;
    // SAFETY: integers only, all zeroes before the kernel wrote.
    let info = unsafe { info.assume_init() };
    Some(Received {
        signal: info.ssi_signo as i32,
        from_kernel: info.ssi_code == libc::SI_KERNEL,
        sender: info.ssi_pid as i32,
    })
}

impl From<SignalFd> for OwnedFd {
    fn from(signals: SignalFd) -> Self {
        signals.0
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
