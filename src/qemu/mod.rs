//! For managers of QEMU guests; the guide is `docs/qemu.md`.
//!
//! - [`domain`]: who may do what with a machine, and when: libvirt's job model, its rules held by the compiler.
//! - [`monitor`]: QMP and the guest agent, for peers that hang, die or lie.
//! - [`appliance`]: QEMU as a captive: asked what it can do, started, watched, stopped in order.

pub mod appliance;
mod deadline;
pub mod domain;
pub mod monitor;

pub use uuid::Uuid;

/// The guide's examples.
#[cfg(doctest)]
#[doc = include_str!("../../docs/qemu.md")]
struct Guide;
