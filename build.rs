//! Finds out whether run-with can carry its own copy of the unwinder.
//!
//! The standard library refers to libgcc's unwinder, which a Linux program normally gets as a shared
//! library of its own: one more file to find, map and relocate at every start, about a tenth of what
//! a whole start of run-with costs, for code that a program which aborts on panic never runs. Where
//! the C compiler has the static one, the program uses that. Nothing else depends on it.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(captive_static_unwinder)");
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    let native = var("TARGET") == var("HOST");
    let gnu = var("CARGO_CFG_TARGET_OS") == "linux" && var("CARGO_CFG_TARGET_ENV") == "gnu";
    let dynamic = !var("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .any(|name| name == "crt-static");
    if native && gnu && dynamic && has_static_unwinder() {
        println!("cargo::rustc-cfg=captive_static_unwinder");
    }
}

/// Asks the C compiler for libgcc_eh.a; it answers with the bare name if it has none.
fn has_static_unwinder() -> bool {
    Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output()
        .is_ok_and(|answer| {
            let path = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
            answer.status.success() && Path::new(&path).is_absolute() && Path::new(&path).is_file()
        })
}
