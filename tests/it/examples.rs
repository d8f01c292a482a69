//! The examples as a stranger would start them: they do what their pages say.
//!
//! ```text
//! test ── launcher (role; SIGKILLed by the test)
//!           └─ captive-daemon | channel (on the launcher's standard streams, which the test reads)
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::support::needs::example;
use crate::support::process::{Reaped, readable_within};
use crate::support::{HANG, Need, Outcome, Tag, Witness, test};

mod adopted;
mod appliance;
mod nbd_harness;
#[cfg(feature = "qemu")]
mod vm_manager;

pub use adopted::role as adopter;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const DAEMON: &str = "captive-daemon";
const NEEDS: &[Need] = &[Need::Example(DAEMON)];
const NEEDS_ROOT: &[Need] = &[Need::Example(DAEMON), Need::Root];

/// How long something that is not to happen is given to happen.
const A_WHILE: Duration = Duration::from_secs(1);

pub fn tests() -> Vec<Trial> {
    let mut trials = appliance::tests();
    trials.extend(nbd_harness::tests());
    #[cfg(feature = "qemu")]
    trials.extend(vm_manager::tests());
    trials.extend([
        test(
            "examples::daemon_ends_with_its_parent",
            NEEDS,
            with_the_flag,
        ),
        test("examples::daemon_without_the_flag_lives", NEEDS, without),
        test(
            "examples::daemon_as_nobody_in_a_root",
            NEEDS_ROOT,
            as_nobody,
        ),
        test(
            "examples::daemon_socket_outside_its_root",
            NEEDS_ROOT,
            outside,
        ),
        test("examples::daemon_finishes_its_answer", NEEDS, finishes),
        test(
            "examples::daemon_ends_despite_silent_clients",
            NEEDS,
            silent,
        ),
        test("examples::daemon_refuses_a_path_taken", NEEDS, path_taken),
        test("examples::daemon_failed_apply", NEEDS_ROOT, failed_apply),
        test("examples::run_with_help", NEEDS, help),
        test("examples::bad_options", NEEDS, bad_options),
        test("examples::channel", &[Need::Example("channel")], channel),
    ]);
    trials
}

/// An example below a launcher.
struct Launched {
    launcher: Reaped,
    example: Witness,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Launched {
    fn new(tag: &Tag, name: &str, args: &[&str]) -> Fallible<Self> {
        let mut child = tag
            .role("examples-launcher")
            .arg(example(name))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let stderr = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let launcher = Reaped(child);
        let example = tag.await_process(name)?;
        Ok(Self {
            launcher,
            example,
            stdout,
            stderr,
        })
    }

    /// A daemon that has said that it serves.
    fn daemon(tag: &Tag, args: &[&str], socket: &Path) -> Fallible<Self> {
        let args: Vec<&str> = args.iter().copied().chain(socket.to_str()).collect();
        let mut it = Self::new(tag, DAEMON, &args)?;
        let mut line = String::new();
        it.stdout.read_line(&mut line)?;
        if line != "ready\n" {
            it.stderr.read_to_string(&mut line)?;
            return Err(format!("not ready: {line}").into());
        }
        Ok(it)
    }

    fn kill_launcher(&mut self) -> Outcome {
        self.launcher.0.kill()?;
        self.launcher.0.wait()?;
        Ok(())
    }
}

/// A client of the daemon.
struct Client(BufReader<UnixStream>);

impl Client {
    fn new(socket: &Path) -> Fallible<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(HANG))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, question: &str) -> Fallible<String> {
        self.0.get_mut().write_all(question.as_bytes())?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        Ok(answer)
    }

    fn ping(socket: &Path) -> Fallible<String> {
        Self::new(socket)?.ask("PING\n")
    }
}

fn socket() -> Fallible<(TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().canonicalize()?.join("sock");
    Ok((dir, path))
}

fn pong(uid: u32) -> String {
    format!("PONG {uid}\n")
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn with_the_flag() -> Outcome {
    let tag = Tag::new();
    let (_dir, socket) = socket()?;
    let mut it = Launched::daemon(&tag, &["--exit-with-parent"], &socket)?;
    let answer = Client::ping(&socket)?;
    ensure!(answer == pong(own_uid()), "{answer:?}");
    ensure!(it.example.alive(), "it ended while its parent lived");
    it.kill_launcher()?;
    ensure!(it.example.gone(), "it outlived its parent");
    ensure!(!socket.exists(), "it left its socket: no orderly end");
    Ok(())
}

fn without() -> Outcome {
    let tag = Tag::new();
    let (_dir, socket) = socket()?;
    let mut it = Launched::daemon(&tag, &[], &socket)?;
    it.kill_launcher()?;
    ensure!(!it.example.gone_within(A_WHILE), "it ended with its parent");
    let answer = Client::ping(&socket)?;
    ensure!(answer == pong(own_uid()), "{answer:?}");
    it.example.signal(libc::SIGTERM);
    ensure!(it.example.gone(), "SIGTERM does not end it");
    ensure!(!socket.exists(), "it left its socket");
    Ok(())
}

fn as_nobody() -> Outcome {
    let tag = Tag::new();
    let (dir, socket) = socket()?;
    chown(dir.path(), Some(65534), Some(65534))?;
    let root = socket.parent().ok_or("no parent")?;
    let options = format!(
        "exit-with-parent=on,user=nobody,chroot={}",
        root.to_str().ok_or("not UTF-8")?
    );
    let mut it = Launched::daemon(&tag, &["--run-with", &options], &socket)?;
    let answer = Client::ping(&socket)?;
    ensure!(answer == pong(65534), "{answer:?}");
    let its_root = fs::read_link(format!("/proc/{}/root", it.example.pid))?;
    ensure!(its_root == root, "its root is {its_root:?}");
    it.kill_launcher()?;
    ensure!(it.example.gone(), "it outlived its parent");
    ensure!(!socket.exists(), "it left its socket: no orderly end");
    Ok(())
}

/// The daemon as a direct child, which a signal ends.
struct Direct {
    child: Child,
    witness: Witness,
    _tag: Tag,
}

impl Direct {
    fn daemon(args: &[&str], socket: &Path) -> Fallible<Self> {
        let tag = Tag::new();
        let mut command = tag.command(example(DAEMON).to_str().ok_or("not UTF-8")?);
        command.args(args).arg(socket);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let witness = Witness::of(i32::try_from(child.id())?)?;
        let stdout = child.stdout.as_mut().ok_or("no stdout")?;
        stdout.read_exact(&mut [0; "ready\n".len()])?;
        Ok(Self {
            child,
            witness,
            _tag: tag,
        })
    }

    fn sigterm(&self) {
        self.witness.signal(libc::SIGTERM);
    }

    /// Its status and what it said.
    fn end(self) -> Fallible<Output> {
        if !self.witness.gone() {
            return Err("SIGTERM does not end it".into());
        }
        Ok(self.child.wait_with_output()?)
    }
}

/// A line that is no question, whose answer is longer than a socket's buffer: it is begun while the
/// client does not read.
fn begin_long_answer(socket: &Path) -> Fallible<Client> {
    let client = Client::new(socket)?;
    let mut question = vec![b'x'; LONG];
    question.push(b'\n');
    (&mut client.0.get_ref()).write_all(&question)?;
    if !readable_within(client.0.get_ref().as_fd(), HANG) {
        return Err("no answer".into());
    }
    Ok(client)
}

const LONG: usize = 4 << 20;

fn finishes() -> Outcome {
    let (_dir, socket) = socket()?;
    let it = Direct::daemon(&[], &socket)?;
    let mut client = begin_long_answer(&socket)?;
    it.sigterm();
    let waits = !it.witness.gone_within(Duration::from_millis(200));
    ensure!(waits, "it ended in the middle of an answer");
    let mut answer = String::new();
    client.0.read_to_string(&mut answer)?;
    ensure!(answer.len() > LONG, "{} bytes", answer.len());
    ensure!(answer.ends_with("is not PING\n"), "cut short");
    let output = it.end()?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    ensure!(output.stderr.is_empty(), "{output:?}");
    ensure!(!socket.exists(), "it left its socket");
    Ok(())
}

fn silent() -> Outcome {
    let (_dir, socket) = socket()?;
    let it = Direct::daemon(&[], &socket)?;
    let mut half = Client::new(&socket)?;
    half.0.get_mut().write_all(b"PI")?;
    let _silent = begin_long_answer(&socket)?;
    it.sigterm();
    let output = it.end()?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    ensure!(!socket.exists(), "it left its socket");
    Ok(())
}

fn outside() -> Outcome {
    // Also with nobody to read that the socket stays.
    for read in [true, false] {
        let (_dir, socket) = socket()?;
        let root = tempfile::tempdir()?;
        let options = format!("--run-with=chroot={}", root.path().display());
        let mut it = Direct::daemon(&[&options], &socket)?;
        if !read {
            drop(it.child.stderr.take());
        }
        it.sigterm();
        let output = it.end()?;
        ensure!(output.status.code() == Some(0), "{read}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("outside our root") == read, "{read}: {said}");
        ensure!(socket.exists(), "removed from inside the new root?");
    }
    Ok(())
}

/// A run that ends by itself.
fn run(args: &[&str]) -> Fallible<Output> {
    let mut command = Command::new(example(DAEMON));
    Ok(command.args(args).stdin(Stdio::null()).output()?)
}

fn path_taken() -> Outcome {
    let (_dir, socket) = socket()?;
    fs::write(&socket, "precious")?;
    let path = socket.to_str().ok_or("not UTF-8")?;
    let output = run(&[path])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains(path), "{said}");
    ensure!(fs::read(&socket)? == b"precious", "the file changed");
    Ok(())
}

/// Without CAP_SYS_CHROOT the first step fails: the error names it, and the socket is gone again.
fn failed_apply() -> Outcome {
    let (dir, socket) = socket()?;
    chown(dir.path(), Some(65534), Some(65534))?;
    let program = dir.path().join(DAEMON);
    fs::copy(example(DAEMON), &program)?;
    let options = format!("--run-with=chroot={}", dir.path().display());
    let mut command = Command::new(program);
    command.arg(options).arg(&socket).uid(65534).gid(65534);
    let output = command.output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        said.contains("chroot to") && said.contains("not permitted"),
        "{said}"
    );
    ensure!(!socket.exists(), "it left its socket");
    Ok(())
}

fn help() -> Outcome {
    for given in ["help", "user=nobody,?"] {
        let output = run(&["--run-with", given, "/nonexistent/sock"])?;
        ensure!(output.status.code() == Some(0), "{output:?}");
        ensure!(output.stderr.is_empty(), "{output:?}");
        let said = String::from_utf8(output.stdout)?;
        for key in captive::run_with::KEYS {
            let usage = format!("\n  {}={}", key.name, key.takes);
            ensure!(said.contains(&usage), "no {usage} in {said}");
        }
    }
    let said = String::from_utf8(run(&["--help"])?.stdout)?;
    for flag in ["--exit-with-parent", "--run-with <OPTIONS>"] {
        ensure!(said.contains(flag), "no {flag} in {said}");
    }
    Ok(())
}

fn bad_options() -> Outcome {
    for (given, parts) in [
        ("user=nobody,chrot=/", ["\"chrot\"", "at byte 12"]),
        (
            "exit-with-parent=maybe",
            ["exit-with-parent expects", "at byte 17"],
        ),
        ("chroot", ["chroot needs a value", "at byte 0"]),
    ] {
        let (_dir, socket) = socket()?;
        let path = socket.to_str().ok_or("not UTF-8")?;
        let output = run(&["--run-with", given, path])?;
        ensure!(output.status.code() == Some(2), "{given}: {output:?}");
        let said = String::from_utf8(output.stderr)?;
        for part in parts.into_iter().chain(["--run-with <OPTIONS>"]) {
            ensure!(said.contains(part), "{given}: no {part} in {said}");
        }
        ensure!(!socket.exists(), "{given}: it made its socket");
    }
    Ok(())
}

fn channel() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::new(&tag, "channel", &[])?;
    let mut line = String::new();
    it.stderr.read_line(&mut line)?;
    ensure!(line.contains("on the parent"), "{line:?}");
    ensure!(
        !it.example.gone_within(A_WHILE),
        "it ended while its parent lived"
    );
    it.kill_launcher()?;
    ensure!(it.example.gone(), "it outlived its parent");
    line.clear();
    it.stderr.read_to_string(&mut line)?;
    ensure!(
        line.contains("flush and leave"),
        "ended, but not told: {line:?}"
    );
    Ok(())
}
