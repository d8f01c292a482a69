//! `Command` and `Captive`: what a launcher starts ends with it.

use std::ffi::OsString;

use libtest_mimic::Trial;

mod command;
mod death;
mod handle;
mod itself;

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = command::tests();
    trials.extend(death::tests());
    trials.extend(handle::tests());
    trials.extend(itself::tests());
    trials
}

/// The roles of these tests: the first argument says whose.
pub fn role(args: &[OsString]) -> i32 {
    match args[0].to_str() {
        Some("command") => command::role(&args[1..]),
        Some("death") => death::role(&args[1..]),
        Some("itself") => itself::role(&args[1..]),
        Some("handle") => handle::role(&args[1..]),
        _ => 2,
    }
}
