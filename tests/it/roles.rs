//! What this binary can be besides a test runner: launchers and captives with one thread.

use std::ffi::OsString;

mod peers;
mod teardown;

/// Runs the role named by the first argument; the answer is the exit status.
pub fn run(mut args: impl Iterator<Item = OsString>) -> i32 {
    let name = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    match name.to_str() {
        Some("teardown") => teardown::run(),
        Some("teardown-many") => teardown::many(args[0].to_str().unwrap().parse().unwrap()),
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
