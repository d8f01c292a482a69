//! For those who manage QEMU guests.

pub mod domain;
pub mod monitor;

pub use uuid::Uuid;
