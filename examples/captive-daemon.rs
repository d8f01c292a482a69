//! A small captive daemon: a server on a Unix socket that answers `PING` with `PONG` and its uid.
//!
//!     captive-daemon --exit-with-parent /run/ping.sock
//!     captive-daemon --run-with exit-with-parent=on,user=nobody,chroot=/srv/ping /srv/ping/sock
//!
//! The order in `serve` is the point of the example; `docs/daemons.md` gives the reasons.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use captive::clap::RunWithArgs;
use captive::run_with::Step;
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Answers PING on a Unix socket.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run_with: RunWithArgs,
    /// The socket, which must not exist yet
    socket: PathBuf,
}

fn main() -> ExitCode {
    match serve(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = std::iter::successors(error.source(), |cause| (*cause).source());
            say(&causes.fold(error.to_string(), |all, cause| format!("{all}: {cause}")));
            ExitCode::FAILURE
        }
    }
}

/// Not `eprintln!`, which panics if nobody reads: the reader may have been the parent.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "captive-daemon: {message}");
}

fn serve(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let options = cli.run_with.options();

    // 1. Signals: from here on SIGTERM, the parent's exit included, is an orderly end.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;

    // 2. Names, directories and the parent, while we may look; nothing changes yet.
    let prepared = options.prepare()?;

    // 3. What needs privileges or the old root. A socket that is there already is an error.
    let listener = UnixListener::bind(&cli.socket)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", cli.socket.display())))?;
    let outside = cli.socket.canonicalize()?;
    let inside = match options.get_chroot() {
        Some(root) => path_inside(&outside, root)?,
        None => Some(outside.clone()),
    };

    // 4. The new root and user. After an error here we end; the socket goes if it can be named.
    let _applied = prepared.apply().inspect_err(|error| {
        let moved = error.done().iter().any(|s| matches!(s, Step::Chroot(_)));
        remove(if moved {
            inside.as_deref()
        } else {
            Some(&outside)
        });
    })?;

    // 5. The work. An answer holds `answering` for reading; the end takes it for writing.
    let answering = Arc::new(RwLock::new(()));
    let held = Arc::clone(&answering);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let held = Arc::clone(&held);
            thread::spawn(move || answer(&client, &held));
        }
    });
    // Nobody reading this is no reason to stop.
    let _ = writeln!(io::stdout(), "ready");

    // 6. The end: answers that have begun are finished, no other begins.
    signals.forever().next();
    let _last = answering.write().unwrap_or_else(PoisonError::into_inner);
    remove(inside.as_deref());
    Ok(())
}

/// What a path is called once `root` is the root; none if it is not below it.
fn path_inside(path: &Path, root: &Path) -> io::Result<Option<PathBuf>> {
    let below = path.strip_prefix(root.canonicalize()?).ok();
    Ok(below.map(|rest| Path::new("/").join(rest)))
}

/// Removes the socket, or says that it stays: outside the new root, or in a directory where our
/// new user may not write.
fn remove(socket: Option<&Path>) {
    match socket.map(fs::remove_file) {
        Some(Ok(())) => {}
        Some(Err(error)) => say(&format!("the socket stays: {error}")),
        None => say("the socket stays: it is outside our root"),
    }
}

/// Serves one client, a line at a time.
fn answer(mut client: &UnixStream, answering: &RwLock<()>) -> io::Result<()> {
    // A client that does not read must not keep us from ending for ever.
    client.set_write_timeout(Some(Duration::from_secs(3)))?;
    for line in BufReader::new(client).lines() {
        let line = line?;
        let _answering = answering.read().unwrap_or_else(PoisonError::into_inner);
        let reply = match line.trim_end() {
            "PING" => format!("PONG {}\n", nix::unistd::geteuid()),
            other => format!("ERROR {other:?} is not PING\n"),
        };
        client.write_all(reply.as_bytes())?;
    }
    Ok(())
}
