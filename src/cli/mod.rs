//! run-with, the program: QEMU's `-run-with` for any command.
//!
//! The program's code is here, and not in `src/bin`, so that its flags, man page and state machine
//! can be tested like any other module; it is no part of the crate's public interface.
//!
//! `run-with` stays as a small supervisor (`supervise` in the platform file) or, with `--exec`,
//! becomes the command. Exit statuses are env(1)'s: the command's own; 125 for a failure of run-with
//! itself, 126 for a command that cannot be executed, 127 for one that is not found.

#![cfg_attr(
    any(
        captive_stand_in,
        not(all(target_os = "linux", target_arch = "x86_64"))
    ),
    allow(
        dead_code,
        reason = "flags are read everywhere, the supervisor is not written for every system"
    )
)]

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

mod args;
mod facts;
mod flags;
mod generate;
mod given;
mod help;
mod machine;
mod mechanisms;
mod program;
mod replace;
mod server;
mod status;
mod systemd;
mod words;
mod writing;

cfg_if::cfg_if! {
    if #[cfg(captive_bsd)] {
        mod bsd;
        use bsd as platform;
    // Where the order of clone's arguments, the layout of sigaction and the width of ids are those
    // that src/sys/linux writes down: not on s390x, MIPS, SPARC, x32 and whatever was not looked up.
    } else if #[cfg(all(
        target_os = "linux",
        any(
            all(target_arch = "x86_64", target_pointer_width = "64"),
            all(target_arch = "aarch64", target_pointer_width = "64"),
            target_arch = "riscv64",
            target_arch = "x86",
            target_arch = "arm",
            target_arch = "powerpc64",
            target_arch = "loongarch64",
        )
    ))] {
        mod linux;
        use linux as platform;
    } else {
        mod unsupported;
        use unsupported as platform;
    }
}

use args::{Mode, Request};

/// run-with itself failed.
const FAILED: i32 = 125;
/// The command was found but cannot be executed.
const NOT_EXECUTABLE: i32 = 126;
/// The command was not found.
const NOT_FOUND: i32 = 127;

/// Why the command was not run, with the exit status that says so.
#[derive(Debug)]
struct Failure {
    status: i32,
    message: String,
}

impl Failure {
    /// A failure of run-with's own.
    fn own(message: impl fmt::Display) -> Self {
        Self {
            status: FAILED,
            message: message.to_string(),
        }
    }

    /// A failure of run-with's own, with everything that caused it.
    fn caused(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Self {
            status: FAILED,
            message,
        }
    }
}

/// Runs the program with the arguments that follow its name; the answer is the exit status.
pub fn main(args: Vec<OsString>) -> i32 {
    let outcome = match args::parse(args) {
        Err(error) => Err(Failure::own(format!("{error}\nTry 'run-with --help'."))),
        Ok(Request::Help) => print(&help::help()),
        Ok(Request::Version) => print(concat!("run-with ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Request::Keys(table)) => print(&format!("{table}\n")),
        Ok(Request::Mechanisms { json }) => print(&mechanisms::report(json)),
        Ok(Request::Generate(kind)) => print(&generate::generate(kind)),
        Ok(Request::Run(invocation)) => match invocation.mode {
            Mode::Supervise => platform::supervise(&invocation),
            Mode::Exec => replace::become_command(&invocation),
        },
    };
    outcome.unwrap_or_else(|failure| {
        say(&failure.message);
        failure.status
    })
}

/// Writes an answer to standard output; nobody there to read it makes it a failure.
fn print(text: &str) -> Result<i32, Failure> {
    // Not through std's stdout, which takes a closed descriptor for a place where all is well.
    let out = std::io::stdout().as_fd().try_clone_to_owned();
    out.and_then(|out| File::from(out).write_all(text.as_bytes()))
        .map(|()| 0)
        .map_err(|error| Failure::own(format!("standard output: {error}")))
}

/// Says something on standard error; there is nobody to tell if that fails.
fn say(message: &str) {
    let _ = writing::write(&mut std::io::stderr(), &format!("run-with: {message}\n"));
}
