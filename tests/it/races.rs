//! No moment is safe to be killed in: launchers (and run-with itself) are SIGKILLed at random times,
//! and at every system call of run-with's start, and nothing may be left.
//!
//! Each test is a role of its own in a PID namespace (see [`namespace`]), so that a plain init adopts
//! the orphans and nothing outside can be hit. [`variant`] is the table of what is run.

use std::ffi::OsString;
use std::process::Stdio;

use libtest_mimic::Trial;

use crate::support::{Need, Outcome, Tag, test};

mod launch;
pub mod namespace;
pub mod phase;
mod random;
mod steps;
pub mod trace;
mod variant;

use variant::{VARIANTS, Variant};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Random kills of the first variant; the others get a fifth.
const TRIALS: usize = 1000;

pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (index, variant) in VARIANTS.iter().enumerate() {
        let count = if index == 0 { TRIALS } else { TRIALS / 5 };
        trials.push(test(
            &format!("races::random_{}", variant.name),
            &[Need::Root],
            move || role_succeeds(&["random", variant.name, &long(count).to_string()]),
        ));
        if variant.is_bound() {
            trials.push(test(
                &format!("races::steps_{}", variant.name),
                &[Need::Root],
                || role_succeeds(&["steps", variant.name, "0"]),
            ));
            trials.push(test(
                &format!("races::steps_held_{}", variant.name),
                &[Need::Root, Need::Long],
                || role_succeeds(&["steps", variant.name, "150"]),
            ));
        }
    }
    trials
}

/// Ten times as many in a long run.
fn long(count: usize) -> usize {
    let long = std::env::var_os("CAPTIVE_LONG").is_some_and(|value| value == "1");
    if long { 10 * count } else { count }
}

fn role_succeeds(args: &[&str]) -> Outcome {
    let tag = Tag::new();
    let mut role = tag.role("races");
    let output = role.args(args).stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The role `races`: `random VARIANT TRIALS` or `steps VARIANT HOLD`, the milliseconds for which
/// everything is held at the stop after the kill.
pub fn role(args: &[OsString]) -> i32 {
    let text = |at: usize| args[at].to_str().unwrap();
    let variant = Variant::named(text(1)).expect("a variant");
    let number: u64 = text(2).parse().unwrap();
    let body = move || {
        let done = match text(0) {
            "random" => random::run(variant, number as usize, seed()),
            _ => steps::run(variant, std::time::Duration::from_millis(number)),
        };
        match done {
            Ok(counted) => {
                println!("{}: {counted}", variant.name);
                0
            }
            Err(error) => {
                println!("{}: {error}", variant.name);
                1
            }
        }
    };
    namespace::run(body).unwrap_or_else(|error| {
        println!("a PID namespace: {error}");
        3
    })
}

/// CAPTIVE_SEED for other times than the usual ones.
fn seed() -> u64 {
    let seed = std::env::var("CAPTIVE_SEED").ok();
    seed.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The role `races-other-user`: becomes another user at once, and waits.
pub fn other_user() -> i32 {
    let nobody = 65534;
    let changed =
        nix::unistd::setgid(nobody.into()).and_then(|()| nix::unistd::setuid(nobody.into()));
    if changed.is_err() {
        return 1;
    }
    loop {
        nix::unistd::pause();
    }
}
