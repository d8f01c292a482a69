//! What the command cannot tell from being started without run-with: signals, descriptors, arguments,
//! environment, limits, identity; what run-with passes on, and what it lets go of.
//!
//! The witness is `sleep`, which changes nothing of what it is given, seen from outside in /proc.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::support::process::{Reaped, bytes, readable_within, run_with_path, state, status_field};
use crate::support::{HANG, Need, Outcome, Tag, Witness, test};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const BOUND: &str = "exit-with-parent=on";

pub fn tests() -> Vec<Trial> {
    vec![
        test("transparency::signal_state", &[], signal_state),
        test("transparency::descriptors", &[], descriptors),
        test("transparency::descriptors_closed", &[], descriptors_closed),
        test("transparency::surroundings", &[], surroundings),
        test("transparency::arguments", &[], arguments),
        test("transparency::environment", &[], environment),
        test("transparency::lets_go", &[], lets_go),
        test("transparency::listener_lets_go", &[], listener_lets_go),
        test("transparency::no_new_privileges", &[], no_new_privileges),
        test("transparency::pid_variables", &[], pid_variables),
        test("transparency::started_by_systemd", &[], started_by_systemd),
        test(
            "transparency::socket_activation",
            &[Need::Program("nbdkit")],
            socket_activation,
        ),
        test("transparency::forwards_once", &[], forwards_once),
        test("transparency::no_forward", &[], no_forward),
        test("transparency::no_echo", &[], no_echo),
        test("transparency::alarm", &[], alarm),
        test(
            "transparency::stop_without_terminal",
            &[],
            stop_without_terminal,
        ),
    ]
}

/// Waits for a condition that no descriptor tells of.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + HANG;
    while !condition() {
        ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The ways to start a command: without run-with, and with it.
fn ways() -> [Vec<&'static str>; 3] {
    [
        vec![],
        vec![run_with_path(), BOUND, "--"],
        vec![run_with_path(), "--exec", BOUND, "--"],
    ]
}

/// Everything of a process that a caller can set for it.
#[derive(Debug, PartialEq)]
struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    fn of(pid: i32) -> Fallible<Self> {
        let mut all = BTreeMap::new();
        for field in [
            "SigPnd",
            "ShdPnd",
            "SigBlk",
            "SigIgn",
            "SigCgt",
            "NoNewPrivs",
            "Seccomp",
            "Umask",
            "Uid",
            "Gid",
            "Groups",
            "CapInh",
            "CapPrm",
            "CapEff",
            "CapBnd",
            "CapAmb",
            "Cpus_allowed",
        ] {
            let value = status_field(pid, field).ok_or(field)?;
            all.insert(field.to_owned(), value);
        }
        for file in [
            "limits",
            "cgroup",
            "cmdline",
            "environ",
            "oom_score_adj",
            "personality",
        ] {
            let text = fs::read(format!("/proc/{pid}/{file}"))?;
            all.insert(file.to_owned(), format!("{:?}", bytes(&text)));
        }
        for link in ["cwd", "root"] {
            let path = fs::read_link(format!("/proc/{pid}/{link}"))?;
            all.insert(link.to_owned(), format!("{path:?}"));
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, stat) = stat.rsplit_once(") ").ok_or("stat")?;
        let stat: Vec<&str> = stat.split(' ').collect();
        for (at, name) in [(2, "group"), (3, "session"), (4, "terminal"), (16, "nice")] {
            all.insert(name.to_owned(), stat[at].to_owned());
        }
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let number = entry?.file_name().to_string_lossy().into_owned();
            let place = fs::read_link(format!("/proc/{pid}/fd/{number}"))?;
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
            let flags = info
                .lines()
                .find(|line| line.starts_with("flags"))
                .unwrap_or("");
            all.insert(format!("fd {number}"), format!("{place:?} {flags}"));
        }
        Ok(Self(all))
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

/// `sleep` started in each way from this odd state: the snapshots, which must be the same.
fn same(settings: &[&str]) -> Fallible<Snapshot> {
    let mut first: Option<Snapshot> = None;
    for way in &ways() {
        let tag = Tag::new();
        let mut command = tag.role("odd");
        command
            .args(settings)
            .arg("--")
            .args(way)
            .args(["/bin/sleep", "1000"])
            // It reads no locale: what it has open is what it was given.
            .env("LC_ALL", "C");
        let _child = Reaped(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        let sleep = tag.await_process("sleep")?;
        eventually("it sleeps", || sleeps(sleep.pid))?;
        let mut it = Snapshot::of(sleep.pid)?;
        // The tag differs, and is there.
        it.0.remove("environ").ok_or("no environ")?;
        if let Some(first) = &first {
            let differs: Vec<_> = it.0.iter().filter(|(k, v)| first.get(k) != *v).collect();
            ensure!(
                it == *first,
                "{way:?} differs in {differs:?}, from {:?}",
                first.0
            );
        } else {
            first = Some(it);
        }
    }
    Ok(first.ok_or("nothing was started")?)
}

/// Whether a process has done with its start and sleeps.
fn sleeps(pid: i32) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|n| n.parse().ok());
    [Some(libc::SYS_clock_nanosleep), Some(libc::SYS_nanosleep)].contains(&number)
}

fn signal_state() -> Outcome {
    let it = same(&["block=10,14,15,32,33,34,64", "ignore=1,13,17,20,34,64"])?;
    // As the settings say: the test would also be content with nothing.
    ensure!(it.get("SigBlk") == "8000000380006200", "{it:?}");
    ensure!(it.get("SigIgn") == "8000000200091001", "{it:?}");
    let it = same(&[])?;
    ensure!(it.get("SigBlk") == "0000000000000000", "{it:?}");
    ensure!(it.get("SigIgn") == "0000000000000000", "{it:?}");
    Ok(())
}

fn descriptors() -> Outcome {
    let it = same(&["open=3,4,5,9,40,500,1000"])?;
    for number in [0, 1, 2, 3, 4, 5, 9, 40, 500, 1000] {
        ensure!(
            !it.get(&format!("fd {number}")).is_empty(),
            "{number}: {it:?}"
        );
    }
    // Above the soft limit, which came later.
    same(&["open=3,7,900", "files=20"])?;
    Ok(())
}

fn descriptors_closed() -> Outcome {
    for closed in ["close=0", "close=1", "close=2", "close=0,2", "close=0,1,2"] {
        let it = same(&[closed])?;
        let count = it.0.keys().filter(|key| key.starts_with("fd ")).count();
        ensure!(
            count == 3 - closed.matches([',', '=']).count(),
            "{closed}: {it:?}"
        );
        same(&["open=5,8", closed])?;
    }
    Ok(())
}

fn surroundings() -> Outcome {
    let it = same(&[
        "umask=027",
        "nice=5",
        "cwd=/usr",
        "files=77",
        "core=unlimited",
    ])?;
    ensure!(it.get("Umask") == "0027" && it.get("nice") == "5", "{it:?}");
    ensure!(it.get("cwd") == "\"/usr\"", "{it:?}");
    // The test's own group and session.
    ensure!(
        it.get("group") == nix::unistd::getpgrp().to_string(),
        "{it:?}"
    );
    Ok(())
}

/// What `cat FILE` of itself says, in each way.
fn each_way(settings: &[&std::ffi::OsStr], command: &[&std::ffi::OsStr]) -> Fallible<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for way in &ways() {
        let tag = Tag::new();
        let mut it = tag.role("odd");
        it.args(settings).arg("--").args(way).args(command);
        let mut child = Reaped(it.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let ended = Witness::of(i32::try_from(child.0.id())?)?.gone();
        ensure!(ended, "{way:?} does not end");
        let mut out = Vec::new();
        child.0.stdout.take().unwrap().read_to_end(&mut out)?;
        ensure!(child.0.wait()?.success(), "{way:?}");
        all.push(out);
    }
    Ok(all)
}

fn arguments() -> Outcome {
    let odd = [
        bytes(b"/bin/cat"),
        bytes(b"/proc/self/cmdline"),
        bytes(b"/dev/null"),
        bytes(b"--"),
    ];
    let expected = b"/bin/cat\0/proc/self/cmdline\0/dev/null\0--\0".to_vec();
    ensure!(each_way(&[], &odd)? == vec![expected; 3], "cat");
    let print = [
        bytes(b"/usr/bin/printf"),
        bytes(b"<%s>"),
        bytes(b""),
        bytes(b"\xff\xfe=\x01"),
        bytes(b""),
        bytes(b"--exec"),
        bytes(b"a b\n"),
        bytes(b"user=nobody"),
        bytes(b""),
    ];
    let expected = b"<><\xff\xfe=\x01><><--exec><a b\n><user=nobody><>".to_vec();
    let got = each_way(&[], &print)?;
    ensure!(got == vec![expected; 3], "{got:?}");
    Ok(())
}

fn environment() -> Outcome {
    let entries: [&[u8]; 10] = [
        b"env=B=2",
        b"env=A=1",
        b"env=A=another",
        b"env=no equals sign",
        b"env==C:=x",
        b"env=",
        b"env=\xff\xfe=\xfd",
        b"env=EMPTY=",
        b"env=LISTEN_PID=1",
        b"env=A=1",
    ];
    let expected: Vec<u8> = entries
        .iter()
        .flat_map(|entry| [&entry[4..], b"\0"].concat())
        .collect();
    let settings = entries.map(bytes);
    let command = [bytes(b"/bin/cat"), bytes(b"/proc/self/environ")];
    for got in each_way(&settings, &command)? {
        ensure!(got == expected, "{:?}", bytes(&got));
    }
    Ok(())
}

/// run-with holds nothing open that somebody waits for the end of.
fn lets_go() -> Outcome {
    for flags in [&[BOUND][..], &["--no-forward", BOUND]] {
        let tag = Tag::new();
        let mut command = tag.run_with();
        command
            .args(flags)
            .args(["sh", "-c", "exec >&- <&-; exec sleep 1000"]);
        let mut child = Reaped(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?,
        );
        let out = child.0.stdout.take().unwrap();
        ensure!(
            readable_within(out.as_fd(), HANG),
            "standard output is held"
        );
        let mut input = child.0.stdin.take().unwrap();
        // Nobody reads it any more: EPIPE, once that is so.
        eventually("standard input is let go", || {
            input.write_all(b"x").is_err()
        })?;
        ensure!(child.0.try_wait()?.is_none(), "run-with has ended");
        tag.await_process("sleep")?;
        ensure!(tag.processes().len() == 3, "{:?}", tag.processes());
        for (pid, name) in tag.processes().iter().filter(|(_, name)| name != "sleep") {
            for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
                let place = fs::read_link(entry.path())?.display().to_string();
                ensure!(
                    place.starts_with("anon_inode:") || entry.file_name() == "2",
                    "{name} holds {place}"
                );
            }
        }
    }
    Ok(())
}

/// A client finds out at once that the server is gone, though run-with still ends it.
fn listener_lets_go() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    let mut command = tag.run_with();
    command.args([BOUND, "sh", "-c", "exec <&-; exec sleep 1000"]);
    let child = Reaped(
        command
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .spawn()?,
    );
    tag.await_process("sleep")?;
    drop(command);
    eventually("the socket is let go", || {
        UnixStream::connect(&path).is_err()
    })?;
    ensure!(
        state(i32::try_from(child.0.id())?) != Some('Z'),
        "run-with has ended"
    );
    Ok(())
}

fn no_new_privileges() -> Outcome {
    let tag = Tag::new();
    let mut command = tag.run_with();
    let _child = Reaped(command.args([BOUND, "sleep", "1000"]).spawn()?);
    let set = |comm: &str| -> Fallible<String> {
        let it = tag.await_process(comm)?;
        Ok(status_field(it.pid, "NoNewPrivs").ok_or("no such field")?)
    };
    ensure!(
        set("sleep")? == "0",
        "the command cannot use set-id programs"
    );
    let run_with = tag.await_process("run-with")?.pid;
    eventually("run-with gives up privileges", || {
        status_field(run_with, "NoNewPrivs").as_deref() == Some("1")
    })?;
    ensure!(set("run-with-guard")? == "1", "the guard");
    Ok(())
}

/// What the command says of a variable, with `pidvar=` or `env=` before run-with, and its own pid.
fn pid_variable(setting: &str, name: &str, way: &[&str]) -> Fallible<(String, String)> {
    let tag = Tag::new();
    let mut command = tag.role("odd");
    command
        .args(["env=PATH=/bin:/usr/bin", setting, "--"])
        .args(way);
    let script = format!("echo $$ ${name}; tr '\\0' '\\n' < /proc/$$/environ | grep ^{name}=");
    let out = command.args(["/bin/sh", "-c", &script]).output()?;
    let text = String::from_utf8(out.stdout)?;
    let (pid, rest) = text.trim().split_once(' ').ok_or(text.clone())?;
    let (value, raw) = rest.split_once('\n').ok_or(text.clone())?;
    ensure!(raw == format!("{name}={value}"), "{text}");
    Ok((pid.to_owned(), value.to_owned()))
}

fn pid_variables() -> Outcome {
    for name in ["LISTEN_PID", "WATCHDOG_PID"] {
        for way in &ways() {
            let (pid, value) = pid_variable(&format!("pidvar={name}"), name, way)?;
            ensure!(
                pid == value,
                "{way:?}: {name}={value}, and the pid is {pid}"
            );
            let (_, value) = pid_variable(&format!("env={name}=1"), name, way)?;
            ensure!(value == "1", "{way:?}: {name}={value}");
        }
    }
    // Not one that only sounds like it.
    let (pid, value) = pid_variable("pidvar=OTHER_PID", "OTHER_PID", &ways()[1])?;
    ensure!(pid != value, "{value}");
    Ok(())
}

fn started_by_systemd() -> Outcome {
    let tag = Tag::new();
    for mode in [
        &[run_with_path(), BOUND][..],
        &[run_with_path(), "--exec", BOUND],
    ] {
        let run = |setting: &str| {
            let mut command = tag.role("odd");
            command
                .args(["env=PATH=/bin:/usr/bin", setting, "--"])
                .args(mode)
                .arg("true");
            command.output()
        };
        let out = run("pidvar=SYSTEMD_EXEC_PID")?;
        let err = String::from_utf8(out.stderr)?;
        ensure!(
            out.status.code() == Some(125) && err.contains("BindsTo="),
            "{mode:?}: {:?}, {err}",
            out.status
        );
        let out = run("env=SYSTEMD_EXEC_PID=1")?;
        ensure!(out.status.success(), "{mode:?}: {out:?}");
    }
    Ok(())
}

/// A real server that takes its listening socket from LISTEN_FDS, and compares LISTEN_PID.
fn socket_activation() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (number, way) in ways().iter().enumerate() {
        let tag = Tag::new();
        let path = dir.path().join(number.to_string());
        let listener = UnixListener::bind(&path)?;
        let mut command = tag.role("odd");
        // From standard input to 3, by a shell, which keeps its pid.
        command.args(["pidvar=LISTEN_PID", "--", "/bin/sh", "-c"]);
        command
            .arg("exec 3<&0 </dev/null; LISTEN_FDS=1 exec \"$@\"")
            .arg("sh")
            .args(way);
        command.args(["nbdkit", "-f", "memory", "1M"]);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
        let _child = Reaped(command.stderr(Stdio::null()).spawn()?);
        drop(command);
        let mut client = UnixStream::connect(&path)?;
        client.set_read_timeout(Some(HANG))?;
        let mut magic = [0; 8];
        client
            .read_exact(&mut magic)
            .map_err(|error| format!("{way:?}: {error}"))?;
        ensure!(&magic == b"NBDMAGIC", "{way:?}: {:?}", bytes(&magic));
    }
    Ok(())
}

/// The counting role under run-with, with what it says.
pub struct Counting {
    pub run_with: Witness,
    pub command: Witness,
    _child: Reaped,
    out: BufReader<ChildStdout>,
}

impl Counting {
    fn start(command: &mut Command) -> Fallible<Self> {
        let mut child = Reaped(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?,
        );
        let out = child.0.stdout.take().unwrap();
        let mut it = Self {
            run_with: Witness::of(i32::try_from(child.0.id())?)?,
            command: Witness::of(i32::try_from(child.0.id())?)?,
            _child: child,
            out: BufReader::new(out),
        };
        let ready = it.line()?;
        let pid = ready.strip_prefix("ready ").ok_or(ready.clone())?;
        it.command = Witness::of(pid.parse()?)?;
        Ok(it)
    }

    fn line(&mut self) -> Fallible<String> {
        let mut line = String::new();
        ensure!(
            !self.out.buffer().is_empty() || readable_within(self.out.get_ref().as_fd(), HANG),
            "the command says nothing"
        );
        self.out.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// What the command has counted up to now: everything before a signal of the highest number, sent
    /// to run-with, which reads lower numbers first.
    fn up_to_now(&mut self) -> Fallible<Vec<i32>> {
        self.run_with.signal(libc::SIGRTMAX());
        self.up_to(libc::SIGRTMAX())
    }

    fn up_to(&mut self, last: i32) -> Fallible<Vec<i32>> {
        let mut seen = Vec::new();
        loop {
            let line = self.line()?;
            let signal: i32 = line.strip_prefix("got ").ok_or(line.clone())?.parse()?;
            if signal == last {
                return Ok(seen);
            }
            seen.push(signal);
        }
    }
}

fn counting(tag: &Tag, flags: &[&str], role: &[&str]) -> Fallible<Counting> {
    let mut command = tag.run_with();
    command
        .args(flags)
        .arg(BOUND)
        .arg("--")
        .arg(std::env::current_exe()?);
    Counting::start(command.arg("--role").args(role).process_group(0))
}

fn forwards_once() -> Outcome {
    let tag = Tag::new();
    let mut it = counting(&tag, &[], &["count"])?;
    let min = libc::SIGRTMIN();
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGWINCH,
        libc::SIGALRM,
        libc::SIGPIPE,
        libc::SIGURG,
        libc::SIGIO,
        32,
        33,
        min,
        min + 5,
    ] {
        it.run_with.signal(signal);
        let seen = it.up_to_now()?;
        ensure!(seen == [signal], "{signal} arrives as {seen:?}");
    }
    // Real-time signals are counted.
    for _ in 0..20 {
        it.run_with.signal(min);
    }
    let seen = it.up_to_now()?;
    ensure!(seen == vec![min; 20], "{seen:?}");
    Ok(())
}

fn no_forward() -> Outcome {
    let tag = Tag::new();
    let mut it = counting(&tag, &["--no-forward"], &["count"])?;
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGRTMIN()] {
        it.run_with.signal(signal);
    }
    // None is left for run-with to read; whatever it did, the command sees this one afterwards.
    eventually("run-with has read its signals", || {
        status_field(it.run_with.pid, "ShdPnd").as_deref() == Some("0000000000000000")
            && state(it.run_with.pid) == Some('S')
    })?;
    it.command.signal(libc::SIGRTMAX());
    let seen = it.up_to(libc::SIGRTMAX())?;
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

/// The command's own signals to run-with, and to the group both are in.
fn no_echo() -> Outcome {
    let tag = Tag::new();
    for signal in [libc::SIGTERM, libc::SIGUSR1, libc::SIGRTMIN()] {
        let number = signal.to_string();
        let mut it = counting(&tag, &[], &["signal", "parent", &number])?;
        let seen = it.up_to_now()?;
        ensure!(seen.is_empty(), "to run-with: {seen:?}");
        let mut it = counting(&tag, &[], &["signal", "group", &number])?;
        let seen = it.up_to_now()?;
        ensure!(seen == [signal], "to the group: {seen:?}");
        // From somebody else it is passed on.
        it.run_with.signal(signal);
        let seen = it.up_to_now()?;
        ensure!(seen == [signal], "{seen:?}");
    }
    Ok(())
}

/// `alarm` before exec: a time limit as scripts set it. The kernel sends it to run-with alone.
fn alarm() -> Outcome {
    for way in &ways() {
        let tag = Tag::new();
        let mut command = tag.role("odd");
        command
            .args(["alarm=300", "--"])
            .args(way)
            .args(["/bin/sleep", "1000"]);
        let mut child = Reaped(command.spawn()?);
        ensure!(
            Witness::of(i32::try_from(child.0.id())?)?.gone(),
            "{way:?} goes on"
        );
        let status = child.0.wait()?;
        ensure!(
            status.signal() == Some(libc::SIGALRM),
            "{way:?}: {status:?}"
        );
        ensure!(
            tag.survivors(HANG).is_empty(),
            "{way:?} leaves {:?}",
            tag.processes()
        );
    }
    Ok(())
}

/// Without a terminal nobody resumes run-with: it must not stop with its command.
fn stop_without_terminal() -> Outcome {
    let tag = Tag::new();
    for signal in [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN] {
        // A session without a terminal; the group is not orphaned, so that SIGTSTP would stop.
        let mut command = tag.role("odd");
        command.args(["session", "--", "/bin/sh", "-c", "\"$@\" & wait", "sh"]);
        let it = std::env::current_exe()?;
        command.arg(it).args(["--role", "odd", "group", "--"]);
        command.args([run_with_path(), BOUND, "/bin/sleep", "1000"]);
        let _child = Reaped(command.stdin(Stdio::null()).spawn()?);
        let sleep = tag.await_process("sleep")?;
        let run_with = tag.await_process("run-with")?;
        sleep.signal(signal);
        eventually("the command stops", || state(sleep.pid) == Some('T'))?;
        eventually("run-with has looked", || {
            status_field(run_with.pid, "ShdPnd").as_deref() == Some("0000000000000000")
                && state(run_with.pid) != Some('R')
        })?;
        ensure!(state(run_with.pid) == Some('S'), "{signal} stops run-with");
        sleep.signal(libc::SIGCONT);
        eventually("the command goes on", || state(sleep.pid) == Some('S'))?;
        sleep.signal(libc::SIGKILL);
        ensure!(run_with.gone(), "run-with stays");
    }
    Ok(())
}
