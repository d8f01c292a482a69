//! What a supervisor of one command needs. Signals are read from a signalfd, with all that the kernel says of
//! them; where a system with nothing but kqueue is stood in for, nobody says who sent them.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::errno::Errno;

use super::{Queue, is_freebsd};
pub(crate) use crate::sys::change::Change;
use crate::sys::event_source::{EventSource, Interest, Key};
use crate::sys::linux as sys;
pub(crate) use crate::sys::linux::{Received, die_of, stop_self};

/// The signals of this process, all blocked, and how they were before.
#[derive(Debug)]
pub(crate) struct Signals {
    mask: u64,
    ignored_children: bool,
    fd: sys::SignalFd,
}

impl Signals {
    pub(crate) fn take() -> Result<Self, Errno> {
        let mask = sys::set_signal_mask(sys::ALL_SIGNALS)?;
        let ignored_children = sys::disposition(libc::SIGCHLD) == Some(libc::SIG_IGN);
        if ignored_children {
            sys::set_disposition(libc::SIGCHLD, libc::SIG_DFL)?;
        }
        Ok(Self {
            mask,
            ignored_children,
            fd: sys::SignalFd::new()?,
        })
    }

    pub(crate) fn watch(&self, queue: &Queue, key: Key) -> Result<(), Errno> {
        queue.add(key, Interest::Readable(self.fd.as_fd()))
    }

    #[allow(clippy::unnecessary_wraps, reason = "a queue has none")]
    pub(crate) fn raw_fd(&self) -> Option<RawFd> {
        Some(self.fd.as_fd().as_raw_fd())
    }

    pub(crate) fn next(&self) -> Option<Received> {
        let received = self.fd.read()?;
        if is_freebsd() {
            // What a write of ours raises is from the kernel there, and on Linux from ourselves.
            let of_a_write = [libc::SIGPIPE, libc::SIGXFSZ].contains(&received.signal)
                && received.sender == super::getpid();
            return Some(if of_a_write {
                Received {
                    from_kernel: true,
                    sender: 0,
                    ..received
                }
            } else {
                received
            });
        }
        Some(Received {
            from_kernel: false,
            sender: 0,
            ..received
        })
    }

    pub(crate) fn restore(&self) -> Result<(), Errno> {
        if self.ignored_children {
            sys::set_disposition(libc::SIGCHLD, libc::SIG_IGN)?;
        }
        sys::set_signal_mask(self.mask).map(drop)
    }
}

pub(crate) fn has_parent_death_signal() -> bool {
    is_freebsd()
}
