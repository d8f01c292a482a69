//! Sockets and pipes between a process and what it forks. **Never run**, see `docs/platforms.md`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// Two connected stream sockets, close-on-exec. macOS marks them in a second call: a program that another thread
/// executes in between has both.
pub(crate) fn stream_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (ours, theirs) = (OwnedFd::from(ours), OwnedFd::from(theirs));
    no_signal(ours.as_fd())?;
    no_signal(theirs.as_fd())?;
    Ok((ours, theirs))
}

/// A pipe, close-on-exec, as [`stream_sockets`]: reading end, writing end.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (reader, writer) = nix::unistd::pipe()?;
    for fd in [&reader, &writer] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok((reader, writer))
}

/// Has a read or a write that would wait fail instead.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Sends without waiting and without SIGPIPE; send(2).
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT | NO_SIGNAL;
    // SAFETY: the kernel reads at most as many bytes as there are.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
        )
    };
    Errno::result(sent).map(isize::unsigned_abs)
}

cfg_if::cfg_if! {
    if #[cfg(target_os = "macos")] {
        /// The socket knows.
        const NO_SIGNAL: libc::c_int = 0;

        /// Of an int.
        const SIZE: libc::socklen_t = 4;

        /// SO_NOSIGPIPE of getsockopt(2).
        fn no_signal(socket: BorrowedFd<'_>) -> Result<(), Errno> {
            let on: libc::c_int = 1;
            // SAFETY: the kernel reads one int.
            let answer = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_NOSIGPIPE,
                    (&raw const on).cast(),
                    SIZE,
                )
            };
            Errno::result(answer).map(drop)
        }
    } else {
        const NO_SIGNAL: libc::c_int = libc::MSG_NOSIGNAL;

        #[allow(clippy::unnecessary_wraps, reason = "as on macOS, where it can fail")]
        fn no_signal(_socket: BorrowedFd<'_>) -> Result<(), Errno> {
            Ok(())
        }
    }
}
