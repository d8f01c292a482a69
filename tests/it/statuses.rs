//! How run-with ends, and what it says: the command's own status, death by the same signal, 125, 126
//! and 127; and the files and descriptors on which it tells more.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use libtest_mimic::Trial;

use crate::support::process::{Reaped, run_with_path};
use crate::support::{Outcome, Tag, Witness, test};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

pub fn tests() -> Vec<Trial> {
    vec![
        test("statuses::every_status", &[], every_status),
        test("statuses::every_status_exec", &[], every_status_exec),
        test("statuses::exec_set_id", &[], exec_set_id),
        test("statuses::every_signal", &[], every_signal),
        test("statuses::no_second_core", &[], no_second_core),
        test("statuses::own_failures", &[], own_failures),
        test("statuses::parent_gone", &[], parent_gone),
        test("statuses::not_executable", &[], not_executable),
        test("statuses::not_found", &[], not_found),
        test("statuses::script_without_interpreter", &[], script),
        test("statuses::children_ignored", &[], children_ignored),
        test("statuses::silence", &[], silence),
        test("statuses::answers", &[], answers),
        test("statuses::standard_output_closed", &[], output_closed),
        test("statuses::pidfile", &[], pidfile),
        test("statuses::pidfile_refused", &[], pidfile_refused),
        test("statuses::status_fd", &[], status_fd),
        test("statuses::status_fd_not_open", &[], status_fd_not_open),
        test("statuses::status_fd_reader_gone", &[], reader_gone),
    ]
}

/// The option with which most of these tests run.
const BOUND: &str = "exit-with-parent=on";

/// What a run left behind.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    out: String,
    err: String,
}

/// Runs to the end, in a bounded time.
fn run(command: &mut Command) -> Fallible<Ended> {
    let mut child = Reaped(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?,
    );
    let ended = Witness::of(i32::try_from(child.0.id())?)?.gone();
    ensure!(ended, "{command:?} does not end");
    let status = child.0.wait()?;
    let (mut out, mut err) = (String::new(), String::new());
    child.0.stdout.take().unwrap().read_to_string(&mut out)?;
    child.0.stderr.take().unwrap().read_to_string(&mut err)?;
    Ok(Ended { status, out, err })
}

fn run_with(tag: &Tag, args: &[&str]) -> Fallible<Ended> {
    run(tag.run_with().args(args))
}

/// run-with fails with this status, and says why: one message that contains `says`.
fn fails(command: &mut Command, status: i32, says: &str) -> Outcome {
    let ended = run(command)?;
    ensure!(
        ended.status.code() == Some(status)
            && ended.out.is_empty()
            && ended.err.starts_with("run-with: ")
            && ended.err.ends_with('\n')
            && ended.err.contains(says),
        "{command:?} is {ended:?}; expected {status}, {says:?}"
    );
    Ok(())
}

fn every_status() -> Outcome {
    let tag = Tag::new();
    for status in 0..=255 {
        let ended = run_with(&tag, &[BOUND, "sh", "-c", &format!("exit {status}")])?;
        ensure!(ended.status.code() == Some(status), "{status}: {ended:?}");
        ensure!(ended.out.is_empty() && ended.err.is_empty(), "{ended:?}");
    }
    Ok(())
}

fn every_status_exec() -> Outcome {
    let tag = Tag::new();
    for status in [0, 1, 2, 77, 124, 125, 126, 127, 128, 137, 254, 255] {
        let exit = format!("exit {status}");
        let ended = run_with(&tag, &["--exec", BOUND, "sh", "-c", &exit])?;
        ensure!(ended.status.code() == Some(status), "{status}: {ended:?}");
    }
    Ok(())
}

/// The kernel takes a script's credentials from its last interpreter.
fn exec_set_id() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let file = |name: &str, content: &[u8], mode: u32| -> Fallible<String> {
        let path = dir.path().join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(path.to_str().ok_or("a path")?.to_owned())
    };
    let binary = fs::read("/bin/true")?;
    let plain = file("plain", &binary, 0o755)?;
    for (mode, what) in [(0o4755, "set-user-ID"), (0o2755, "set-group-ID")] {
        let gains = file("gains", &binary, mode)?;
        let message = format!("--exec: {gains} is {what}: ");
        let exec = |path: &str| fails(tag.run_with().args(["--exec", BOUND, path]), 125, &message);
        exec(&gains)?;
        for line in ["#!@\n", "#! \t@ an argument \n", "#!@"] {
            let content = line.replace('@', &gains);
            let mut script = file("script", content.as_bytes(), 0o755)?;
            exec(&script)?;
            // As deep as the kernel goes, counted in interpreters.
            for level in 1..5 {
                let content = format!("#!{script}\n");
                script = file(&format!("level{level}"), content.as_bytes(), 0o755)?;
                exec(&script)?;
            }
            // The kernel does execute the last of them.
            let ended = run(&mut tag.command(&script))?;
            ensure!(ended.status.code() == Some(0), "{ended:?}");
        }
        // Only mentioned.
        for line in ["#!@ #\n", "#!@\n#!", "#!@ "] {
            let content = line.replace('@', &plain) + &gains + "\n";
            let script = file("harmless", content.as_bytes(), 0o755)?;
            let ended = run_with(&tag, &["--exec", BOUND, &script])?;
            ensure!(ended.status.code() == Some(0), "{content:?}: {ended:?}");
        }
    }
    Ok(())
}

/// Every signal whose default is to end a process; signal(7).
fn deadly() -> impl Iterator<Item = i32> {
    let harmless = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    (1..=64).filter(move |signal| !harmless.contains(signal))
}

fn itself(command: &mut Command, signal: i32) -> &mut Command {
    let it = std::env::current_exe().unwrap();
    command
        .arg(it)
        .args(["--role", "signal", "self", &signal.to_string()])
}

fn every_signal() -> Outcome {
    let tag = Tag::new();
    let place = tempfile::tempdir()?;
    for signal in deadly() {
        let mut command = tag.run_with();
        let ended = run(itself(command.arg(BOUND), signal).current_dir(&place))?;
        ensure!(
            ended.status.signal() == Some(signal) && !ended.status.core_dumped(),
            "{signal}: {ended:?}"
        );
        ensure!(ended.err.is_empty(), "{signal}: {ended:?}");
    }
    Ok(())
}

/// The command dumps core where it may; run-with, which dies of the same signal, does not.
fn no_second_core() -> Outcome {
    let tag = Tag::new();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let here = !pattern.starts_with(['|', '/', '@']);
    for signal in [
        libc::SIGSEGV,
        libc::SIGABRT,
        libc::SIGQUIT,
        libc::SIGSYS,
        libc::SIGXCPU,
    ] {
        // Without run-with, to show that a core would be there.
        let plain = tempfile::tempdir()?;
        let mut command = tag.role("odd");
        command.args(["core=unlimited", "--"]);
        let ended = run(itself(&mut command, signal).current_dir(&plain))?;
        let dumped = ended.status.core_dumped();

        let place = tempfile::tempdir()?;
        let mut command = tag.role("odd");
        command.args(["core=unlimited", "--", run_with_path(), BOUND]);
        let ended = run(itself(&mut command, signal).current_dir(&place))?;
        ensure!(
            ended.status.signal() == Some(signal) && !ended.status.core_dumped(),
            "{signal}: {ended:?}"
        );
        let cores = |place: &Path| fs::read_dir(place).map(Iterator::count);
        if here {
            let expected = usize::from(dumped);
            ensure!(
                (cores(plain.path())?, cores(place.path())?) == (expected, expected),
                "signal {signal}: {} and {} files",
                cores(plain.path())?,
                cores(place.path())?
            );
        }
    }
    Ok(())
}

fn own_failures() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let marker = dir.path().join("started");
    let mark = format!("touch '{}'", marker.display());
    let nowhere = format!("chroot={}/nowhere", dir.path().display());
    let pidfile = format!("--pidfile={}/nowhere/pid", dir.path().display());
    let cases: &[(&[&str], &str)] = &[
        (&["no-such-option=1"], "no-such-option"),
        (&["exit-with-parent=maybe"], "exit-with-parent"),
        (&["user=no-such-user-at-all"], "no-such-user-at-all"),
        (&["--no-such-flag", BOUND], "--no-such-flag"),
        (&["--signal=NOPE", BOUND], "NOPE"),
        (&["--kill-after=soon", BOUND], "soon"),
        (&["--"], "nothing to do"),
        (&["exit-with-parent=off", "--"], "nothing to do"),
        (&[&nowhere], "nowhere"),
        (&[&pidfile], "--pidfile"),
        (&["--pidfile=", BOUND], "--pidfile"),
        (&["--parent-fd=77", BOUND], "descriptor 77 is not open"),
        (&["--status-fd=77", BOUND], "descriptor 77 is not open"),
        (&["--parent-fd=0", "--status-fd=0", BOUND], "same"),
        (&["--exec", "--no-forward", BOUND], "--no-forward needs"),
        (&["async-teardown=on"], "async-teardown"),
    ];
    for (args, says) in cases {
        let mut command = tag.run_with();
        fails(command.args(*args).args(["sh", "-c", &mark]), 125, says)?;
        ensure!(!marker.exists(), "{args:?} started the command");
    }
    fails(tag.run_with().arg(BOUND), 125, "no command")?;
    fails(&mut tag.run_with(), 125, "nothing to do")?;
    // The marker works.
    ensure!(
        run_with(&tag, &[BOUND, "sh", "-c", &mark])?
            .status
            .success(),
        "no marker"
    );
    ensure!(marker.exists(), "no marker");
    Ok(())
}

fn parent_gone() -> Outcome {
    let tag = Tag::new();
    // Somebody who is not our parent, and cannot be: a child of the test that has ended.
    let mut other = Command::new("true").spawn()?;
    let pid = other.id().to_string();
    other.wait()?;
    for mode in [&["--exec"][..], &[]] {
        let mut command = tag.run_with();
        command.args(mode).args(["--expect-parent", &pid]);
        fails(command.args([BOUND, "true"]), 125, &pid)?;
    }
    let us = std::process::id().to_string();
    let ended = run_with(&tag, &["--expect-parent", &us, BOUND, "true"])?;
    ensure!(ended.status.success(), "{ended:?}");
    Ok(())
}

/// A file with these bytes and this mode.
fn file(path: &Path, text: &str, mode: u32) -> Outcome {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn not_executable() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let plain = dir.path().join("plain");
    file(&plain, "#!/bin/sh\n", 0o644)?;
    let garbage = dir.path().join("garbage");
    file(&garbage, "#!/no/such/interpreter\n", 0o755)?;
    for mode in [&["--exec"][..], &[]] {
        let run = |path: &str| {
            let mut command = tag.run_with();
            command.args(mode).args([BOUND, "--", path]);
            command
        };
        let plain = plain.to_str().unwrap();
        fails(&mut run(plain), 126, "Permission denied")?;
        fails(&mut run("/"), 126, "Permission denied")?;
        // Found in PATH, there alone, and not executable.
        fails(run("plain").env("PATH", dir.path()), 126, "plain")?;
        // The interpreter is what is not there, and execve says no more than that.
        fails(&mut run(garbage.to_str().unwrap()), 127, "garbage")?;
    }
    Ok(())
}

fn not_found() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let plain = dir.path().join("plain");
    file(&plain, "", 0o644)?;
    let below = plain.join("x").display().to_string();
    for mode in [&["--exec"][..], &[]] {
        let run = |name: &str| {
            let mut command = tag.run_with();
            command.args(mode).args([BOUND, "--", name]);
            command
        };
        let none = "No such file";
        fails(&mut run("no-such-command-at-all"), 127, "no-such-command")?;
        fails(&mut run("/no/such/command"), 127, none)?;
        fails(&mut run(""), 127, none)?;
        fails(&mut run(&below), 127, "plain/x")?;
        fails(run("true").env("PATH", dir.path()), 127, "true")?;
        fails(
            run("no-such-command-at-all").env_remove("PATH"),
            127,
            "no-such",
        )?;
        // Unset, PATH is /bin:/usr/bin; empty, it is the working directory.
        let mut unset = run("true");
        ensure!(
            self::run(unset.env_remove("PATH"))?.status.success(),
            "true without PATH"
        );
        let mut here = run("true");
        fails(here.env("PATH", "").current_dir(&dir), 127, "true")?;
        ensure!(
            self::run(here.current_dir("/bin"))?.status.success(),
            "true in the working directory"
        );
    }
    Ok(())
}

fn script() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("script");
    file(&path, "echo \"$0|$1|$2|$#\"\nexit 7\n", 0o755)?;
    let expected = format!("{}|a b||2\n", path.display());
    for mode in [&["--exec"][..], &[]] {
        let mut command = tag.run_with();
        command.args(mode).args([BOUND, "--", "script", "a b", ""]);
        let ended = run(command.env("PATH", dir.path()))?;
        ensure!(ended.status.code() == Some(7), "{ended:?}");
        ensure!(ended.out == expected, "{ended:?}");
    }
    Ok(())
}

/// With SIGCHLD ignored the kernel would keep no status for run-with.
fn children_ignored() -> Outcome {
    let tag = Tag::new();
    let odd = |args: &[&str]| {
        let mut command = tag.role("odd");
        command
            .args(["ignore=17", "--", run_with_path(), BOUND])
            .args(args);
        run(&mut command)
    };
    let ended = odd(&["sh", "-c", "exit 9"])?;
    ensure!(ended.status.code() == Some(9), "{ended:?}");
    let ended = odd(&["grep", "SigIgn", "/proc/self/status"])?;
    ensure!(ended.out == "SigIgn:\t0000000000010000\n", "{ended:?}");
    Ok(())
}

fn silence() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let pidfile = format!("--pidfile={}/pid", dir.path().display());
    for args in [
        &[BOUND][..],
        &["--exec", BOUND],
        &["--no-forward", "-k0", BOUND, &pidfile],
    ] {
        let ended = run(tag.run_with().args(args).args(["printf", "%s", "said"]))?;
        ensure!(
            ended.status.success() && ended.out == "said" && ended.err.is_empty(),
            "{args:?}: {ended:?}"
        );
    }
    Ok(())
}

fn answers() -> Outcome {
    let tag = Tag::new();
    for (args, says) in [
        (&["--version"][..], env!("CARGO_PKG_VERSION")),
        (&["-V"], "run-with "),
        (&["--help"], "--kill-after"),
        (&["-h"], "exit-with-parent"),
        (&["help"], ""),
        (&["chroot=/,help", "true"], ""),
    ] {
        let ended = run_with(&tag, args)?;
        if says.is_empty() && args == ["help"] {
            // A command's name, with nothing to do: not the table of keys, which needs a `=`.
            ensure!(ended.status.code() == Some(125), "{args:?}: {ended:?}");
            continue;
        }
        ensure!(
            ended.status.success() && ended.err.is_empty() && ended.out.contains(says),
            "{args:?}: {ended:?}"
        );
        ensure!(ended.out.ends_with('\n'), "{args:?}: {ended:?}");
    }
    Ok(())
}

/// An answer that nobody can get is a failure.
fn output_closed() -> Outcome {
    let tag = Tag::new();
    for flag in ["--version", "--help"] {
        let mut command = tag.role("odd");
        command.args(["close=1", "--", run_with_path(), flag]);
        fails(&mut command, 125, "standard output")?;
        let full = fs::OpenOptions::new().write(true).open("/dev/full")?;
        let mut command = tag.run_with();
        let child = command.arg(flag).stdout(full).stderr(Stdio::null());
        ensure!(child.status()?.code() == Some(125), "{flag} to a full disk");
    }
    Ok(())
}

fn pidfile() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("pid");
    let mut command = tag.run_with();
    command.arg("--pidfile").arg(&path);
    let mut child = Reaped(
        command
            .args([BOUND, "sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()?,
    );
    let sleep = tag.await_process("sleep")?;
    super::transparency::eventually("the pidfile", || path.exists())?;
    // Whole from the first moment at which it is there.
    ensure!(
        fs::read_to_string(&path)? == format!("{}\n", sleep.pid),
        "{:?}",
        fs::read_to_string(&path)
    );
    ensure!(
        fs::read_dir(&dir)?.count() == 1,
        "a temporary file is left over"
    );
    sleep.signal(libc::SIGKILL);
    ensure!(
        Witness::of(i32::try_from(child.0.id())?)?.gone(),
        "run-with stays"
    );
    ensure!(child.0.wait()?.signal() == Some(libc::SIGKILL), "status");
    ensure!(!path.exists(), "the pidfile is left over");
    Ok(())
}

fn pidfile_refused() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let (marker, victim) = (dir.path().join("started"), dir.path().join("victim"));
    let mark = format!("touch '{}'", marker.display());
    let path = dir.path().join("pid");
    fs::write(&victim, "precious")?;
    // run-with's pid is that of the role which becomes it, and so is its temporary file's name.
    let script = "ln -s victim pid.$$.tmp; exec \"$@\"";
    let mut command = tag.command("sh");
    command.args(["-c", script, "sh", run_with_path(), "--pidfile=pid", BOUND]);
    command.args(["sh", "-c", &mark]).current_dir(&dir);
    fails(&mut command, 125, "--pidfile")?;
    ensure!(
        fs::read_to_string(&victim)? == "precious" && !path.exists() && !marker.exists(),
        "a symbolic link was followed"
    );
    for entry in fs::read_dir(&dir)?.flatten() {
        if entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    // The name may be a symbolic link: it is replaced.
    symlink(&victim, &path)?;
    let ended = run(tag.run_with().current_dir(&dir).args([
        "--pidfile=pid",
        BOUND,
        "sh",
        "-c",
        "test ! -L pid && test \"$(cat pid)\" = $$ || { sleep 1; test \"$(cat pid)\" = $$; }",
    ]))?;
    ensure!(
        ended.status.success() && fs::read_to_string(&victim)? == "precious",
        "{ended:?}"
    );
    // A directory of that name.
    fs::create_dir(&path)?;
    let mut command = tag.run_with();
    command.current_dir(&dir).args(["--pidfile=pid", BOUND]);
    fails(command.args(["sh", "-c", &mark]), 125, "directory")?;
    ensure!(!marker.exists(), "the command was started");
    // A command that cannot be executed leaves no file.
    fs::remove_dir(&path)?;
    let mut command = tag.run_with();
    command.current_dir(&dir).args(["--pidfile=pid", BOUND]);
    fails(command.arg("/no/such"), 127, "No such")?;
    let left: Vec<_> = fs::read_dir(&dir)?
        .flatten()
        .map(|e| e.file_name())
        .collect();
    ensure!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().contains("pid")),
        "{left:?}"
    );
    Ok(())
}

/// Runs with a status descriptor; the answer is what was written to it.
fn told(tag: &Tag, flags: &[&str], script: &str) -> Fallible<(Ended, String)> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("status");
    let mut command = tag.command("sh");
    command
        .args(["-c", "exec 7>\"$0\"; exec \"$@\""])
        .arg(&file);
    command
        .args([run_with_path(), "--status-fd=7", BOUND])
        .args(flags);
    let ended = run(command.args(["sh", "-c", script]))?;
    Ok((ended, fs::read_to_string(&file)?))
}

fn status_fd() -> Outcome {
    let tag = Tag::new();
    let (ended, text) = told(&tag, &[], "echo $$; test ! -e /proc/$$/fd/7 && exit 3")?;
    ensure!(ended.status.code() == Some(3), "inherited? {ended:?}");
    let expected = format!(
        "{{\"event\":\"started\",\"pid\":{}}}\n{{\"event\":\"exited\",\"status\":3}}\n",
        ended.out.trim()
    );
    ensure!(text == expected, "{text}");
    let (ended, text) = told(&tag, &[], "kill -9 $$")?;
    ensure!(ended.status.signal() == Some(9), "{ended:?}");
    ensure!(
        text.ends_with("\n{\"event\":\"killed\",\"signal\":9}\n") && text.lines().count() == 2,
        "{text}"
    );
    Ok(())
}

/// A number that is not open names no descriptor of run-with's own.
fn status_fd_not_open() -> Outcome {
    let tag = Tag::new();
    for flag in ["--status-fd", "--parent-fd"] {
        for number in 3..12 {
            let mut command = tag.role("odd");
            let flag = format!("{flag}={number}");
            command.args(["--", run_with_path(), &flag, BOUND, "true"]);
            fails(
                &mut command,
                125,
                &format!("descriptor {number} is not open"),
            )?;
        }
    }
    Ok(())
}

fn reader_gone() -> Outcome {
    let tag = Tag::new();
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    drop(reader);
    let mut command = tag.run_with();
    // The command would die of run-with's SIGPIPE, were it passed on.
    command.args(["--status-fd=1", BOUND, "sh", "-c", "sleep 0.2; exit 6"]);
    let mut child = Reaped(
        command
            .stdout(writer)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?,
    );
    ensure!(
        Witness::of(i32::try_from(child.0.id())?)?.gone(),
        "it stays"
    );
    let status = child.0.wait()?;
    let mut err = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut err)?;
    ensure!(
        status.code() == Some(6) && err.is_empty(),
        "{status:?}, {err:?}"
    );
    Ok(())
}
