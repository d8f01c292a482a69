//! What can be looked for when it is to be known whether a captive is ready. Which process has a socket, and who has sent a
//! message, only Linux tells in the way that is needed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::super::Ready;
use super::process::Process;
use super::sys;

/// What the list of sockets is called in errors.
pub(in super::super) const LIST_OF_SOCKETS: &str = "a list of sockets";

/// What a look for a listener finds: nothing here.
#[derive(Debug)]
#[allow(dead_code, reason = "nothing is found")]
pub(in super::super) enum Sought {
    Found,
    NotThere,
    Anothers,
}

/// Why this cannot be waited for on this system.
pub(in super::super) fn missing(ready: &Ready) -> Option<&'static str> {
    match ready {
        Ready::UnixListener(_) | Ready::TcpListener(_) => Some(
            "whose socket it is only Linux tells (sock_diag); hand one over with listen(), or connect",
        ),
        Ready::Notify => Some("who sends a message only Linux tells (SO_PASSCRED)"),
        _ => None,
    }
}

/// A stream socket, close-on-exec, that does not wait. A program that another thread executes in between has it.
pub(in super::super) fn client(family: AddressFamily) -> Result<OwnedFd, Errno> {
    let client = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    fcntl(&client, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    sys::set_nonblocking(client.as_fd())?;
    Ok(client)
}

/// Refused before: see [`missing`].
pub(in super::super) fn listener(_process: &Process, _ready: &Ready) -> Result<Sought, Errno> {
    Err(Errno::ENOSYS)
}

/// There are none.
#[derive(Debug)]
pub(in super::super) enum Notifications {}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match *self {}
    }
}

impl Notifications {
    pub(in super::super) fn listen() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn address(&self) -> OsString {
        match *self {}
    }

    pub(in super::super) fn next(&self, _process: &Process) -> Option<Result<String, String>> {
        match *self {}
    }
}
