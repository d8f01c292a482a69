//! Who the parent is where pids say little: PID namespaces, pid 1, subreapers, recycled pids, parents
//! that were gone before anything began, and descriptors that name nobody.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use libtest_mimic::Trial;

use crate::support::process::{Reaped, await_that, run_with_path, state, status_field};
use crate::support::{Need, Outcome, SURVIVES, Tag, Witness, test};

const ROOT: &[Need] = &[Need::Root];

type Body = fn() -> Outcome;

/// All tests of this module.
pub fn tests() -> Vec<Trial> {
    let rooted: [(&str, Body); 8] = [
        ("outer_parent", outer_parent),
        ("outer_parent_by_descriptor", outer_parent_by_descriptor),
        ("pid_1_status", pid_1_status),
        ("pid_1_reaps_orphans", pid_1_reaps_orphans),
        ("pid_1_ends_with_the_parent", pid_1_ends_with_the_parent),
        ("launcher_is_pid_1", launcher_is_pid_1),
        ("recycled_pid", recycled_pid),
        ("recycled_pid_library", recycled_pid_library),
    ];
    let plain: [(&str, Body); 6] = [
        ("parent_already_gone", parent_already_gone),
        ("pid_already_gone", pid_already_gone),
        ("subreaper_told", subreaper_told),
        ("subreaper_untold", subreaper_untold),
        ("descriptors_refused", descriptors_refused),
        ("descriptor_accepted", descriptor_accepted),
    ];
    let with = |needs: &'static [Need]| {
        move |(name, body): (&str, Body)| test(&format!("namespaces::{name}"), needs, body)
    };
    let rooted = rooted.into_iter().map(with(ROOT));
    rooted.chain(plain.into_iter().map(with(&[]))).collect()
}

/// What a finished launcher says of its command, and the command's standard error.
fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Runs `launch` with these arguments to its end.
fn launch(tag: &Tag, args: &[&str]) -> Result<(String, String), Box<dyn std::error::Error>> {
    let output = tag
        .role("launch")
        .args(args)
        .stdin(Stdio::null())
        .output()?;
    Ok(said(&output))
}

/// A command that leaves a file behind.
fn witness_command(file: &Path) -> [String; 3] {
    let script = format!("echo > '{}'; exec sleep 1000", file.display());
    ["sh".to_owned(), "-c".to_owned(), script]
}

/// getppid says 0: as pid 1 of a namespace, and as another process of it.
fn outer_parent() -> Outcome {
    for holder in [&[][..], &["--holder"]] {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("ran");
        let command = witness_command(&file);
        let tag = Tag::new();
        let mut args = vec!["--new-pid-namespace", "--wait"];
        args.extend(holder);
        args.extend(["--", run_with_path(), "exit-with-parent=on", "--"]);
        args.extend(command.iter().map(String::as_str));
        let (out, err) = launch(&tag, &args)?;
        ensure!(out == "exited 125\n", "{out} {err}");
        ensure!(err.contains("outside this PID namespace"), "{err}");
        ensure!(!file.exists(), "the command ran");
    }
    Ok(())
}

fn outer_parent_by_descriptor() -> Outcome {
    for holder in [&[][..], &["--holder"]] {
        for fd in ["pidfd", "pipe"] {
            let tag = Tag::new();
            let mut launcher = Reaped(
                tag.role("launch")
                    .args(["--new-pid-namespace", "--fill", "--fd", fd])
                    .args(holder)
                    .args(["--", run_with_path(), "--parent-fd", "{fd}"])
                    .args(["exit-with-parent=on", "sleep", "1000"])
                    .stdin(Stdio::piped())
                    .spawn()?,
            );
            let command = tag.await_process("sleep")?;
            let run_with = tag.await_process("run-with")?;
            ensure!(!command.gone_within(SURVIVES), "{fd}: it ended by itself");
            launcher.0.kill()?;
            launcher.0.wait()?;
            ensure!(command.gone(), "{fd}: the command lives on");
            ensure!(run_with.gone(), "{fd}: run-with lives on");
        }
    }
    Ok(())
}

/// As pid 1 it cannot die of the command's signal.
fn pid_1_status() -> Outcome {
    for (script, expected) in [
        ("exit 7", "exited 7\n"),
        ("kill -KILL $$", "exited 137\n"),
        ("kill -TERM $$", "exited 143\n"),
        ("kill -ABRT $$", "exited 134\n"),
    ] {
        let tag = Tag::new();
        let mut args = vec!["--new-pid-namespace", "--wait", "--fill", "--fd", "pidfd"];
        args.extend([
            "--",
            run_with_path(),
            "--parent-fd",
            "{fd}",
            "exit-with-parent=on",
        ]);
        args.extend(["--", "sh", "-c", script]);
        let (out, err) = launch(&tag, &args)?;
        ensure!(out == expected && err.is_empty(), "{script}: {out} {err}");
    }
    Ok(())
}

/// The processes with this tag and argument.
fn with_argument(tag: &Tag, argument: &str) -> Vec<i32> {
    let found = tag.processes().into_iter().map(|(pid, _)| pid);
    found
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0)
                .any(|arg| arg == argument.as_bytes())
        })
        .collect()
}

/// Starts run-with as pid 1 with a command that has made an orphan: the launcher, run-with, the
/// command, the orphan.
fn pid_1_with_an_orphan(
    tag: &Tag,
) -> Result<(Reaped, Witness, Witness, Witness), Box<dyn std::error::Error>> {
    let launcher = Reaped(
        tag.role("launch")
            .args(["--new-pid-namespace", "--fill", "--fd", "pidfd", "--"])
            .args([
                run_with_path(),
                "--parent-fd",
                "{fd}",
                "exit-with-parent=on",
            ])
            .args(["--", "sh", "-c", "(sleep 2000 &); exec tail -f /dev/null"])
            .stdin(Stdio::piped())
            .spawn()?,
    );
    let command = tag.await_process("tail")?;
    let run_with = tag.await_process("run-with")?;
    let mut orphan = None;
    await_that("the orphan", || {
        orphan = with_argument(tag, "2000").into_iter().find(|pid| {
            let parent = status_field(*pid, "PPid").unwrap_or_default();
            parent == run_with.pid.to_string()
        });
        orphan.is_some()
    })?;
    let orphan = Witness::of(orphan.unwrap())?;
    Ok((launcher, run_with, command, orphan))
}

fn pid_1_reaps_orphans() -> Outcome {
    let tag = Tag::new();
    let (_launcher, run_with, command, orphan) = pid_1_with_an_orphan(&tag)?;
    orphan.signal(libc::SIGKILL);
    ensure!(orphan.gone(), "the orphan outlives SIGKILL");
    await_that("the orphan's reaping", || state(orphan.pid).is_none())?;
    ensure!(
        run_with.alive() && command.alive(),
        "an orphan's end was taken for another's"
    );
    Ok(())
}

fn pid_1_ends_with_the_parent() -> Outcome {
    let tag = Tag::new();
    let (mut launcher, run_with, command, orphan) = pid_1_with_an_orphan(&tag)?;
    launcher.0.kill()?;
    launcher.0.wait()?;
    ensure!(command.gone(), "the command lives on");
    ensure!(run_with.gone(), "run-with lives on");
    ensure!(orphan.gone(), "the orphan lives on");
    Ok(())
}

/// It must be named, or it cannot be told from init.
fn launcher_is_pid_1() -> Outcome {
    let this = std::env::current_exe()?;
    let nested = [
        "--new-pid-namespace",
        "--wait",
        "--",
        this.to_str().unwrap(),
        "--role",
        "launch",
        "--wait",
        "--fill",
        "--",
        run_with_path(),
        "exit-with-parent=on",
    ];
    let run = |more: &[&str]| launch(&Tag::new(), &[&nested[..], more].concat());

    let (out, err) = run(&["--", "sh", "-c", "exit 7"])?;
    ensure!(out.starts_with("exited 125\n"), "{out} {err}");
    ensure!(err.contains("expecting parent 1"), "no hint: {err}");
    let (out, err) = run(&["--expect-parent", "1", "--", "sh", "-c", "exit 7"])?;
    ensure!(out.starts_with("exited 7\n"), "{out} {err}");
    Ok(())
}

/// The launcher dies before run-with's exec, and its pid is another process's when run-with looks.
fn recycle(command: &[&str]) -> Result<(String, String), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let gate = dir.path().join("gate");
    let this = std::env::current_exe()?;
    let this = this.to_str().unwrap();
    let mut args = vec![
        "--new-pid-namespace",
        "--wait",
        "--",
        this,
        "--role",
        "recycle",
    ];
    args.push(gate.to_str().unwrap());
    args.extend(command);
    let tag = Tag::new();
    let (out, err) = launch(&tag, &args)?;
    ensure!(
        out.contains("recycled true\n"),
        "the pid was not recycled: {out} {err}"
    );
    ensure!(out.contains("another lives true\n"), "{out} {err}");
    Ok((out, err))
}

fn recycled_pid() -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ran");
    let touch = format!("echo > '{}'", file.display());
    let (out, err) = recycle(&[
        run_with_path(),
        "--expect-parent",
        "{pid}",
        "exit-with-parent=on",
        "--",
        "sh",
        "-c",
        &touch,
    ])?;
    ensure!(out.contains(", 125)"), "{out} {err}");
    ensure!(err.contains("is gone"), "{err}");
    ensure!(!file.exists(), "the command ran");
    Ok(())
}

fn recycled_pid_library() -> Outcome {
    let this = std::env::current_exe()?;
    let this = this.to_str().unwrap();
    for mechanism in ["--pidfd-mechanism", "--signal-mechanism"] {
        let (out, err) = recycle(&[
            this,
            "--role",
            "bound",
            mechanism,
            "--expect-parent",
            "{pid}",
        ])?;
        ensure!(out.contains(", 3)"), "{mechanism}: {out} {err}");
        ensure!(err.starts_with("ParentGone"), "{mechanism}: {err}");
    }
    Ok(())
}

/// A pipe that nothing inherits by itself.
fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
}

/// A descriptor, and the number under which it is passed on.
type Passed<'a> = (&'a OwnedFd, RawFd);

/// Passes `fd` on as `number`.
fn pass(command: &mut Command, fd: &OwnedFd, number: RawFd) {
    let fd = fd.as_raw_fd();
    // SAFETY: dup2 is all that is done between fork and exec; `fd` is open until the command has
    // been started.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(fd, number) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// run-with is refused its parent: status 125, this message, and the command does not start.
fn refused(tag: &Tag, flags: &[&str], fds: &[Passed<'_>], message: &str) -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ran");
    let mut command = tag.run_with();
    command
        .args(flags)
        .args(["exit-with-parent=on", "--"])
        .args(witness_command(&file));
    for (fd, number) in fds {
        pass(&mut command, fd, *number);
    }
    let (_, err) = {
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(
            output.status.code() == Some(125),
            "{flags:?}: {:?}",
            output.status
        );
        said(&output)
    };
    ensure!(err.contains(message), "{flags:?}: {err}");
    ensure!(err.matches(message).count() == 1, "said twice: {err}");
    ensure!(!file.exists(), "{flags:?}: the command ran");
    ensure!(
        tag.processes().is_empty(),
        "{flags:?}: {:?}",
        tag.survivors(SURVIVES)
    );
    Ok(())
}

fn parent_already_gone() -> Outcome {
    let (reader, writer) = pipe()?;
    drop(writer);
    refused(
        &Tag::new(),
        &["--parent-fd", "100"],
        &[(&reader, 100)],
        "is gone",
    )?;

    let mut child = Command::new("true").spawn()?;
    let pidfd = pidfd_of(i32::try_from(child.id())?)?;
    child.wait()?;
    refused(
        &Tag::new(),
        &["--parent-fd", "100"],
        &[(&pidfd, 100)],
        "is gone",
    )
}

fn pid_already_gone() -> Outcome {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id().to_string();
    child.wait()?;
    refused(&Tag::new(), &["--expect-parent", &pid], &[], "is gone")
}

fn pidfd_of(pid: i32) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    use std::os::fd::FromRawFd;
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    ensure!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

fn descriptors_refused() -> Outcome {
    let (reader, writer) = pipe()?;
    let file = OwnedFd::from(tempfile::tempfile()?);
    let cases: [(&str, &[Passed<'_>], &str); 8] = [
        ("100", &[(&file, 100)], "descriptor 100 is neither"),
        (
            "100",
            &[(&writer, 100)],
            "descriptor 100 is open for writing",
        ),
        (
            "100",
            &[(&reader, 100), (&writer, 101)],
            "descriptor 101 is a write end",
        ),
        ("100", &[], "descriptor 100 is not open"),
        // The first numbers that run-with itself would use.
        ("3", &[], "descriptor 3 is not open"),
        ("4", &[], "descriptor 4 is not open"),
        ("-1", &[], "not a descriptor's number"),
        ("99999999999", &[], "not a descriptor's number"),
    ];
    for (number, fds, message) in cases {
        refused(&Tag::new(), &["--parent-fd", number], fds, message)?;
    }
    // The same holds for the other descriptor that is passed by number.
    refused(
        &Tag::new(),
        &["--status-fd", "3"],
        &[],
        "descriptor 3 is not open",
    )?;
    refused(
        &Tag::new(),
        &["--parent-fd", "100", "--status-fd", "100"],
        &[(&reader, 100)],
        "the same descriptor",
    )?;
    refused(
        &Tag::new(),
        &["--parent-fd", "100", "--expect-parent", "1"],
        &[(&reader, 100)],
        "both say who the parent is",
    )
}

/// The same pipe without the write end: the command runs, whatever is in the pipe, until its end.
fn descriptor_accepted() -> Outcome {
    let (reader, writer) = pipe()?;
    nix::unistd::write(&writer, b"data means nothing")?;
    let tag = Tag::new();
    let mut run_with = tag.run_with();
    run_with
        .args(["--parent-fd", "100", "exit-with-parent=on", "sleep", "1000"])
        .stdin(Stdio::null());
    pass(&mut run_with, &reader, 100);
    let mut run_with = Reaped(run_with.spawn()?);
    let command = tag.await_process("sleep")?;
    ensure!(!command.gone_within(SURVIVES), "it ended by itself");
    drop(writer);
    ensure!(command.gone(), "the command lives on");
    run_with.0.wait()?;
    Ok(())
}

/// A launcher that dies before the first instruction of what it started, under a subreaper.
struct Adopted {
    tag: Tag,
    subreaper: Reaped,
    ran: std::path::PathBuf,
    child: Witness,
    err: BufReader<std::process::ChildStderr>,
    _dir: tempfile::TempDir,
}

/// `command` gets the file it is to leave behind in place of `FILE`.
fn adopt(launcher: &[&str], command: &[&str]) -> Result<Adopted, Box<dyn std::error::Error>> {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let (gate, ran) = (dir.path().join("gate"), dir.path().join("ran"));
    let this = std::env::current_exe()?;
    let mut subreaper = Reaped(
        tag.role("subreaper")
            .arg(&this)
            .args(["--role", "launch", "--fill"])
            .args(launcher)
            .arg("--")
            .arg(&this)
            .args(["--role", "gate"])
            .arg(&gate)
            .arg("--")
            .args(
                command
                    .iter()
                    .map(|arg| arg.replace("FILE", ran.to_str().unwrap())),
            )
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?,
    );
    let err = BufReader::new(subreaper.0.stderr.take().unwrap());
    let launcher = tag.await_process("launcher")?;
    let child = tag.await_process("gate")?;
    tag.await_process("subreaper")?;
    launcher.signal(libc::SIGKILL);
    ensure!(launcher.gone(), "the launcher outlives SIGKILL");
    let reaper = subreaper.0.id().to_string();
    await_that("the adoption", || {
        status_field(child.pid, "PPid") == Some(reaper.clone())
    })?;
    fs::write(&gate, "")?;
    Ok(Adopted {
        tag,
        subreaper,
        ran,
        child,
        err,
        _dir: dir,
    })
}

const SCRIPT: &str = "echo > 'FILE'; exec sleep 1000";

/// Told who the parent is, nothing runs.
fn subreaper_told() -> Outcome {
    let this = std::env::current_exe()?;
    let this = this.to_str().unwrap();
    let run_with = |flag, value| {
        [
            run_with_path(),
            flag,
            value,
            "exit-with-parent=on",
            "--",
            "sh",
            "-c",
            SCRIPT,
        ]
        .to_vec()
    };
    let captive = |flag, value| [this, "--role", "bound", "--note", "FILE", flag, value].to_vec();
    let cases: [(&[&str], Vec<&str>); 6] = [
        (&[], run_with("--expect-parent", "{pid}")),
        (&["--fd", "pidfd"], run_with("--parent-fd", "{fd}")),
        (&["--fd", "pipe"], run_with("--parent-fd", "{fd}")),
        (&[], captive("--expect-parent", "{pid}")),
        (&["--fd", "pidfd"], captive("--parent-fd", "{fd}")),
        (&["--fd", "pipe"], captive("--parent-fd", "{fd}")),
    ];
    for (launcher, command) in cases {
        let mut adopted = adopt(launcher, &command)?;
        ensure!(adopted.child.gone(), "{command:?}: it was taken in");
        let mut said = String::new();
        adopted.err.read_line(&mut said)?;
        ensure!(said.contains("is gone"), "{command:?}: {said}");
        ensure!(!adopted.ran.exists(), "{command:?}: it ran");
        let reaper = i32::try_from(adopted.subreaper.0.id())?;
        let left = adopted.tag.processes();
        ensure!(
            left.iter().all(|(pid, _)| *pid == reaper),
            "{command:?}: {left:?}"
        );
    }
    Ok(())
}

/// Untold it cannot know: the subreaper is the parent then, as the documentation says.
fn subreaper_untold() -> Outcome {
    let this = std::env::current_exe()?;
    let this = this.to_str().unwrap();
    let cases: [(&str, Vec<&str>); 2] = [
        (
            "sleep",
            [
                run_with_path(),
                "exit-with-parent=on",
                "--",
                "sh",
                "-c",
                SCRIPT,
            ]
            .to_vec(),
        ),
        (
            "captive",
            [this, "--role", "bound", "--note", "FILE"].to_vec(),
        ),
    ];
    for (comm, command) in cases {
        let mut adopted = adopt(&[], &command)?;
        let captive = adopted.tag.await_process(comm)?;
        ensure!(adopted.ran.exists(), "{command:?}: it did not run");
        ensure!(!captive.gone_within(SURVIVES), "{command:?}: it ended");
        adopted.subreaper.0.kill()?;
        adopted.subreaper.0.wait()?;
        ensure!(captive.gone(), "{command:?}: it outlives the subreaper");
        ensure!(
            adopted.child.gone(),
            "{command:?}: run-with outlives the subreaper"
        );
    }
    Ok(())
}
