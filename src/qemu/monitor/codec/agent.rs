//! The guest agent's protocol; QEMU's `qga/qapi-schema.json` (guest-sync-delimited).
//!
//! An agent has no greeting, no ids and no events. Whether it is there at all, and whether what it says answers the
//! question that was asked last, is found out by synchronisation: a question with a number, whose answer comes after a
//! byte that is in no JSON text. The same byte, sent, makes the agent forget half a command that another had left.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::frames::{Frame, Frames};
use super::qmp::{CommandError, Malformed, Reply, command};

/// What an agent's bytes mean for who has asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum AgentReply {
    /// It is in step: the command may be sent.
    Synchronised,
    /// The answer to the command.
    Reply(Reply),
    /// It said what is no answer to the command. Out of step: the next command begins with a synchronisation.
    Malformed(Malformed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing is asked: what comes is thrown away.
    Idle,
    /// Synchronising; whether the delimiter has come.
    Synchronising { id: u64, delimited: bool },
    /// Synchronised; nothing has been asked yet.
    Synchronised,
    /// The command has been sent.
    Asked,
}

/// The client's side of a conversation with an agent: one question at a time, each after a synchronisation.
///
/// ```
/// use captive::qemu::monitor::codec::{AgentCodec, AgentReply};
///
/// let mut codec = AgentCodec::new(1 << 20, 7);
/// let sync = codec.synchronise();
/// assert_eq!(sync[0], 0xff);
/// // The end of an older answer, and the answer to an older synchronisation.
/// codec.push(b"turn\": {}}\n\xff{\"return\": 6}\n\xff{\"return\": 7}\n");
/// assert!(matches!(codec.next(), Some(AgentReply::Synchronised)));
/// let ping = codec.command("guest-ping", &())?;
/// codec.push(b"{\"return\": {}}\n");
/// assert!(matches!(codec.next(), Some(AgentReply::Reply(Ok(_)))));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug)]
pub struct AgentCodec {
    frames: Frames,
    next: u64,
    step: Step,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(rename = "return", borrow)]
    returned: Option<&'a RawValue>,
    error: Option<CommandError>,
}

impl AgentCodec {
    /// For messages of at most `limit` bytes. `first` is the number of the first synchronisation: one that no earlier
    /// client of the same agent has used.
    pub fn new(limit: usize, first: u64) -> Self {
        Self {
            frames: Frames::new(limit),
            next: first,
            step: Step::Idle,
        }
    }

    /// Begins anew, whatever came before: what is to be sent.
    pub fn synchronise(&mut self) -> Vec<u8> {
        let id = self.next;
        // Of JSON's numbers the agent reads those of 64 bits with a sign; 53 bits are everybody's.
        self.next = (id + 1) & ((1 << 53) - 1);
        self.step = Step::Synchronising {
            id,
            delimited: false,
        };
        let mut bytes = vec![0xff];
        let text =
            format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{id}}}}}\n");
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    /// A command, once it is in step: what is to be sent.
    ///
    /// # Errors
    ///
    /// The arguments cannot be serialized.
    pub fn command(
        &mut self,
        name: &str,
        arguments: &impl serde::Serialize,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let bytes = command(name, arguments, None, false)?;
        self.step = Step::Asked;
        Ok(bytes)
    }

    /// Nobody waits for an answer any more.
    pub fn forget(&mut self) {
        self.step = Step::Idle;
    }

    /// Adds what has been read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// What the bytes so far mean for who waits; nothing if they mean nothing.
    #[allow(
        clippy::should_implement_trait,
        reason = "more may come after nothing more"
    )]
    pub fn next(&mut self) -> Option<AgentReply> {
        loop {
            let frame = self.frames.next()?;
            match (self.step, frame) {
                (Step::Synchronising { id, .. }, Ok(Frame::Delimiter)) => {
                    self.step = Step::Synchronising {
                        id,
                        delimited: true,
                    };
                }
                (
                    Step::Synchronising {
                        id,
                        delimited: true,
                    },
                    Ok(Frame::Line(line)),
                ) => {
                    if number(&line) == Some(id) {
                        self.step = Step::Synchronised;
                        return Some(AgentReply::Synchronised);
                    }
                    // The answer to an older one, or a lie.
                    self.step = Step::Synchronising {
                        id,
                        delimited: false,
                    };
                }
                (Step::Asked, Ok(Frame::Line(line))) => {
                    self.step = Step::Idle;
                    return Some(answer(&line));
                }
                (Step::Asked, Err(error)) => {
                    self.step = Step::Idle;
                    return Some(AgentReply::Malformed(Malformed::TooLong(error)));
                }
                // Of an older conversation; and who is asked sends no delimiter.
                _ => {}
            }
        }
    }

    /// How many bytes are kept of what has come.
    pub fn kept(&self) -> usize {
        self.frames.kept()
    }
}

fn number(line: &[u8]) -> Option<u64> {
    let message: Message<'_> = serde_json::from_slice(line).ok()?;
    serde_json::from_str(message.returned?.get()).ok()
}

fn answer(line: &[u8]) -> AgentReply {
    let message: Result<Message<'_>, _> = serde_json::from_slice(line);
    match message {
        Ok(Message {
            error: Some(error), ..
        }) => AgentReply::Reply(Err(error)),
        Ok(Message {
            returned: Some(value),
            ..
        }) => AgentReply::Reply(Ok(value.to_owned())),
        Ok(_) => {
            let cause = serde::de::Error::custom("neither return nor error");
            AgentReply::Malformed(Malformed::json(cause, line))
        }
        Err(cause) => AgentReply::Malformed(Malformed::json(cause, line)),
    }
}
