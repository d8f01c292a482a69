//! What the files that loom models (`claim`, `news`, `outcome`) use to meet other threads. In the models,
//! `tests/loom`, this module is loom's.

pub(super) use std::sync::atomic::{AtomicU32, Ordering};
pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
