//! Jobs: their kinds, and who may have which when.

pub(crate) mod core;
mod kind;

pub use self::core::{Counts, Progress};
pub use kind::{AgentJobKind, AsyncJobKind, HeldKind, JobKind, Mask, Modification};

#[cfg(test)]
mod tests;
