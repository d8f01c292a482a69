//! A small libguestfs: boots a Linux in QEMU, has it run shell commands, prints their output, ends it in order.
//!
//!     appliance KERNEL INITRD COMMAND...
//!     appliance KERNEL INITRD             (a command is a line of standard input)
//!
//! `tests/appliance/build` makes the two files; what the guest does with the port is `tests/appliance/init`. Whatever
//! becomes of this program, SIGKILL included, QEMU is gone when it is; there are no files that could be left.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fmt, iter};

use captive::launcher::{CaptiveError, ExitReport, SpawnError, Stdio};
use captive::{Captive, Command, Containment};

/// For the boot: seconds without KVM, more on a machine with other work.
const BOOT: Duration = Duration::from_secs(60);
/// For a command and its output.
const ANSWER: Duration = Duration::from_secs(600);
/// For an end in order, and for one by SIGTERM.
const END: Duration = Duration::from_secs(5);
/// A guest may not fill our memory.
const LONGEST: u64 = 64 << 20;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let [kernel, initrd, commands @ ..] = args.as_slice() else {
        say("usage: appliance KERNEL INITRD [COMMAND...]");
        return ExitCode::from(2);
    };
    let done = if commands.is_empty() {
        run(kernel, initrd, io::stdin().lines())
    } else {
        run(kernel, initrd, commands.iter().cloned().map(Ok))
    };
    done.unwrap_or_else(|error| {
        let causes = iter::successors(error.source(), |cause| (*cause).source());
        say(&causes.fold(error.to_string(), |all, cause| format!("{all}: {cause}")));
        ExitCode::FAILURE
    })
}

/// Not `eprintln!`, which panics if nobody reads.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "appliance: {message}");
}

/// The commands in turn, up to the first that fails, whose status is ours.
fn run(
    kernel: &str,
    initrd: &str,
    commands: impl Iterator<Item = io::Result<String>>,
) -> Result<ExitCode, ApplianceError> {
    let mut appliance = Appliance::boot(kernel, initrd)?;
    let mut status = 0;
    for command in commands {
        let command = command.map_err(ApplianceError::Input)?;
        let output;
        (status, output) = appliance.run(&command)?;
        // Nobody reading it is no reason to leave the appliance without its shutdown.
        let _ = io::stdout().write_all(&output);
        if status != 0 {
            say(&format!("{command}: exit status {status}"));
            break;
        }
    }
    appliance.shut_down()?;
    Ok(ExitCode::from(status))
}

/// A guest that runs commands. Dropped, it is killed.
struct Appliance {
    qemu: Captive,
    port: BufReader<Port>,
}

impl Appliance {
    /// Starts QEMU and waits until the guest is ready.
    fn boot(kernel: &str, initrd: &str) -> Result<Self, ApplianceError> {
        let (ours, theirs) = UnixStream::pair().map_err(ApplianceError::Socket)?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            // Slow, and everywhere the same; where KVM works: `-accel kvm -cpu host`.
            .args(["-accel", "tcg", "-m", "256"])
            // A kernel that panics ends QEMU, and so this wait.
            .args(["-no-reboot", "-append", "quiet panic=-1"])
            .args(["-kernel", kernel, "-initrd", initrd])
            .args(["-chardev", "socket,id=port,fd=3"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=port,name=appliance"])
            .descriptor(theirs, 3)
            .stdin(Stdio::Null)
            .stdout(Stdio::Null)
            .containment(Containment::Tree);
        let qemu = command.spawn().map_err(ApplianceError::Launch)?;
        // With our copy of QEMU's end of the socket: when QEMU's is closed, ours is at its end.
        drop(command);
        let port = BufReader::new(Port {
            socket: ours,
            deadline: Instant::now() + BOOT,
        });
        let mut it = Self { qemu, port };
        let line = it.line().map_err(|error| it.failed("the boot", error))?;
        match line.as_str() {
            "READY" => Ok(it),
            _ => Err(ApplianceError::Answer(line)),
        }
    }

    /// Has the guest run a line of shell: its exit status, and what it wrote.
    fn run(&mut self, command: &str) -> Result<(u8, Vec<u8>), ApplianceError> {
        self.send(command)?;
        self.port.get_mut().deadline = Instant::now() + ANSWER;
        let line = self.line().map_err(|error| self.failed(command, error))?;
        let (status, length) = parse(&line).ok_or(ApplianceError::Answer(line))?;
        let mut output = Vec::new();
        let read = (&mut self.port).take(length).read_to_end(&mut output);
        match read {
            Ok(read) if read as u64 == length => Ok((status, output)),
            Ok(_) => Err(self.failed(command, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.failed(command, error)),
        }
    }

    /// The guest switches itself off; if it does not, QEMU gets SIGTERM, then SIGKILL.
    fn shut_down(mut self) -> Result<(), ApplianceError> {
        self.send("poweroff -f")?;
        let ended = self.qemu.wait_timeout(END);
        if ended.map_err(ApplianceError::Captive)?.is_none() {
            self.qemu.terminate(END).map_err(ApplianceError::Captive)?;
        }
        Ok(())
    }

    fn send(&mut self, command: &str) -> Result<(), ApplianceError> {
        if command.contains('\n') {
            return Err(ApplianceError::NotALine(command.to_owned()));
        }
        let line = format!("{command}\n");
        let sent = self.port.get_mut().socket.write_all(line.as_bytes());
        sent.map_err(|error| self.failed(command, error))
    }

    /// The next line without its end.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.port).take(100).read_line(&mut line)?;
        let line = line.strip_suffix('\n').map(str::to_owned);
        line.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// What an error of the port means: mostly that QEMU has ended.
    fn failed(&self, during: &str, error: io::Error) -> ApplianceError {
        let during = during.to_owned();
        match error.kind() {
            io::ErrorKind::WouldBlock => ApplianceError::TooLate(during),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => match self.qemu.wait_timeout(END) {
                Ok(Some(report)) => ApplianceError::Ended(during, report),
                _ => ApplianceError::Port(during, error),
            },
            _ => ApplianceError::Port(during, error),
        }
    }
}

/// `STATUS LENGTH`.
fn parse(line: &str) -> Option<(u8, u64)> {
    let (status, length) = line.split_once(' ')?;
    let length = length.parse().ok().filter(|length| *length <= LONGEST)?;
    Some((status.parse().ok()?, length))
}

/// Our end of the virtio-serial port. A read fails with `WouldBlock` after the deadline.
struct Port {
    socket: UnixStream,
    deadline: Instant,
}

impl Read for Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // None at all would be no limit.
        let left = left.max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left))?;
        self.socket.read(buffer)
    }
}

/// What can go wrong with an appliance.
#[derive(Debug)]
enum ApplianceError {
    Input(io::Error),
    Socket(io::Error),
    Launch(SpawnError),
    Ended(String, ExitReport),
    TooLate(String),
    NotALine(String),
    Port(String, io::Error),
    Answer(String),
    Captive(CaptiveError),
}

impl fmt::Display for ApplianceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(_) => f.write_str("reading a command failed"),
            Self::Socket(_) => f.write_str("making the socket of the port failed"),
            Self::Launch(error) => error.fmt(f),
            Self::Ended(during, report) => {
                write!(f, "QEMU ended during {during}: {}", report.status())
            }
            Self::TooLate(during) => write!(f, "{during} takes too long"),
            Self::NotALine(command) => write!(f, "{command:?} is more than one line"),
            Self::Port(during, _) => write!(f, "the port failed during {during}"),
            Self::Answer(line) => write!(f, "the guest said {line:?}, which is no answer"),
            Self::Captive(error) => error.fmt(f),
        }
    }
}

impl Error for ApplianceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Input(error) | Self::Socket(error) | Self::Port(_, error) => Some(error),
            Self::Launch(error) => error.source(),
            Self::Captive(error) => error.source(),
            Self::Ended(..) | Self::TooLate(_) | Self::NotALine(_) | Self::Answer(_) => None,
        }
    }
}
