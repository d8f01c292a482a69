//! A captive's whole tree ends with it, with each mechanism that holds one.
//!
//! ```text
//! test ── launcher ──┬── captive-guard
//!                    ├── captive-init (of a PID namespace)
//!                    └── main process ── descendants, each hard to find or to end in another way
//! ```

use std::ffi::OsString;

use libtest_mimic::Trial;

mod bombs;
mod detach;
mod directories;
mod ends;
mod graceful;
mod guards;
pub mod processes;
mod repeated;
pub mod scene;
mod teardown;

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = ends::tests();
    trials.extend(bombs::tests());
    trials.extend(detach::tests());
    trials.extend(directories::tests());
    trials.extend(graceful::tests());
    trials.extend(guards::tests());
    trials.extend(repeated::tests());
    trials.extend(teardown::tests());
    trials
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    match args[0].to_str() {
        Some("repeated") => {
            repeated::role(args[1].as_ref(), args[2].to_str().unwrap().parse().unwrap())
        }
        _ => 2,
    }
}
