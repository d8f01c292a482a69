//! A child that std makes, and reaps: told of by a `pre_exec` hook.
//!
//! The hook's memory is the child's own (std forks), but only the forking thread is there: raw system calls, loads and stores.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::super::{SpawnError, SpawnStep};
use super::child::number_of;
use super::process::Process;
use super::protocol::{ADD, Message};
use super::runtime::Runtime;
use super::spawner::Made;
use crate::sys::linux as sys;

/// What the child does before its exec.
#[derive(Debug)]
struct Hook {
    /// Of no use after the spawn it was made for: std keeps it as long as the command.
    live: AtomicBool,
    launcher: i32,
    guard: Socket,
    report: Socket,
    message: Message,
}

/// A socket by its number, and what it is: a hook of the caller's, which runs before this one, may have put another
/// descriptor there.
#[derive(Debug)]
struct Socket {
    fd: RawFd,
    cookie: u64,
}

/// What the child says to the launcher: that the guard knows it, with its pidfd, or which step failed; and an errno.
type Word = [u8; 5];

fn word(step: u8, errno: i32) -> Word {
    let [a, b, c, d] = errno.to_ne_bytes();
    [step, a, b, c, d]
}

const TOLD: u8 = 0;
const OPEN: u8 = 1;
const TELL: u8 = 2;
const PARENT: u8 = 3;

/// Descriptors from here on are rarely the target of anybody's dup2.
const OUT_OF_THE_WAY: RawFd = 400;

/// How long after the spawn the child's word may take; it is there before std's own.
const PATIENCE: Duration = Duration::from_secs(1);

impl Socket {
    fn of(fd: &OwnedFd) -> Result<Self, Errno> {
        let fd = fd.as_raw_fd();
        let cookie = sys::socket_cookie(fd)?;
        Ok(Self { fd, cookie })
    }

    /// Its number, if it is still what it was.
    fn number(&self) -> Result<RawFd, Errno> {
        if sys::socket_cookie(self.fd)? == self.cookie {
            Ok(self.fd)
        } else {
            Err(Errno::EBADF)
        }
    }
}

impl Hook {
    /// In the child.
    fn run(&self) -> io::Result<()> {
        if !self.live.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Err((step, errno)) = self.tell() else {
            return Ok(());
        };
        let errno = number_of(errno);
        let reported = self
            .report
            .number()
            .and_then(|report| sys::send_with_fds(report, &word(step, errno), &[]));
        // Not by way of std, which aborts with a message when its parent is gone.
        if matches!(reported, Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET)) {
            sys::exit_group(127);
        }
        Err(io::Error::from_raw_os_error(errno))
    }

    fn tell(&self) -> Result<(), (u8, Errno)> {
        let at = |step: u8| move |errno: Errno| (step, errno);
        // Closed by the exec.
        let own = sys::pidfd_open(sys::getpid()).map_err(at(OPEN))?;
        let own = std::mem::ManuallyDrop::new(own);
        let own = [own.as_raw_fd()];
        let guard = self.guard.number().map_err(at(TELL))?;
        sys::send_with_fds(guard, self.message.as_bytes(), &own).map_err(at(TELL))?;
        // After the word: a guard acts on the launcher's end only when it has read what was sent before, and who sees its
        // parent now has sent before.
        if sys::getppid() != self.launcher {
            return Err((PARENT, Errno::ESRCH));
        }
        let report = self.report.number().map_err(at(TELL))?;
        sys::send_with_fds(report, &word(TOLD, 0), &own).map_err(at(TELL))
    }
}

/// Ends a hook's use, however the spawn ends.
struct Live(Arc<Hook>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.store(false, Ordering::Relaxed);
    }
}

pub(in super::super) fn spawn_std(command: &mut Command) -> Result<Child, SpawnError> {
    if !super::is_supported() {
        return Err(SpawnError::Unsupported(super::NO_WAIT));
    }
    let runtime = Runtime::of_this_process();
    let program = command.get_program().to_owned();
    let failed = |step: SpawnStep, errno: io::Error| SpawnError::Step {
        program: program.clone(),
        step,
        errno,
    };
    runtime
        .reaper()
        .start(runtime)
        .map_err(|errno| failed(SpawnStep::StartThread, errno.into()))?;
    runtime.with_guard(&program, |line| {
        let (child, process) = spawn_with(command, runtime, &line.socket())
            .map_err(|(step, errno)| failed(step, errno))?;
        let process = Arc::new(process);
        runtime.guard().note(&process, line.generation());
        runtime.reaper().take(process);
        Ok(child)
    })
}

/// The child, and what the launcher notes of it.
fn spawn_with(
    command: &mut Command,
    runtime: &Runtime,
    guard: &OwnedFd,
) -> Result<(Child, Process), (SpawnStep, io::Error)> {
    let at = |step: SpawnStep| move |errno: Errno| (step, io::Error::from(errno));
    let (ours, low) = sys::message_sockets().map_err(at(SpawnStep::StdReport))?;
    let theirs = away(&low).map_err(at(SpawnStep::StdReport))?;
    drop(low);
    let guard = away(guard).map_err(at(SpawnStep::TellGuard))?;
    let message = Message {
        id: runtime.next_id(),
        grace: -1,
        kind: ADD,
        signal: libc::SIGKILL,
        ..Message::default()
    };
    let live = Live(Arc::new(Hook {
        live: AtomicBool::new(true),
        launcher: sys::getpid(),
        guard: Socket::of(&guard).map_err(at(SpawnStep::TellGuard))?,
        report: Socket::of(&theirs).map_err(at(SpawnStep::StdReport))?,
        message,
    }));
    let hook = Arc::clone(&live.0);
    // SAFETY: `run` makes raw system calls, loads and stores only: no allocation, no lock, no destructor with an effect,
    // nothing that another thread of the launcher could have been in the middle of. The descriptors it names are open in
    // the child, since they are here until the spawn has returned; after that it does nothing.
    #[expect(unsafe_code, reason = "std has no other way into its child")]
    unsafe {
        command.pre_exec(move || hook.run());
    }
    let spawned = command.spawn();
    drop(live);
    drop(theirs);
    // A failure's word is there already, and so is that of a child that runs.
    let patience = if spawned.is_ok() {
        PATIENCE
    } else {
        Duration::ZERO
    };
    let word = receive(&ours, patience);
    // Its number may be the last that there is.
    drop(ours);
    let (step, errno) = match (spawned, word) {
        (Ok(mut child), Some(([TOLD, ..], pidfd))) => {
            // Without a place for the descriptor none has come (unix(7), MSG_CTRUNC).
            match pidfd.map_or_else(|| open(&mut child), Ok) {
                Ok(pidfd) => {
                    let pid = i32::try_from(child.id()).unwrap_or(0);
                    let process = Process::of_another(Made { pid, pidfd }, message);
                    return Ok((child, process));
                }
                Err(errno) => {
                    end(&mut child);
                    (SpawnStep::OpenPidfd, errno)
                }
            }
        }
        (Err(errno), Some(([TOLD, ..], _)) | None) => (SpawnStep::StdSpawn, errno),
        (spawned, word) => {
            // It has executed nothing: it has said so, or was killed on its way, or neither std nor we can hear it.
            if let Ok(mut child) = spawned {
                end(&mut child);
            }
            let ([step, errno @ ..], _) = word.unwrap_or(([TOLD; 5], None));
            let step = match step {
                OPEN => SpawnStep::OpenPidfd,
                TELL => SpawnStep::TellGuard,
                PARENT => SpawnStep::LookAtParent,
                _ => return Err(at(SpawnStep::StdSpawn)(Errno::ECANCELED)),
            };
            let errno = i32::from_ne_bytes(errno);
            (step, io::Error::from_raw_os_error(errno))
        }
    };
    Err((step, errno))
}

/// Its pidfd, by its number: its own as long as nobody has reaped it.
fn open(child: &mut Child) -> io::Result<OwnedFd> {
    let pidfd = sys::pidfd_open(i32::try_from(child.id()).unwrap_or(0))?;
    // ECHILD where it has been reaped, by whomever: then the number may have become another's before.
    child.try_wait()?;
    Ok(pidfd)
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// A copy under a number that hardly anybody wants.
fn away(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    let copy = match sys::dup_at_least(fd.as_raw_fd(), OUT_OF_THE_WAY) {
        // Beyond the limit.
        Err(Errno::EINVAL | Errno::EMFILE) => sys::dup_at_least(fd.as_raw_fd(), 3),
        answer => answer,
    };
    copy.map(sys::adopt)
}

/// The last word of the child: one that has failed may have said before that it had not.
fn receive(socket: &OwnedFd, patience: Duration) -> Option<(Word, Option<OwnedFd>)> {
    let mut last = None;
    let mut patience = patience;
    while sys::poll_within(socket.as_fd(), libc::POLLIN, patience) == Ok(true) {
        let Some(word) = receive_one(socket) else {
            break;
        };
        last = Some(word);
        patience = Duration::ZERO;
    }
    last
}

/// `None` at the end of file.
fn receive_one(socket: &OwnedFd) -> Option<(Word, Option<OwnedFd>)> {
    let mut word = Word::default();
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut buffers = [IoSliceMut::new(&mut word)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received =
        recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut control), flags).ok()?;
    let mut given = None;
    for message in received.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(fds) = message {
            // There is one.
            for fd in fds {
                given = Some(sys::adopt(fd));
            }
        }
    }
    let is_whole = received.bytes == size_of::<Word>();
    is_whole.then_some((word, given))
}
