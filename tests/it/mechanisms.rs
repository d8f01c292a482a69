//! `--mechanisms` says what then happens: each answer is compared with a run.

use std::process::{Command, Output, Stdio};

use libtest_mimic::Trial;

use crate::support::process::run_with_path;
use crate::support::{Need, Outcome, test};

pub fn tests() -> Vec<Trial> {
    const PYTHON: Need = Need::Program("python3");
    vec![
        test("mechanisms::json_is_json", &[PYTHON], json_is_json),
        test("mechanisms::plain", &[PYTHON], || matches_runs(&[])),
        test(
            "mechanisms::unprivileged",
            &[PYTHON, Need::Root, Need::Program("setpriv")],
            || {
                let nobody = [
                    "setpriv",
                    "--reuid=65534",
                    "--regid=65534",
                    "--clear-groups",
                ];
                ensure!(!says(&nobody, "options", "user")?, "user=");
                ensure!(!says(&nobody, "options", "chroot")?, "chroot=");
                matches_runs(&nobody)
            },
        ),
        test(
            "mechanisms::one_capability",
            &[PYTHON, Need::Root, Need::Program("setpriv")],
            || {
                let no_setuid = ["setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid"];
                ensure!(!says(&no_setuid, "options", "user")?, "user=");
                ensure!(says(&no_setuid, "options", "chroot")?, "chroot=");
                matches_runs(&no_setuid)
            },
        ),
        test(
            "mechanisms::parent_outside",
            &[PYTHON, Need::Root, Need::Program("unshare")],
            || {
                let inside = ["unshare", "--pid", "--fork"];
                ensure!(!says(&inside, "options", "exit-with-parent")?, "available");
                matches_runs(&inside)
            },
        ),
        test(
            "mechanisms::parent_is_init",
            &[PYTHON, Need::Root, Need::Program("unshare")],
            || {
                // The shell is pid 1, and does not exec its last command.
                let script = "\"$@\"; exit $?";
                let inside = ["unshare", "--pid", "--fork", "sh", "-c", script, "sh"];
                ensure!(!says(&inside, "options", "exit-with-parent")?, "available");
                matches_runs(&inside)
            },
        ),
        test("mechanisms::parent_is_systemd", &[PYTHON], || {
            // exec keeps the pid that the shell has written.
            let script = "SYSTEMD_EXEC_PID=$$ exec \"$@\"";
            let started = ["sh", "-c", script, "sh"];
            ensure!(!says(&started, "options", "exit-with-parent")?, "available");
            matches_runs(&started)
        }),
        test(
            "mechanisms::no_pidfd",
            &[PYTHON, Need::Program("strace")],
            || without("pidfd_open", "pidfd"),
        ),
        test(
            "mechanisms::no_pidfd_signal",
            &[PYTHON, Need::Program("strace")],
            || without("pidfd_send_signal", "pidfd-signal"),
        ),
        test(
            "mechanisms::no_close_range",
            &[PYTHON, Need::Program("strace")],
            || {
                without("close_range", "close-range")?;
                // There is another way.
                let injected = injected("close_range");
                let there = says(&words(&injected), "options", "exit-with-parent")?;
                ensure!(there, "exit-with-parent is not available");
                Ok(())
            },
        ),
        test(
            "mechanisms::no_parent_death_signal",
            &[PYTHON, Need::Program("strace")],
            || without("prctl", "parent-death-signal"),
        ),
    ]
}

/// run-with, started by `wrapper`.
fn run(wrapper: &[&str], args: &[&str]) -> Result<Output, Box<dyn std::error::Error>> {
    let program = run_with_path();
    let mut words = wrapper.iter().chain([&program]).chain(args);
    let mut command = Command::new(words.next().ok_or("no program")?);
    let output = command.args(words).stdin(Stdio::null()).output()?;
    Ok(output)
}

fn mechanisms(wrapper: &[&str], json: bool) -> Result<String, Box<dyn std::error::Error>> {
    let flags: &[&str] = if json {
        &["--mechanisms", "--json"]
    } else {
        &["--mechanisms"]
    };
    let out = run(wrapper, flags)?;
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(
        out.status.success() && stderr.is_empty(),
        "{wrapper:?}: {:?}: {stderr}",
        out.status
    );
    Ok(String::from_utf8(out.stdout)?)
}

/// Whether it is available, says the JSON as python reads it; the table must say the same.
fn says(wrapper: &[&str], part: &str, name: &str) -> Result<bool, Box<dyn std::error::Error>> {
    const QUERY: &str = "import json, sys\n\
        answer = json.loads(sys.argv[1])[sys.argv[2]][sys.argv[3]]\n\
        assert answer['note']\n\
        print(answer['available'])";
    let json = mechanisms(wrapper, true)?;
    let mut python = Command::new("python3");
    let out = python.args(["-c", QUERY, &json, part, name]).output()?;
    let available = match String::from_utf8_lossy(&out.stdout).trim() {
        "True" => true,
        "False" => false,
        _ => return Err(format!("{json}: {out:?}").into()),
    };
    let table = mechanisms(wrapper, false)?;
    let row = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix("  "))
        .ok_or("no such row")?;
    let word = row.split_whitespace().next();
    ensure!(
        word == Some(if available { "yes" } else { "no" }),
        "{name}: {available} in JSON, {row} in the table"
    );
    Ok(available)
}

fn json_is_json() -> Outcome {
    let json = mechanisms(&[], true)?;
    ensure!(json.ends_with("}\n") && json.lines().count() == 1, "{json}");
    for (part, name) in [
        ("mechanisms", "clone-pidfd"),
        ("mechanisms", "pidfd-group-signal"),
        ("options", "async-teardown"),
    ] {
        says(&[], part, name)?;
    }
    Ok(())
}

/// Each option is available exactly if run-with carries it out.
fn matches_runs(wrapper: &[&str]) -> Outcome {
    for (name, args) in [
        ("exit-with-parent", &["exit-with-parent=on", "true"][..]),
        (
            "exit-with-parent --exec",
            &["--exec", "exit-with-parent=on", "true"],
        ),
        ("chroot", &["chroot=/", "true"]),
        ("user", &["user=65533:65533", "true"]),
        ("async-teardown", &["async-teardown=on", "true"]),
        ("--tree", &["--tree", "true"]),
        (
            "--tree-by pid-namespace",
            &["--tree-by", "pid-namespace", "true"],
        ),
        (
            "--tree-by user-namespace",
            &["--tree-by", "user-namespace", "true"],
        ),
        ("--tree-by cgroup", &["--tree-by", "cgroup", "true"]),
    ] {
        let available = says(wrapper, "options", name)?;
        let out = run(wrapper, args)?;
        let code = out.status.code();
        ensure!(
            code == Some(if available { 0 } else { 125 }),
            "{wrapper:?} {args:?}: available {available}, but {:?}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(())
}

fn injected(call: &str) -> [String; 6] {
    let inject = format!("inject={call}:error=ENOSYS");
    ["strace", "-f", "-o", "/dev/null", "-e", &inject].map(str::to_owned)
}

fn words(owned: &[String]) -> Vec<&str> {
    owned.iter().map(String::as_str).collect()
}

/// With a system call that answers ENOSYS, a mechanism is not there, and without that it is.
fn without(call: &str, mechanism: &str) -> Outcome {
    let injected = injected(call);
    let wrapper = words(&injected);
    ensure!(!says(&wrapper, "mechanisms", mechanism)?, "{call}: there");
    ensure!(says(&[], "mechanisms", mechanism)?, "never there");
    matches_runs(&wrapper)
}
