//! The man page: the flags and keys from their tables, and around them what holds for all. Plain
//! man(7) macros, which every man understands.

use super::{FLAGS, Flag};
use crate::run_with::KEYS;

mod roff;
mod text;

use roff::Roff;

/// When the words of [`text`] were last changed.
const REVISED: &str = "2026-11-26";

pub(super) fn page() -> String {
    let mut page = Roff::new("run-with", 1, REVISED, "User Commands");
    page.section("NAME");
    page.line(r"run\-with \- run a command bound to its parent, in another root, as another user");
    page.section("SYNOPSIS");
    page.prose("`run-with` [*FLAGS*] [*KEY=VALUE*,...]... [`--`] *COMMAND* [*ARG*...]");
    page.section("DESCRIPTION");
    page.paragraphs(text::DESCRIPTION);
    page.section("OPTION STRING");
    page.paragraphs(text::OPTION_STRING);
    for key in KEYS {
        page.item(&format!("`{}=`*{}*", key.name, key.takes));
        page.prose(&sentence(key.summary));
        if let Some((_, about)) = text::KEYS.iter().find(|(name, _)| *name == key.name) {
            page.more(about);
        }
    }
    page.section("FLAGS");
    for flag in FLAGS {
        page.item(&tag(flag));
        page.item_paragraphs(flag.text);
        if flag.supervises {
            page.prose("`--exec` refuses it.");
        }
    }
    for (name, words) in text::SECTIONS {
        page.section(name);
        page.blocks(words);
    }
    page.finish()
}

/// `-s`, `--signal` *SIGNAL*
fn tag(flag: &Flag) -> String {
    let short = flag
        .short
        .map_or_else(String::new, |letter| format!("`-{letter}`, "));
    let value = flag
        .value
        .map_or_else(String::new, |value| format!(" *{value}*"));
    format!("{short}`--{}`{value}", flag.long)
}

/// A summary as a sentence.
fn sentence(summary: &str) -> String {
    let mut letters = summary.chars();
    letters
        .next()
        .map(|first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained() {
        let explained: Vec<&str> = text::KEYS.iter().map(|(name, _)| *name).collect();
        let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(explained, keys);
    }
}
