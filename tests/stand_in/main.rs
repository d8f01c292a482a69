//! The launcher as it is written for FreeBSD, macOS, NetBSD, OpenBSD and DragonFly, on real processes: the crate compiled with
//! `--cfg captive_stand_in`, Linux's calls in the place of those systems' (src/sys/stand_in). Run by `.ci/stand-in`, once as
//! FreeBSD and once (`CAPTIVE_STAND_IN=kqueue`) as a system that has neither process descriptors nor reapers.
//!
//! What tests/portable asks of the launcher is not asked again: here are the supervisor's life and death, and what only
//! these systems' launcher promises or refuses.
//!
//! This binary is its own launcher and captive: `stand_in --role NAME ARGS...`, before any thread exists.

#![allow(
    unsafe_code,
    clippy::pedantic,
    clippy::panic,
    clippy::unwrap_used,
    clippy::exit,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::zombie_processes,
    missing_docs,
    unreachable_pub
)]

#[cfg(captive_stand_in)]
mod errors;
#[cfg(captive_stand_in)]
mod events;
#[cfg(captive_stand_in)]
mod lives;
#[cfg(captive_stand_in)]
mod processes;
#[cfg(captive_stand_in)]
mod ready;
#[cfg(captive_stand_in)]
mod roles;
#[cfg(captive_stand_in)]
#[path = "../portable/scene.rs"]
#[allow(dead_code)]
mod scene;
#[cfg(captive_stand_in)]
mod supervisor;
#[cfg(captive_stand_in)]
mod trees;

#[cfg(captive_stand_in)]
fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().is_some_and(|first| first == "--role") {
        std::process::exit(roles::run(args.collect()));
    }
    let arguments = libtest_mimic::Arguments::from_args();
    let mut trials = Vec::new();
    trials.extend(supervisor::tests());
    trials.extend(lives::tests());
    trials.extend(trees::tests());
    trials.extend(errors::tests());
    trials.extend(events::tests());
    trials.extend(ready::tests());
    libtest_mimic::run(&arguments, trials).exit();
}

#[cfg(not(captive_stand_in))]
fn main() {
    eprintln!("stand_in: this is for a crate compiled with --cfg captive_stand_in: .ci/stand-in");
    std::process::exit(1);
}
