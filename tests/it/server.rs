//! `run-with --server`: a server that is there while the command runs, and with it is gone.
//!
//! ```text
//! test ── launcher ── run-with ──┬── run-with-server ── server (a tree)
//!                                └── command
//! ```

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use libtest_mimic::Trial;

use crate::support::process::{Reaped, await_that, run_with_path, state};
use crate::support::session::Fallible;
use crate::support::{HANG, Need, Outcome, SURVIVES, Tag, Witness, output, test};

const NBD: &[Need] = &[
    Need::Root,
    Need::Program("nbdkit"),
    Need::Program("nbdinfo"),
];
const PYTHON: &[Need] = &[Need::Root, Need::Program("python3")];

pub fn tests() -> Vec<Trial> {
    vec![
        test("server::nbdkit_on_a_socket", NBD, nbdkit_on_a_socket),
        test("server::nbdkit_on_a_port", NBD, nbdkit_on_a_port),
        test("server::by_file", &[Need::Root], by_file),
        test("server::by_line", &[Need::Root], by_line),
        test("server::by_notification", PYTHON, by_notification),
        test("server::of_another", PYTHON, of_another),
        test("server::not_ready", &[Need::Root], not_ready),
        test("server::ends_first", &[Need::Root], ends_first),
        test("server::command_not_found", &[Need::Root], not_found),
        test(
            "server::command_is_killed",
            &[Need::Root],
            command_is_killed,
        ),
        test(
            "server::input_and_session",
            &[Need::Root],
            input_and_session,
        ),
        test("server::deaf", &[Need::Root], deaf),
        test(
            "server::output_that_nobody_reads",
            &[Need::Root],
            unread_output,
        ),
        test(
            "server::output_without_reader",
            &[Need::Root],
            broken_output,
        ),
        test("server::last_words", &[Need::Root], last_words),
        test("server::interrupted", &[Need::Root], interrupted),
        test(
            "server::nothing_left_of_a_failure",
            &[Need::Root, Need::Program("setpriv")],
            no_directory,
        ),
        test("server::command_of_another_user", PYTHON, other_user),
        test("server::run_with_killed", &[Need::Root], || {
            killed("run-with", true)
        }),
        test("server::its_launcher_killed", &[Need::Root], || {
            killed("run-with-server", false)
        }),
        test("server::launcher_killed", &[Need::Root], launcher_killed),
        test("server::killed_while_waiting", &[Need::Root], || {
            ended_while_waiting(libc::SIGKILL)
        }),
        test("server::terminated_while_waiting", &[Need::Root], || {
            ended_while_waiting(libc::SIGTERM)
        }),
        test(
            "server::parent_gone_while_waiting",
            &[Need::Root],
            parent_gone,
        ),
        test("server::usage", &[], usage),
    ]
}

/// A run-with with a place of its own for temporary directories.
struct Place {
    tag: Tag,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Fallible<Self> {
        let directory = tempfile::tempdir()?;
        Ok(Self {
            tag: Tag::new(),
            directory,
        })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn temporary(&self) -> Fallible<PathBuf> {
        let temporary = self.path().join("tmp");
        fs::create_dir_all(&temporary)?;
        Ok(temporary)
    }

    fn command(&self, args: &[&str]) -> Fallible<Command> {
        let mut command = self.tag.run_with();
        command.env("TMPDIR", self.temporary()?).args(args);
        command.current_dir(self.path());
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Fallible<Output> {
        output(&mut self.command(args)?)
    }

    /// One whose output is not read.
    fn start(&self, args: &[&str]) -> Fallible<Reaped> {
        let mut command = self.command(args)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Reaped(command.spawn()?))
    }

    /// Nothing of it is left, neither processes nor directories.
    fn nothing_left(&self) -> Outcome {
        let left = self.tag.survivors(HANG);
        ensure!(left.is_empty(), "left over: {left:?}");
        let temporary = self.path().join("tmp");
        let directories = || -> Vec<PathBuf> {
            let entries = fs::read_dir(&temporary).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        ensure!(directories().is_empty(), "left over: {:?}", directories());
        Ok(())
    }
}

/// It ends with this status, and has said so much.
fn ends_with(done: &Output, status: i32, says: &str) -> Outcome {
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    ensure!(
        done.status.code() == Some(status) && (out.contains(says) || err.contains(says)),
        "{}: {out}{err}",
        done.status
    );
    Ok(())
}

fn nbdkit_on_a_socket() -> Outcome {
    let place = Place::new()?;
    let done = place.run(&[
        "--server",
        "nbdkit -f -U \"$unixsocket\" memory 1G",
        "--uri",
        "nbd+unix:///?socket=$unixsocket",
        "--run",
        "nbdinfo --size \"$uri\" && test -S \"$unixsocket\" && exit 4",
    ])?;
    ends_with(&done, 4, "1073741824\n")?;
    place.nothing_left()
}

fn nbdkit_on_a_port() -> Outcome {
    let place = Place::new()?;
    let done = place.run(&[
        "--server=nbdkit -f -p \"$port\" memory 1M",
        "--ready=tcp",
        "--uri=nbd://localhost:${port}",
        "--",
        "sh",
        "-c",
        "nbdinfo --size \"$uri\"; echo '$port' is $port",
    ])?;
    ends_with(&done, 0, "1048576\n$port is ")?;
    place.nothing_left()
}

/// One that was there before is another's.
fn by_file() -> Outcome {
    let place = Place::new()?;
    let server = "sleep 0.05; echo new > ready; exec sleep 1000";
    for before in [false, true] {
        let file = place.path().join("ready");
        if before {
            fs::write(&file, "old")?;
        }
        let done = place.run(&["--server", server, "--ready=file:ready", "cat", "ready"])?;
        ends_with(&done, 0, "new\n")?;
        fs::remove_file(&file)?;
    }
    place.nothing_left()
}

/// What it writes is passed on, before that line and after.
fn by_line() -> Outcome {
    let place = Place::new()?;
    let server = "echo first; echo 'it is up now'; \
        while ! test -e go; do sleep 0.01; done; echo last; touch done; exec sleep 1000";
    let client = "touch go; while ! test -e done; do sleep 0.01; done";
    let done = place.run(&["--server", server, "--ready=line:is up", "--run", client])?;
    ends_with(&done, 0, "first\nit is up now\n")?;
    ends_with(&done, 0, "last\n")?;
    place.nothing_left()
}

const NOTIFY: &str = "import os, socket, time\n\
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
    s.connect('\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
    s.send(b'STATUS=up\\nREADY=1\\n')\n\
    open('said', 'w')\n\
    time.sleep(1000)";

fn by_notification() -> Outcome {
    let place = Place::new()?;
    fs::write(place.path().join("server.py"), NOTIFY)?;
    let server = "python3 server.py & wait";
    let done = place.run(&["--server", server, "--ready=notify", "echo", "ran"])?;
    ends_with(&done, 0, "ran\n")?;
    place.nothing_left()
}

/// A listener on the port that is not the server's is none of its.
fn of_another() -> Outcome {
    let place = Place::new()?;
    let other = TcpListener::bind("127.0.0.1:0")?;
    let ready = format!("--ready=tcp:{}", other.local_addr()?.port());
    let args = [
        "--server=exec sleep 1000",
        &ready,
        "--ready-timeout=0.3",
        "true",
    ];
    ends_with(&place.run(&args)?, 125, "not of its tree")?;
    place.nothing_left()
}

fn not_ready() -> Outcome {
    let place = Place::new()?;
    let args = [
        "--server=setsid sleep 1000 & exec sleep 1000",
        "--ready=unix",
        "--ready-timeout=0.2",
        "touch",
        "ran",
    ];
    ends_with(&place.run(&args)?, 125, "within 200ms")?;
    ensure!(!place.path().join("ran").exists(), "the command was run");
    place.nothing_left()
}

fn ends_first() -> Outcome {
    let place = Place::new()?;
    let args = ["--server=exit 7", "--ready=notify", "touch", "ran"];
    ends_with(&place.run(&args)?, 125, "exit status 7")?;
    ensure!(!place.path().join("ran").exists(), "the command was run");
    place.nothing_left()
}

/// A server that is ready at once, with a tree.
const SERVER: &str = "setsid sleep 1000 & (setsid sleep 1000 &); touch ready; exec sleep 1000";

fn not_found() -> Outcome {
    let place = Place::new()?;
    let done = place.run(&["--server", SERVER, "--ready=file:ready", "/nowhere/at/all"])?;
    ends_with(&done, 127, "/nowhere")?;
    place.nothing_left()
}

fn command_is_killed() -> Outcome {
    let place = Place::new()?;
    let args = [
        "--server",
        SERVER,
        "--ready=file:ready",
        "--run",
        "kill -TERM $$",
    ];
    let done = place.run(&args)?;
    ensure!(
        done.status.signal() == Some(libc::SIGTERM),
        "{}",
        done.status
    );
    place.nothing_left()
}

/// The terminal's signals and input are the command's.
fn input_and_session() -> Outcome {
    let place = Place::new()?;
    let server = "readlink /proc/self/fd/0; ps -o sid= $$ > session; touch ready; exec sleep 1000";
    let client = "ps -o sid= $$ | cmp - session && echo same";
    let done = place.run(&["--server", server, "--ready=file:ready", "--run", client])?;
    let out = String::from_utf8_lossy(&done.stdout);
    ensure!(
        out.contains("/dev/null\n") && !out.contains("same"),
        "{out}"
    );
    place.nothing_left()
}

/// After the grace, SIGKILL.
fn deaf() -> Outcome {
    let place = Place::new()?;
    let server = "trap '' TERM; touch ready; while :; do sleep 1000; done";
    let done = place.run(&[
        "--server",
        server,
        "--ready=file:ready",
        "--kill-after=0.2",
        "true",
    ])?;
    ends_with(&done, 0, "")?;
    place.nothing_left()
}

/// Output that nobody reads does not hold up the end, as it does not where the server writes it itself.
fn unread_output() -> Outcome {
    let place = Place::new()?;
    let client = "until test -e go; do sleep 0.01; done";
    let args = [
        "--server=echo up; exec yes",
        "--ready=line:up",
        "-k0.2",
        "--run",
        client,
    ];
    let mut run_with = place.start(&args)?;
    let witness = Witness::of(run_with.0.id() as i32)?;
    let output = run_with.0.stdout.as_ref().ok_or("a pipe")?.as_raw_fd();
    // It is full when it takes no more; how much that is depends on the size of each write.
    let mut last = (0, Instant::now());
    await_that("a full pipe", || {
        let mut count: libc::c_int = 0;
        unsafe { libc::ioctl(output, libc::FIONREAD, &raw mut count) };
        if count != last.0 {
            last = (count, Instant::now());
        }
        count > 0 && last.1.elapsed() > SURVIVES
    })?;
    fs::write(place.path().join("go"), "")?;
    // Less than what run-with gives the server's launcher.
    ensure!(witness.gone_within(HANG / 2), "run-with waits for a reader");
    ensure!(run_with.0.wait()?.success(), "not the command's status");
    place.nothing_left()
}

/// A server whose output is read by nobody any more is told so, as if it had written there itself.
fn broken_output() -> Outcome {
    let place = Place::new()?;
    let server = "trap '' PIPE; echo up; while echo more; do :; done 2> /dev/null; \
        touch broken; exec sleep 1000";
    let client = "until test -e broken; do sleep 0.01; done";
    let args = ["--server", server, "--ready=line:up", "--run", client];
    let mut run_with = place.start(&args)?;
    drop(run_with.0.stdout.take());
    let witness = Witness::of(run_with.0.id() as i32)?;
    ensure!(witness.gone(), "the server is held up");
    ensure!(run_with.0.wait()?.success(), "not the command's status");
    place.nothing_left()
}

/// What it writes at its end is passed on, also what is no whole line; and what one that ends at once has written.
fn last_words() -> Outcome {
    let place = Place::new()?;
    let server = "trap 'printf bye; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let done = place.run(&["--server", server, "--ready=line:up", "true"])?;
    ends_with(&done, 0, "up\nbye")?;
    place.nothing_left()
}

/// Without a grace that ends, whoever wants run-with to end still ends it.
fn interrupted() -> Outcome {
    let place = Place::new()?;
    let server = "trap 'touch told' TERM; touch ready; while :; do sleep 0.01; done";
    let args = ["--server", server, "--ready=file:ready", "-k0", "true"];
    let mut run_with = place.start(&args)?;
    let witness = Witness::of(run_with.0.id() as i32)?;
    await_that("the server's SIGTERM", || {
        place.path().join("told").exists()
    })?;
    ensure!(
        !witness.gone_within(SURVIVES),
        "the server has no grace without end"
    );
    witness.signal(libc::SIGTERM);
    ensure!(witness.gone(), "run-with cannot be ended");
    ensure!(run_with.0.wait()?.success(), "not the command's status");
    place.nothing_left()
}

/// Where the directory cannot be given to the command's user: nothing has been started, and nothing is left.
fn no_directory() -> Outcome {
    let place = Place::new()?;
    let mut command = place.tag.command("setpriv");
    command
        .args([
            "--bounding-set=-chown",
            run_with_path(),
            "--server=$unixsocket",
        ])
        .args(["user=65534:65534", "true"])
        .env("TMPDIR", place.temporary()?);
    ends_with(&output(&mut command)?, 125, "run-with-XXXXXX: EPERM")?;
    place.nothing_left()
}

/// The socket's directory is that user's.
fn other_user() -> Outcome {
    let place = Place::new()?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(place.path(), open)?;
    fs::write(
        place.path().join("server.py"),
        "import os, socket, time\n\
         s = socket.socket(socket.AF_UNIX)\n\
         s.bind(os.environ['unixsocket'])\n\
         os.chmod(os.environ['unixsocket'], 0o666)\n\
         s.listen()\n\
         time.sleep(1000)",
    )?;
    let client = "import os, socket\n\
        socket.socket(socket.AF_UNIX).connect(os.environ['unixsocket'])\n\
        print('connected as', os.getuid())";
    let server = "exec python3 server.py # unixsocket";
    let args = ["--server", server, "user=nobody", "python3", "-c", client];
    ends_with(&place.run(&args)?, 0, "connected as 65534")?;
    place.nothing_left()
}

/// A launcher: a shell that waits for run-with, whose server has a tree, and says how it ended.
fn launcher(place: &Place, args: &[&str]) -> Fallible<Reaped> {
    let mut launcher = place.tag.command("sh");
    launcher
        .args([
            "-c",
            "\"$@\"; echo \"status $?\"; exit 0",
            "sh",
            run_with_path(),
        ])
        .args(["exit-with-parent=on", "--server", SERVER])
        .args(args)
        .env("TMPDIR", place.temporary()?)
        .current_dir(place.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Ok(Reaped(launcher.spawn()?))
}

/// One whose server is ready, and whose command runs.
fn scene(place: &Place, args: &[&str]) -> Fallible<(Reaped, [Witness; 3])> {
    let launcher = launcher(place, args)?;
    let run_with = place.tag.await_process("run-with")?;
    let server = place.tag.await_process("run-with-server")?;
    let guard = place.tag.await_process("run-with-guard");
    Ok((launcher, [run_with, server, guard?]))
}

/// `who` is SIGKILLed.
fn killed(who: &str, command_too: bool) -> Outcome {
    let place = Place::new()?;
    let (_launcher, _) = scene(&place, &["--ready=file:ready", "tail", "-f", "/dev/null"])?;
    let command = place.tag.await_process("tail")?;
    let sleeps = || {
        let processes = place.tag.processes();
        processes.iter().filter(|(_, name)| name == "sleep").count()
    };
    await_that("the server's tree", || sleeps() == 3)?;
    place.tag.await_process(who)?.signal(libc::SIGKILL);
    await_that("the end of the server's tree", || sleeps() == 0)?;
    if command_too {
        ensure!(command.gone(), "the command lives on");
        return place.nothing_left();
    }
    ensure!(command.alive(), "the command has ended");
    command.signal(libc::SIGTERM);
    place.nothing_left()
}

fn launcher_killed() -> Outcome {
    let place = Place::new()?;
    let (mut launcher, [run_with, ..]) =
        scene(&place, &["--ready=file:ready", "tail", "-f", "/dev/null"])?;
    place.tag.await_process("tail")?;
    launcher.0.kill()?;
    launcher.0.wait()?;
    ensure!(run_with.gone(), "run-with lives on");
    place.nothing_left()
}

/// One whose server is never ready.
fn waiting(place: &Place) -> Fallible<(Reaped, Witness)> {
    let launcher = launcher(place, &["--ready=notify", "true"])?;
    let run_with = place.tag.await_process("run-with")?;
    await_that("the server", || place.path().join("ready").exists())?;
    Ok((launcher, run_with))
}

fn ended_while_waiting(signal: i32) -> Outcome {
    let place = Place::new()?;
    let (mut launcher, run_with) = waiting(&place)?;
    run_with.signal(signal);
    ensure!(
        run_with.gone(),
        "run-with lives on, in state {:?}",
        state(run_with.pid)
    );
    let mut said = String::new();
    BufReader::new(launcher.0.stdout.take().unwrap()).read_line(&mut said)?;
    ensure!(said == format!("status {}\n", 128 + signal), "{said}");
    place.nothing_left()
}

fn parent_gone() -> Outcome {
    let place = Place::new()?;
    let (mut launcher, run_with) = waiting(&place)?;
    launcher.0.kill()?;
    launcher.0.wait()?;
    ensure!(run_with.gone(), "run-with lives on");
    place.nothing_left()
}

fn usage() -> Outcome {
    let place = Place::new()?;
    for (args, says) in [
        (&["--server=x", "true"][..], "--ready"),
        (&["--ready=unix", "exit-with-parent=on", "true"], "--server"),
        (&["--uri=x", "exit-with-parent=on", "true"], "--server"),
        (&["--server=$unixsocket", "--ready=udp", "true"], "notify"),
        (&["--server=$unixsocket"], "no command"),
        (&["--server=$unixsocket", "--run=x", "true"], "which?"),
        (&["--server=", "true"], "shell"),
        (&["--exec", "--server=$unixsocket", "true"], "--exec"),
        (
            &["--signal=INT", "--server=$unixsocket", "true"],
            "--signal",
        ),
    ] {
        ends_with(&place.run(args)?, 125, says)?;
    }
    Ok(())
}
