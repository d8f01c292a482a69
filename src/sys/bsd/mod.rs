//! System calls of the BSDs and macOS. **Never run**, see `docs/platforms.md`.

mod queue;

pub(crate) use queue::Queue;
