//! All integration tests, in one binary with its own `main`.
//!
//! Its own `main` because the tests need launchers: programs with *one* thread that fork, start
//! captives and are killed. This binary is its own launcher: `it --role NAME ARGS...` runs a role
//! (see [`roles`]) before any thread exists; without `--role` it is an ordinary test binary that
//! takes libtest's arguments.

#![allow(
    unsafe_code,
    clippy::pedantic,
    clippy::panic,
    clippy::unwrap_used,
    clippy::exit,
    missing_docs,
    unreachable_pub
)]
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::type_complexity,
    clippy::zombie_processes,
    clippy::incompatible_msrv
)]

#[macro_use]
mod support;

mod arming;
mod captives;
mod degraded;
mod examples;
mod generated;
mod grammar;
mod hardening;
mod launchers;
mod mechanisms;
mod namespaces;
mod orphans;
mod peers;
mod plan;
mod privileges;
#[cfg(feature = "qemu")]
mod qemu;
mod races;
mod roles;
mod server;
mod stand_in;
mod statuses;
mod teardown;
mod terminal;
mod threads;
mod transparency;
mod tree;

use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{SigHandler, Signal};

fn main() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "--role") {
        std::process::exit(roles::run(args));
    }
    // What is run in the background by a shell, or by nohup, ignores these, and so would all that the tests start.
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        // SAFETY: no handler is installed.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.expect("a default");
    }
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = Vec::new();
    // Each module of tests adds its own.
    trials.extend(arming::tests());
    trials.extend(captives::tests());
    trials.extend(degraded::tests());
    trials.extend(examples::tests());
    trials.extend(generated::tests());
    trials.extend(grammar::tests());
    trials.extend(hardening::tests());
    trials.extend(mechanisms::tests());
    trials.extend(server::tests());
    trials.extend(statuses::tests());
    trials.extend(plan::tests());
    trials.extend(privileges::tests());
    #[cfg(feature = "qemu")]
    trials.extend(qemu::tests());
    trials.extend(races::tests());
    trials.extend(peers::tests());
    trials.extend(teardown::tests());
    trials.extend(terminal::tests());
    trials.extend(transparency::tests());
    trials.extend(tree::tests());
    trials.extend(namespaces::tests());
    trials.extend(orphans::tests());
    trials.extend(threads::tests());
    let mut trials = stand_in::applying(trials);
    // Parts of names, of which libtest's arguments take but one; each must be one of a test.
    if let Ok(names) = std::env::var("CAPTIVE_TESTS") {
        let names: Vec<&str> = names.split_whitespace().collect();
        for name in &names {
            let is_one = trials.iter().any(|trial| trial.name().contains(name));
            assert!(is_one, "CAPTIVE_TESTS: there is no test {name}");
        }
        trials.retain(|trial| names.iter().any(|name| trial.name().contains(name)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
