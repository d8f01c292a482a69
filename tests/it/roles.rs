//! What this binary can be besides a test runner: launchers and captives with one thread.

use std::ffi::OsString;

mod captive;
mod crowd;
mod examples;
pub mod launcher;
mod peers;
mod teardown;
mod transparency;

use crate::launchers;

/// Runs the role named by the first argument; the answer is the exit status.
pub fn run(mut args: impl Iterator<Item = OsString>) -> i32 {
    let name = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    match name.to_str() {
        Some("captive") => captive::run(),
        Some("captives") => crate::captives::role(&args),
        Some("degraded") => crate::degraded::role(&args),
        Some("launcher") => launcher::launch(&args),
        Some("denied") => launcher::denied(&args),
        Some("examples-launcher") => examples::launcher(&args),
        Some("examples-adopter") => crate::examples::adopter(&args),
        Some("odd") => transparency::odd(&args),
        Some("count") => transparency::count(&args),
        Some("signal") => transparency::signal(&args),
        Some("hardening-recycle") => crate::hardening::recycle(),
        Some("races") => crate::races::role(&args),
        Some("races-other-user") => crate::races::other_user(),
        Some("teardown") => teardown::run(),
        Some("teardown-many") => teardown::many(args[0].to_str().unwrap().parse().unwrap()),
        Some("launch") => launchers::launch(args),
        Some("idle") => launchers::idle(args),
        Some("bound") => launchers::captive(args),
        Some("gate") => launchers::gate(args),
        Some("subreaper") => launchers::subreaper(args),
        Some("recycle") => launchers::recycle(args),
        Some("counter") => launchers::counter(args),
        Some("peers-launcher") => peers::launcher(&texts(args)),
        Some("peers-adopter") => peers::adopter(&texts(args)),
        _ => {
            eprintln!("it: no role {name:?}");
            2
        }
    }
}

fn texts(args: Vec<OsString>) -> Vec<String> {
    args.into_iter()
        .map(|arg| arg.into_string().unwrap())
        .collect()
}
