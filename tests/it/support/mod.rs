//! What the tests share: what a test needs of the machine, witnesses of a process's end, and the
//! clean-up of whatever a test started.

#![allow(dead_code, reason = "each module uses its part")]

/// Fails the test with a message.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+).into());
        }
    };
}

pub mod appliance;
pub mod cgroups;
pub mod needs;
pub mod process;
pub mod seccomp;
pub mod session;

pub use needs::{Need, test};
pub use process::{Tag, Witness};
pub use session::{Fallible, Launched, Session, output};

use std::time::Duration;

/// The result of a test; any error fails it with its message.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// How long anything may take before it counts as hung. Never a measure of speed: an emulated machine that has others to serve
/// needs a minute for four hundred captives.
pub const HANG: Duration = Duration::from_secs(120);

/// How long a process that nobody ends must go on living to count as not ended.
pub const SURVIVES: Duration = Duration::from_millis(400);
