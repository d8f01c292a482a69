//! Command-line arguments for programs that parse with clap's derive: `--exit-with-parent` and
//! `--run-with OPTIONS`, by one `#[command(flatten)]`.
//!
//! What is promised: nothing happens by parsing, and nothing is on that was not asked for. The
//! program gets a [`RunWith`] and decides itself when to prepare and apply it; `docs/daemons.md`
//! says in which order, and `examples/captive-daemon.rs` is a whole program.
//!
//! ```
//! use clap::Parser;
//! use captive::clap::RunWithArgs;
//!
//! #[derive(Parser)]
//! struct Cli {
//!     #[command(flatten)]
//!     run_with: RunWithArgs,
//! }
//!
//! let cli = Cli::parse_from(["serve", "--exit-with-parent", "--run-with", "user=nobody"]);
//! assert_eq!(cli.run_with.options().to_string(), "exit-with-parent=on,user=nobody");
//! ```
//!
//! A mistake in OPTIONS is clap's error of the kind `ValueValidation`; it names the key and its
//! position if the program's clap has the feature `error-context`, as it has by default. `help` or
//! `?` among the options is `DisplayHelp` with the table of keys, which `parse()` prints to
//! standard output before it exits with status 0.

use std::ffi::{OsStr, OsString};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, Command, Error};

use crate::RunWith;

/// `--exit-with-parent` and `--run-with OPTIONS`, for `#[command(flatten)]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct RunWithArgs {
    /// End when the parent process does (as --run-with exit-with-parent=on)
    #[arg(long)]
    exit_with_parent: bool,

    /// What to run with, such as user=nobody,chroot=DIR; "help" lists the keys
    #[arg(long, value_name = "OPTIONS", value_parser = Options)]
    run_with: Vec<RunWith>,
}

impl RunWithArgs {
    /// All of it as one: the option strings [merged](RunWith::merge) in their order on the command
    /// line, and exit-with-parent on if the flag was given. The flag takes no value, so no option
    /// string takes it back, wherever it stands.
    #[must_use]
    pub fn options(&self) -> RunWith {
        let mut options = RunWith::new();
        for later in &self.run_with {
            options.merge(later.clone());
        }
        if self.exit_with_parent {
            options = options.exit_with_parent(true);
        }
        options
    }
}

/// Reads one OPTIONS. Takes any bytes: a path need not be UTF-8.
#[derive(Clone)]
struct Options;

impl TypedValueParser for Options {
    type Value = RunWith;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<RunWith, Error> {
        if let Err(error) = RunWith::parse(value) {
            if error.is_help() {
                return Err(help(&error.to_string()));
            }
        }
        OsStringValueParser::new()
            .try_map(|text: OsString| RunWith::parse(&text))
            .parse_ref(command, arg, value)
    }
}

/// clap's own answer to a request for help, with this text. Made by a command that has no other:
/// `Error::raw` would put "error:" before the table.
fn help(text: &str) -> Error {
    let keys = Command::new("run-with").override_help(text.to_owned());
    match keys.try_get_matches_from(["run-with", "--help"]) {
        Err(answer) => answer,
        // Not reached: `--help` is always an error to clap.
        Ok(_) => Error::raw(clap::error::ErrorKind::DisplayHelp, text),
    }
}

/// The code in the page for authors of daemons compiles, and runs where it can.
#[cfg(doctest)]
#[doc = include_str!("../docs/daemons.md")]
struct Daemons;

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        run_with: RunWithArgs,
    }

    fn read<'a>(args: impl IntoIterator<Item = &'a [u8]>) -> Result<RunWith, Error> {
        let args = std::iter::once(&b"it"[..]).chain(args);
        let cli = Cli::try_parse_from(args.map(OsStr::from_bytes))?;
        Ok(cli.run_with.options())
    }

    fn options(line: &str) -> String {
        read(line.split(' ').map(str::as_bytes))
            .unwrap()
            .to_string()
    }

    #[test]
    fn nothing_is_on_by_default() {
        assert!(read([]).unwrap().is_empty());
    }

    #[test]
    fn several_are_merged_in_order() {
        assert_eq!(
            options("--run-with user=a,chroot=/x --run-with user=b"),
            "chroot=/x,user=b"
        );
        assert_eq!(
            options("--run-with exit-with-parent=on --run-with=exit-with-parent=off"),
            "exit-with-parent=off"
        );
    }

    #[test]
    fn the_flag_stands_wherever_it_is() {
        for line in [
            "--exit-with-parent",
            "--exit-with-parent --run-with exit-with-parent=off",
            "--run-with exit-with-parent=off --exit-with-parent",
        ] {
            assert_eq!(options(line), "exit-with-parent=on", "{line}");
        }
    }

    #[test]
    fn a_path_is_any_bytes() {
        let path = OsStr::from_bytes(b"/\xff");
        let read = read([&b"--run-with"[..], b"chroot=/\xff"]).unwrap();
        assert_eq!(read.get_chroot().unwrap(), path);
    }

    #[test]
    fn a_mistake_is_named_with_its_position() {
        let error = read([&b"--run-with=user=nobody,root=/x"[..]]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation);
        let text = error.to_string();
        for part in ["--run-with", r#"unknown key "root""#, "at byte 12"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn help_is_the_table_of_keys_and_nothing_else() {
        for given in ["help", "?", "user=nobody,help"] {
            let error = read([&b"--run-with"[..], given.as_bytes()]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DisplayHelp, "{given}");
            assert_eq!(error.exit_code(), 0);
            let table = RunWith::parse("help".as_ref()).unwrap_err().to_string();
            assert_eq!(error.to_string(), table + "\n");
        }
    }
}
