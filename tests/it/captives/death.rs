//! The launcher ends, or its guard, or both: what becomes of the captives.
//!
//! ```text
//! test ── launcher (a role, told what to do) ──┬── captive-guard
//!                                              └── captives
//! ```

use std::ffi::OsString;

use libtest_mimic::Trial;

pub mod ends;
mod guards;
pub mod launcher;
pub mod processes;
pub mod random;
pub mod scene;
mod signals;

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = ends::tests();
    trials.extend(signals::tests());
    trials.extend(guards::tests());
    trials.extend(random::tests());
    trials
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
    match args[0] {
        "launcher" => launcher::run(),
        "captive" => processes::run(&args[1..]),
        "churn" => random::churn(args[1], args[2].parse().unwrap()),
        "rounds" => {
            let [seed, count] = [args[2], args[3]].map(|number| number.parse().unwrap());
            random::rounds(args[1], seed, count, args[4].as_ref())
        }
        "next" => random::next(args[1].as_ref()),
        _ => 2,
    }
}
