//! sd_notify(3), the receiving side.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use nix::sys::socket::{MsgFlags, recvmsg, setsockopt, sockopt};

use super::super::process::Process;
use super::members;

/// A socket on which a captive says that it is ready. Anybody may send to it, so the kernel says who did.
#[derive(Debug)]
pub(in super::super::super) struct Notifications {
    socket: UnixDatagram,
    name: String,
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Notifications {
    pub(in super::super::super) fn listen() -> io::Result<Self> {
        // Not a secret: only unlikely to be taken.
        let random = RandomState::new().build_hasher().finish();
        let name = format!("captive-notify-{random:x}");
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        Ok(Self { socket, name })
    }

    /// As the variable has it: `@` for an abstract name.
    pub(in super::super::super) fn address(&self) -> OsString {
        format!("@{}", self.name).into()
    }

    /// What was said next: by a process of the captive's tree, or what is wrong with it.
    pub(in super::super::super) fn next(
        &self,
        process: &Process,
    ) -> Option<Result<String, String>> {
        let Message { sender, text } = self.receive()?;
        if sender != process.pid() && !members::is_member(process, sender) {
            return Some(Err(if Path::new(&format!("/proc/{sender}")).exists() {
                format!("process {sender} said so, which is not of its tree")
            } else {
                format!("process {sender} said so, which has ended: whose it was is not known")
            }));
        }
        let too_long = || format!("process {sender} said something that is too long");
        Some(text.ok_or_else(too_long))
    }

    fn receive(&self) -> Option<Message> {
        let mut bytes = [0; LONGEST];
        let mut control = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let (length, flags) = loop {
            match recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut buffers,
                Some(&mut control),
                // There is no room for what else it sends: that is closed by the kernel.
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
            ) {
                Err(nix::errno::Errno::EINTR) => {}
                answer => {
                    let received = answer.ok()?;
                    break (received.bytes, received.flags);
                }
            }
        };
        let text = bytes.get(..length).unwrap_or_default();
        let is_whole = !flags.contains(MsgFlags::MSG_TRUNC);
        Some(Message {
            sender: sender(&control).unwrap_or(0),
            text: is_whole.then(|| String::from_utf8_lossy(text).into_owned()),
        })
    }
}

/// What was said, and by whom.
#[derive(Debug)]
struct Message {
    /// Its pid in our PID namespace; 0 if it is in none of ours.
    sender: i32,
    /// `None` if it is longer than may be.
    text: Option<String>,
}

/// The longest message: systemd's limit, PIPE_BUF.
const LONGEST: usize = 4096;

/// struct cmsghdr and struct ucred, as the kernel has written them: the first of all. nix does not look at what is there
/// when something else had no room.
fn sender(control: &[u8]) -> Option<i32> {
    let header = size_of::<libc::cmsghdr>();
    let word = |at: usize| -> Option<i32> {
        let bytes = control.get(at..at + 4)?;
        bytes.try_into().ok().map(i32::from_ne_bytes)
    };
    let (level, kind) = (word(header - 8)?, word(header - 4)?);
    let is_it = level == libc::SOL_SOCKET && kind == libc::SCM_CREDENTIALS;
    is_it.then(|| word(header)).flatten()
}
