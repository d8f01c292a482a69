//! QMP and the guest agent's protocol without input or output: bytes in, messages out.
//!
//! Both are JSON objects, one a line. What comes in is a machine's or, worse, a guest's word: nothing in here trusts it,
//! waits for it, or keeps more of it than a limit.

mod agent;
mod frames;
mod qmp;

pub use agent::{AgentCodec, AgentReply};
pub use frames::{Frame, Frames, TooLong};
pub use qmp::{
    CommandError, Event, Greeting, Incoming, Malformed, QmpCodec, Reply, Version, command,
};

#[cfg(test)]
mod tests;
