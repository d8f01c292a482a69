//! `--help`, from the table of flags.

use std::fmt::Write;

use super::flags::{FLAGS, Flag};
use crate::run_with::KEYS;

/// What `run-with --help` prints.
pub(super) fn help() -> String {
    let mut text = String::from(
        "Usage: run-with [FLAGS] [KEY=VALUE,...]... [--] COMMAND [ARG...]\n\n\
         Runs COMMAND bound to this process's parent, in another root, as another user.\n\
         Operands that contain '=' are options; the first without one, or what follows --, is the\n\
         command. Nothing is on by default.\n\nOptions:\n",
    );
    for key in KEYS {
        let usage = format!("{}={}", key.name, key.takes);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {usage:<28} {}", key.summary);
    }
    text.push_str("\nFlags:\n");
    for flag in FLAGS {
        let _ = writeln!(text, "  {:<28} {}", usage(flag), flag.help);
    }
    text.push_str(
        "\nExit status: the command's own (by the same signal, if one killed it); 125 if run-with\n\
         itself fails, 126 if the command cannot be executed, 127 if it is not found.\n",
    );
    text
}

/// `-s, --signal SIGNAL`
fn usage(flag: &Flag) -> String {
    let short = flag
        .short
        .map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
    let value = flag
        .value
        .map_or_else(String::new, |value| format!(" {value}"));
    format!("{short}--{}{value}", flag.long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_and_key_is_there() {
        let help = help();
        for flag in FLAGS {
            assert!(help.contains(&usage(flag)), "{}", flag.long);
            assert!(help.contains(flag.help), "{}", flag.long);
        }
        for key in KEYS {
            assert!(help.contains(key.summary), "{}", key.name);
        }
    }
}
