//! What the files that loom models (`claim`, `news`, `outcome`, `slot`) use to meet other threads. In the models,
//! `tests/loom`, this module is loom's.

pub(super) use std::sync::atomic::{AtomicU32, Ordering};
pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
