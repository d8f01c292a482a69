//! Lines out of a stream of bytes.

use std::fmt;

/// Splits what a peer sends into lines, and never keeps more than a limit of it.
///
/// A line ends with a newline; carriage returns and blanks around it are not part of it, empty lines are none. The byte
/// 0xFF, which is in no JSON text, begins anew: what stood before it is thrown away. The guest agent sends one before the
/// answer to `guest-sync-delimited`; QEMU sends none.
///
/// ```
/// use captive::qemu::monitor::codec::{Frame, Frames};
///
/// let mut frames = Frames::new(1 << 20);
/// frames.push(b"{\"return\": {}}\r\n{\"ret");
/// assert_eq!(frames.next(), Some(Ok(Frame::Line(b"{\"return\": {}}".to_vec()))));
/// assert_eq!(frames.next(), None);
/// frames.push(b"\xff{}\n");
/// assert_eq!(frames.next(), Some(Ok(Frame::Delimiter)));
/// assert_eq!(frames.next(), Some(Ok(Frame::Line(b"{}".to_vec()))));
/// ```
#[derive(Debug)]
pub struct Frames {
    bytes: Vec<u8>,
    /// From here on nothing has been taken.
    begin: usize,
    /// Up to here there is no end of a line.
    scanned: usize,
    limit: usize,
    /// The rest of a line that was too long is thrown away.
    skips: bool,
}

/// What [`Frames`] finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A line, without its end.
    Line(Vec<u8>),
    /// The byte 0xFF.
    Delimiter,
}

/// A line was longer than the limit. It is thrown away, up to its end or a delimiter; what comes then is found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    /// The limit, in bytes.
    pub limit: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message of more than {} bytes", self.limit)
    }
}

impl std::error::Error for TooLong {}

const DELIMITER: u8 = 0xff;

/// What is kept of a buffer that was once larger.
const KEPT: usize = 64 << 10;

impl Frames {
    /// For lines of at most `limit` bytes. The memory that is used is about that of one line and what was pushed last.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            begin: 0,
            scanned: 0,
            limit,
            skips: false,
        }
    }

    /// Adds what has been read. To be followed by calls of [`next`](Self::next) until that has nothing more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.begin > 0 {
            self.bytes.drain(..self.begin);
            self.scanned -= self.begin;
            self.begin = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next line or delimiter, if it is there as a whole.
    #[allow(
        clippy::should_implement_trait,
        reason = "more may come after nothing more"
    )]
    pub fn next(&mut self) -> Option<Result<Frame, TooLong>> {
        loop {
            let unseen = &self.bytes[self.scanned..];
            let ends = |byte: &u8| matches!(*byte, b'\n' | DELIMITER);
            let Some(place) = unseen.iter().position(ends) else {
                self.scanned = self.bytes.len();
                return self.too_long();
            };
            let (end, byte) = (self.scanned + place, unseen[place]);
            let begin = std::mem::replace(&mut self.begin, end + 1);
            self.scanned = end + 1;
            let skips = std::mem::take(&mut self.skips);
            if byte == DELIMITER {
                return Some(Ok(Frame::Delimiter));
            }
            if skips {
                continue;
            }
            // As long as it came: else it would depend on the pieces in which it did.
            if end - begin > self.limit {
                return Some(Err(TooLong { limit: self.limit }));
            }
            let line = self.bytes[begin..end].trim_ascii();
            if line.is_empty() {
                continue;
            }
            return Some(Ok(Frame::Line(line.to_vec())));
        }
    }

    /// No end is in sight: is it too long already?
    fn too_long(&mut self) -> Option<Result<Frame, TooLong>> {
        let length = self.bytes.len() - self.begin;
        if length <= self.limit && !self.skips {
            if length == 0 {
                self.forget();
            }
            return None;
        }
        self.forget();
        if std::mem::replace(&mut self.skips, true) {
            return None;
        }
        Some(Err(TooLong { limit: self.limit }))
    }

    /// Throws away what there is, and the memory of a large message.
    fn forget(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.begin = 0;
        self.scanned = 0;
    }

    /// How many bytes are kept of a line that has not ended.
    pub fn kept(&self) -> usize {
        self.bytes.len() - self.begin
    }
}
