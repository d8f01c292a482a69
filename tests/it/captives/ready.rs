//! `wait_ready`: every way to tell, for every containment, and what must not be taken for it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use captive::launcher::{
    CaptiveError, Containment, ExitReport, ExitStatus, Readiness, Ready, ReadyError, SpawnError,
    Stdio, Stream,
};
use captive::{Captive, Command};
use libtest_mimic::Trial;

use super::steps::{self, CONTAINMENTS, doing, doing_by_descriptor, end, needs_as_root, needs_of};
use super::{in_role, shell};
use crate::support::process::{await_that, readable_within, state};
use crate::support::{Fallible, HANG, Need, Outcome, SURVIVES, Tag, Witness, test};

mod lines;
mod notifications;
mod sockets;

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, kind) in KINDS {
        for containment in CONTAINMENTS {
            let name = format!("captives::ready::{name}::{containment}");
            trials.push(test(&name, needs_of(containment), move || {
                kind_with(kind, containment)
            }));
        }
    }
    for (name, body) in sockets::OF_TREES.iter().chain(notifications::OF_TREES) {
        for containment in CONTAINMENTS {
            let name = format!("captives::ready::{name}::{containment}");
            trials.push(test(&name, needs_of(containment), move || {
                body(containment)
            }));
        }
    }
    for (name, body) in sockets::AS_ROOT.iter().chain(notifications::AS_ROOT) {
        for containment in CONTAINMENTS {
            // There are neither other users nor networks of the launcher's in that one.
            if containment == Containment::UserNamespace {
                continue;
            }
            let name = format!("captives::ready::{name}::{containment}");
            let needs = needs_as_root(containment);
            trials.push(test(&name, needs, move || body(containment)));
        }
    }
    let mut add = |name: &str, needs: &'static [Need], body: fn() -> Outcome| {
        trials.push(test(&format!("captives::ready::{name}"), needs, body));
    };
    add("file-that-was-there", &[], file_that_was_there);
    add("file-removed-and-made", &[], file_removed_and_made);
    add("not-asked", &[], not_asked);
    add("invalid", &[], invalid);
    add("twice", &[], twice);
    add("after-a-time-out", &[], after_a_time_out);
    add("two-threads", &[], two_threads);
    add("two-threads-with-two-limits", &[], two_limits);
    add("two-threads-and-an-end", &[], two_and_an_end);
    add("no-limit", &[], no_limit);
    add("forked", &[], || in_role("ready", "forked"));
    add("errors-say-what", &[], errors_say_what);
    add("no-descriptor-left", &[], || {
        in_role("ready", "no-descriptor-left")
    });
    sockets::tests(&mut add);
    lines::tests(&mut add);
    notifications::tests(&mut add);
    trials
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    let outcome = match args.first().and_then(|arg| arg.to_str()) {
        Some("forked") => forked(),
        Some("no-descriptor-left") => no_descriptor_left(),
        Some(name) => match sockets::role(name) {
            Some(outcome) => outcome,
            None => return 2,
        },
        None => return 2,
    };
    super::verdict(outcome)
}

/// How long something that does not happen is waited for.
const SOON: Duration = Duration::from_millis(120);

/// A test by name, of every containment.
type Contained = (&'static str, fn(Containment) -> Outcome);

/// A captive in a directory of its own.
struct Place {
    directory: tempfile::TempDir,
    tag: Tag,
}

impl Place {
    fn new() -> Fallible<Self> {
        let directory = tempfile::tempdir()?;
        // For captives of other users.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(directory.path(), open)?;
        Ok(Self {
            directory,
            tag: Tag::new(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A captive that does these steps, and is ready by this.
    fn command(&self, ready: Ready, steps: &[&str]) -> Fallible<Command> {
        let mut command = doing(&self.tag, steps)?;
        command.ready(ready);
        Ok(command)
    }

    fn spawn(&self, ready: Ready, steps: &[&str]) -> Fallible<Captive> {
        Ok(self.command(ready, steps)?.spawn()?)
    }
}

/// A port that nobody listens on, nor will: below those that the kernel chooses from, each once.
fn free_port() -> Fallible<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id() * 97 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + next % 20_000)?;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return Ok(port);
        }
    }
}

fn is_ready(captive: &Captive) -> Fallible<Readiness> {
    captive
        .wait_ready(HANG)
        .map_err(|error| format!("{error}: {error:?}").into())
}

/// It ended first: so much at once, and not at the limit.
fn ended_first(captive: &Captive) -> Fallible<(ExitReport, Vec<u8>)> {
    match captive.wait_ready(HANG) {
        Err(ReadyError::Ended { report, output, .. }) => Ok((report, output)),
        other => Err(format!("{other:?}").into()),
    }
}

/// It is not ready in a while; what is said of that, and what was read.
fn not_ready(captive: &Captive) -> Fallible<(Option<String>, Vec<u8>)> {
    match captive.wait_ready(SOON) {
        Err(ReadyError::TimedOut {
            after,
            instead,
            output,
            ..
        }) => {
            ensure!(after == SOON, "after {after:?}");
            ensure!(captive.try_wait()?.is_none(), "it has ended");
            Ok((instead, output))
        }
        other => Err(format!("{other:?}").into()),
    }
}

/// It is not ready, and there is another of what was looked for, or soon will be.
fn another_is_there(captive: &Captive, says: &str) -> Outcome {
    let deadline = Instant::now() + HANG;
    loop {
        match not_ready(captive)?.0 {
            None if Instant::now() < deadline => {}
            Some(instead) if instead.contains(says) => return Ok(()),
            instead => return Err(format!("{instead:?}").into()),
        }
    }
}

/// It is not ready when so much was read of it.
fn not_ready_by(captive: &Captive, expected: &[u8]) -> Outcome {
    let deadline = Instant::now() + HANG;
    loop {
        let (instead, output) = not_ready(captive)?;
        ensure!(instead.is_none(), "{instead:?}");
        ensure!(
            expected.starts_with(&output) && Instant::now() < deadline,
            "{output:?}"
        );
        if output == expected {
            return Ok(());
        }
    }
}

/// It is not ready, and there is none.
fn none_is_there(captive: &Captive) -> Outcome {
    let (instead, _) = not_ready(captive)?;
    ensure!(instead.is_none(), "{instead:?}");
    Ok(())
}

/// What tells, and the steps that make it so.
type Kind = fn(&Place) -> Fallible<(Ready, Vec<String>)>;

const KINDS: [(&str, Kind); 7] = [
    ("unix-listener", |place| {
        let path = place.text("socket");
        Ok((
            Ready::UnixListener(path.clone().into()),
            vec!["unix".into(), path],
        ))
    }),
    ("tcp-listener", |_| {
        let port = free_port()?;
        let steps = vec!["tcp".into(), format!("127.0.0.1:{port}")];
        Ok((Ready::TcpListener(port), steps))
    }),
    ("file", |place| {
        let path = place.text("file");
        Ok((Ready::File(path.clone().into()), vec!["write".into(), path]))
    }),
    ("line", |_| {
        let ready = Ready::Line(Stream::Stdout, "is up".into());
        Ok((ready, vec!["out".into(), "it is up now\n".into()]))
    }),
    ("notify", |_| {
        Ok((Ready::Notify, vec!["notify".into(), "READY=1".into()]))
    }),
    ("connect-unix", |place| {
        let path = place.text("socket");
        Ok((
            Ready::ConnectUnix(path.clone().into()),
            vec!["unix".into(), path],
        ))
    }),
    ("connect-tcp", |_| {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let steps = vec!["tcp".into(), address.to_string()];
        Ok((Ready::ConnectTcp(address), steps))
    }),
];

/// Ready, ended first, not in time.
fn kind_with(kind: Kind, containment: Containment) -> Outcome {
    let place = Place::new()?;
    let (ready, steps) = kind(&place)?;
    let is_line = matches!(ready, Ready::Line(..));
    let command = |steps: &[&str]| -> Fallible<Command> {
        let mut command = place.command(ready.clone(), steps)?;
        command.containment(containment).stdout(Stdio::Piped);
        Ok(command)
    };

    let captive = command(&["out", "before\n", "exit", "7"])?.spawn()?;
    let (report, output) = ended_first(&captive)?;
    ensure!(report.status() == ExitStatus::Exited(7), "{report:?}");
    ensure!(
        output == if is_line { &b"before\n"[..] } else { b"" },
        "{output:?}"
    );
    ensure!(
        captive.try_wait()?.as_ref() == Some(&report),
        "another report"
    );
    // And again, though there is nothing more to be read.
    ended_first(&captive)?;

    let captive = command(&["out", "before\n", "for-ever"])?.spawn()?;
    not_ready_by(&captive, if is_line { b"before\n" } else { b"" })?;
    let killed = std::thread::scope(|scope| {
        let ended = scope.spawn(|| ended_first(&captive).map_err(|error| error.to_string()));
        let killed = captive.kill();
        (killed, ended.join())
    });
    killed.0?;
    let (report, _) = killed.1.map_err(|_| "a panic")??;
    ensure!(
        report.status().signal().map(|signal| signal.number()) == Some(libc::SIGKILL),
        "{report:?}"
    );
    end(&captive)?;

    let mut all: Vec<&str> = steps.iter().map(String::as_str).collect();
    all.push("for-ever");
    let captive = command(&all)?.spawn()?;
    if containment != Containment::Tree {
        ensure!(
            captive.containment() == containment,
            "{:?}",
            captive.containment()
        );
    }
    let first = is_ready(&captive)?;
    let expected = if is_line { &b"it is up now\n"[..] } else { b"" };
    ensure!(first.output == expected, "{first:?}");
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    let again = captive.wait_ready(Duration::ZERO)?;
    ensure!(again == first, "{again:?}, was {first:?}");
    end(&captive)
}

/// Made before the spawn: it counts when it is replaced or written to.
fn file_that_was_there() -> Outcome {
    for steps in [
        &["write", "file"][..],
        &["write", "new", "rename", "new", "file"],
        &["remove", "file", "directory", "file"],
    ] {
        let place = Place::new()?;
        fs::write(place.path("file"), "before")?;
        let mut all = vec!["await-file", "go"];
        all.extend(steps);
        all.push("for-ever");
        let mut command = place.command(Ready::File(place.path("file")), &all)?;
        let captive = command.current_dir(place.directory.path()).spawn()?;
        another_is_there(&captive, "before")?;
        fs::write(place.path("go"), "")?;
        is_ready(&captive).map_err(|error| format!("{steps:?}: {error}"))?;
    }
    Ok(())
}

/// What is there for a while only is not there.
fn file_removed_and_made() -> Outcome {
    let place = Place::new()?;
    fs::write(place.path("file"), "before")?;
    let steps = [
        "remove",
        "file",
        "write",
        "gone",
        "await-file",
        "go",
        "write",
        "file",
        "for-ever",
    ];
    let mut command = place.command(Ready::File(place.path("file")), &steps)?;
    let captive = command.current_dir(place.directory.path()).spawn()?;
    await_that("the removal", || place.path("gone").exists())?;
    none_is_there(&captive)?;
    fs::write(place.path("go"), "")?;
    is_ready(&captive)?;
    Ok(())
}

fn not_asked() -> Outcome {
    let place = Place::new()?;
    for steps in [&["for-ever"][..], &["exit", "0"]] {
        let captive = doing(&place.tag, steps)?.spawn()?;
        let error = captive.wait_ready(HANG).err().ok_or("ready")?;
        ensure!(matches!(error, ReadyError::NotAsked), "{error:?}");
    }
    Ok(())
}

/// What cannot be waited for is an error of the spawn, and nothing is launched.
fn invalid() -> Outcome {
    let refused = |command: &mut Command, what: &str| -> Outcome {
        match command.spawn() {
            Err(SpawnError::Invalid { what: found, .. }) if found.contains(what) => Ok(()),
            other => Err(format!("{what}: {other:?}").into()),
        }
    };
    let line = |stream| Ready::Line(stream, "x".into());
    for (stream, says) in [(Stream::Stdout, "output"), (Stream::Stderr, "error")] {
        refused(Command::new("true").ready(line(stream)), says)?;
        for stdio in [Stdio::Null, Stdio::Inherit, File::open("/dev/null")?.into()] {
            let mut command = Command::new("true");
            command.ready(line(stream));
            match stream {
                // The other one does not count.
                Stream::Stdout => command.stdout(stdio).stderr(Stdio::Piped),
                Stream::Stderr => command.stderr(stdio).stdout(Stdio::Piped),
            };
            refused(&mut command, says)?;
        }
    }
    refused(Command::new("true").ready(Ready::TcpListener(0)), "port 0")?;
    let namespace = File::open("/proc/self/ns/net")?;
    refused(
        Command::new("true")
            .ready(Ready::Notify)
            .network_namespace(namespace),
        "network namespace",
    )
}

fn twice() -> Outcome {
    let place = Place::new()?;
    let ready = Ready::Line(Stream::Stdout, "up".into());
    let mut captive = place
        .command(ready, &["out", "up\n", "for-ever"])?
        .stdout(Stdio::Piped)
        .spawn()?;
    let first = is_ready(&captive)?;
    // It is known, with or without the stream and the captive.
    drop(captive.stdout.take());
    let second = captive.wait_ready(Duration::ZERO)?;
    ensure!(first == second, "{first:?} {second:?}");
    end(&captive)?;
    let third = captive.wait_ready(Duration::ZERO)?;
    ensure!(first == third, "{first:?} {third:?}");
    Ok(())
}

/// "It is as it was": a wait that was not long enough takes nothing away from the next.
fn after_a_time_out() -> Outcome {
    let place = Place::new()?;
    let path = place.path("socket");
    let steps = ["await", "unix", path.to_str().unwrap(), "for-ever"];
    let mut captive = place
        .command(Ready::UnixListener(path.clone()), &steps)?
        .stdin(Stdio::Piped)
        .spawn()?;
    none_is_there(&captive)?;
    none_is_there(&captive)?;
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    is_ready(&captive)?;
    Ok(())
}

fn two_threads() -> Outcome {
    let place = Place::new()?;
    for (_, kind) in KINDS {
        let (ready, steps) = kind(&place)?;
        let mut all = vec!["await"];
        all.extend(steps.iter().map(String::as_str));
        all.push("for-ever");
        let mut captive = place
            .command(ready.clone(), &all)?
            .stdin(Stdio::Piped)
            .stdout(Stdio::Piped)
            .spawn()?;
        let mut stdin = captive.stdin.take().ok_or("no pipe")?;
        let answers = std::thread::scope(|scope| {
            let waits: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| captive.wait_ready(HANG).map_err(|e| format!("{e:?}"))))
                .collect();
            let written = stdin.write_all(b"\n").map_err(|error| error.to_string());
            let mut all = vec![written.map(|()| None)];
            all.extend(waits.into_iter().map(|wait| match wait.join() {
                Ok(answer) => answer.map(Some),
                Err(_) => Err("a panic".into()),
            }));
            all.into_iter().collect::<Result<Vec<_>, _>>()
        });
        let answers: Vec<Readiness> = answers
            .map_err(|error| format!("{ready}: {error}"))?
            .into_iter()
            .flatten()
            .collect();
        ensure!(
            answers.len() == 4 && answers.iter().all(|answer| *answer == answers[0]),
            "{ready}: {answers:?}"
        );
        end(&captive)?;
        for name in ["socket", "file"] {
            let _ = fs::remove_file(place.path(name));
        }
    }
    Ok(())
}

/// Each has its own limit, whoever waits already.
fn two_limits() -> Outcome {
    let place = Place::new()?;
    let steps = ["await", "notify", "READY=1", "for-ever"];
    let mut captive = place
        .command(Ready::Notify, &steps)?
        .stdin(Stdio::Piped)
        .spawn()?;
    let mut stdin = captive.stdin.take().ok_or("no pipe")?;
    let (sender, begun) = std::sync::mpsc::channel();
    let (impatient, patient) = std::thread::scope(|scope| {
        let patient = scope.spawn(|| {
            let _ = sender.send(());
            captive.wait_ready(HANG).map_err(|error| error.to_string())
        });
        let _ = begun.recv();
        // Until the other waits, as far as it can be seen, and beyond.
        std::thread::sleep(Duration::from_millis(50));
        let impatient = not_ready(&captive).map_err(|error| error.to_string());
        let written = stdin.write_all(b"\n");
        (impatient.map(|_| written), patient.join())
    });
    impatient??;
    patient.map_err(|_| "a panic")??;
    Ok(())
}

/// All who wait are told of its end.
fn two_and_an_end() -> Outcome {
    let place = Place::new()?;
    let captive = place.spawn(Ready::Notify, &["for-ever"])?;
    let answers = std::thread::scope(|scope| {
        let waits: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| ended_first(&captive).map_err(|error| error.to_string())))
            .collect();
        let killed = captive.kill();
        let answers: Vec<_> = waits.into_iter().map(|wait| wait.join()).collect();
        killed.map(|()| answers)
    });
    let mut reports = Vec::new();
    for answer in answers? {
        reports.push(answer.map_err(|_| "a panic")??.0);
    }
    ensure!(
        reports.len() == 3 && reports.iter().all(|report| *report == reports[0]),
        "{reports:?}"
    );
    Ok(())
}

fn no_limit() -> Outcome {
    let place = Place::new()?;
    for (_, kind) in KINDS {
        let (ready, steps) = kind(&place)?;
        let mut all: Vec<&str> = steps.iter().map(String::as_str).collect();
        all.push("for-ever");
        let captive = place.command(ready, &all)?.stdout(Stdio::Piped).spawn()?;
        captive.wait_ready(Duration::MAX)?;
        end(&captive)?;
        for name in ["socket", "file"] {
            let _ = fs::remove_file(place.path(name));
        }
    }
    // And none at all: a look.
    let captive = place.spawn(Ready::Notify, &["for-ever"])?;
    match captive.wait_ready(Duration::ZERO) {
        Err(ReadyError::TimedOut { after, .. }) if after.is_zero() => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// In a forked child of the launcher; and the launcher's is none the worse.
fn forked() -> Outcome {
    let place = Place::new()?;
    let steps = ["await", "notify", "READY=1", "for-ever"];
    let mut captive = place
        .command(Ready::Notify, &steps)?
        .stdin(Stdio::Piped)
        .spawn()?;
    let launcher = std::process::id();
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork");
    if child == 0 {
        let answer = captive.wait_ready(HANG);
        let forked = matches!(answer, Err(ReadyError::Captive(CaptiveError::Forked { launcher: found })) if found == launcher);
        unsafe { libc::_exit(i32::from(!forked)) }
    }
    let mut status = 0;
    ensure!(
        unsafe { libc::waitpid(child, &raw mut status, 0) } == child,
        "waitpid"
    );
    ensure!(status == 0, "the child: {status:#x}");
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    is_ready(&captive)?;
    end(&captive)
}

fn errors_say_what() -> Outcome {
    let place = Place::new()?;
    let path = place.path("socket");
    let captive = place.spawn(Ready::UnixListener(path.clone()), &["exit", "7"])?;
    let error = captive.wait_ready(HANG).err().ok_or("ready")?.to_string();
    ensure!(
        error.contains("exit status 7") && error.contains(path.to_str().unwrap()),
        "{error}"
    );
    let captive = place.spawn(Ready::UnixListener(path.clone()), &["for-ever"])?;
    let _other = UnixListener::bind(&path)?;
    let error = captive.wait_ready(SOON).err().ok_or("ready")?.to_string();
    ensure!(
        error.contains(&format!("{SOON:?}")) && error.contains("not of its tree"),
        "{error}"
    );
    Ok(())
}

/// Neither by those that become ready nor by others.
fn no_descriptor_left() -> Outcome {
    let open = || fs::read_dir("/proc/self/fd").map(Iterator::count);
    let place = Place::new()?;
    let one_each = || -> Outcome {
        for (_, kind) in KINDS {
            let (ready, steps) = kind(&place)?;
            let mut all: Vec<&str> = steps.iter().map(String::as_str).collect();
            all.push("for-ever");
            let with = |steps: &[&str]| -> Fallible<Captive> {
                let mut command = place.command(ready.clone(), steps)?;
                Ok(command.stdout(Stdio::Piped).spawn()?)
            };
            let captive = with(&all)?;
            is_ready(&captive)?;
            end(&captive)?;
            for name in ["socket", "file"] {
                let _ = fs::remove_file(place.path(name));
            }
            let captive = with(&["for-ever"])?;
            ensure!(captive.wait_ready(Duration::from_millis(5)).is_err(), "?");
            end(&captive)?;
        }
        Ok(())
    };
    one_each()?;
    let before = open()?;
    for _ in 0..3 {
        one_each()?;
    }
    await_that("as many descriptors as before", || {
        open().is_ok_and(|now| now <= before)
    })
}
