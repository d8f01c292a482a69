//! Compiles the program that the launcher carries, and finds out whether run-with can carry its own
//! copy of the unwinder.
//!
//! The launcher's guard has to be a program of its own, at hand in whatever program the crate is linked
//! into: it is compiled here, with `core` alone, and becomes a few kilobytes of the library.
//!
//! The standard library refers to libgcc's unwinder, which a Linux program normally gets as a shared
//! library of its own: one more file to find, map and relocate at every start, about a tenth of what
//! a whole start of run-with costs, for code that a program which aborts on panic never runs. Where
//! the C compiler has the static one, the program uses that. Nothing else depends on it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(captive_static_unwinder)");
    println!("cargo::rustc-check-cfg=cfg(captive_helper)");
    println!("cargo::rustc-check-cfg=cfg(captive_bsd)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={HELPER}");
    let var = |name: &str| env::var(name).unwrap_or_default();
    let native = var("TARGET") == var("HOST");
    let gnu = var("CARGO_CFG_TARGET_OS") == "linux" && var("CARGO_CFG_TARGET_ENV") == "gnu";
    let dynamic = !var("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .any(|name| name == "crt-static");
    if native && gnu && dynamic && has_static_unwinder() {
        println!("cargo::rustc-cfg=captive_static_unwinder");
    }
    // With the stand-in it is the BSDs' code that is compiled, for Linux.
    let stand_in = env::var_os("CARGO_CFG_CAPTIVE_STAND_IN").is_some();
    if stand_in || BSDS.contains(&var("CARGO_CFG_TARGET_OS").as_str()) {
        println!("cargo::rustc-cfg=captive_bsd");
    }
    let machine = ["x86_64", "aarch64"].contains(&var("CARGO_CFG_TARGET_ARCH").as_str())
        && var("CARGO_CFG_TARGET_POINTER_WIDTH") == "64";
    if var("CARGO_CFG_TARGET_OS") == "linux"
        && machine
        && !stand_in
        && env::var_os("CARGO_FEATURE_LAUNCHER").is_some()
    {
        println!("cargo::rerun-if-env-changed={CHECK_ONLY}");
        match compile_helper() {
            Ok(()) => println!("cargo::rustc-cfg=captive_helper"),
            // What is never linked can do with an empty one.
            Err(_) if env::var_os(CHECK_ONLY).is_some() && write_empty_helper().is_ok() => {
                println!("cargo::rustc-cfg=captive_helper");
            }
            Err(why) => println!(
                "cargo::warning=captive: the launcher's helper program cannot be linked for this target, \
                 so that Command::spawn will say Unsupported: {why}"
            ),
        }
    }
}

/// Where run-with and the launcher are those of `src/cli/bsd` and `src/launcher/bsd`.
const BSDS: [&str; 5] = ["freebsd", "macos", "netbsd", "openbsd", "dragonfly"];

/// The source of the launcher's program.
const HELPER: &str = "src/launcher/linux/helper";

/// Set where the crate is only type-checked for its target.
const CHECK_ONLY: &str = "CAPTIVE_CHECK_ONLY";

fn write_empty_helper() -> std::io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    std::fs::write(out.join("captive-helper"), [])
}

/// Compiles it for the target, into OUT_DIR.
fn compile_helper() -> Result<(), String> {
    let var = |name: &str| env::var_os(name).ok_or(format!("no {name}"));
    let text = |name: &str| env::var(name).unwrap_or_default();
    let out = PathBuf::from(var("OUT_DIR")?).join("captive-helper");
    let linkers = [
        // What cargo was told to link this target with, then the system's, then rustc's own.
        var("RUSTC_LINKER").ok(),
        Some(OsString::from("cc")),
        Some(OsString::from("rust-lld")),
    ];
    // It has no C library, so the host's `core` does where the target's is only compiled later (build-std, for musl).
    let (target, host) = (text("TARGET"), text("HOST"));
    let machine = |triple: &str| triple.split('-').next().map(str::to_owned);
    let same = host.contains("-linux-") && machine(&host) == machine(&target);
    let targets = [Some(target), same.then_some(host)];
    let targets: Vec<String> = targets.into_iter().flatten().collect();
    let mut said = String::new();
    for (target, linker) in targets
        .iter()
        .flat_map(|target| linkers.iter().flatten().map(move |linker| (target, linker)))
    {
        let mut link = String::from("-nostdlib -static -z noexecstack --gc-sections -s");
        let lld = linker == "rust-lld";
        if !lld {
            link = String::from(
                "-nostartfiles -nostdlib -static -no-pie -Wl,-z,noexecstack -Wl,--gc-sections \
                 -Wl,--build-id=none -s",
            );
        }
        let mut rustc = Command::new(var("RUSTC")?);
        rustc.args([
            "--edition=2024",
            "--crate-type=bin",
            "--crate-name=captive_helper",
        ]);
        rustc.args([
            "-Cpanic=abort",
            "-Copt-level=s",
            "-Crelocation-model=static",
        ]);
        rustc.args([
            "-Ctarget-feature=+crt-static",
            "--cap-lints=warn",
            "--target",
        ]);
        rustc.arg(target).arg("-o").arg(&out);
        let mut flag = OsString::from("-Clinker=");
        flag.push(linker);
        rustc.arg(flag).arg(format!("-Clink-args={link}"));
        if lld {
            rustc.arg("-Clinker-flavor=ld.lld");
        }
        // With musl rustc would add its own start of a program, beside the helper's.
        if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
            rustc.arg("-Clink-self-contained=no");
        }
        let done = rustc.arg(Path::new(HELPER).join("main.rs")).output();
        let done = done.map_err(|error| error.to_string())?;
        if done.status.success() {
            return Ok(());
        }
        said = String::from_utf8_lossy(&done.stderr).replace('\n', " | ");
    }
    Err(said)
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
