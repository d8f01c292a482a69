//! What `Command` can say, each seen from inside the captive, and gone when it is not said.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use captive::exit_with_parent::Signal;
use captive::launcher::{ExitStatus, Resource, SpawnError, SpawnStep, Stdio};
use captive::run_with::Step;
use captive::{Command, RunWith};
use libtest_mimic::Trial;

use super::{children, descriptors_as_before, in_role, open_descriptors, says, shell, signal};
use crate::support::process::await_that;
use crate::support::{Fallible, Need, Outcome, output, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: &str, needs: &'static [Need], body: fn() -> Outcome| {
        trials.push(test(&format!("captives::command::{name}"), needs, body));
    };
    add("args", &[], args);
    add("arg0", &[], arg0);
    add("env", &[], env);
    add("env-clear", &[], env_clear);
    add("path-of-the-captive", &[], path_lookup);
    add("path-prefers-what-can-be-executed", &[], path_order);
    add("script-without-interpreter-line", &[], script);
    add("current-dir", &[], current_dir);
    add("stdio-null", &[], stdio_null);
    add("stdio-piped", &[], stdio_piped);
    add("stdio-inherit", &[], || {
        in_role("command", "inherits-stdio")
    });
    add("stdio-closed", &[], || in_role("command", "closed-stdio"));
    add("stdio-all-closed", &[], || in_role("command", "all-closed"));
    add("stdio-fd", &[], stdio_fd);
    add("output", &[], collects_output);
    add("status", &[], status);
    add("spawned-again", &[], again);
    add("descriptor-own-number", &[], descriptor_in_place);
    add("descriptors-swapped", &[], descriptors_swapped);
    add("descriptors-in-a-ring", &[], descriptors_in_a_ring);
    add("descriptor-0", &[], descriptor_zero);
    add("descriptor-last-counts", &[], descriptor_last);
    add("descriptor-negative", &[], descriptor_negative);
    add("descriptor-highest", &[], || {
        in_role("command", "highest-descriptor")
    });
    add("nothing-else-inherited", &[], || {
        in_role("command", "leaky")
    });
    add("setsid", &[], setsid);
    add("process-group", &[], process_group);
    add("controlling-terminal", &[], terminal);
    add("network-namespace", &[Need::Root], network_namespace);
    add("umask", &[], umask);
    add("nice", &[], nice);
    add("resource-limit", &[], resource_limit);
    add("signal-mask", &[], signal_mask);
    add("ignore-signal", &[], ignore_signal);
    add("sigpipe", &[], sigpipe);
    add("launcher's-signals", &[], || in_role("command", "signals"));
    add("parent-death-signal", &[], parent_death_signal);
    add("user", &[Need::Root], user);
    add("user-options", &[Need::Root], user_options);
    add(
        "chroot",
        &[Need::Root, Need::Program("busybox")],
        chroot_alone,
    );
    add(
        "chroot-and-user",
        &[Need::Root, Need::Program("busybox")],
        chroot_and_user,
    );
    add("user-extremes", &[Need::Root], user_extremes);
    add("spawn-timeout-extremes", &[], spawn_timeout_extremes);
    add("error-too-big", &[], too_big);
    add("error-not-found", &[], not_found);
    add("error-not-executable", &[], not_executable);
    add("error-current-dir", &[], no_current_dir);
    add("error-nul", &[], nul_bytes);
    add("error-env-key", &[], env_keys);
    add("error-run-with", &[], refused_options);
    add("error-unknown-user", &[], unknown_user);
    add("error-in-the-stage", &[Need::Root], errors_of_the_stage);
    add("error-unprivileged", &[Need::Root], || {
        in_role("command", "unprivileged")
    });
    add("error-leaves-nothing", &[], || {
        in_role("command", "leaves-nothing")
    });
    trials
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    let outcome = match args.first().and_then(|arg| arg.to_str()) {
        Some("report") => {
            report();
            Ok(())
        }
        Some("inherits-stdio") => inherits_stdio(),
        Some("closed-stdio") => closed_stdio(),
        Some("all-closed") => all_closed(),
        Some("highest-descriptor") => highest_descriptor(),
        Some("leaky") => leaky(),
        Some("signals") => signals(),
        Some("unprivileged") => unprivileged(),
        Some("leaves-nothing") => leaves_nothing(),
        _ => return 2,
    };
    super::verdict(outcome)
}

/// What a captive knows of itself, a fact a line.
fn report() {
    let call = |which| unsafe { libc::prctl(which, 0, 0, 0, 0) };
    let mut signal = 0;
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
    println!("pdeathsig {signal}");
    println!("dumpable {}", call(libc::PR_GET_DUMPABLE));
    println!("pid {}", std::process::id());
    println!("sid {}", unsafe { libc::getsid(0) });
    println!("pgid {}", unsafe { libc::getpgid(0) });
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let tty = stat.rsplit(") ").next().and_then(|s| s.split(' ').nth(4));
    println!("tty {}", tty.unwrap_or_default());
    for fd in 0..1024 {
        if let Ok(path) = fs::read_link(format!("/proc/self/fd/{fd}")) {
            println!("fd {fd} {}", path.display());
        }
    }
}

/// This binary as a captive that reports; by a descriptor, so that any user may execute it.
fn reporter() -> Fallible<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--role", "captives", "command", "report"]);
    Ok(command)
}

/// The only line of it.
fn says_line(command: &mut Command) -> Fallible<String> {
    Ok(says(command)?.trim_end().to_owned())
}

/// One fact of a report, or a field of /proc/PID/status.
fn fact(report: &str, name: &str) -> Fallible<String> {
    report
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix([' ', ':']))
        .map(|value| value.trim().to_owned())
        .ok_or_else(|| format!("no {name} in {report}").into())
}

/// The descriptors of a report, but the standard ones.
fn descriptors(report: &str) -> Vec<(i32, String)> {
    report
        .lines()
        .filter_map(|line| line.strip_prefix("fd ")?.split_once(' '))
        .filter_map(|(fd, path)| Some((fd.parse().ok()?, path.to_owned())))
        .filter(|(fd, _)| *fd > 2)
        .collect()
}

fn status_of_itself() -> Command {
    let mut command = Command::new("cat");
    command.arg("/proc/self/status");
    command
}

/// A program file, written by a process of its own: one that is open for writing in this process may
/// be inherited for a moment by a child of another test, and then cannot be executed.
fn install(path: &Path, text: &str, mode: &str) -> Outcome {
    let done = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            "printf '%s' \"$2\" >\"$1\" && chmod \"$3\" \"$1\"",
            "sh",
        ])
        .arg(path)
        .args([text, mode])
        .status()?;
    ensure!(done.success(), "{done:?}");
    Ok(())
}

/// The error of a launch that must fail.
fn refused(command: &mut Command) -> Fallible<SpawnError> {
    match command.spawn() {
        Ok(captive) => Err(format!("{command:?} was launched: {captive:?}").into()),
        Err(error) => Ok(error),
    }
}

/// A launch fails at this step for this reason.
fn fails_at(command: &mut Command, step: &SpawnStep, errno: i32) -> Outcome {
    let error = refused(command)?;
    ensure!(
        error.step() == Some(step),
        "{error}: {error:?}, not {step:?}"
    );
    let SpawnError::Step { errno: found, .. } = &error else {
        return Err(format!("{error:?}").into());
    };
    ensure!(found.raw_os_error() == Some(errno), "{error:?}");
    let source = std::error::Error::source(&error).map(ToString::to_string);
    ensure!(source == Some(found.to_string()), "{source:?}");
    ensure!(error.to_string().contains(&step.to_string()), "{error}");
    Ok(())
}

fn invalid(command: &mut Command, what: &str) -> Outcome {
    let error = refused(command)?;
    ensure!(
        matches!(&error, SpawnError::Invalid { what: found, .. } if found.contains(what)),
        "{error:?}"
    );
    ensure!(error.step().is_none(), "{error:?}");
    Ok(())
}

fn args() -> Outcome {
    let mut command = Command::new("printf");
    command.arg("%s|").args(["a b", "", "ü"]).arg("last");
    let said = says(&mut command)?;
    ensure!(said == "a b||ü|last|", "{said:?}");
    let said = says(&mut Command::new("echo"))?;
    ensure!(said == "\n", "{said:?}");
    Ok(())
}

fn arg0() -> Outcome {
    let cmdline = "/proc/self/cmdline";
    let named = says(Command::new("cat").arg0("named").arg(cmdline))?;
    ensure!(named == "named\0/proc/self/cmdline\0", "{named:?}");
    let unnamed = says(Command::new("cat").arg(cmdline))?;
    ensure!(unnamed == "cat\0/proc/self/cmdline\0", "{unnamed:?}");
    Ok(())
}

fn env() -> Outcome {
    let path = std::env::var("PATH")?;
    let set = |text: &str, line: &str| text.lines().any(|found| found == line);
    let own = says(&mut Command::new("/usr/bin/env"))?;
    ensure!(set(&own, &format!("PATH={path}")), "{own}");
    ensure!(!own.contains("CAPTIVE_TEST_A="), "{own}");
    let changed = says(
        Command::new("/usr/bin/env")
            .env("CAPTIVE_TEST_A", "1")
            .envs([("CAPTIVE_TEST_B", "x=y"), ("CAPTIVE_TEST_C", "")])
            .env("CAPTIVE_TEST_A", "2")
            .env("CAPTIVE_TEST_D", "gone")
            .env_remove("CAPTIVE_TEST_D")
            .env_remove("PATH"),
    )?;
    for line in ["CAPTIVE_TEST_A=2", "CAPTIVE_TEST_B=x=y", "CAPTIVE_TEST_C="] {
        ensure!(set(&changed, line), "no {line} in {changed}");
    }
    ensure!(!changed.contains("CAPTIVE_TEST_A=1"), "{changed}");
    ensure!(!changed.contains("CAPTIVE_TEST_D"), "{changed}");
    ensure!(
        !changed.lines().any(|l| l.starts_with("PATH=")),
        "{changed}"
    );
    Ok(())
}

fn env_clear() -> Outcome {
    let cleared = says(
        Command::new("/usr/bin/env")
            .env("BEFORE", "1")
            .env_clear()
            .env("AFTER", "1"),
    )?;
    ensure!(cleared == "AFTER=1\n", "{cleared:?}");
    Ok(())
}

fn path_lookup() -> Outcome {
    let dir = tempfile::tempdir()?;
    install(
        &dir.path().join("captive-test-program"),
        "#!/bin/sh\necho found\n",
        "755",
    )?;
    let said = says(Command::new("captive-test-program").env("PATH", dir.path()))?;
    ensure!(said == "found\n", "{said:?}");
    let mut without = Command::new("captive-test-program");
    fails_at(&mut without, &SpawnStep::Exec, libc::ENOENT)?;
    // Here the captive's PATH is the only one that counts: the launcher's would find it.
    let mut other = Command::new("true");
    fails_at(
        other.env("PATH", dir.path()),
        &SpawnStep::Exec,
        libc::ENOENT,
    )
}

fn path_order() -> Outcome {
    let (first, second) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let name = "captive-test-program";
    install(&first.path().join(name), "#!/bin/sh\necho first\n", "644")?;
    install(&second.path().join(name), "#!/bin/sh\necho second\n", "755")?;
    let both = std::env::join_paths([first.path(), second.path()])?;
    let said = says(Command::new(name).env("PATH", both))?;
    ensure!(said == "second\n", "{said:?}");
    let empty = tempfile::tempdir()?;
    let without = std::env::join_paths([first.path(), empty.path()])?;
    fails_at(
        Command::new(name).env("PATH", without),
        &SpawnStep::Exec,
        libc::EACCES,
    )
}

fn script() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("bare");
    install(&path, "echo \"$0 $1 $2\"\n", "755")?;
    let said = says_line(Command::new(&path).args(["a", "b c"]))?;
    ensure!(said == format!("{} a b c", path.display()), "{said:?}");
    let said = says_line(
        Command::new("bare")
            .env("PATH", dir.path())
            .arg0("ignored")
            .args(["a", "b"]),
    )?;
    ensure!(said == format!("{} a b", path.display()), "{said:?}");
    Ok(())
}

fn current_dir() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new("readlink");
    command.arg("/proc/self/cwd");
    let own = says_line(&mut command)?;
    ensure!(Path::new(&own) == std::env::current_dir()?, "{own}");
    let there = says_line(command.current_dir(dir.path()))?;
    ensure!(Path::new(&there) == dir.path().canonicalize()?, "{there}");
    Ok(())
}

fn stdio_null() -> Outcome {
    let mut command = shell("readlink /proc/$$/fd/0 /proc/$$/fd/2");
    let said = says(command.stdin(Stdio::null()).stderr(Stdio::Null))?;
    ensure!(said == "/dev/null\n/dev/null\n", "{said:?}");
    let mut command = shell("name=$(readlink /proc/$$/fd/1); echo \"$name\" >&2");
    let done = command.stdout(Stdio::null()).output()?;
    ensure!(
        done.stderr == b"/dev/null\n" && done.stdout.is_empty(),
        "{done:?}"
    );
    // Without: a pipe for `output`, except for the input.
    let mut command = shell("readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2");
    let said = says(&mut command)?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        matches!(lines[..], ["/dev/null", a, b] if a.starts_with("pipe:") && b.starts_with("pipe:") && a != b),
        "{said:?}"
    );
    Ok(())
}

fn stdio_piped() -> Outcome {
    let mut captive = shell("cat; echo errors >&2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::Piped)
        .spawn()?;
    let mut stdin = captive.stdin.take().ok_or("no stdin")?;
    stdin.write_all(b"through")?;
    drop(stdin);
    let done = captive.wait_with_output()?;
    ensure!(done.stdout == b"through", "{done:?}");
    ensure!(done.stderr == b"errors\n", "{done:?}");
    let captive = Command::new("true").spawn()?;
    ensure!(
        captive.stdin.is_none() && captive.stdout.is_none() && captive.stderr.is_none(),
        "{captive:?}"
    );
    Ok(())
}

/// Standard descriptors that are files: what the captive has is what the launcher has.
fn inherits_stdio() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("out");
    let file = File::create(&path)?;
    for fd in 0..3 {
        ensure!(unsafe { libc::dup2(file.as_raw_fd(), fd) } == fd, "dup2");
    }
    let name = path.display().to_string();
    let report = shell("readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2").status()?;
    ensure!(report.success(), "{report:?}");
    let said = fs::read_to_string(&path)?;
    ensure!(said == format!("{name}\n{name}\n{name}\n"), "{said:?}");
    let mut command = shell("readlink /proc/$$/fd/0");
    let report = command.stdin(Stdio::inherit()).status()?;
    ensure!(report.success(), "{report:?}");
    Ok(())
}

/// A standard descriptor that is closed in the launcher is closed in the captive.
fn closed_stdio() -> Outcome {
    let mut command = shell("test ! -e /proc/$$/fd/0");
    let before = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(before.status().code() == Some(1), "{before:?}");
    ensure!(unsafe { libc::close(0) } == 0, "close");
    // Nothing of the crate's may land on the number.
    for _ in 0..3 {
        let after = command.status()?;
        ensure!(after.success(), "{after:?}");
    }
    Ok(())
}

/// A launcher that never had standard descriptors: whatever the crate opens gets their numbers.
fn all_closed() -> Outcome {
    let errors = unsafe { libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 100) };
    ensure!(errors >= 100, "dup");
    for fd in 0..3 {
        ensure!(unsafe { libc::close(fd) } == 0, "close");
    }
    let outcome = without_standard_descriptors();
    // To say it.
    unsafe { libc::dup2(errors, 2) };
    outcome
}

fn without_standard_descriptors() -> Outcome {
    let mut commands = vec![Command::new("/bin/sh")];
    if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("/bin/sh");
        command.run_with(options("user=65534:65534")?);
        commands.push(command);
    }
    for mut command in commands {
        // The shell's own output is the file that it opens itself.
        command.args([
            "-c",
            "for n in 0 1 2; do if test -e /proc/$$/fd/$n; then exit 1$n; fi; done",
        ]);
        for _ in 0..3 {
            let report = command.status()?;
            ensure!(report.success(), "{report:?}: it has descriptors");
        }
    }
    let done = shell("echo out; echo err >&2; cat").output()?;
    ensure!(
        done.stdout == b"out\n" && done.stderr == b"err\n",
        "{done:?}"
    );
    let (_dir, mut open, _names) = files(2)?;
    let (second, first) = (open.pop().ok_or("")?, open.pop().ok_or("")?);
    let (a, b) = (first.as_raw_fd(), second.as_raw_fd());
    let mut command = shell("test -e /proc/$$/fd/$0 && test -e /proc/$$/fd/$1");
    command
        .args([a.to_string(), b.to_string()])
        .descriptor(first, b)
        .descriptor(second, a);
    let report = command.status()?;
    ensure!(report.success(), "{report:?}: {a} and {b} swapped");
    Ok(())
}

fn stdio_fd() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    fs::write(&input, "from a file")?;
    let mut command = shell("cat; echo errors >&2");
    command
        .stdin(File::open(&input)?)
        .stdout(File::create(&out)?)
        .stderr(OwnedFd::from(File::options().append(true).open(&out)?));
    let report = command.status()?;
    ensure!(report.success(), "{report:?}");
    let said = fs::read_to_string(&out)?;
    ensure!(said == "from a fileerrors\n", "{said:?}");
    Ok(())
}

fn collects_output() -> Outcome {
    // More than a pipe holds on both, so that reading one after the other would hang.
    let mut command = shell("head -c 200000 /dev/zero; head -c 200000 /dev/zero >&2; exit 3");
    let done = command.output()?;
    ensure!(done.status.code() == Some(3), "{:?}", done.status);
    ensure!(
        (done.stdout.len(), done.stderr.len()) == (200_000, 200_000),
        "{} {}",
        done.stdout.len(),
        done.stderr.len()
    );
    let killed = shell("kill -KILL $$").output()?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&killed.status);
    ensure!(signal == Some(libc::SIGKILL), "{killed:?}");
    let error = Command::new("/nonexistent").output().err().ok_or("found")?;
    let source = error.get_ref().and_then(|e| e.downcast_ref::<SpawnError>());
    ensure!(source.is_some(), "{error:?}");
    Ok(())
}

fn status() -> Outcome {
    for code in [0, 1, 77, 255] {
        let report = shell(&format!("exit {code}")).status()?;
        ensure!(report.status() == ExitStatus::Exited(code), "{report:?}");
        ensure!(report.success() == (code == 0), "{report:?}");
    }
    let error = Command::new("/nonexistent").status().err().ok_or("found")?;
    ensure!(
        error.get_ref().is_some_and(|e| e.is::<SpawnError>()),
        "{error:?}"
    );
    Ok(())
}

fn again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = File::create(dir.path().join("log"))?;
    let mut command = shell("echo line");
    command.stdout(file);
    for _ in 0..3 {
        ensure!(command.status()?.success(), "{command:?}");
    }
    command.args(["ignored"]).env("A", "1");
    ensure!(command.status()?.success(), "{command:?}");
    let said = fs::read_to_string(dir.path().join("log"))?;
    ensure!(said == "line\n".repeat(4), "{said:?}");
    Ok(())
}

/// Files with different names, and what their descriptors are called.
fn files(count: usize) -> Fallible<(tempfile::TempDir, Vec<OwnedFd>, Vec<String>)> {
    let dir = tempfile::tempdir()?;
    let mut open = Vec::new();
    let mut names = Vec::new();
    for number in 0..count {
        let path: PathBuf = dir.path().canonicalize()?.join(format!("file{number}"));
        open.push(File::create(&path)?.into());
        names.push(path.display().to_string());
    }
    Ok((dir, open, names))
}

/// What a captive has above 2 is exactly this.
fn has_exactly(command: &mut Command, mut expected: Vec<(i32, String)>) -> Outcome {
    expected.sort();
    let report = says(command)?;
    let found = descriptors(&report);
    ensure!(found == expected, "{found:?}, not {expected:?}");
    Ok(())
}

fn descriptor_in_place() -> Outcome {
    let (_dir, mut open, names) = files(2)?;
    let (second, first) = (open.pop().ok_or("")?, open.pop().ok_or("")?);
    let own = first.as_raw_fd();
    let mut command = reporter()?;
    command.descriptor(first, own).descriptor(second, 900);
    let expected = vec![(own, names[0].clone()), (900, names[1].clone())];
    has_exactly(&mut command, expected.clone())?;
    has_exactly(&mut command, expected)?;
    has_exactly(&mut reporter()?, Vec::new())
}

fn descriptors_swapped() -> Outcome {
    let (_dir, mut open, names) = files(2)?;
    let (second, first) = (open.pop().ok_or("")?, open.pop().ok_or("")?);
    let (a, b) = (first.as_raw_fd(), second.as_raw_fd());
    let mut command = reporter()?;
    command.descriptor(first, b).descriptor(second, a);
    has_exactly(
        &mut command,
        vec![(b, names[0].clone()), (a, names[1].clone())],
    )
}

/// Each number is the next one's source, and each is far above the others' sources or just below.
fn descriptors_in_a_ring() -> Outcome {
    let (_dir, open, names) = files(6)?;
    let numbers: Vec<i32> = open.iter().map(AsRawFd::as_raw_fd).collect();
    let mut expected = Vec::new();
    let mut command = reporter()?;
    for (at, fd) in open.into_iter().enumerate() {
        let number = numbers[(at + 1) % numbers.len()];
        command.descriptor(fd, number);
        expected.push((number, names[at].clone()));
    }
    has_exactly(&mut command, expected)
}

fn descriptor_zero() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("in");
    fs::write(&path, "zero")?;
    let mut command = Command::new("cat");
    let said = says(
        command
            .stdin(Stdio::null())
            .descriptor(File::open(&path)?, 0),
    )?;
    ensure!(said == "zero", "{said:?}");
    Ok(())
}

fn descriptor_last() -> Outcome {
    let (_dir, mut open, names) = files(2)?;
    let (second, first) = (open.pop().ok_or("")?, open.pop().ok_or("")?);
    let mut command = reporter()?;
    command.descriptor(first, 300).descriptor(second, 300);
    has_exactly(&mut command, vec![(300, names[1].clone())])
}

fn descriptor_negative() -> Outcome {
    let mut command = Command::new("true");
    invalid(command.descriptor(File::open("/dev/null")?, -1), "-1")?;
    let mut command = Command::new("true");
    let error = refused(command.descriptor(File::open("/dev/null")?, i32::MAX - 10))?;
    ensure!(
        matches!(error.step(), Some(SpawnStep::Descriptor(_))),
        "{error:?}"
    );
    Ok(())
}

/// Any number below the limit will do, whatever the crate needs on the way.
fn highest_descriptor() -> Outcome {
    const LIMIT: i32 = 256;
    let limit = libc::rlimit {
        rlim_cur: LIMIT as u64,
        rlim_max: LIMIT as u64,
    };
    ensure!(
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0,
        "setrlimit"
    );
    let zero = || File::open("/dev/zero");
    let number = LIMIT - 10;
    let expected = |number| vec![(number, "/dev/zero".to_owned())];
    has_exactly(reporter()?.descriptor(zero()?, number), expected(number))?;
    fails_at(
        Command::new("true").descriptor(zero()?, LIMIT),
        &SpawnStep::Descriptor(LIMIT),
        libc::EBADF,
    )
    .or_else(|_| {
        fails_at(
            Command::new("true").descriptor(zero()?, LIMIT),
            &SpawnStep::Descriptor(LIMIT),
            libc::EINVAL,
        )
    })?;
    let number = LIMIT - 1;
    has_exactly(reporter()?.descriptor(zero()?, number), expected(number))
}

/// A launcher with a descriptor that std's children inherit.
fn leaky() -> Outcome {
    let file = File::open("/dev/zero")?;
    for number in [50, 1000] {
        ensure!(
            unsafe { libc::dup2(file.as_raw_fd(), number) } == number,
            "dup2"
        );
    }
    let done = output(
        std::process::Command::new(std::env::current_exe()?)
            .args(["--role", "captives", "command", "report"]),
    )?;
    let inherited = descriptors(&String::from_utf8(done.stdout)?);
    ensure!(
        inherited.contains(&(50, "/dev/zero".into())),
        "{inherited:?}"
    );
    has_exactly(&mut reporter()?, Vec::new())?;
    let mut command = reporter()?;
    command.descriptor(file, 999);
    has_exactly(&mut command, vec![(999, "/dev/zero".into())])?;
    // Nor through the stage, if there may be one.
    if nix::unistd::geteuid().is_root() {
        let mut command = as_nobody()?;
        let report = says(&mut command)?;
        let found: Vec<i32> = descriptors(&report).into_iter().map(|(fd, _)| fd).collect();
        ensure!(found == [500], "{report}");
    }
    Ok(())
}

fn setsid() -> Outcome {
    let without = says(&mut reporter()?)?;
    let own = unsafe { libc::getsid(0) }.to_string();
    ensure!(fact(&without, "sid")? == own, "{without}");
    let off = says(reporter()?.setsid(true).setsid(false))?;
    ensure!(fact(&off, "sid")? == own, "{off}");
    let report = says(reporter()?.setsid(true))?;
    let pid = fact(&report, "pid")?;
    ensure!(fact(&report, "sid")? == pid, "{report}");
    ensure!(fact(&report, "pgid")? == pid, "{report}");
    ensure!(fact(&report, "tty")? == "0", "{report}");
    Ok(())
}

fn process_group() -> Outcome {
    let without = says(&mut reporter()?)?;
    let own = unsafe { libc::getpgid(0) }.to_string();
    ensure!(fact(&without, "pgid")? == own, "{without}");
    let report = says(reporter()?.process_group(0))?;
    ensure!(fact(&report, "pgid")? == fact(&report, "pid")?, "{report}");
    let leader = Command::new("sleep").arg("1000").process_group(0).spawn()?;
    let group = leader.id() as i32;
    let report = says(reporter()?.process_group(group))?;
    ensure!(fact(&report, "pgid")? == group.to_string(), "{report}");
    // init's group is in another session.
    fails_at(
        Command::new("true").process_group(1),
        &SpawnStep::ProcessGroup(1),
        libc::EPERM,
    )
}

fn terminal() -> Outcome {
    let pair = nix::pty::openpty(None, None)?;
    let report = says(reporter()?.controlling_terminal(pair.slave.try_clone()?))?;
    let number: u64 = fact(&report, "tty")?.parse()?;
    let device = File::from(pair.slave).metadata()?.rdev();
    ensure!(number == device, "{number:#x} {device:#x}");
    ensure!(fact(&report, "sid")? == fact(&report, "pid")?, "{report}");
    let without = says(reporter()?.setsid(true))?;
    ensure!(fact(&without, "tty")? == "0", "{without}");
    let null = File::open("/dev/null")?;
    fails_at(
        Command::new("true").controlling_terminal(null),
        &SpawnStep::ControllingTerminal,
        libc::ENOTTY,
    )
}

fn network_namespace() -> Outcome {
    let namespace = std::thread::spawn(|| {
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let name = fs::read_link("/proc/thread-self/ns/net")?;
        Ok((File::open("/proc/thread-self/ns/net")?, name))
    });
    let (namespace, name) = namespace.join().map_err(|_| "the thread")??;
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net");
    let own = says_line(&mut command)?;
    ensure!(
        Path::new(&own) == fs::read_link("/proc/self/ns/net")?,
        "{own}"
    );
    let there = says_line(command.network_namespace(namespace))?;
    ensure!(Path::new(&there) == name && there != own, "{there} {own}");
    fails_at(
        Command::new("true").network_namespace(File::open("/dev/null")?),
        &SpawnStep::NetworkNamespace,
        libc::EINVAL,
    )
}

fn umask() -> Outcome {
    let mut command = status_of_itself();
    let own = fact(&says(&mut command)?, "Umask")?;
    let ours = fact(&fs::read_to_string("/proc/self/status")?, "Umask")?;
    ensure!(own == ours, "{own} {ours}");
    let given = fact(&says(command.umask(0o137))?, "Umask")?;
    ensure!(given == "0137", "{given}");
    // The launcher's is as before.
    let after = fact(&fs::read_to_string("/proc/self/status")?, "Umask")?;
    ensure!(after == ours, "{after} {ours}");
    Ok(())
}

fn nice() -> Outcome {
    let own: i32 = says_line(&mut Command::new("nice"))?.parse()?;
    let mut command = Command::new("nice");
    let given: i32 = says_line(command.nice(own.max(0) + 5))?.parse()?;
    ensure!(given == own.max(0) + 5, "{given}, was {own}");
    let after: i32 = says_line(&mut Command::new("nice"))?.parse()?;
    ensure!(after == own, "{after}, was {own}");
    Ok(())
}

fn resource_limit() -> Outcome {
    let mut command = shell("ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc");
    let own = says(&mut command)?;
    command
        .resource_limit(Resource::NOFILE, 77, 99)
        .resource_limit(Resource::CORE, 0, 0);
    let given = says(&mut command)?;
    ensure!(given == "77\n99\n0\n0\n" && given != own, "{given} {own}");
    // The last of several counts.
    let given = says(command.resource_limit(Resource::NOFILE, 66, 88))?;
    ensure!(given == "66\n88\n0\n0\n", "{given}");
    // One that is too small for the program is no obstacle on the way to it.
    let mut command = status_of_itself();
    let report = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .resource_limit(Resource::NOFILE, 0, 0)
        .status()?;
    ensure!(report.status().code().is_some(), "{report:?}");
    fails_at(
        Command::new("true").resource_limit(Resource::NPROC, 2, 1),
        &SpawnStep::ResourceLimit(Resource::NPROC),
        libc::EINVAL,
    )
}

/// Whether a signal is in one of the sets of /proc/PID/status.
fn in_set(report: &str, set: &str, number: i32) -> Fallible<bool> {
    let set = u64::from_str_radix(&fact(report, set)?, 16)?;
    Ok(set >> (number - 1) & 1 == 1)
}

fn signal_mask() -> Outcome {
    let mut command = status_of_itself();
    let without = fact(&says(&mut command)?, "SigBlk")?;
    ensure!(u64::from_str_radix(&without, 16)? == 0, "{without}");
    let real_time = libc::SIGRTMIN() + 3;
    command.signal_mask([Signal::TERM, signal(libc::SIGUSR1), signal(real_time)]);
    let report = says(&mut command)?;
    let expected = [libc::SIGTERM, libc::SIGUSR1, real_time]
        .iter()
        .fold(0_u64, |set, number| set | 1 << (number - 1));
    let set = u64::from_str_radix(&fact(&report, "SigBlk")?, 16)?;
    ensure!(set == expected, "{set:x} {expected:x}");
    Ok(())
}

fn ignore_signal() -> Outcome {
    let mut command = status_of_itself();
    let without = says(&mut command)?;
    ensure!(!in_set(&without, "SigIgn", libc::SIGUSR1)?, "{without}");
    let with = says(command.ignore_signal(signal(libc::SIGUSR1)))?;
    ensure!(in_set(&with, "SigIgn", libc::SIGUSR1)?, "{with}");
    let last = says(command.default_signal(signal(libc::SIGUSR1)))?;
    ensure!(!in_set(&last, "SigIgn", libc::SIGUSR1)?, "{last}");
    Ok(())
}

fn sigpipe() -> Outcome {
    let own = fs::read_to_string("/proc/self/status")?;
    ensure!(in_set(&own, "SigIgn", libc::SIGPIPE)?, "{own}");
    let mut command = status_of_itself();
    let without = says(&mut command)?;
    ensure!(!in_set(&without, "SigIgn", libc::SIGPIPE)?, "{without}");
    let with = says(command.ignore_signal(signal(libc::SIGPIPE)))?;
    ensure!(in_set(&with, "SigIgn", libc::SIGPIPE)?, "{with}");
    Ok(())
}

extern "C" fn handler(_: i32) {}

/// A launcher that ignores, handles and blocks signals.
fn signals() -> Outcome {
    let (ignored, handled, blocked) = (libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM);
    let call = handler as extern "C" fn(i32) as libc::sighandler_t;
    unsafe {
        libc::signal(ignored, libc::SIG_IGN);
        libc::signal(handled, call);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, blocked);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
    // The C library's first thread brings a handler of its own.
    says(&mut Command::new("true"))?;
    let own = fs::read_to_string("/proc/thread-self/status")?;
    ensure!(in_set(&own, "SigCgt", handled)?, "{own}");
    ensure!(in_set(&own, "SigBlk", blocked)?, "{own}");
    let mut commands = vec![status_of_itself()];
    if nix::unistd::geteuid().is_root() {
        let mut command = status_of_itself();
        command.run_with(options("user=65534:65534")?);
        commands.push(command);
    }
    for mut command in commands {
        let report = says(&mut command)?;
        ensure!(in_set(&report, "SigIgn", ignored)?, "{report}");
        for set in ["SigCgt", "SigBlk"] {
            let set = fact(&report, set)?;
            ensure!(u64::from_str_radix(&set, 16)? == 0, "{report}");
        }
        command.default_signal(signal(ignored));
        let report = says(&mut command)?;
        ensure!(!in_set(&report, "SigIgn", ignored)?, "{report}");
    }
    // The launcher is as it was.
    let after = fs::read_to_string("/proc/thread-self/status")?;
    for set in ["SigCgt", "SigBlk", "SigIgn"] {
        ensure!(fact(&after, set)? == fact(&own, set)?, "{set}");
    }
    Ok(())
}

fn parent_death_signal() -> Outcome {
    let report = says(&mut reporter()?)?;
    ensure!(fact(&report, "pdeathsig")? == "9", "{report}");
    let report = says(reporter()?.order(1))?;
    ensure!(fact(&report, "pdeathsig")? == "0", "{report}");
    let report = says(reporter()?.detachable(true))?;
    ensure!(fact(&report, "pdeathsig")? == "0", "{report}");
    Ok(())
}

fn options(text: &str) -> Fallible<RunWith> {
    Ok(RunWith::parse(text.as_ref())?)
}

/// The reporter as another user, who need not be able to read the directory it is in.
fn as_nobody() -> Fallible<Command> {
    let mut command = Command::new("/proc/self/fd/500");
    command
        .args(["--role", "captives", "command", "report"])
        .descriptor(File::open(std::env::current_exe()?)?, 500)
        .run_with(options("user=65534:65534")?);
    Ok(command)
}

fn user() -> Outcome {
    let mut command = status_of_itself();
    let without = says(&mut command)?;
    ensure!(fact(&without, "Uid")? == "0\t0\t0\t0", "{without}");
    let with = says(command.run_with(options("user=65534:65534")?))?;
    for field in ["Uid", "Gid"] {
        let ids = fact(&with, field)?;
        ensure!(ids == "65534\t65534\t65534\t65534", "{with}");
    }
    ensure!(
        ["", "65534"].contains(&fact(&with, "Groups")?.as_str()),
        "{with}"
    );
    for field in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(fact(&with, field)? == "0000000000000000", "{with}");
    }
    // The change of user has cleared it: it is set again.
    let report = says(&mut as_nobody()?)?;
    ensure!(fact(&report, "pdeathsig")? == "9", "{report}");
    ensure!(fact(&report, "fd 500")?.contains("it-"), "{report}");
    let report = says(as_nobody()?.order(1))?;
    ensure!(fact(&report, "pdeathsig")? == "0", "{report}");
    Ok(())
}

/// The other options work the same through the stage.
fn user_options() -> Outcome {
    let dir = tempfile::tempdir()?;
    // Its user may not enter it: the directory is the launcher's to open.
    let (_files, mut open, names) = files(2)?;
    let (second, first) = (open.pop().ok_or("")?, open.pop().ok_or("")?);
    let (a, b) = (first.as_raw_fd(), second.as_raw_fd());
    let mut command = as_nobody()?;
    command
        .descriptor(first, b)
        .descriptor(second, a)
        .current_dir(dir.path())
        .setsid(true)
        .stdin(Stdio::null());
    let report = says(&mut command)?;
    let mut found = descriptors(&report);
    found.retain(|(fd, _)| *fd != 500);
    let mut expected = vec![(b, names[0].clone()), (a, names[1].clone())];
    expected.sort();
    ensure!(found == expected, "{found:?}, not {expected:?}");
    ensure!(fact(&report, "sid")? == fact(&report, "pid")?, "{report}");

    let mut command =
        shell("printf '%s\n' \"$0\" \"$@\"; ulimit -Sn; umask; readlink /proc/$$/cwd; nice");
    command
        .args(["zero", "", "two words"])
        .current_dir(dir.path())
        .umask(0o071)
        .nice(7)
        .resource_limit(Resource::NOFILE, 44, 44)
        .signal_mask([signal(libc::SIGUSR1)])
        .run_with(options("user=65534:65534")?);
    let said = says(&mut command)?;
    let cwd = dir.path().canonicalize()?;
    let expected = format!("zero\n\ntwo words\n44\n0071\n{}\n7\n", cwd.display());
    ensure!(said == expected, "{said:?}, not {expected:?}");

    let mut command = status_of_itself();
    command
        .signal_mask([signal(libc::SIGUSR1)])
        .ignore_signal(signal(libc::SIGUSR2))
        .run_with(options("user=65534:65534")?);
    let report = says(&mut command)?;
    ensure!(in_set(&report, "SigBlk", libc::SIGUSR1)?, "{report}");
    ensure!(in_set(&report, "SigIgn", libc::SIGUSR2)?, "{report}");
    ensure!(!in_set(&report, "SigIgn", libc::SIGPIPE)?, "{report}");

    // A script without an interpreter line, and an environment.
    let public = tempfile::Builder::new().permissions(public()).tempdir()?;
    install(&public.path().join("bare"), "echo \"$1 $A\"\n", "755")?;
    let mut command = Command::new("bare");
    command
        .arg("one")
        .env_clear()
        .env("PATH", public.path())
        .env("A", "variable")
        .run_with(options("user=65534:65534")?);
    let said = says(&mut command)?;
    ensure!(said == "one variable\n", "{said:?}");
    Ok(())
}

fn public() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

/// A root with one static program, which is all that can be executed in there.
fn root() -> Fallible<tempfile::TempDir> {
    let root = tempfile::Builder::new().permissions(public()).tempdir()?;
    fs::create_dir(root.path().join("bin"))?;
    fs::create_dir(root.path().join("inside"))?;
    let busybox = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("busybox"))
        .find(|path| path.is_file())
        .ok_or("no busybox")?;
    // As for `install`: not open for writing here.
    let done = std::process::Command::new("cp")
        .arg(busybox)
        .arg(root.path().join("bin/busybox"))
        .status()?;
    ensure!(done.success(), "{done:?}");
    Ok(root)
}

fn chroot_alone() -> Outcome {
    let root = root()?;
    let option = RunWith::new().chroot(root.path());
    let mut command = Command::new("/bin/busybox");
    command.args(["ls", "/"]).run_with(option.clone());
    let said = says(&mut command)?;
    ensure!(said == "bin\ninside\n", "{said:?}");
    let said = says(
        Command::new("/bin/busybox")
            .arg("pwd")
            .run_with(option.clone()),
    )?;
    ensure!(said == "/\n", "{said:?}");
    let mut command = Command::new("/bin/busybox");
    command
        .arg("pwd")
        .current_dir("/inside")
        .run_with(option.clone());
    let said = says(&mut command)?;
    ensure!(said == "/inside\n", "{said:?}");
    // What is outside only is not there.
    let outside = tempfile::tempdir()?;
    let mut command = Command::new("/bin/busybox");
    command.current_dir(outside.path()).run_with(option.clone());
    fails_at(
        &mut command,
        &SpawnStep::ChangeDirectory(outside.path().to_owned()),
        libc::ENOENT,
    )?;
    fails_at(
        Command::new("/bin/sh").run_with(option),
        &SpawnStep::Exec,
        libc::ENOENT,
    )?;
    let error = refused(Command::new("true").run_with(RunWith::new().chroot("/nonexistent")))?;
    ensure!(matches!(error, SpawnError::Prepare(_)), "{error:?}");
    ensure!(error.to_string().contains("/nonexistent"), "{error}");
    Ok(())
}

fn chroot_and_user() -> Outcome {
    let root = root()?;
    let mut command = Command::new("busybox");
    command
        .args([
            "sh",
            "-c",
            "busybox id -u; busybox id -g; busybox pwd; busybox ls /",
        ])
        .env("PATH", "/nowhere:/bin")
        .current_dir("/inside")
        .run_with(options(&format!(
            "chroot={},user=65534:65534",
            root.path().display()
        ))?);
    let said = says(&mut command)?;
    ensure!(said == "65534\n65534\n/inside\nbin\ninside\n", "{said:?}");
    Ok(())
}

/// Numbers that are negative, or take all bits, on their way through the helper's text.
fn user_extremes() -> Outcome {
    let mut command = status_of_itself();
    let last = libc::SIGRTMAX();
    command
        .signal_mask([signal(last), Signal::HUP])
        .run_with(options("user=4294967294:4000000000")?);
    let report = says(&mut command)?;
    let blocked = u64::from_str_radix(&fact(&report, "SigBlk")?, 16)?;
    ensure!(blocked == 1 << (last - 1) | 1, "{blocked:x}");
    for (field, id) in [("Uid", "4294967294"), ("Gid", "4000000000")] {
        let ids = fact(&report, field)?;
        ensure!(ids.split('\t').all(|found| found == id), "{ids}");
    }
    // Many and long arguments, none of them the helper's.
    let many: Vec<String> = (0..5000).map(|n| format!("-{n} 0 1")).collect();
    let mut command = Command::new("printf");
    command
        .arg("%s|")
        .args(&many)
        .run_with(options("user=65534:65534")?);
    let said = says(&mut command)?;
    ensure!(said == many.join("|") + "|", "{} bytes", said.len());
    Ok(())
}

fn spawn_timeout_extremes() -> Outcome {
    let mut commands = vec![Command::new("true")];
    if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("true");
        command.run_with(options("user=65534:65534")?);
        commands.push(command);
    }
    for mut command in commands {
        let report = command.spawn_timeout(Duration::MAX).status()?;
        ensure!(report.success(), "{report:?}");
        for limit in [Duration::ZERO, Duration::from_micros(200)] {
            for _ in 0..20 {
                match command.spawn_timeout(limit).spawn() {
                    Ok(captive) => {
                        let report = captive.wait()?;
                        ensure!(report.success(), "{report:?}");
                    }
                    Err(SpawnError::Stalled { after, .. }) if after == limit => {}
                    Err(error) => return Err(format!("{error:?}").into()),
                }
            }
        }
    }
    Ok(())
}

fn too_big() -> Outcome {
    let long = "x".repeat(1 << 18);
    let mut command = Command::new("true");
    command.arg(&long);
    fails_at(&mut command, &SpawnStep::Exec, libc::E2BIG)?;
    if nix::unistd::geteuid().is_root() {
        command.run_with(options("user=65534:65534")?);
        fails_at(&mut command, &SpawnStep::Exec, libc::E2BIG)?;
    }
    Ok(())
}

fn not_found() -> Outcome {
    for name in ["captive-test-no-such-program", "/nonexistent/program"] {
        let error = refused(&mut Command::new(name))?;
        ensure!(error.to_string().contains(name), "{error}");
        fails_at(&mut Command::new(name), &SpawnStep::Exec, libc::ENOENT)?;
    }
    fails_at(&mut Command::new(""), &SpawnStep::Exec, libc::ENOENT)
}

fn not_executable() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("plain");
    install(&path, "#!/bin/sh\n", "644")?;
    fails_at(&mut Command::new(&path), &SpawnStep::Exec, libc::EACCES)?;
    fails_at(
        &mut Command::new(dir.path()),
        &SpawnStep::Exec,
        libc::EACCES,
    )?;
    let missing = dir.path().join("interpreter");
    install(&missing, "#!/nonexistent/interpreter\n", "755")?;
    fails_at(&mut Command::new(&missing), &SpawnStep::Exec, libc::ENOENT)
}

fn no_current_dir() -> Outcome {
    let path = PathBuf::from("/nonexistent/directory");
    let mut command = Command::new("true");
    command.current_dir(&path);
    ensure!(
        refused(&mut command)?
            .to_string()
            .contains("/nonexistent/directory"),
        "the path is not named"
    );
    fails_at(
        &mut command,
        &SpawnStep::ChangeDirectory(path),
        libc::ENOENT,
    )
}

fn nul_bytes() -> Outcome {
    invalid(&mut Command::new("tr\0ue"), "NUL")?;
    invalid(Command::new("true").arg("a\0b"), "NUL")?;
    invalid(Command::new("true").arg0("a\0b"), "NUL")?;
    invalid(Command::new("true").env("A", "a\0b"), "NUL")?;
    invalid(Command::new("true").env("A\0", "b"), "NUL")?;
    invalid(Command::new("true").current_dir("/\0"), "NUL")
}

fn env_keys() -> Outcome {
    invalid(Command::new("true").env("", "a"), "variable")?;
    invalid(Command::new("true").env("A=B", "a"), "A=B")?;
    invalid(Command::new("true").env_remove("=A"), "=A")
}

fn refused_options() -> Outcome {
    let off = options("exit-with-parent=off")?;
    invalid(Command::new("true").run_with(off), "exit-with-parent=off")?;
    let on = options("async-teardown=on")?;
    invalid(Command::new("true").run_with(on), "async-teardown=on")?;
    // What a captive is anyway.
    for fine in ["exit-with-parent=on", "async-teardown=off"] {
        says(Command::new("true").run_with(options(fine)?))?;
    }
    Ok(())
}

fn unknown_user() -> Outcome {
    let error = refused(Command::new("true").run_with(options("user=captive-no-such-user")?))?;
    ensure!(matches!(error, SpawnError::Prepare(_)), "{error:?}");
    ensure!(
        error.to_string().contains("captive-no-such-user"),
        "{error}"
    );
    ensure!(error.step().is_none(), "{error:?}");
    Ok(())
}

fn errors_of_the_stage() -> Outcome {
    let nobody = options("user=65534:65534")?;
    fails_at(
        Command::new("captive-test-no-such-program")
            // Only what anybody may look into.
            .env("PATH", "/usr/bin:/bin")
            .run_with(nobody.clone()),
        &SpawnStep::Exec,
        libc::ENOENT,
    )?;
    // The launcher could execute it, its user cannot.
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("program");
    install(&path, "#!/bin/sh\n", "700")?;
    says(&mut Command::new(&path))?;
    fails_at(
        Command::new(&path).run_with(nobody.clone()),
        &SpawnStep::Exec,
        libc::EACCES,
    )?;
    fails_at(
        Command::new("true")
            .current_dir("/nonexistent")
            .run_with(nobody),
        &SpawnStep::ChangeDirectory("/nonexistent".into()),
        libc::ENOENT,
    )
}

/// A launcher without rights.
fn unprivileged() -> Outcome {
    // Hard limits can be lowered by anybody, and raised by the privileged only.
    let limit = libc::rlimit {
        rlim_cur: 100,
        rlim_max: 100,
    };
    ensure!(
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0,
        "setrlimit"
    );
    let nobody = 65534;
    unsafe {
        ensure!(libc::setgroups(0, std::ptr::null()) == 0, "setgroups");
        ensure!(libc::setresgid(nobody, nobody, nobody) == 0, "setresgid");
        ensure!(libc::setresuid(nobody, nobody, nobody) == 0, "setresuid");
    }
    says(&mut Command::new("true"))?;
    fails_at(
        Command::new("true").nice(-5),
        &SpawnStep::Nice(-5),
        libc::EACCES,
    )?;
    fails_at(
        Command::new("true").resource_limit(Resource::NOFILE, 50, 200),
        &SpawnStep::ResourceLimit(Resource::NOFILE),
        libc::EPERM,
    )?;
    says(Command::new("true").resource_limit(Resource::NOFILE, 50, 60))?;
    fails_at(
        Command::new("true").network_namespace(File::open("/proc/self/ns/net").or_else(|_| {
            // A process that has changed its user may not look at itself.
            File::open("/dev/null")
        })?),
        &SpawnStep::NetworkNamespace,
        if File::open("/proc/self/ns/net").is_ok() {
            libc::EPERM
        } else {
            libc::EINVAL
        },
    )?;
    let error = refused(Command::new("true").run_with(options("user=65533:65533")?))?;
    ensure!(
        matches!(
            error.step(),
            Some(SpawnStep::RunWith(Step::SetGroups(_) | Step::SetGid(_)))
        ) || matches!(error, SpawnError::Prepare(_)),
        "{error:?}"
    );
    Ok(())
}

/// A launcher of which nothing is left after errors but what it had.
fn leaves_nothing() -> Outcome {
    // The guard and the threads are there to stay.
    says(&mut Command::new("true"))?;
    let guard = children();
    ensure!(guard.len() == 1, "{guard:?}");
    let root = nix::unistd::geteuid().is_root();
    let before = open_descriptors();
    for _ in 0..5 {
        let mut commands = vec![
            Command::new("/nonexistent"),
            Command::new("tr\0ue"),
            Command::new("/"),
        ];
        let mut add = |change: &dyn Fn(&mut Command)| {
            let mut command = Command::new("true");
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            change(&mut command);
            commands.push(command);
        };
        add(&|command| {
            command.current_dir("/nonexistent");
        });
        add(&|command| {
            command.process_group(1);
        });
        add(&|command| {
            command.resource_limit(Resource::NPROC, 2, 1);
        });
        add(&|command| {
            command.env("", "");
        });
        for mut command in commands {
            refused(&mut command)?;
            if root {
                command.run_with(options("user=65534:65534")?);
                refused(&mut command)?;
            }
        }
    }
    // What the stage's errors leave is reaped by a thread.
    await_that("an end of all children", || children() == guard)?;
    descriptors_as_before(&before)
}
