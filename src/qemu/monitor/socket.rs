//! A stream socket with deadlines: nothing in here waits for longer than it is told to.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

cfg_if::cfg_if! {
    if #[cfg(target_vendor = "apple")] {
        /// std and socket2 set SO_NOSIGPIPE.
        const NO_SIGNAL: MsgFlags = MsgFlags::empty();
    } else {
        /// A peer that is gone is EPIPE, and no signal; send(2).
        const NO_SIGNAL: MsgFlags = MsgFlags::MSG_NOSIGNAL;
    }
}

/// What has come of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// All of it.
    Whole,
    /// The deadline passed; nothing was sent.
    Nothing,
    /// The deadline passed; some of it was sent.
    Half,
}

/// Waits until it can be read or written, or the deadline. False: the deadline, or for no reason.
fn wait(socket: BorrowedFd<'_>, what: PollFlags, until: Instant) -> io::Result<bool> {
    let left = until.saturating_duration_since(Instant::now());
    // Rounded up: else it would spin for the last millisecond.
    let left = left
        .checked_add(Duration::from_micros(999))
        .and_then(|left| i32::try_from(left.as_millis()).ok())
        .unwrap_or(i32::MAX);
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket, what)], timeout) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads what is there, after waiting for it until the deadline. `None`: nothing came. 0: the end.
pub(super) fn read(
    stream: &UnixStream,
    bytes: &mut [u8],
    until: Instant,
) -> io::Result<Option<usize>> {
    if !wait(stream.as_fd(), PollFlags::POLLIN, until)? {
        return Ok(None);
    }
    read_now(stream, bytes)
}

/// Reads what is there. `None`: nothing is. 0: the end.
pub(super) fn read_now(mut stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    match io::Read::read(&mut stream, bytes) {
        Ok(count) => Ok(Some(count)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            // The peer closed it with our bytes unread: what it had sent is read before this is told.
            io::ErrorKind::ConnectionReset => Ok(Some(0)),
            _ => Err(error),
        },
    }
}

/// Writes all of it, with descriptors beside its first byte; unix(7). The peer gets copies.
pub(super) fn write(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    until: Instant,
) -> io::Result<Written> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let mut sent = 0;
    while sent < bytes.len() {
        let control: &[ControlMessage<'_>] = if sent == 0 && !raw.is_empty() {
            &rights
        } else {
            &[]
        };
        let result = sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(&bytes[sent..])],
            control,
            NO_SIGNAL,
            None,
        );
        match result {
            Ok(count) => sent += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                wait(stream.as_fd(), PollFlags::POLLOUT, until)?;
                if Instant::now() >= until {
                    let nothing = sent == 0;
                    return Ok(if nothing {
                        Written::Nothing
                    } else {
                        Written::Half
                    });
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Written::Whole)
}

/// Ends it for both sides, for every thread that is in a call on it.
pub(super) fn shut(stream: &UnixStream) {
    // It has been shut, or the peer has gone: then it is so already.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Between two attempts to get a place in a listener's queue.
const PAUSE: Duration = Duration::from_millis(5);

/// Connects, though the listener may not accept for as long as it likes. `None`: the deadline passed; a connect(2) that
/// waits for a place in a full queue would wait for ever.
pub(super) fn dial(path: &Path, until: Instant) -> io::Result<Option<UnixStream>> {
    let address = SockAddr::unix(path)?;
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address) {
            Ok(()) => return Ok(Some(OwnedFd::from(socket).into())),
            Err(error) => match error.kind() {
                // unix(7): the queue is full. Nothing tells when it is not.
                io::ErrorKind::WouldBlock if Instant::now() < until => thread::sleep(PAUSE),
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}
