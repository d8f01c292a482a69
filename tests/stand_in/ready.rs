//! When a captive is ready.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use captive::Command;
use captive::launcher::{Ready, ReadyError, SpawnError, Stdio, Stream};
use libtest_mimic::Trial;

use crate::ensure;
use crate::roles::{Process, sh, trials};
use crate::scene::{HANG, Outcome};

pub fn tests() -> Vec<Trial> {
    trials(PROCESSES)
}

pub const PROCESSES: &[Process] = &[
    ("ready::line", false, line),
    ("ready::file", false, file),
    ("ready::connect", false, connect),
    ("ready::listen", false, listen),
    ("ready::refused", false, refused),
    ("ready::ended_first", false, ended_first),
    ("ready::supervisor_killed", false, supervisor_killed),
];

fn line() -> Outcome {
    let captive = sh("echo before; sleep 0.1; echo now ready; exec sleep 1000")
        .stdout(Stdio::piped())
        .ready(Ready::Line(Stream::Stdout, "ready".to_owned()))
        .spawn()?;
    let readiness = captive.wait_ready(HANG)?;
    ensure!(readiness.output == b"before\nnow ready\n", "{readiness:?}");
    ensure!(
        captive.wait_ready(Duration::ZERO)? == readiness,
        "another answer"
    );
    Ok(())
}

fn file() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("file");
    std::fs::write(&path, "before")?;
    let script = format!("sleep 0.1; echo now >{}; exec sleep 1000", path.display());
    let captive = sh(&script).ready(Ready::File(path)).spawn()?;
    match captive.wait_ready(Duration::ZERO) {
        Err(ReadyError::TimedOut {
            instead: Some(_), ..
        }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    captive.wait_ready(HANG)?;
    Ok(())
}

/// The sockets are the test's: whose they are nobody asks.
fn connect() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let unix = sh("exec sleep 1000")
        .ready(Ready::ConnectUnix(path.clone()))
        .spawn()?;
    ensure!(
        unix.wait_ready(Duration::from_millis(50)).is_err(),
        "there is none"
    );
    let _unix = UnixListener::bind(&path)?;
    unix.wait_ready(HANG)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let tcp = sh("exec sleep 1000")
        .ready(Ready::ConnectTcp(address))
        .spawn()?;
    tcp.wait_ready(HANG)?;
    drop(listener);
    let tcp = sh("exec sleep 1000")
        .ready(Ready::ConnectTcp(address))
        .spawn()?;
    ensure!(
        tcp.wait_ready(Duration::from_millis(50)).is_err(),
        "there is none"
    );
    Ok(())
}

/// sd_listen_fds(3): the number is the captive's own.
fn listen() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "echo $$ $LISTEN_PID $LISTEN_FDS $LISTEN_FDNAMES; readlink /proc/self/fd/3",
    ]);
    command.listen(listener, "web");
    let output = command.output()?;
    let said = String::from_utf8(output.stdout)?;
    let words: Vec<&str> = said.split_whitespace().collect();
    ensure!(words.len() == 5 && words[0] == words[1], "{said}");
    ensure!(
        words[2] == "1" && words[3] == "web" && words[4].starts_with("socket:"),
        "{said}"
    );
    Ok(())
}

fn refused() -> Outcome {
    for ready in [
        Ready::UnixListener("/nonexistent".into()),
        Ready::TcpListener(80),
        Ready::Notify,
    ] {
        match sh("exit 0").ready(ready.clone()).spawn() {
            Err(SpawnError::Invalid { what, .. }) => ensure!(what.contains("Linux"), "{what}"),
            other => return Err(format!("{ready}: {other:?}").into()),
        }
    }
    Ok(())
}

fn ended_first() -> Outcome {
    for ready in [
        Ready::File("/nonexistent/file".into()),
        Ready::Line(Stream::Stdout, "never".to_owned()),
        Ready::ConnectUnix("/nonexistent/socket".into()),
    ] {
        let captive = sh("echo words; exit 6")
            .stdout(Stdio::piped())
            .ready(ready)
            .spawn()?;
        let since = Instant::now();
        match captive.wait_ready(HANG) {
            Err(ReadyError::Ended { report, .. }) => {
                ensure!(report.status().code() == Some(6), "{report:?}");
            }
            other => return Err(format!("{other:?}").into()),
        }
        ensure!(
            since.elapsed() < Duration::from_secs(5),
            "after {:?}",
            since.elapsed()
        );
    }
    Ok(())
}

/// Whoever waits is woken, and told that it has ended.
fn supervisor_killed() -> Outcome {
    let captive = sh("exec sleep 1000")
        .ready(Ready::File("/nonexistent/file".into()))
        .spawn()?;
    let supervisor = crate::processes::parent(captive.id() as i32).ok_or("no supervisor")?;
    crate::processes::kill(supervisor, nix::sys::signal::Signal::SIGKILL)?;
    match captive.wait_ready(HANG) {
        Err(ReadyError::Ended { .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}
