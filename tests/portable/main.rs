//! What the crate promises on every system it is written for, on real processes: Linux, FreeBSD,
//! macOS, NetBSD, OpenBSD, DragonFly.
//!
//! Only POSIX and the crate's public interface are used, so that `tests/report` can run it wherever the
//! crate compiles. On Linux it is one of the crate's tests, which is how it is known that it can pass; the
//! deeper tests of Linux are `tests/it`.
//!
//! A process is seen to end by the end of a pipe that it holds, never by its pid. Whatever a test starts
//! reads standard input, and ends when that does: with the test.
//!
//! This binary is its own launcher and captive: `portable --role NAME ARGS...`, before any thread exists.

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

mod binding;
mod captives;
mod options;
mod program;
mod roles;
mod scene;

use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{SigHandler, Signal};

fn main() {
    // What is run in the background by a shell ignores these, and so would all that the tests start.
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: no handler is installed.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.expect("a default");
    }
    let mut args = std::env::args().skip(1);
    if args.next().is_some_and(|first| first == "--role") {
        std::process::exit(roles::run(args.collect()));
    }
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(binding::tests());
    trials.extend(options::tests());
    trials.extend(captives::tests());
    trials.extend(program::tests());
    libtest_mimic::run(&arguments, trials).exit();
}
