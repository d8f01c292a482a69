//! Listening sockets, by the kernel's own list: sock_diag(7), in the captive's network namespace.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::super::proc;
use super::super::process::Process;
use crate::sys::linux as sys;

/// The way to the list.
#[derive(Debug)]
pub(super) struct Sockets(OwnedFd);

/// linux/netlink.h, linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// The state of a listener, as a bit; net/tcp_states.h.
const LISTENING: u32 = 1 << 10;

impl Sockets {
    /// Of the network namespace that the captive is in now. ESRCH: it has ended.
    pub(super) fn of(process: &Process) -> Result<Self, Errno> {
        let open = || {
            socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkSockDiag,
            )
        };
        let theirs = proc::directory(process).ok_or(Errno::ESRCH)?;
        let namespace = |directory: &Path| fs::read_link(directory.join("ns/net"));
        let same = match (
            namespace(&theirs),
            namespace(Path::new("/proc/thread-self")),
        ) {
            (Ok(theirs), Ok(ours)) => theirs == ours,
            // It may not be looked at: then it is not one that we could enter, either.
            _ => true,
        };
        if same {
            return open().map(Self);
        }
        // A socket stays in the namespace of the thread that made it; that one's does not come back.
        let there = || {
            sys::enter_network_namespace(process.as_fd().as_raw_fd())?;
            open()
        };
        std::thread::scope(|scope| scope.spawn(there).join().unwrap_or(Err(Errno::EIO))).map(Self)
    }

    /// The listeners on the Unix socket that is this file: by its device and its inode's number.
    pub(super) fn on_file(&self, path: &Path) -> Result<Vec<u64>, Errno> {
        // Whether there is any file.
        let Ok(file) = fs::metadata(path) else {
            return Ok(Vec::new());
        };
        // struct unix_diag_req: family, protocol, states, inode, what to show (name and file), cookie.
        let show: u32 = 1 | 2;
        let mut request = vec![libc::AF_UNIX.to_ne_bytes()[0], 0, 0, 0];
        for word in [LISTENING, 0, show, u32::MAX, u32::MAX] {
            request.extend(word.to_ne_bytes());
        }
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        // The kernel has room for half of an inode's number.
        let low = u32::try_from(file.ino() & u64::from(u32::MAX)).unwrap_or(0);
        let mut found = Vec::new();
        self.ask(&request, |message| {
            // struct unix_diag_msg: family, type, state, inode, cookie; then attributes.
            const NAME: u16 = 0;
            const FILE: u16 = 1;
            let Some(inode) = word_at(message, 4) else {
                return;
            };
            let (mut name, mut on) = (&[][..], None);
            for (kind, value) in attributes(message.get(16..).unwrap_or_default()) {
                match kind {
                    // With its NUL, as bind(2) keeps it.
                    NAME => name = value.strip_suffix(&[0]).unwrap_or(value),
                    // struct unix_diag_vfs: inode, device.
                    FILE => on = word_at(value, 0).zip(word_at(value, 4)),
                    _ => {}
                }
            }
            // An abstract one is on no file.
            let Some((number, device)) = on else {
                return;
            };
            let same_number = number == low;
            let is_it = if is_device(device, file.dev()) {
                same_number
            } else {
                // Some file systems say other numbers to stat(2) than the kernel has (btrfs, overlayfs): the name it was
                // bound to has to do, or its last part, if there is a new root.
                let name = Path::new(OsStr::from_bytes(name));
                name == real || (same_number && name.file_name() == real.file_name())
            };
            if is_it {
                found.push(u64::from(inode));
            }
        })?;
        Ok(found)
    }

    /// The listeners on a TCP port.
    pub(super) fn on_port(&self, port: u16) -> Result<Vec<u64>, Errno> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            // struct inet_diag_req_v2: family, protocol, extensions, states, struct inet_diag_sockid.
            let protocol = libc::IPPROTO_TCP.to_ne_bytes()[0];
            let mut request = vec![family.to_ne_bytes()[0], protocol, 0, 0];
            request.extend(LISTENING.to_ne_bytes());
            request.extend([0; 48]);
            self.ask(&request, |message| {
                // struct inet_diag_msg: four bytes, the id (source port first, in network order), then expires,
                // queues, uid, inode.
                let source = message.get(4..6).and_then(|bytes| bytes.try_into().ok());
                if source.map(u16::from_be_bytes) == Some(port) {
                    found.extend(word_at(message, 68).map(u64::from));
                }
            })?;
        }
        Ok(found)
    }

    /// Asks for a list, and looks at each entry.
    fn ask(&self, request: &[u8], mut look: impl FnMut(&[u8])) -> Result<(), Errno> {
        let length = u32::try_from(HEADER + request.len()).unwrap_or(0);
        let mut message = Vec::with_capacity(HEADER + request.len());
        message.extend(length.to_ne_bytes());
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(request);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let read = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                answer => answer?,
            };
            let mut rest = buffer.get(..read).unwrap_or_default();
            while let (Some(length), Some(&[low, high])) = (word_at(rest, 0), rest.get(4..6)) {
                let length = length as usize;
                let Some(body) = rest.get(HEADER..length) else {
                    return Err(Errno::EBADMSG);
                };
                match u16::from_ne_bytes([low, high]) {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let errno = word_at(body, 0).unwrap_or(0).wrapping_neg();
                        return Err(Errno::from_raw(errno.try_into().unwrap_or(libc::EIO)));
                    }
                    SOCK_DIAG_BY_FAMILY => look(body),
                    _ => {}
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Whether the kernel's own number for a device is the one that stat(2) says.
fn is_device(kernel: u32, stat: u64) -> bool {
    libc::makedev(kernel >> 20, kernel & 0xf_ffff) == stat
}

fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    word.try_into().ok().map(u32::from_ne_bytes)
}

/// struct nlattr: length, kind, the value; each aligned to four bytes.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d] = rest.get(..4)? else {
            return None;
        };
        let (length, kind) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        let value = rest.get(4..usize::from(length))?;
        rest = rest
            .get(usize::from(length).next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_any_length() {
        let bytes = [5, 0, 0, 0, b'x', 0, 0, 0, 8, 0, 1, 0, 1, 2, 3, 4];
        let all: Vec<_> = attributes(&bytes).collect();
        assert_eq!(all, [(0, &b"x"[..]), (1, &[1, 2, 3, 4])]);
        for cut in 0..bytes.len() {
            // Whatever is missing is an end.
            let _ = attributes(&bytes[..cut]).count();
        }
        assert_eq!(attributes(&[3, 0, 0, 0]).count(), 0);
    }
}
