//! What can go wrong with a peer that may hang, die or lie.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::codec::{CommandError, Malformed, Reply};

/// Why there is no connection any more.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Closed {
    /// The peer has closed it: it has ended, most likely.
    Gone,
    /// It was shut here ([`Channel::shut`](crate::qemu::domain::Channel::shut)): the domain has died.
    Shut,
    /// The peer sent what is no message. What comes after it is worth nothing.
    Malformed(Arc<Malformed>),
    /// The peer did not take the whole of this command within its deadline; half of one was sent.
    HalfSent {
        /// Its name.
        command: String,
    },
    /// Reading or writing failed.
    Io(Arc<io::Error>),
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the peer has closed the connection"),
            Self::Shut => f.write_str("the connection was shut: the domain died"),
            Self::Malformed(_) => f.write_str("the peer sent what is no message"),
            Self::HalfSent { command } => {
                write!(f, "the peer took but half of {command}")
            }
            Self::Io(_) => f.write_str("the connection failed"),
        }
    }
}

impl std::error::Error for Closed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Malformed(cause) => Some(&**cause),
            Self::Io(cause) => Some(&**cause),
            _ => None,
        }
    }
}

/// What was waited for when a deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// A connection.
    Connect,
    /// That another has its answer.
    Turn,
    /// QEMU's greeting.
    Greeting,
    /// That the peer takes the command.
    Send,
    /// The agent's answer to a synchronisation: it is not there, or busy with what it was asked before.
    Synchronise,
    /// The answer.
    Reply,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "the connection",
            Self::Turn => "its turn",
            Self::Greeting => "the greeting",
            Self::Send => "the peer to take it",
            Self::Synchronise => "the agent to synchronise",
            Self::Reply => "the answer",
        })
    }
}

/// Why a command has no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum MonitorError {
    /// There is no connection any more.
    Closed {
        /// The command.
        command: String,
        /// Why.
        cause: Closed,
    },
    /// The deadline passed. The command may be executed yet; its answer will be thrown away.
    Timeout {
        /// The command.
        command: String,
        /// What was waited for.
        stage: Stage,
        /// For how long.
        after: Duration,
    },
    /// The peer says no.
    Refused {
        /// The command.
        command: String,
        /// Why, in its words.
        cause: CommandError,
    },
    /// The arguments cannot be said in JSON. Nothing was sent.
    Arguments {
        /// The command.
        command: String,
        /// Why.
        cause: serde_json::Error,
    },
    /// The answer is not of the type that was asked for.
    Unexpected {
        /// The command.
        command: String,
        /// Why.
        cause: serde_json::Error,
    },
    /// The agent answered with what is no answer. The next command begins with a synchronisation.
    Malformed {
        /// The command.
        command: String,
        /// What it is.
        cause: Malformed,
    },
    /// QEMU has not offered to execute commands out of band.
    NoOutOfBand {
        /// The command.
        command: String,
    },
    /// The connection cannot be made ready: a thread, a descriptor.
    Setup(io::Error),
}

impl MonitorError {
    pub(super) fn closed(command: &str, cause: Closed) -> Self {
        Self::Closed {
            command: command.to_owned(),
            cause,
        }
    }

    pub(super) fn failed(command: &str, error: io::Error) -> Self {
        Self::closed(command, Closed::Io(Arc::new(error)))
    }

    pub(super) fn timeout(command: &str, stage: Stage, begin: Instant) -> Self {
        Self::Timeout {
            command: command.to_owned(),
            stage,
            after: begin.elapsed(),
        }
    }

    pub(super) fn arguments(command: &str, cause: serde_json::Error) -> Self {
        Self::Arguments {
            command: command.to_owned(),
            cause,
        }
    }
}

/// What an answer says, as the type that was asked for.
pub(super) fn decode<T: DeserializeOwned>(command: &str, reply: Reply) -> Result<T, MonitorError> {
    let value = reply.map_err(|cause| MonitorError::Refused {
        command: command.to_owned(),
        cause,
    })?;
    serde_json::from_str(value.get()).map_err(|cause| MonitorError::Unexpected {
        command: command.to_owned(),
        cause,
    })
}

impl fmt::Display for MonitorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { command, cause } => write!(f, "{command}: {cause}"),
            Self::Timeout {
                command,
                stage,
                after,
            } => write!(f, "{command}: waited {after:.1?} for {stage}"),
            Self::Refused { command, .. } => write!(f, "{command} was refused"),
            Self::Arguments { command, .. } => {
                write!(f, "{command}: its arguments cannot be said in JSON")
            }
            Self::Unexpected { command, .. } => {
                write!(f, "{command}: the answer is of another type")
            }
            Self::Malformed { command, .. } => write!(f, "{command}: no answer"),
            Self::NoOutOfBand { command } => {
                write!(f, "{command}: nothing is executed out of band here")
            }
            Self::Setup(_) => f.write_str("a connection cannot be set up"),
        }
    }
}

impl std::error::Error for MonitorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // `Closed` is said in full already, but for what caused it.
            Self::Closed { cause, .. } => std::error::Error::source(cause),
            Self::Refused { cause, .. } => Some(cause),
            Self::Arguments { cause, .. } | Self::Unexpected { cause, .. } => Some(cause),
            Self::Malformed { cause, .. } => Some(cause),
            Self::Setup(cause) => Some(cause),
            Self::Timeout { .. } | Self::NoOutOfBand { .. } => None,
        }
    }
}
