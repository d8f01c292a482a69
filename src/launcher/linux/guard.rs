//! The launcher's side of the guard: starting it, telling it, replacing it.
//!
//! The guard's program is the helper, a static ELF of a few kilobytes that the crate carries and
//! executes from a sealed file in memory: a guard that were a fork of the launcher would cost as much
//! as the launcher has memory, and hold that memory; one that were installed might be missing.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::super::SpawnStep;
use super::process::Process;
use super::protocol::{FORGET, GUARD_LAUNCHER, GUARD_SOCKET, Message, ROLE_GUARD};
use super::request::{Given, Request};
use super::runtime::Runtime;
use super::spawner::{Made, NotMade};
use crate::sys::linux as sys;

/// The helper, compiled by `build.rs`.
static HELPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/captive-helper"));

/// The file in memory that holds the helper; made once, and the same in a forked child.
pub(super) fn helper_program() -> Result<&'static OwnedFd, Errno> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    let new = sys::sealed_program(c"captive-helper", HELPER)?;
    Ok(PROGRAM.get_or_init(|| new))
}

/// How long a guard may take to read what waits for it before it counts as dead.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Guard(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    /// How many there have been.
    generation: u64,
    /// Every captive that has not been reaped.
    captives: HashMap<u64, Arc<Process>>,
}

#[derive(Debug)]
struct Current {
    socket: Arc<OwnedFd>,
    pidfd: Arc<OwnedFd>,
    pid: i32,
}

/// The way to one guard.
#[derive(Debug)]
pub(super) struct Line {
    socket: Arc<OwnedFd>,
    generation: u64,
}

impl Line {
    pub(super) fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }
}

/// Which step failed, and why.
type Failed = (SpawnStep, Errno);

impl Guard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to the guard, which is started if there is none.
    pub(super) fn line(&self, runtime: &'static Runtime) -> Result<Line, Failed> {
        let mut state = self.lock();
        if state.current.is_none() {
            state.start(runtime)?;
        }
        let generation = state.generation;
        match &state.current {
            Some(current) => Ok(Line {
                socket: Arc::clone(&current.socket),
                generation,
            }),
            None => Err((SpawnStep::StartGuard, Errno::ESRCH)),
        }
    }

    /// Notes a captive, which has told the guard of this generation.
    pub(super) fn note(&self, process: &Arc<Process>, generation: u64) {
        let mut state = self.lock();
        state.captives.insert(process.id(), Arc::clone(process));
        // The one it told has been replaced since, by one that was told of those noted before.
        if state.generation != generation {
            if let Some(current) = &state.current {
                if tell(&current.socket, process).is_err() {
                    current.kill();
                }
            }
        }
    }

    /// Of a captive that has been reaped.
    pub(super) fn forget(&self, id: u64) {
        self.lock().captives.remove(&id);
    }

    /// Lets a captive live on.
    pub(super) fn let_go(&self, runtime: &'static Runtime, process: &Process) -> Result<(), Errno> {
        let mut state = self.lock();
        // The next guard is not told of it.
        let noted = state.captives.remove(&process.id());
        let message = Message {
            kind: FORGET,
            ..process.message()
        };
        let sent = match &state.current {
            Some(current) => send(&current.socket, &message, None),
            None => Ok(()),
        };
        match sent {
            Ok(()) => Ok(()),
            // It is dead, or does not listen: the next one knows nothing of this captive.
            Err(_) => state.restart(runtime).map_err(|(_, errno)| {
                if let Some(noted) = noted {
                    state.captives.insert(noted.id(), noted);
                }
                errno
            }),
        }
    }

    /// Puts another in the place of the guard of this generation.
    pub(super) fn replace(&self, runtime: &'static Runtime, generation: u64) -> Result<(), Failed> {
        let mut state = self.lock();
        if state.generation == generation || state.current.is_none() {
            state.restart(runtime)?;
        }
        Ok(())
    }

    /// The guard to be watched: its pidfd and generation.
    pub(super) fn watched(&self) -> Option<(Arc<OwnedFd>, u64)> {
        let state = self.lock();
        let current = state.current.as_ref()?;
        Some((Arc::clone(&current.pidfd), state.generation))
    }
}

impl Current {
    fn kill(&self) {
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }
}

impl State {
    fn restart(&mut self, runtime: &'static Runtime) -> Result<(), Failed> {
        if let Some(old) = self.current.take() {
            old.kill();
            let _ = sys::poll_within(old.pidfd.as_fd(), libc::POLLIN, PATIENCE);
            // One that is traced is left to its tracer.
            sys::reap_ended(old.pidfd.as_fd());
            let _ = old.pid;
        }
        self.start(runtime)
    }

    /// Starts one, and tells it of every captive.
    fn start(&mut self, runtime: &'static Runtime) -> Result<(), Failed> {
        let at = |step: SpawnStep| move |errno: Errno| (step, errno);
        let program = helper_program().map_err(at(SpawnStep::HelperProgram))?;
        let (ours, theirs) = sys::message_sockets().map_err(at(SpawnStep::StartGuard))?;
        let launcher = sys::pidfd_open(sys::getpid()).map_err(at(SpawnStep::StartGuard))?;
        // Where a filter refuses it nobody could end a captive: better to say so now.
        sys::pidfd_send_signal(launcher.as_fd(), 0).map_err(at(SpawnStep::StartGuard))?;
        let null = nix::fcntl::open(
            "/dev/null",
            nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .map_err(at(SpawnStep::OpenStdio))?;
        let give = |fd: &OwnedFd, target: RawFd| Given {
            source: fd.as_raw_fd(),
            target,
        };
        let given = vec![
            give(&null, 0),
            give(&null, 1),
            give(&null, 2),
            give(&theirs, GUARD_SOCKET),
            give(&launcher, GUARD_LAUNCHER),
        ];
        let argv = [b"captive-guard", ROLE_GUARD]
            .into_iter()
            .map(|arg| std::ffi::CString::new(arg).unwrap_or_default())
            .collect();
        // SIGCONT: a guard that somebody has stopped is resumed by the launcher's end.
        let request = Request::helper(program.as_raw_fd(), argv, given, libc::SIGCONT);
        let Made { pid, pidfd } = runtime
            .spawners()
            .make(request, PATIENCE)
            .map_err(|failed| match failed {
                NotMade::Step(_, errno) => (SpawnStep::StartGuard, errno),
                NotMade::Stalled(..) => (SpawnStep::StartGuard, Errno::ETIMEDOUT),
            })?;
        self.generation += 1;
        let current = Current {
            socket: Arc::new(ours),
            pidfd: Arc::new(pidfd),
            pid,
        };
        for process in self.captives.values() {
            if let Err(errno) = tell(&current.socket, process) {
                // The reaper sees its end, and tries again.
                current.kill();
                self.current = Some(current);
                runtime.reaper().look_at_the_guard();
                return Err((SpawnStep::TellGuard, errno));
            }
        }
        self.current = Some(current);
        runtime.reaper().look_at_the_guard();
        Ok(())
    }
}

fn tell(socket: &OwnedFd, process: &Process) -> Result<(), Errno> {
    send(
        socket,
        &process.message(),
        Some(process.as_fd().as_raw_fd()),
    )
}

/// Sends, and waits for room if there is none.
fn send(socket: &OwnedFd, message: &Message, fd: Option<RawFd>) -> Result<(), Errno> {
    loop {
        match sys::send_with_fd(socket.as_raw_fd(), message.as_bytes(), fd) {
            Err(Errno::EAGAIN) => {
                if !sys::poll_within(socket.as_fd(), libc::POLLOUT, PATIENCE)? {
                    return Err(Errno::EAGAIN);
                }
            }
            // As many descriptors under way as RLIMIT_NOFILE allows: until the guard has read some.
            Err(Errno::ETOOMANYREFS) => std::thread::sleep(Duration::from_millis(1)),
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}
