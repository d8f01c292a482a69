//! What is committed is what the program prints, and names every flag and key.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;

use crate::support::process::run_with_path;
use crate::support::{Need, Outcome, test};

/// What `--generate` takes, and where its output is committed.
const FILES: [(&str, &str); 4] = [
    ("man", "man/run-with.1"),
    ("bash", "completions/run-with.bash"),
    ("zsh", "completions/_run-with"),
    ("fish", "completions/run-with.fish"),
];

pub fn tests() -> Vec<Trial> {
    vec![
        test("generated::is_what_is_committed", &[], committed),
        test("generated::names_every_flag_and_key", &[], complete),
        test(
            "generated::man_page_is_clean_for_mandoc",
            &[Need::Program("mandoc")],
            || lint("mandoc", &["-Tlint", "-W", "all"]),
        ),
        test(
            "generated::man_page_is_clean_for_groff",
            &[Need::Program("groff")],
            || lint("groff", &["-man", "-ww", "-z", "-Tascii"]),
        ),
        test(
            "generated::bash_completes",
            &[Need::Program("bash")],
            bash_completes,
        ),
        test(
            "generated::zsh_reads_its_file",
            &[Need::Program("zsh")],
            || reads("zsh", "completions/_run-with"),
        ),
        test(
            "generated::fish_completes",
            &[Need::Program("fish")],
            fish_completes,
        ),
    ]
}

/// What a command prints; anything on standard error, or a failure, is an error.
fn output(command: &mut Command) -> Result<String, Box<dyn std::error::Error>> {
    let out = command.stdin(Stdio::null()).output()?;
    let (stdout, stderr) = (
        String::from_utf8(out.stdout)?,
        String::from_utf8_lossy(&out.stderr).into_owned(),
    );
    ensure!(
        out.status.success() && stderr.is_empty(),
        "{command:?}: {:?}\n{stdout}\n{stderr}",
        out.status
    );
    Ok(stdout)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn committed() -> Outcome {
    for (kind, path) in FILES {
        let generated = output(Command::new(run_with_path()).args(["--generate", kind]))?;
        let there = fs::read_to_string(root().join(path))?;
        ensure!(
            there == generated,
            "{path} is stale: run-with --generate {kind} > {path}"
        );
    }
    Ok(())
}

/// The flags as `--help` lists them (`  -s, --signal SIGNAL  what ...`), and the keys (`  user=...`).
fn flags_and_keys() -> Result<(Vec<String>, Vec<String>), Box<dyn std::error::Error>> {
    let help = output(Command::new(run_with_path()).arg("--help"))?;
    let (mut flags, mut keys) = (Vec::new(), Vec::new());
    for line in help.lines().filter(|line| line.starts_with("  ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [short, long, ..] if short.ends_with(',') => {
                flags.extend([short.trim_end_matches(',').to_owned(), (*long).to_owned()]);
            }
            [long, ..] if long.starts_with("--") => flags.push((*long).to_owned()),
            [key, ..] => keys.extend(key.split_once('=').map(|(name, _)| name.to_owned())),
            [] => {}
        }
    }
    Ok((flags, keys))
}

fn complete() -> Outcome {
    let (flags, keys) = flags_and_keys()?;
    ensure!(flags.len() > 10 && keys.len() == 4, "{flags:?} {keys:?}");
    for (kind, path) in FILES {
        let text = fs::read_to_string(root().join(path))?.replace("\\-", "-");
        let words: Vec<&str> = text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
            .collect();
        for flag in &flags {
            let bare = flag.trim_start_matches('-');
            let named = match kind {
                // `-s s -l signal`
                "fish" if flag.starts_with("--") => text.contains(&format!(" -l {bare} ")),
                "fish" => text.contains(&format!(" -s {bare} ")),
                // `\fB\-s\fR`
                "man" => text.contains(&format!("\\fB{flag}\\fR")),
                _ => words.contains(&flag.as_str()),
            };
            ensure!(named, "{path} does not name {flag}");
        }
        for key in &keys {
            let written = match kind {
                "zsh" => format!("'{key}["),
                _ => format!("{key}="),
            };
            ensure!(text.contains(&written), "{path} does not name {key}=");
        }
    }
    Ok(())
}

fn lint(program: &str, args: &[&str]) -> Outcome {
    let page = root().join("man/run-with.1");
    let said = output(Command::new(program).args(args).arg(page))?;
    ensure!(said.is_empty(), "{program}: {said}");
    Ok(())
}

fn reads(shell: &str, file: &str) -> Outcome {
    output(Command::new(shell).arg("-n").arg(root().join(file))).map(drop)
}

/// Calls the function as bash would for the last of these words, `split` at `=` as bash does.
fn bash_replies(split: &[&str], line: &str) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    const SCRIPT: &str = r#"
        . "$1"; shift
        COMP_LINE=$1; COMP_POINT=${#1}; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _run_with
        for reply in "${COMPREPLY[@]}"; do printf '%s\n' "$reply"; done"#;
    let file = root().join("completions/run-with.bash");
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", SCRIPT, "bash"]).arg(file);
    let replies = output(bash.arg(line).args(split).current_dir(root()))?;
    Ok(replies.lines().map(str::to_owned).collect())
}

fn bash_completes() -> Outcome {
    for (split, line, expected) in [
        (
            &["run-with", "--sta"][..],
            "run-with --sta",
            &["--status-fd"][..],
        ),
        (
            &["run-with", "-s", "US"],
            "run-with -s US",
            &["USR1", "USR2"],
        ),
        (
            &["run-with", "--signal", "=", "US"],
            "run-with --signal=US",
            &["USR1", "USR2"],
        ),
        (
            &["run-with", "--generate", "z"],
            "run-with --generate z",
            &["zsh"],
        ),
        (
            &["run-with", "exit"],
            "run-with exit",
            &["exit-with-parent="],
        ),
        (
            &["run-with", "exit-with-parent", "="],
            "run-with exit-with-parent=",
            &["on", "off"],
        ),
        (
            &["run-with", "exit-with-parent", "=", "on,us"],
            "run-with exit-with-parent=on,us",
            &["on,user="],
        ),
        (
            &["run-with", "chroot", "=", "complet"],
            "run-with chroot=complet",
            &["completions"],
        ),
        (
            &["run-with", "--pidfile", "LICEN"],
            "run-with --pidfile LICEN",
            &["LICENSE-BSD"],
        ),
        // After the command run-with's own are not offered.
        (
            &["run-with", "user", "=", "x", "cat", "LICEN"],
            "run-with user=x cat LICEN",
            &["LICENSE-BSD"],
        ),
        (
            &["run-with", "user", "=", "x", "--", "cat", "--sta"],
            "run-with user=x -- cat --sta",
            &[],
        ),
    ] {
        let replies = bash_replies(split, line)?;
        ensure!(replies == expected, "{line}: {replies:?}");
    }
    Ok(())
}

fn fish_completes() -> Outcome {
    const SCRIPT: &str = "source completions/run-with.fish; complete -C $argv[1]";
    let home = tempfile::tempdir()?;
    for (line, expected) in [
        ("run-with --sta", "--status-fd"),
        ("run-with -s USR", "USR1 USR2"),
        ("run-with exit", "exit-with-parent="),
        (
            "run-with exit-with-parent=on,us",
            "exit-with-parent=on,user=",
        ),
        ("run-with user=x -- cat LICEN", "LICENSE-BSD"),
    ] {
        let mut fish = Command::new("fish");
        fish.args(["--private", "-c", SCRIPT, line])
            .env("HOME", home.path());
        let replies = output(fish.current_dir(root()))?;
        let words = replies.lines().map(|l| l.split('\t').next().unwrap_or(l));
        let words: Vec<&str> = words.collect();
        ensure!(words.join(" ") == expected, "{line}: {words:?}");
    }
    Ok(())
}
