//! What run-with itself writes, to its standard error, the status descriptor and the pidfile, and the signals it
//! gets for that.
//!
//! A write to a pipe that nobody reads raises SIGPIPE, one beyond RLIMIT_FSIZE SIGXFSZ (write(2)). Both are blocked,
//! so they are pending when the write has failed, and not every system says who has raised them: macOS and OpenBSD nothing
//! of any signal, the others that it was the kernel.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

/// Those that a write has raised and that nobody has asked about: bit n for signal n.
static RAISED: AtomicU64 = AtomicU64::new(0);

/// Writes all of it, and notes the signal that it raised.
pub(super) fn write(to: &mut impl Write, text: &str) -> io::Result<()> {
    let written = to.write_all(text.as_bytes());
    let errno = written.as_ref().err().and_then(io::Error::raw_os_error);
    let raised = match errno.map(Errno::from_raw) {
        Some(Errno::EPIPE) => libc::SIGPIPE,
        Some(Errno::EFBIG) => libc::SIGXFSZ,
        _ => return written,
    };
    RAISED.fetch_or(bit(raised), Ordering::Relaxed);
    written
}

/// Whether a write has raised this signal since this was last asked.
pub(super) fn has_raised(signal: i32) -> bool {
    RAISED.fetch_and(!bit(signal), Ordering::Relaxed) & bit(signal) != 0
}

fn bit(signal: i32) -> u64 {
    1_u64.checked_shl(signal.unsigned_abs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_write_that_fails_is_told_once() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut writer = File::from(writer);
        write(&mut writer, "heard").unwrap();
        assert!(!has_raised(libc::SIGPIPE));
        drop(reader);
        write(&mut writer, "not heard").unwrap_err();
        assert!(!has_raised(libc::SIGXFSZ));
        assert!(has_raised(libc::SIGPIPE));
        assert!(!has_raised(libc::SIGPIPE));
        assert!(!has_raised(64));
    }
}
