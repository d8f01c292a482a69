//! What the files that loom models (`claim`, `news`, `outcome`, `slot`) use to meet other threads. In the models,
//! `tests/loom`, this module is loom's.

#[allow(unused_imports, reason = "claim and slot are Linux's")]
pub(super) use std::sync::Condvar;
#[allow(unused_imports, reason = "as above")]
pub(super) use std::sync::atomic::{AtomicU32, Ordering};
pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
