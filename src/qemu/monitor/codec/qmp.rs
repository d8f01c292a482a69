//! QMP's messages; QEMU's `docs/interop/qmp-spec.rst`.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::frames::{Frame, Frames, TooLong};

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// 10 in 10.2.1.
    pub major: u32,
    /// 2 in 10.2.1.
    pub minor: u32,
    /// 1 in 10.2.1.
    pub micro: u32,
}

/// What QEMU says first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Greeting {
    /// Its version.
    pub version: Version,
    /// What its packager calls it.
    pub package: String,
    /// What can be negotiated: `oob`.
    pub capabilities: Vec<String>,
}

/// Why a command failed, in QEMU's or the agent's own words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct CommandError {
    /// `GenericError`, `CommandNotFound`, `DeviceNotFound` and the like.
    pub class: String,
    /// For a person.
    pub desc: String,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.desc, self.class)
    }
}

impl std::error::Error for CommandError {}

/// The answer to a command: JSON as it came, or why there is none.
pub type Reply = Result<Box<RawValue>, CommandError>;

/// Something that happened in QEMU without being asked for.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// `SHUTDOWN`, `STOP`, `BLOCK_JOB_COMPLETED` and the like.
    pub name: String,
    /// What else is said of it; null if nothing is.
    pub data: Value,
    /// When, by the host's clock: seconds and microseconds since 1970. Both are -1 where QEMU could not tell.
    pub seconds: i64,
    /// See `seconds`.
    pub microseconds: i64,
}

/// A message of QEMU's.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// Its first.
    Greeting(Greeting),
    /// The answer to the command with this id.
    Reply(u64, Reply),
    /// An event.
    Event(Event),
    /// What answers no command that is waited for: its deadline has passed, or QEMU lies. It means nothing.
    Stray,
}

/// What is no message.
#[derive(Debug)]
#[non_exhaustive]
pub enum Malformed {
    /// Too long.
    TooLong(TooLong),
    /// Not JSON, or not an object that QMP knows; where, and how it begins.
    Json {
        /// What the parser says.
        cause: serde_json::Error,
        /// At most a hundred bytes of it.
        begins: String,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(error) => error.fmt(f),
            Self::Json { begins, .. } => write!(f, "no message: {begins}"),
        }
    }
}

impl std::error::Error for Malformed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLong(_) => None,
            Self::Json { cause, .. } => Some(cause),
        }
    }
}

impl Malformed {
    pub(super) fn json(cause: serde_json::Error, line: &[u8]) -> Self {
        let begins = line[..line.len().min(100)].escape_ascii().to_string();
        Self::Json { cause, begins }
    }
}

#[derive(Serialize)]
struct Command<'a, A> {
    #[serde(skip_serializing_if = "Option::is_none")]
    execute: Option<&'a str>,
    #[serde(rename = "exec-oob", skip_serializing_if = "Option::is_none")]
    exec_oob: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<A>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

/// A command as the bytes that are sent. `arguments` is a JSON object; what serializes to null is none.
///
/// # Errors
///
/// The arguments cannot be serialized.
pub fn command(
    name: &str,
    arguments: &impl Serialize,
    id: Option<u64>,
    out_of_band: bool,
) -> Result<Vec<u8>, serde_json::Error> {
    let arguments = serde_json::value::to_raw_value(arguments)?;
    let command = Command {
        execute: (!out_of_band).then_some(name),
        exec_oob: out_of_band.then_some(name),
        arguments: (arguments.get() != "null").then_some(arguments),
        id,
    };
    let mut bytes = serde_json::to_vec(&command)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(rename = "QMP")]
    qmp: Option<Welcome>,
    #[serde(rename = "return", borrow)]
    returned: Option<&'a RawValue>,
    error: Option<CommandError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<Timestamp>,
    #[serde(default)]
    id: Value,
}

#[derive(Deserialize)]
struct Welcome {
    version: Versions,
    #[serde(default)]
    capabilities: Vec<Value>,
}

#[derive(Deserialize)]
struct Versions {
    qemu: Version,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

/// The client's side of QMP: which commands are in flight, and whose answer has come.
///
/// ```
/// use captive::qemu::monitor::codec::{Incoming, QmpCodec};
///
/// let mut codec = QmpCodec::new(16 << 20);
/// let (id, bytes) = codec.command("query-status", &(), false)?;
/// assert_eq!(bytes, b"{\"execute\":\"query-status\",\"id\":1}\n");
/// codec.push(b"{\"return\": {\"running\": true}, \"id\": 1}\r\n");
/// let Some(Ok(Incoming::Reply(1, Ok(reply)))) = codec.next() else { panic!() };
/// assert_eq!(reply.get(), "{\"running\": true}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct QmpCodec {
    frames: Frames,
    ids: u64,
    /// Those whose answer is waited for.
    in_flight: HashSet<u64>,
}

impl QmpCodec {
    /// For messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            frames: Frames::new(limit),
            ids: 0,
            in_flight: HashSet::new(),
        }
    }

    /// A command, with the id that its answer will have, and the bytes to send.
    ///
    /// # Errors
    ///
    /// The arguments cannot be serialized; nothing is in flight.
    pub fn command(
        &mut self,
        name: &str,
        arguments: &impl Serialize,
        out_of_band: bool,
    ) -> Result<(u64, Vec<u8>), serde_json::Error> {
        let id = self.ids + 1;
        let bytes = command(name, arguments, Some(id), out_of_band)?;
        self.ids = id;
        self.in_flight.insert(id);
        Ok((id, bytes))
    }

    /// Nobody waits for this answer any more: when it comes it is a stray.
    pub fn forget(&mut self, id: u64) {
        self.in_flight.remove(&id);
    }

    /// Adds what has been read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// The next message, if it is there as a whole. What is malformed is skipped; whether to go on is the caller's to say.
    #[allow(
        clippy::should_implement_trait,
        reason = "more may come after nothing more"
    )]
    pub fn next(&mut self) -> Option<Result<Incoming, Malformed>> {
        loop {
            match self.frames.next()? {
                Ok(Frame::Line(line)) => return Some(self.message(&line)),
                Ok(Frame::Delimiter) => {}
                Err(error) => return Some(Err(Malformed::TooLong(error))),
            }
        }
    }

    fn message(&mut self, line: &[u8]) -> Result<Incoming, Malformed> {
        let message: Message<'_> =
            serde_json::from_slice(line).map_err(|cause| Malformed::json(cause, line))?;
        if let Some(Welcome {
            version,
            capabilities,
        }) = message.qmp
        {
            let name = |value: Value| value.as_str().map(str::to_owned);
            return Ok(Incoming::Greeting(Greeting {
                version: version.qemu,
                package: version.package,
                capabilities: capabilities.into_iter().filter_map(name).collect(),
            }));
        }
        if let Some(name) = message.event {
            let (seconds, microseconds) = match message.timestamp {
                Some(time) => (time.seconds, time.microseconds),
                None => (-1, -1),
            };
            return Ok(Incoming::Event(Event {
                name,
                data: message.data,
                seconds,
                microseconds,
            }));
        }
        let reply = match (message.error, message.returned) {
            (Some(error), _) => Err(error),
            (None, Some(value)) => Ok(value.to_owned()),
            (None, None) => return Ok(Incoming::Stray),
        };
        let id = message.id.as_u64();
        match id.filter(|id| self.in_flight.remove(id)) {
            Some(id) => Ok(Incoming::Reply(id, reply)),
            None => Ok(Incoming::Stray),
        }
    }

    /// How many bytes are kept of what has come.
    pub fn kept(&self) -> usize {
        self.frames.kept()
    }
}
