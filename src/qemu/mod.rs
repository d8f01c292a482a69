//! For those who manage QEMU guests.

pub mod domain;

pub use uuid::Uuid;
