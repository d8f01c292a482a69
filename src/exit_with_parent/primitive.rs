//! What the file that loom models (`binding`) uses to meet other threads. In the models,
//! `tests/loom`, this module is loom's.

pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
