//! QMP and the guest agent, for peers that may hang, die or lie.
//!
//! - [`Qmp`]: a connection to QEMU's monitor. [`Agent`]: one to the agent in a guest.
//! - [`codec`]: both protocols without input or output, for other transports.
//!
//! Each call has a deadline, and what a peer sends has a limit. Both connections are
//! [`Channel`](crate::qemu::domain::Channel)s: when their domain dies, every call on them fails at once.

mod agent;
pub mod codec;
mod error;
mod idle;
mod qmp;
mod socket;

pub use agent::{Agent, AgentOptions};
pub use error::{Closed, MonitorError, Stage};
pub use qmp::{NoEvent, Qmp, QmpEvents, QmpOptions};
