//! sd_notify(3), the receiving side.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

/// A socket on which a captive says that it is ready. Anybody may send to it, so the kernel says who did.
#[derive(Debug)]
pub(super) struct Notifications {
    socket: UnixDatagram,
    name: String,
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Notifications {
    pub(super) fn listen() -> io::Result<Self> {
        // Not a secret: only unlikely to be taken.
        let random = RandomState::new().build_hasher().finish();
        let name = format!("captive-notify-{random:x}");
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        Ok(Self { socket, name })
    }

    /// As the variable has it: `@` for an abstract name.
    pub(super) fn address(&self) -> OsString {
        format!("@{}", self.name).into()
    }

    /// One message, and its sender's pid in our PID namespace; 0 if it is in none of ours.
    pub(super) fn next(&self) -> Option<(i32, String)> {
        let mut bytes = [0; 4096];
        let mut control = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let received = loop {
            match recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut buffers,
                Some(&mut control),
                // What else it sends is closed by the kernel.
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
            ) {
                Err(nix::errno::Errno::EINTR) => {}
                answer => break answer.ok()?,
            }
        };
        let mut sender = 0;
        for message in received.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmCredentials(credentials) = message {
                sender = credentials.pid();
            }
        }
        let length = received.bytes;
        let text = bytes.get(..length).unwrap_or_default();
        Some((sender, String::from_utf8_lossy(text).into_owned()))
    }
}
