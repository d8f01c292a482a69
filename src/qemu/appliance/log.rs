//! The last that a machine has said.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// The end of what a machine wrote to its standard error: as much as fits.
#[derive(Debug, Clone)]
pub struct Log(Arc<Mutex<Tail>>);

#[derive(Debug)]
struct Tail {
    bytes: VecDeque<u8>,
    room: usize,
}

impl Log {
    pub(super) fn new(room: usize) -> Self {
        Self(Arc::new(Mutex::new(Tail {
            bytes: VecDeque::new(),
            room,
        })))
    }

    pub(super) fn add(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(tail.room)..];
        let over = (tail.bytes.len() + bytes.len()).saturating_sub(tail.room);
        tail.bytes.drain(..over);
        tail.bytes.extend(bytes);
    }

    /// What there is, as text.
    pub fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (front, back) = tail.bytes.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }

    /// The last line that says something.
    pub fn last_line(&self) -> Option<String> {
        let text = self.text();
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let log = Log::new(8);
        log.add(b"abcdef");
        log.add(b"ghij\n\n");
        assert_eq!(log.text(), "efghij\n\n");
        assert_eq!(log.last_line().as_deref(), Some("efghij"));
        log.add(b"0123456789");
        assert_eq!(log.text(), "23456789");
        assert_eq!(Log::new(0).last_line(), None);
    }
}
