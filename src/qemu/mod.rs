//! For those who manage QEMU guests.

pub mod appliance;
pub mod domain;
pub mod monitor;

pub use uuid::Uuid;
