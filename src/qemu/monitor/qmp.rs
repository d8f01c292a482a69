//! A QMP connection for threads.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::codec::{Event, Greeting, Incoming, QmpCodec, Reply};
use super::error::{Closed, MonitorError, Stage, decode};
use super::idle::{Idle, Place, weak};
use super::socket::{self, Written};
use crate::qemu::deadline::deadline;
use crate::qemu::domain::Channel;

/// How a connection is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QmpOptions {
    /// For how long a command waits for its answer, unless it says otherwise; the greeting as well. 30 s.
    pub deadline: Duration,
    /// The longest message that is read; a peer that sends a longer one is closed. 16 MiB: `query-qmp-schema` is 0.3.
    pub limit: usize,
    /// How many events are kept for who reads them; then the next are lost, and counted. 1024.
    pub events: usize,
}

impl Default for QmpOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            limit: 16 << 20,
            events: 1024,
        }
    }
}

/// A QMP connection.
///
/// - Every call has a deadline. When QEMU dies, or the connection is [shut](Channel::shut), all return at once.
/// - The caller reads its own answer. Several may call at once: one of them reads for all.
/// - Events go to [`QmpEvents`], whoever reads; a full queue loses them, and nobody waits.
/// - An answer that comes after its deadline is thrown away. A message that is none ends the connection.
pub struct Qmp {
    shared: Arc<Shared>,
    place: Place,
    options: QmpOptions,
}

/// The events of a [`Qmp`].
#[derive(Debug)]
pub struct QmpEvents {
    events: Receiver<Event>,
    lost: Arc<AtomicU64>,
}

struct Shared {
    stream: UnixStream,
    greeting: Greeting,
    out_of_band: bool,
    state: Mutex<State>,
    turn: Condvar,
    lost: Arc<AtomicU64>,
}

struct State {
    codec: QmpCodec,
    /// Ends with the connection, so that who reads events learns it.
    events: Option<Sender<Event>>,
    replies: HashMap<u64, Reply>,
    /// Callers in a command.
    callers: usize,
    /// Somebody reads, or writes: one at a time.
    reading: bool,
    writing: bool,
    closed: Option<Closed>,
}

/// Read at once.
const CHUNK: usize = 16 << 10;

impl Qmp {
    /// Connects to a listening QEMU, and negotiates.
    ///
    /// A QEMU that has been stopped, or has died with its listener in another's hands, does not keep the caller waiting:
    /// all of it has one deadline.
    ///
    /// # Errors
    ///
    /// [`MonitorError`], of the command `qmp_capabilities`.
    pub fn connect(path: &Path, options: QmpOptions) -> Result<(Self, QmpEvents), MonitorError> {
        let begin = Instant::now();
        let until = deadline(begin, options.deadline);
        match socket::dial(path, until) {
            Ok(Some(stream)) => Self::negotiate_until(stream, options, begin, until),
            Ok(None) => Err(MonitorError::timeout(NEGOTIATE, Stage::Connect, begin)),
            Err(error) => Err(MonitorError::failed(NEGOTIATE, error)),
        }
    }

    /// Negotiates on a connected socket, one of a socketpair(2) for example, whose other end QEMU has as
    /// `-chardev socket,fd=N`.
    ///
    /// # Errors
    ///
    /// [`MonitorError`], of the command `qmp_capabilities`.
    pub fn negotiate(
        stream: UnixStream,
        options: QmpOptions,
    ) -> Result<(Self, QmpEvents), MonitorError> {
        let begin = Instant::now();
        Self::negotiate_until(stream, options, begin, deadline(begin, options.deadline))
    }

    fn negotiate_until(
        stream: UnixStream,
        options: QmpOptions,
        begin: Instant,
        until: Instant,
    ) -> Result<(Self, QmpEvents), MonitorError> {
        stream.set_nonblocking(true).map_err(MonitorError::Setup)?;
        let mut codec = QmpCodec::new(options.limit);
        let greeting = greet(&stream, &mut codec, begin, until)?;
        let out_of_band = greeting.capabilities.iter().any(|name| name == "oob");
        let (tell, events) = bounded(options.events);
        let lost = Arc::new(AtomicU64::new(0));
        let shared = Arc::new(Shared {
            stream,
            greeting,
            out_of_band,
            state: Mutex::new(State {
                codec,
                events: Some(tell),
                replies: HashMap::new(),
                callers: 0,
                reading: false,
                writing: false,
                closed: None,
            }),
            turn: Condvar::new(),
            lost: lost.clone(),
        });
        let place = Place::new(weak(&shared)).map_err(MonitorError::Setup)?;
        let qmp = Self {
            shared,
            place,
            options,
        };
        // One without capabilities to offer is told none: old ones know no such argument.
        let arguments = out_of_band.then(|| serde_json::json!({ "enable": ["oob"] }));
        let reply = qmp.call(NEGOTIATE, &arguments, false, &[], begin, until)?;
        decode::<IgnoredAny>(NEGOTIATE, reply)?;
        Ok((qmp, QmpEvents { events, lost }))
    }

    /// What QEMU said first.
    pub fn greeting(&self) -> &Greeting {
        &self.shared.greeting
    }

    /// Executes a command, and has its answer as it is. `arguments` serializes to a JSON object, or to null for none.
    ///
    /// # Errors
    ///
    /// [`MonitorError`].
    pub fn execute(
        &self,
        command: &str,
        arguments: &impl Serialize,
    ) -> Result<Value, MonitorError> {
        self.execute_within(command, arguments, self.options.deadline)
    }

    /// As [`execute`](Self::execute), with an answer of a type, and a deadline of its own.
    ///
    /// # Errors
    ///
    /// [`MonitorError`].
    pub fn execute_within<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: &impl Serialize,
        limit: Duration,
    ) -> Result<T, MonitorError> {
        self.typed(command, arguments, false, &[], limit)
    }

    /// As [`execute`](Self::execute), out of band: it overtakes what QEMU executes now. For the few commands that allow it
    /// (`migrate-recover`, `yank`), which do not wait for anything.
    ///
    /// # Errors
    ///
    /// [`MonitorError`]; QEMU has not offered it.
    pub fn execute_out_of_band(
        &self,
        command: &str,
        arguments: &impl Serialize,
    ) -> Result<Value, MonitorError> {
        if !self.shared.out_of_band {
            return Err(MonitorError::NoOutOfBand {
                command: command.to_owned(),
            });
        }
        self.typed(command, arguments, true, &[], self.options.deadline)
    }

    /// As [`execute`](Self::execute), with descriptors for QEMU, as `getfd` and `add-fd` want them. It gets copies.
    ///
    /// # Errors
    ///
    /// [`MonitorError`].
    pub fn execute_with_descriptors(
        &self,
        command: &str,
        arguments: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Value, MonitorError> {
        self.typed(
            command,
            arguments,
            false,
            descriptors,
            self.options.deadline,
        )
    }

    /// Why there is no connection any more; `None` as long as there is one.
    pub fn closed(&self) -> Option<Closed> {
        self.shared.lock().closed.clone()
    }

    fn typed<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: &impl Serialize,
        out_of_band: bool,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<T, MonitorError> {
        let begin = Instant::now();
        let until = deadline(begin, limit);
        let reply = self.call(command, arguments, out_of_band, descriptors, begin, until)?;
        decode(command, reply)
    }

    fn call(
        &self,
        command: &str,
        arguments: &impl Serialize,
        out_of_band: bool,
        descriptors: &[BorrowedFd<'_>],
        begin: Instant,
        until: Instant,
    ) -> Result<Reply, MonitorError> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        if let Some(cause) = &state.closed {
            return Err(MonitorError::closed(command, cause.clone()));
        }
        let encoded = state.codec.command(command, arguments, out_of_band);
        let (id, bytes) = encoded.map_err(|cause| MonitorError::arguments(command, cause))?;
        if state.callers == 0 && !state.reading {
            Place::disarm(&shared.stream);
        }
        state.callers += 1;
        let (mut state, outcome) = shared.send(state, command, &bytes, descriptors, begin, until);
        let outcome = match outcome {
            Ok(()) => {
                let (back, outcome) = shared.answer(state, command, id, begin, until);
                state = back;
                outcome
            }
            Err(error) => Err(error),
        };
        state.codec.forget(id);
        state.replies.remove(&id);
        state.callers -= 1;
        if state.callers == 0 && !state.reading && state.closed.is_none() {
            self.place.arm(&shared.stream);
        }
        outcome
    }
}

/// What negotiation is called in errors, and by QEMU.
const NEGOTIATE: &str = "qmp_capabilities";

/// Waits for the greeting.
fn greet(
    stream: &UnixStream,
    codec: &mut QmpCodec,
    begin: Instant,
    until: Instant,
) -> Result<Greeting, MonitorError> {
    let mut bytes = [0; CHUNK];
    loop {
        while let Some(incoming) = codec.next() {
            match incoming {
                Ok(Incoming::Greeting(greeting)) => return Ok(greeting),
                Ok(_) => {}
                Err(error) => {
                    return Err(MonitorError::closed(
                        NEGOTIATE,
                        Closed::Malformed(Arc::new(error)),
                    ));
                }
            }
        }
        match socket::read(stream, &mut bytes, until) {
            Ok(Some(0)) => return Err(MonitorError::closed(NEGOTIATE, Closed::Gone)),
            Ok(Some(count)) => codec.push(&bytes[..count]),
            Ok(None) if Instant::now() >= until => {
                return Err(MonitorError::timeout(NEGOTIATE, Stage::Greeting, begin));
            }
            Ok(None) => {}
            Err(error) => return Err(MonitorError::failed(NEGOTIATE, error)),
        }
    }
}

/// Why there is no connection.
fn why(state: &State, command: &str) -> MonitorError {
    MonitorError::closed(command, state.closed.clone().unwrap_or(Closed::Gone))
}

type Locked<'a> = MutexGuard<'a, State>;

impl Shared {
    fn lock(&self) -> Locked<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'a>(&self, state: Locked<'a>, until: Instant) -> Locked<'a> {
        let left = until.saturating_duration_since(Instant::now());
        let woken = self.turn.wait_timeout(state, left);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sends a command when it is its turn.
    fn send<'a>(
        &'a self,
        mut state: Locked<'a>,
        command: &str,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        begin: Instant,
        until: Instant,
    ) -> (Locked<'a>, Result<(), MonitorError>) {
        while state.writing {
            if Instant::now() >= until {
                return (
                    state,
                    Err(MonitorError::timeout(command, Stage::Send, begin)),
                );
            }
            state = self.sleep(state, until);
        }
        state.writing = true;
        drop(state);
        let written = socket::write(&self.stream, bytes, descriptors, until);
        let mut state = self.lock();
        state.writing = false;
        if state.callers > 1 {
            self.turn.notify_all();
        }
        let outcome = match written {
            Ok(Written::Whole) => Ok(()),
            Ok(Written::Nothing) => Err(MonitorError::timeout(command, Stage::Send, begin)),
            Ok(Written::Half) => {
                let half = Closed::HalfSent {
                    command: command.to_owned(),
                };
                self.close(&mut state, half);
                Err(MonitorError::timeout(command, Stage::Send, begin))
            }
            // Its last words may be there to be read: the reading finds out, with what was in flight.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => {
                self.close(&mut state, Closed::Io(Arc::new(error)));
                Err(why(&state, command))
            }
        };
        (state, outcome)
    }

    /// Waits for the answer: reads, or lets another read.
    fn answer<'a>(
        &'a self,
        mut state: Locked<'a>,
        command: &str,
        id: u64,
        begin: Instant,
        until: Instant,
    ) -> (Locked<'a>, Result<Reply, MonitorError>) {
        let mut bytes = [0; CHUNK];
        loop {
            if let Some(reply) = state.replies.remove(&id) {
                return (state, Ok(reply));
            }
            if state.closed.is_some() {
                let error = why(&state, command);
                return (state, Err(error));
            }
            if Instant::now() >= until {
                return (
                    state,
                    Err(MonitorError::timeout(command, Stage::Reply, begin)),
                );
            }
            if state.reading {
                state = self.sleep(state, until);
                continue;
            }
            state.reading = true;
            drop(state);
            let read = socket::read(&self.stream, &mut bytes, until);
            state = self.lock();
            state.reading = false;
            self.take(&mut state, read, &bytes);
            // One whose answer has come, or who reads on when this one has its answer.
            if state.callers > 1 {
                self.turn.notify_all();
            }
        }
    }

    /// What has been read goes to whom it is for. False: nothing is left to be read.
    fn take(&self, state: &mut State, read: io::Result<Option<usize>>, bytes: &[u8]) -> bool {
        match read {
            Ok(None) => return false,
            Ok(Some(0)) => {
                self.close(state, Closed::Gone);
                return false;
            }
            Ok(Some(count)) => state.codec.push(&bytes[..count]),
            Err(error) => {
                self.close(state, Closed::Io(Arc::new(error)));
                return false;
            }
        }
        while let Some(incoming) = state.codec.next() {
            match incoming {
                Ok(Incoming::Reply(id, reply)) => {
                    state.replies.insert(id, reply);
                }
                Ok(Incoming::Event(event)) => self.tell(state, event),
                Ok(Incoming::Greeting(_) | Incoming::Stray) => {}
                Err(error) => {
                    self.close(state, Closed::Malformed(Arc::new(error)));
                    return false;
                }
            }
        }
        true
    }

    fn tell(&self, state: &State, event: Event) {
        let Some(events) = &state.events else {
            return;
        };
        if let Err(TrySendError::Full(_)) = events.try_send(event) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends it, for the first reason that there is.
    fn close(&self, state: &mut State, cause: Closed) {
        if state.closed.is_none() {
            state.closed = Some(cause);
            state.events = None;
            socket::shut(&self.stream);
            self.turn.notify_all();
        }
    }
}

impl Idle for Shared {
    fn read(&self) {
        let mut bytes = [0; CHUNK];
        let mut state = self.lock();
        // Edge-triggered: until nothing is left, unless a caller is there, who reads.
        while state.callers == 0 && !state.reading && state.closed.is_none() {
            let read = socket::read_now(&self.stream, &mut bytes);
            if !self.take(&mut state, read, &bytes) {
                break;
            }
        }
    }
}

impl Channel for Qmp {
    fn shut(&self) {
        let mut state = self.shared.lock();
        self.shared.close(&mut state, Closed::Shut);
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        Place::disarm(&self.shared.stream);
        Channel::shut(self);
    }
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qmp")
            .field("greeting", &self.shared.greeting)
            .finish_non_exhaustive()
    }
}

/// Why there is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoEvent {
    /// None came in that time.
    NotYet,
    /// The connection has ended ([`Qmp::closed`] says why), and all that came before it has been told.
    Closed,
}

impl fmt::Display for NoEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotYet => "no event yet",
            Self::Closed => "no event: the connection has ended",
        })
    }
}

impl std::error::Error for NoEvent {}

impl QmpEvents {
    /// The next event; waits for it.
    ///
    /// # Errors
    ///
    /// [`NoEvent::Closed`].
    pub fn next(&self) -> Result<Event, NoEvent> {
        self.events.recv().map_err(|_| NoEvent::Closed)
    }

    /// The next event, if there is one within `limit`.
    ///
    /// # Errors
    ///
    /// [`NoEvent`].
    pub fn next_within(&self, limit: Duration) -> Result<Event, NoEvent> {
        self.events
            .recv_timeout(limit)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => NoEvent::NotYet,
                RecvTimeoutError::Disconnected => NoEvent::Closed,
            })
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    ///
    /// [`NoEvent`].
    pub fn try_next(&self) -> Result<Event, NoEvent> {
        self.events.try_recv().map_err(|error| match error {
            TryRecvError::Empty => NoEvent::NotYet,
            TryRecvError::Disconnected => NoEvent::Closed,
        })
    }

    /// How many events were lost, because nobody had taken those before them.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
