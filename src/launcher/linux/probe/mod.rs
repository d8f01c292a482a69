//! What only Linux can look for when it is to be known whether a captive is ready.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::super::Ready;
use super::process::Process;

mod members;
mod notify;
mod sockets;

pub(in super::super) use notify::Notifications;

/// What the list of sockets is called in errors.
pub(in super::super) const LIST_OF_SOCKETS: &str = "sock_diag(7)";

/// What a look for a listener finds.
#[derive(Debug)]
pub(in super::super) enum Sought {
    Found,
    NotThere,
    /// There is one, and it is not of the tree.
    Anothers,
}

/// Why this cannot be waited for on this system.
pub(in super::super) fn missing(_ready: &Ready) -> Option<&'static str> {
    None
}

/// A stream socket, close-on-exec, that does not wait.
pub(in super::super) fn client(family: AddressFamily) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(family, SockType::Stream, flags, None)
}

/// Looks for a listener.
pub(in super::super) fn listener(process: &Process, ready: &Ready) -> Result<Sought, Errno> {
    let found = sockets::Sockets::of(process).and_then(|sockets| match ready {
        Ready::UnixListener(path) => sockets.on_file(path),
        Ready::TcpListener(port) => sockets.on_port(*port),
        _ => Ok(Vec::new()),
    });
    let inodes = match found {
        Ok(inodes) => inodes,
        // It is ending.
        Err(Errno::ESRCH) => return Ok(Sought::NotThere),
        Err(errno) => return Err(errno),
    };
    if inodes.is_empty() {
        return Ok(Sought::NotThere);
    }
    let owned = members::of(process).any(|member| members::has_socket(&member, &inodes));
    Ok(if owned {
        Sought::Found
    } else {
        Sought::Anothers
    })
}
