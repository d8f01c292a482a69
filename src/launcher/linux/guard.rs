//! The launcher's side of the guard: starting it, telling it, replacing it.
//!
//! The guard's program is the helper, a static ELF of a few kilobytes that the crate carries and
//! executes from a sealed file in memory: a guard that were a fork of the launcher would cost as much
//! as the launcher has memory, and hold that memory; one that were installed might be missing.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::super::SpawnStep;
use super::super::settings::Given;
use super::process::Process;
use super::protocol::{FORGET, GUARD_LAUNCHER, GUARD_SOCKET, GUARD_WATCHES, Message, ROLE_GUARD};
use super::request::Request;
use super::runtime::Runtime;
use super::spawner::{Made, NotMade};
use crate::sys::linux as sys;

/// The helper, compiled by `build.rs`.
static HELPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/captive-helper"));

/// The file in memory that holds the helper; made once a runtime, so that a forked child which has closed
/// its descriptors makes its own.
#[derive(Debug, Default)]
pub(super) struct Helper(OnceLock<OwnedFd>);

impl Helper {
    pub(super) fn program(&self) -> Result<&OwnedFd, Errno> {
        if let Some(program) = self.0.get() {
            return Ok(program);
        }
        let new = sys::sealed_program(c"captive-helper", HELPER)?;
        Ok(self.0.get_or_init(|| new))
    }
}

/// How long a guard may take to read what waits for it before it counts as dead.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Guard {
    state: Mutex<State>,
    /// Every captive that has not been reaped. Held for no longer than a look; taken while `state` is, never
    /// the other way round.
    captives: Mutex<HashMap<u64, Arc<Process>>>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    /// How many there have been.
    generation: u64,
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
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn captives(&self) -> MutexGuard<'_, HashMap<u64, Arc<Process>>> {
        self.captives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to the guard, which is started if there is none.
    pub(super) fn line(&self, runtime: &'static Runtime) -> Result<Line, Failed> {
        let mut state = self.state();
        if state.current.is_none() {
            self.start(&mut state, runtime)?;
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
        self.captives().insert(process.id(), Arc::clone(process));
        let state = self.state();
        // The one it told has been replaced since, perhaps by one that was told before it was noted. To be
        // told twice is once.
        if state.generation != generation {
            if let Some(current) = &state.current {
                if tell(&current.socket, process).is_err() {
                    // The reaper sees its end, and starts another.
                    current.kill();
                }
            }
        }
    }

    /// Of a captive that has been reaped.
    pub(super) fn forget(&self, id: u64) {
        self.captives().remove(&id);
    }

    /// Lets a captive live on.
    pub(super) fn let_go(
        &self,
        runtime: &'static Runtime,
        process: &Arc<Process>,
    ) -> Result<(), Errno> {
        let mut state = self.state();
        // The next guard is not told of it.
        self.captives().remove(&process.id());
        let message = Message {
            kind: FORGET,
            ..process.message()
        };
        let sent = match &state.current {
            Some(current) => send(&current.socket, &message, &[]),
            None => Ok(()),
        };
        if sent.is_ok() {
            return Ok(());
        }
        // It is dead, or does not listen: the next one knows nothing of this captive.
        self.restart(&mut state, runtime).map_err(|(_, errno)| {
            self.captives().insert(process.id(), Arc::clone(process));
            errno
        })
    }

    /// Puts another in the place of the guard of this generation.
    pub(super) fn replace(&self, runtime: &'static Runtime, generation: u64) -> Result<(), Failed> {
        let mut state = self.state();
        if state.generation == generation || state.current.is_none() {
            self.restart(&mut state, runtime)?;
        }
        Ok(())
    }

    /// The guard to be watched.
    pub(super) fn watched(&self) -> Option<Watched> {
        let state = self.state();
        let current = state.current.as_ref()?;
        Some(Watched {
            pidfd: Arc::clone(&current.pidfd),
            socket: Arc::clone(&current.socket),
            generation: state.generation,
        })
    }

    /// Starts another and tells it of all, and only then ends the old one: where there can be no other, a
    /// poor guard is better than none.
    fn restart(&self, state: &mut State, runtime: &'static Runtime) -> Result<(), Failed> {
        let old = state.current.take();
        match self.start(state, runtime) {
            Ok(()) => {
                if let Some(old) = old {
                    old.end(runtime);
                }
                Ok(())
            }
            Err(failed) => {
                state.current = old;
                Err(failed)
            }
        }
    }

    /// Starts one, and tells it of every captive.
    fn start(&self, state: &mut State, runtime: &'static Runtime) -> Result<(), Failed> {
        let current = launch(runtime)?;
        let all: Vec<_> = self.captives().values().cloned().collect();
        for process in all {
            if let Err(errno) = tell(&current.socket, &process) {
                current.end(runtime);
                return Err((SpawnStep::TellGuard, errno));
            }
        }
        state.generation += 1;
        state.current = Some(current);
        runtime.reaper().look_at_the_guard();
        Ok(())
    }
}

/// What the reaper watches of a guard.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) pidfd: Arc<OwnedFd>,
    /// Hung up by a guard that cannot guard all it should.
    pub(super) socket: Arc<OwnedFd>,
    pub(super) generation: u64,
}

impl Current {
    /// Ends it, and has it reaped.
    fn end(self, runtime: &Runtime) {
        self.kill();
        let pid = self.pid;
        // Without a descriptor of its own for the reaper it is left to whoever waits for any child.
        if let Ok(pidfd) = self.pidfd.try_clone() {
            let process = Process::unguarded(Made { pid, pidfd });
            runtime.reap_in_the_background(Arc::new(process));
        }
    }

    fn kill(&self) {
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }
}

fn of_guard(step: SpawnStep) -> SpawnStep {
    SpawnStep::Guard(Box::new(step))
}

/// Starts a guard's process.
fn launch(runtime: &'static Runtime) -> Result<Current, Failed> {
    let at = |step: SpawnStep| move |errno: Errno| (step, errno);
    let helper = runtime.helper();
    let program = helper.program().map_err(at(SpawnStep::HelperProgram))?;
    let (ours, theirs) = sys::message_sockets().map_err(at(SpawnStep::StartGuard))?;
    let launcher = sys::pidfd_open(sys::getpid()).map_err(at(of_guard(SpawnStep::OpenPidfd)))?;
    // Where a filter refuses it nobody could end a captive: better to say so now.
    sys::pidfd_send_signal(launcher.as_fd(), 0).map_err(at(of_guard(SpawnStep::SignalByPidfd)))?;
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
            NotMade::Step(step, errno) => (of_guard(step), errno),
            NotMade::Stalled(step, _) => (of_guard(step), Errno::ETIMEDOUT),
            NotMade::Late(made, _) => {
                runtime.reap_made(made);
                (of_guard(SpawnStep::Exec), Errno::ETIMEDOUT)
            }
        })?;
    // Of ours there is none: its end is the socket's.
    drop(theirs);
    let watches = await_word(&ours, &pidfd);
    let current = Current {
        socket: Arc::new(ours),
        pidfd: Arc::new(pidfd),
        pid,
    };
    if let Err(errno) = watches {
        current.end(runtime);
        return Err((SpawnStep::StartGuard, errno));
    }
    Ok(current)
}

/// Waits until the guard has said that it watches: one that a filter of system calls stops on its way there would be none,
/// and so would be the next.
fn await_word(socket: &OwnedFd, pidfd: &OwnedFd) -> Result<(), Errno> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let limit = deadline.saturating_duration_since(Instant::now());
        let mut fds = [socket, pidfd].map(|fd| sys::pollfd(fd.as_raw_fd(), libc::POLLIN));
        match sys::poll(&mut fds, Some(limit)) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        }
        let mut word = [0; size_of::<i32>()];
        return match recv(socket.as_raw_fd(), &mut word, MsgFlags::MSG_DONTWAIT) {
            Ok(read) if read == word.len() => match i32::from_ne_bytes(word) {
                GUARD_WATCHES => Ok(()),
                errno => Err(Errno::from_raw(errno)),
            },
            // Killed on its way.
            Ok(_) | Err(Errno::EAGAIN) => Err(Errno::ECANCELED),
            Err(errno) => Err(errno),
        };
    }
}

fn tell(socket: &OwnedFd, process: &Process) -> Result<(), Errno> {
    let mut fds = vec![process.as_fd().as_raw_fd()];
    fds.extend(
        process
            .tree()
            .into_iter()
            .flat_map(|tree| tree.descriptors()),
    );
    send(socket, &process.message(), &fds)
}

/// Sends, and waits for room if there is none, but not for ever.
fn send(socket: &OwnedFd, message: &Message, fds: &[RawFd]) -> Result<(), Errno> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sys::send_with_fds(socket.as_raw_fd(), message.as_bytes(), fds) {
            // A full queue; or as many descriptors under way as the user may have.
            Err(errno @ (Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::EINTR)) => {
                if Instant::now() >= deadline {
                    return Err(errno);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            answer => return answer,
        }
    }
}

impl Line {
    /// Waits until the guard has room for a message, or for a while; false if it has none, or is no more.
    pub(super) fn listens(&self) -> bool {
        let events = libc::POLLOUT;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut fds = [sys::pollfd(self.socket.as_raw_fd(), events)];
            if sys::poll(&mut fds, Some(PATIENCE)) != Err(Errno::EINTR) {
                let [polled] = fds;
                return polled.revents == events;
            }
        }
        false
    }
}
