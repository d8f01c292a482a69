//! A connection to the guest agent, for threads.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::codec::{AgentCodec, AgentReply, Reply};
use super::error::{Closed, MonitorError, Stage, decode};
use super::socket::{self, Written};
use crate::qemu::deadline::deadline;
use crate::qemu::domain::Channel;

/// How an agent is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentOptions {
    /// For how long a command waits for its answer, unless it says otherwise. 30 s.
    pub deadline: Duration,
    /// For how long the synchronisation before it waits: an agent that is not there is found out that soon. 5 s, and never
    /// longer than the command's own.
    pub synchronise: Duration,
    /// The longest answer that is read. 64 MiB: `guest-file-read` sends up to 48 MB, in base64.
    pub limit: usize,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            synchronise: Duration::from_secs(5),
            limit: 64 << 20,
        }
    }
}

/// A connection to the agent in a guest, which may not be there, may be slow, and may lie.
///
/// - Every command begins with a synchronisation, so that an answer to an earlier question, which came too late, is not
///   taken for one to this, and half a command that an earlier client had left is forgotten.
/// - Every command has a deadline. After one that passed the next is tried as if nothing had been: an agent that recovers
///   is talked to again.
/// - What the guest sends while nobody asks stays where it is; what is read is no more than the limit.
///
/// That an answer is true nobody can know: it is the guest's.
pub struct Agent {
    stream: UnixStream,
    options: AgentOptions,
    /// Whose turn it is has it; nobody else waits for it.
    codec: Mutex<AgentCodec>,
    /// Whether somebody asks.
    busy: Mutex<bool>,
    turn: Condvar,
    closed: Mutex<Option<Closed>>,
}

const CHUNK: usize = 16 << 10;

impl Agent {
    /// Connects to a listening QEMU, the other side of the agent's channel. That there is an agent nobody knows before the
    /// first command.
    ///
    /// # Errors
    ///
    /// [`MonitorError`], of the command `guest-sync-delimited`.
    pub fn connect(path: &Path, options: AgentOptions) -> Result<Self, MonitorError> {
        const COMMAND: &str = "guest-sync-delimited";
        let begin = Instant::now();
        match socket::dial(path, deadline(begin, options.deadline)) {
            Ok(Some(stream)) => Self::new(stream, options),
            Ok(None) => Err(MonitorError::timeout(COMMAND, Stage::Connect, begin)),
            Err(error) => Err(MonitorError::failed(COMMAND, error)),
        }
    }

    /// Talks on a connected socket.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Setup`].
    pub fn new(stream: UnixStream, options: AgentOptions) -> Result<Self, MonitorError> {
        stream.set_nonblocking(true).map_err(MonitorError::Setup)?;
        // One that an earlier client, of this process or before it, will not have used.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let first = since.map_or(1, |since| since.as_micros() & ((1 << 50) - 1));
        let codec = AgentCodec::new(options.limit, u64::try_from(first).unwrap_or(1));
        Ok(Self {
            stream,
            options,
            codec: Mutex::new(codec),
            busy: Mutex::new(false),
            turn: Condvar::new(),
            closed: Mutex::new(None),
        })
    }

    /// Asks something, and has the answer as it is. `arguments` serializes to a JSON object, or to null for none.
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
        let begin = Instant::now();
        let until = deadline(begin, limit);
        let turn = self.take_turn(until);
        let _turn = turn.ok_or_else(|| MonitorError::timeout(command, Stage::Turn, begin))?;
        let mut codec = self.codec.lock().unwrap_or_else(PoisonError::into_inner);
        let mut talk = Talk {
            agent: self,
            codec: &mut codec,
            command,
            begin,
            until,
        };
        let outcome = talk.ask(arguments);
        codec.forget();
        decode(command, outcome?)
    }

    /// One asks at a time. Whoever holds an agent job is alone already.
    fn take_turn(&self, until: Instant) -> Option<Turn<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while *busy {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let woken = self.turn.wait_timeout(busy, left);
            busy = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        *busy = true;
        Some(Turn(self))
    }

    /// Why there is no connection any more; `None` as long as there is one.
    pub fn closed(&self) -> Option<Closed> {
        self.why().clone()
    }

    fn why(&self) -> std::sync::MutexGuard<'_, Option<Closed>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, for the first reason that there is: which.
    fn close(&self, cause: Closed) -> Closed {
        socket::shut(&self.stream);
        self.why().get_or_insert(cause).clone()
    }
}

/// Whose turn it is.
struct Turn<'a>(&'a Agent);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.turn.notify_one();
    }
}

/// One command's conversation.
struct Talk<'a> {
    agent: &'a Agent,
    codec: &'a mut AgentCodec,
    command: &'a str,
    begin: Instant,
    until: Instant,
}

impl Talk<'_> {
    fn ask(&mut self, arguments: &impl Serialize) -> Result<Reply, MonitorError> {
        if let Some(cause) = self.agent.closed() {
            return Err(MonitorError::closed(self.command, cause));
        }
        let synchronise = deadline(self.begin, self.agent.options.synchronise).min(self.until);
        let bytes = self.codec.synchronise();
        self.send(&bytes, synchronise, Stage::Synchronise)?;
        match self.listen(synchronise, Stage::Synchronise)? {
            AgentReply::Synchronised => {}
            // Only a synchronisation is answered so.
            _ => {
                return Err(MonitorError::timeout(
                    self.command,
                    Stage::Synchronise,
                    self.begin,
                ));
            }
        }
        let encoded = self.codec.command(self.command, arguments);
        let bytes = encoded.map_err(|cause| MonitorError::arguments(self.command, cause))?;
        self.send(&bytes, self.until, Stage::Send)?;
        match self.listen(self.until, Stage::Reply)? {
            AgentReply::Reply(reply) => Ok(reply),
            AgentReply::Malformed(cause) => Err(MonitorError::Malformed {
                command: self.command.to_owned(),
                cause,
            }),
            AgentReply::Synchronised => Err(MonitorError::timeout(
                self.command,
                Stage::Reply,
                self.begin,
            )),
        }
    }

    /// Half a command is no harm: the next synchronisation makes the agent forget it.
    fn send(&self, bytes: &[u8], until: Instant, stage: Stage) -> Result<(), MonitorError> {
        match socket::write(&self.agent.stream, bytes, &[], until) {
            Ok(Written::Whole) => Ok(()),
            Ok(Written::Nothing | Written::Half) => {
                Err(MonitorError::timeout(self.command, stage, self.begin))
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.end(Closed::Gone)),
            Err(error) => Err(self.end(Closed::Io(Arc::new(error)))),
        }
    }

    fn listen(&mut self, until: Instant, stage: Stage) -> Result<AgentReply, MonitorError> {
        let mut bytes = [0; CHUNK];
        loop {
            if let Some(reply) = self.codec.next() {
                return Ok(reply);
            }
            if Instant::now() >= until {
                return Err(MonitorError::timeout(self.command, stage, self.begin));
            }
            match socket::read(&self.agent.stream, &mut bytes, until) {
                Ok(Some(0)) => return Err(self.end(Closed::Gone)),
                Ok(Some(count)) => self.codec.push(&bytes[..count]),
                Ok(None) => {}
                Err(error) => return Err(self.end(Closed::Io(Arc::new(error)))),
            }
        }
    }

    fn end(&self, cause: Closed) -> MonitorError {
        MonitorError::closed(self.command, self.agent.close(cause))
    }
}

impl Channel for Agent {
    fn shut(&self) {
        // The reason first: who is woken by the end reads it.
        self.why().get_or_insert(Closed::Shut);
        socket::shut(&self.stream);
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}
