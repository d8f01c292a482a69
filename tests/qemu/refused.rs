//! What does not compile, and what the compiler says of it.
//!
//! The programs are the documentation's own examples (`compile_fail` in `src/qemu/domain/mod.rs`), written out here with
//! `CAPTIVE_BLESS=1`; that they are is a test. What the compiler says is compared by trybuild, and differs from one
//! compiler to the next: it is compared with that version only which `refused/RUSTC` names.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let compared = is_the_compiler();
    // Under CI nothing is left out.
    let ignored = !compared && std::env::var("CI").as_deref() != Ok("true");
    let tests = vec![
        Trial::test("refused::programs_are_the_examples", || {
            programs_are_the_examples();
            Ok(())
        }),
        Trial::test("refused::what_the_compiler_says", move || {
            if !compared {
                return Err("this is not the compiler that refused/RUSTC names".into());
            }
            let cases = trybuild::TestCases::new();
            cases.compile_fail("tests/qemu/refused/*.rs");
            // It compares when it is dropped, and panics.
            drop(cases);
            Ok(())
        })
        .with_ignored_flag(ignored),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu/refused")
}

/// The examples that must not compile, with their names: the first words that stand before each.
fn examples() -> Vec<(String, String)> {
    let source = include_str!("../../src/qemu/domain/mod.rs");
    let lines: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    let mut examples = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        if !line.starts_with("```compile_fail") {
            continue;
        }
        let words = lines[..start].iter().rev().find(|line| !line.is_empty());
        let name: String = words
            .unwrap()
            .trim_end_matches(':')
            .to_lowercase()
            .chars()
            .map(|letter| {
                if letter.is_alphanumeric() {
                    letter
                } else {
                    '_'
                }
            })
            .collect();
        let body = lines[start + 1..].iter().take_while(|line| **line != "```");
        let mut uses = String::new();
        let mut text = String::new();
        for line in body {
            match line.strip_prefix("# ") {
                // A program's own way to the same module.
                Some(hidden) if hidden.starts_with("mod guests") => {
                    uses += "#[path = \"../guests.rs\"]\nmod guests;\n";
                }
                Some(hidden) if hidden.starts_with("use ") => writeln!(uses, "{hidden}").unwrap(),
                hidden => writeln!(text, "    {}", hidden.unwrap_or(line)).unwrap(),
            }
        }
        let program = format!("#![allow(unused)]\n{uses}\nfn main() {{\n{text}}}\n");
        examples.push((name, program));
    }
    examples
}

fn programs_are_the_examples() {
    let bless = std::env::var_os("CAPTIVE_BLESS").is_some();
    let examples = examples();
    assert_eq!(examples.len(), 10);
    for (name, program) in &examples {
        let path = folder().join(name).with_extension("rs");
        if bless {
            std::fs::write(&path, program).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(written, *program, "{} is not the example", path.display());
        let said = path.with_extension("stderr");
        assert!(bless || said.exists(), "{} is missing", said.display());
    }
    let written = std::fs::read_dir(folder()).unwrap();
    let programs = written.filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|extension| extension == "rs")
    });
    assert_eq!(programs.count(), examples.len(), "one without an example");
}

/// Whether what it says has been written down.
fn is_the_compiler() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let expected = std::fs::read_to_string(folder().join("RUSTC")).unwrap();
    version.split(' ').nth(1) == Some(expected.trim())
}
