//! `--generate`: the man page and the completions for bash, zsh and fish, from the table of flags
//! and the table of keys.
//!
//! What they print is committed (`man/`, `completions/`), so that packagers need not run the
//! program; a test compares. What can be completed is decided here, once for all shells.

#![allow(
    clippy::format_push_string,
    reason = "short texts made once: the reader's time counts"
)]

use super::args::Generated;
use super::flags::{FLAGS, Flag};
use crate::exit_with_parent::Signal;
use crate::run_with::Key;

mod bash;
mod fish;
mod man;
mod zsh;

/// What `--generate KIND` prints.
pub(super) fn generate(kind: Generated) -> String {
    match kind {
        Generated::Man => man::page(),
        Generated::Bash => bash::completions(),
        Generated::Zsh => zsh::completions(),
        Generated::Fish => fish::completions(),
    }
}

/// What can stand for a value.
#[derive(Debug, PartialEq, Eq)]
enum Values {
    /// One of these.
    Words(Vec<String>),
    Files,
    Directories,
    Users,
    Processes,
    /// Anything: there is nothing to offer.
    Free,
}

impl Values {
    /// Of a flag that takes a value.
    fn of_flag(flag: &Flag) -> Option<Self> {
        Some(match flag.value? {
            "SIGNAL" => Self::Words(signals()),
            "MECHANISM" => Self::Words(
                ["pid-namespace", "user-namespace", "cgroup"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            "KIND" => Self::Words(["man", "bash", "zsh", "fish"].map(str::to_owned).to_vec()),
            "FILE" => Self::Files,
            "PID" => Self::Processes,
            _ => Self::Free,
        })
    }

    fn of_key(key: &Key) -> Self {
        match key.takes {
            "dir" => Self::Directories,
            "username|uid:gid" => Self::Users,
            words => Self::Words(words.split('|').map(str::to_owned).collect()),
        }
    }
}

/// The names of the signals that have one of their own.
fn signals() -> Vec<String> {
    let signals = (1..32).filter_map(|number| Signal::try_from(number).ok());
    signals.map(|signal| signal.to_string()).collect()
}

/// How a flag can be written: its long name, and its letter.
fn spellings(flag: &Flag) -> Vec<String> {
    let short = flag.short.map(|letter| format!("-{letter}"));
    short
        .into_iter()
        .chain([format!("--{}", flag.long)])
        .collect()
}

/// Every spelling of every flag whose value may be the next word.
fn flags_with_values() -> Vec<String> {
    let flags = FLAGS.iter().filter(|flag| flag.value.is_some());
    flags.flat_map(spellings).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Request, parse};
    use crate::run_with::KEYS;

    #[test]
    fn offered_values_are_taken() {
        for flag in FLAGS {
            let Some(Values::Words(words)) = Values::of_flag(flag) else {
                continue;
            };
            for word in words {
                let args = [format!("--{}={word}", flag.long)];
                let args = args.iter().map(String::as_str);
                let args = args.chain(["exit-with-parent=on", "true"]);
                let request = parse(args.map(Into::into).collect());
                assert!(request.is_ok(), "--{} {word}: {request:?}", flag.long);
            }
        }
        for key in KEYS {
            if let Values::Words(words) = Values::of_key(key) {
                assert_eq!(words, ["on", "off"], "{}", key.name);
            }
        }
    }

    #[test]
    fn every_kind_is_offered() {
        for (kind, name) in [
            (Generated::Man, "man"),
            (Generated::Bash, "bash"),
            (Generated::Zsh, "zsh"),
            (Generated::Fish, "fish"),
        ] {
            let request = parse(vec!["--generate".into(), name.into()]);
            assert!(
                matches!(request, Ok(Request::Generate(asked)) if asked == kind),
                "{name}"
            );
            assert!(generate(kind).is_ascii(), "{name}");
        }
    }
}
