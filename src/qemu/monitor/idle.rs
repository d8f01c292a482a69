//! Who reads a connection while nobody waits for an answer on it: one thread of the crate's for all of them.
//!
//! A caller reads its own answer, since a hand-over between two threads costs a good part of what a short command takes.
//! While a caller is there the connection is not registered here, so this thread is not woken by what is not for it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

/// Something that is read while nobody else does.
pub(super) trait Idle: Send + Sync {
    /// Something has come: read until nothing is left, without waiting.
    fn read(&self);
}

/// A connection's place with the thread.
#[derive(Debug)]
pub(super) struct Place {
    token: Token,
}

struct Reader {
    registry: Registry,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    next: usize,
    by_token: HashMap<Token, Weak<dyn Idle>>,
}

static READER: OnceLock<Reader> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

/// The reader, started if it does not run.
fn reader() -> io::Result<&'static Reader> {
    if let Some(reader) = READER.get() {
        return Ok(reader);
    }
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(reader) = READER.get() {
        return Ok(reader);
    }
    let poll = Poll::new()?;
    let registry = poll.registry().try_clone()?;
    thread::Builder::new()
        .name("captive-monitor".to_owned())
        .spawn(move || run(poll))?;
    Ok(READER.get_or_init(|| Reader {
        registry,
        places: Mutex::default(),
    }))
}

fn run(mut poll: Poll) {
    let mut events = Events::with_capacity(64);
    loop {
        // It can only be interrupted, which means nothing.
        if poll.poll(&mut events, None).is_err() {
            continue;
        }
        let Some(reader) = READER.get() else {
            continue;
        };
        for event in &events {
            let idle = {
                let places = reader.places.lock().unwrap_or_else(PoisonError::into_inner);
                places.by_token.get(&event.token()).and_then(Weak::upgrade)
            };
            if let Some(idle) = idle {
                idle.read();
            }
        }
    }
}

impl Place {
    /// A place for it; nothing is read yet.
    pub(super) fn new(idle: Weak<dyn Idle>) -> io::Result<Self> {
        let reader = reader()?;
        let mut places = reader.places.lock().unwrap_or_else(PoisonError::into_inner);
        let token = Token(places.next);
        places.next += 1;
        places.by_token.insert(token, idle);
        Ok(Self { token })
    }

    /// Has it read when something comes, or has come already.
    pub(super) fn arm(&self, stream: &UnixStream) {
        if let Some(reader) = READER.get() {
            let fd: RawFd = stream.as_raw_fd();
            // ENOMEM and ENOSPC are what is left: then nobody reads until the next command.
            let _ = reader
                .registry
                .register(&mut SourceFd(&fd), self.token, Interest::READABLE);
        }
    }

    /// Does not have it read any more.
    pub(super) fn disarm(stream: &UnixStream) {
        if let Some(reader) = READER.get() {
            let fd: RawFd = stream.as_raw_fd();
            let _ = reader.registry.deregister(&mut SourceFd(&fd));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(reader) = READER.get() {
            let mut places = reader.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.by_token.remove(&self.token);
        }
    }
}

/// For a place that is made after what it is for.
pub(super) fn weak<T: Idle + 'static>(idle: &Arc<T>) -> Weak<dyn Idle> {
    let weak: Weak<T> = Arc::downgrade(idle);
    weak
}
