//! The launcher for programs on tokio, and for those that keep std's `Command`.

use std::ffi::OsString;

use libtest_mimic::Trial;

mod launcher;
mod std_command;
#[cfg(feature = "tokio")]
mod tokio;

/// All of them.
pub fn tests() -> Vec<Trial> {
    #[cfg(not(feature = "tokio"))]
    return std_command::tests();
    #[cfg(feature = "tokio")]
    [std_command::tests(), tokio::tests()]
        .into_iter()
        .flatten()
        .collect()
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
    let outcome = match args[0] {
        "launcher" => return launcher::run(),
        "std" => std_command::role(args[1]),
        #[cfg(feature = "tokio")]
        "tokio" => tokio::role(args[1]),
        _ => return 2,
    };
    super::verdict(outcome)
}
