//! A test harness: twenty nbdkit servers at once, each spoken to, all gone when this program is, however it ends.
//!
//!     nbd_harness
//!
//! Every other server opens its own socket, and is waited for (`Ready::UnixListener`); the rest are given one that
//! listens already (`Command::listen`), and need no waiting. The sockets' directory is removed in the end by a captive
//! too, whose order says that it goes after the servers: so not even SIGKILL leaves it behind.

use std::error::Error;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fmt, iter, thread};

use captive::exit_with_parent::Signal;
use captive::launcher::{CaptiveError, LauncherExit, Ready, ReadyError, SpawnError, Stdio, Stream};
use captive::{Captive, Command, Containment};

const SERVERS: usize = 20;
/// For a start, an answer, an end.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let causes = iter::successors(error.source(), |cause| (*cause).source());
            let text = causes.fold(error.to_string(), |all, cause| format!("{all}: {cause}"));
            let _ = writeln!(io::stderr(), "nbd_harness: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, HarnessError> {
    // Dropped in the opposite order, also after an error: first the servers.
    let directory = Directory::new()?;
    let path = directory.path.as_path();
    let servers: Vec<Captive> = thread::scope(|scope| {
        let starts: Vec<_> = (0..SERVERS)
            .map(|number| scope.spawn(move || start(path, number)))
            .collect();
        let started = starts
            .into_iter()
            .map(|start| start.join().unwrap_or(Err(HarnessError::Panic)));
        started.collect::<Result<_, _>>()
    })?;

    // Here the tests would be.

    for server in &servers {
        server.signal(Signal::TERM)?;
    }
    let mut in_order = 0;
    for server in &servers {
        in_order += usize::from(server.terminate(PATIENCE)?.success());
    }
    Ok(format!(
        "{} servers answered, {in_order} ended in order",
        servers.len()
    ))
}

/// Starts a server with a socket in `directory`, and reads its greeting.
fn start(directory: &Path, number: usize) -> Result<Captive, HarnessError> {
    let socket = directory.join(format!("{number}.sock"));
    let mut command = Command::new("nbdkit");
    command.arg("--foreground").containment(Containment::Tree);
    let opens_its_own = number % 2 == 0;
    if opens_its_own {
        command.arg("--unix").arg(&socket);
        command.ready(Ready::UnixListener(socket.clone()));
    } else {
        let listener = UnixListener::bind(&socket).map_err(|e| HarnessError::Socket(number, e))?;
        command.listen(listener, "unknown");
    }
    let server = command.args(["memory", "1M"]).spawn()?;
    // With our copy of the listening socket: a connection to a server that has ended is refused.
    drop(command);
    if opens_its_own {
        server.wait_ready(PATIENCE)?;
    }
    let greeting = greet(&socket).map_err(|e| HarnessError::Socket(number, e))?;
    if greeting.starts_with(b"NBDMAGIC") {
        Ok(server)
    } else {
        Err(HarnessError::Greeting(number, greeting))
    }
}

/// The client's flags, and the option NBD_OPT_ABORT: a good-bye.
const ABORT: &[u8] = b"\0\0\0\x01IHAVEOPT\0\0\0\x02\0\0\0\0";

/// The first that an NBD server says: two words and its flags.
fn greet(socket: &Path) -> io::Result<[u8; 18]> {
    let mut client = UnixStream::connect(socket)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting)?;
    client.write_all(ABORT)?;
    client.read_to_end(&mut Vec::new())?;
    Ok(greeting)
}

/// A temporary directory that is gone when this program is.
struct Directory {
    path: PathBuf,
    remover: Captive,
}

/// Makes the directory, and removes it on SIGTERM. The trap comes first: there is no moment without it. SIGPIPE is what
/// `echo` gets when this program is gone already.
const REMOVER: &str = r#"
trap 'rm -rf "$directory"; exit' TERM PIPE
directory=$(mktemp -d "${TMPDIR:-/tmp}/nbd_harness.XXXXXX") || exit
echo "$directory"
sleep infinity & wait"#;

impl Directory {
    fn new() -> Result<Self, HarnessError> {
        let remover = Command::new("sh")
            .args(["-c", REMOVER])
            .stdin(Stdio::Null)
            .stdout(Stdio::Piped)
            .ready(Ready::Line(Stream::Stdout, "/nbd_harness.".into()))
            .containment(Containment::Tree)
            // When this program is gone: the servers first, which have the order 0, then SIGTERM.
            .order(1)
            .launcher_exit(LauncherExit::Signal {
                signal: Signal::TERM,
                kill_after: PATIENCE,
            })
            .spawn()?;
        let mut it = Self {
            path: PathBuf::new(),
            remover,
        };
        let line = it.remover.wait_ready(PATIENCE)?.output;
        it.path = OsStr::from_bytes(line.strip_suffix(b"\n").unwrap_or(&line)).into();
        Ok(it)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = self.remover.terminate(PATIENCE);
    }
}

/// What can go wrong with the servers.
#[derive(Debug)]
enum HarnessError {
    Launch(SpawnError),
    Ready(ReadyError),
    Captive(CaptiveError),
    Socket(usize, io::Error),
    Greeting(usize, [u8; 18]),
    Panic,
}

impl fmt::Display for HarnessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch(error) => error.fmt(f),
            Self::Ready(error) => error.fmt(f),
            Self::Captive(error) => error.fmt(f),
            Self::Socket(number, _) => write!(f, "the socket of server {number} failed"),
            Self::Greeting(number, bytes) => {
                write!(f, "server {number} said {}", bytes.escape_ascii())
            }
            Self::Panic => f.write_str("a thread panicked"),
        }
    }
}

impl Error for HarnessError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Launch(error) => error.source(),
            Self::Ready(error) => error.source(),
            Self::Captive(error) => error.source(),
            Self::Socket(_, error) => Some(error),
            Self::Greeting(..) | Self::Panic => None,
        }
    }
}

impl From<SpawnError> for HarnessError {
    fn from(error: SpawnError) -> Self {
        Self::Launch(error)
    }
}

impl From<ReadyError> for HarnessError {
    fn from(error: ReadyError) -> Self {
        Self::Ready(error)
    }
}

impl From<CaptiveError> for HarnessError {
    fn from(error: CaptiveError) -> Self {
        Self::Captive(error)
    }
}
