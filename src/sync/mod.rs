//! Reference counts that are never revived, snapshots that are never dead, and the atomic operations that
//! they are made of.
//!
//! The operations are those of QEMU's `docs/devel/atomics.txt`, on std's atomics: what std has under another
//! name is not repeated (`fetch_add`, `swap`, `compare_exchange`), what it lacks is [`FetchOps`]. They are
//! sequentially consistent, as there; the form with `_with` takes another ordering.
//!
//! [`RefCount`] answers the "resurrection" of QEMU's FlatViews (its commit 447b0d0b9ee8): a reader that had
//! found an object just before a writer replaced it and dropped the last reference must not take a new one. The
//! three threads of that commit's message are a model, `flatview_is_not_resurrected` in `tests/loom`.
//!
//! [`Published`] is what such a reader finds things in: a value that is replaced as a whole, read without waiting
//! for a writer.

mod count;
mod fetch;
mod primitive;
mod published;

pub use count::RefCount;
pub use fetch::FetchOps;
pub use published::{Published, Snapshot};

#[cfg(test)]
mod tests;
