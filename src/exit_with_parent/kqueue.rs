//! macOS, NetBSD, OpenBSD, DragonFly (and FreeBSD, where the kernel's signal is not enough): the
//! parent's exit as a kqueue event, waited for by a thread. **Never run**, see
//! `docs/platforms.md`.
//!
//! - A pid is registered as EVFILT_PROC with NOTE_EXIT, a pipe as EVFILT_READ, whose EV_EOF is the
//!   parent's exit. Arming succeeds only after registration. ESRCH then is the parent's exit.
//! - getppid is read before registration, so that a stranger's pid is never registered, and again
//!   after it: if the parent is still the same, its pid was not reused in between, since a child is
//!   given to another parent before a pid can be free. An exit in progress is not missed either:
//!   NetBSD holds proc_lock from NOTE_EXIT until the children have their new parent, and OpenBSD
//!   takes the pid out of its table (ESRCH) before both (exit1() in their kern_exit.c).
//! - The queue is not inherited by fork (kqueue(2)) and is close-on-exec. In a forked child the
//!   original parent is but a number that may mean anybody, so only a pipe can be armed again there.
//! - A change of our credentials changes nothing: they are looked at when registering. NetBSD and
//!   OpenBSD refuse (EACCES) to watch another user's or a set-id parent unless we are root:
//!   then a pipe is the way.
//! - Where getppid names a tracer as the parent of a traced process, arming takes the tracer for it:
//!   arm before a debugger is attached, or pass a pipe.
//! - The thread has no descriptor table of its own here. A program that closes descriptors it does
//!   not know (closefrom(2)) after arming ends the watch, silently.
//! - Whether this process itself holds the pipe's write end is not looked for.

use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{self as nix_signal, SigSet, SigmaskHow};
use nix::unistd::Pid;

use super::known::{self, pid_of, still_parent};
use super::pipe;
use super::watcher::{self, Wake, Watched};
use super::{
    Action, ArmError, ArmStep, Expected, Known, Limit, Mechanism, ParentExited, Report, Request,
    Scope, Signal,
};
use crate::sys::bsd::Queue;
use crate::sys::event_source::{Event, EventSource, Interest, Key};

/// What the events of a watch are called.
const PARENT: Key = Key(0x7061_7265);
const STOP: Key = Key(0x7374_6f70);

pub(super) fn is_supported() -> bool {
    true
}

/// What was armed, and by which process.
#[derive(Debug)]
pub(super) struct Armed {
    /// The process that armed: in any other (a forked child) this handle is inert.
    pid: u32,
    action: Action,
    /// Never dropped but by `disarm`: in a forked child the queues' numbers may be somebody else's.
    watch: ManuallyDrop<Arc<Watch>>,
}

impl Armed {
    pub(super) fn arm(request: Request) -> Result<Self, ArmError> {
        if !matches!(request.mechanism, None | Some(Mechanism::Kqueue)) {
            return Err(ArmError::Unsupported(request.mechanism));
        }
        if request.second_line {
            return Err(ArmError::Unsupported(Some(Mechanism::ParentDeathSignal)));
        }
        let watch = Watch::start(Parent::find(request.expected)?, request.action.clone())?;
        Ok(Self {
            pid: process::id(),
            action: request.action,
            watch: ManuallyDrop::new(watch),
        })
    }

    pub(super) fn known(&self) -> Known {
        self.watch.parent.known
    }

    pub(super) fn report(&self) -> Report {
        let (signal, kill_after) = match &self.action {
            Action::Signal { signal, kill_after } => (Some(*signal), *kill_after),
            Action::Call(_) => (None, None),
        };
        let mut limits = vec![
            Limit::Stopped,
            // Not on OpenBSD, whose reaper frees the memory later.
            Limit::ParentsMemory,
            Limit::Fork,
            Limit::ParentsExec,
            Limit::Exec,
        ];
        match self.known() {
            Known::Unsaid(_) => limits.push(Limit::AdoptedBefore),
            Known::Descriptor => limits.push(Limit::OtherWriters),
            Known::Expected(_) => {}
        }
        Report {
            mechanism: Mechanism::Kqueue,
            second_line: None,
            scope: Scope::Process,
            parent: self.known(),
            signal,
            kill_after,
            limits,
        }
    }

    pub(super) fn parent_is_alive(&self) -> bool {
        self.is_ours() && !self.watch.is_parent_gone()
    }

    fn is_ours(&self) -> bool {
        self.pid == process::id()
    }

    pub(super) fn rearm(&mut self) -> Result<(), ArmError> {
        if !self.is_ours() {
            let Some(pipe) = &self.watch.parent.pipe else {
                return Err(ArmError::ForkedChild(Mechanism::Kqueue));
            };
            let step = ArmStep::ParentFd(pipe.as_raw_fd());
            let pipe = pipe
                .try_clone()
                .map_err(|errno| ArmError::Os { step, errno })?;
            *self = Self::arm(Request {
                expected: Expected::Fd(pipe),
                mechanism: None,
                second_line: false,
                action: self.action.clone(),
            })?;
        }
        if self.parent_is_alive() {
            Ok(())
        } else {
            Err(self.watch.parent.gone())
        }
    }

    pub(super) fn disarm(self) -> Result<(), ArmError> {
        if !self.is_ours() {
            return Ok(());
        }
        let watch = ManuallyDrop::into_inner(self.watch);
        let step = ArmStep::Wakeup;
        watch
            .stop
            .shutdown(Shutdown::Both)
            .map_err(|errno| ArmError::Os { step, errno })
    }
}

/// Who is watched.
#[derive(Debug)]
struct Parent {
    known: Known,
    /// The read end that the caller gave, in place of a pid.
    pipe: Option<OwnedFd>,
}

impl Parent {
    fn find(expected: Expected) -> Result<Self, ArmError> {
        let (known, pipe) = match expected {
            Expected::Unsaid => (Known::Unsaid(known::unsaid_parent()?), None),
            Expected::Pid(pid) => (Known::Expected(pid), None),
            Expected::Fd(fd) => {
                pipe::check_read_end(fd.as_fd())?;
                let step = ArmStep::ParentFd(fd.as_raw_fd());
                close_on_exec(&fd).map_err(ArmError::os(step))?;
                (Known::Descriptor, Some(fd))
            }
        };
        still_parent(known)?;
        Ok(Self { known, pipe })
    }

    fn gone(&self) -> ArmError {
        match self.known {
            Known::Expected(pid) => ArmError::ParentGone {
                expected: Some(pid),
                found: known::current(),
            },
            Known::Unsaid(_) => ArmError::ParentGone {
                expected: None,
                found: known::current(),
            },
            Known::Descriptor => ArmError::ParentGone {
                expected: None,
                found: None,
            },
        }
    }

    /// A queue on which the parent's exit is an event, once.
    fn queue(&self) -> Result<Queue, ArmError> {
        let (step, exit) = match (self.known, &self.pipe) {
            (_, Some(pipe)) => (
                ArmStep::ParentFd(pipe.as_raw_fd()),
                Interest::Closed(pipe.as_fd()),
            ),
            (known, None) => {
                let pid = pid_of(known).unwrap_or(0);
                let exit = Interest::Exit(i32::try_from(pid).unwrap_or(0));
                (ArmStep::Register(pid), exit)
            }
        };
        let queue = Queue::new().map_err(ArmError::os(step))?;
        match queue.add(PARENT, exit) {
            Err(Errno::ESRCH) => Err(self.gone()),
            registered => registered.map(|()| queue).map_err(ArmError::os(step)),
        }
    }
}

/// Shared by the handle and the thread.
#[derive(Debug)]
struct Watch {
    parent: Parent,
    /// What the thread waits on: the parent, and `stopped`.
    waited: Queue,
    /// What the handle asks. A queue of its own, because an event is taken out by whoever sees it.
    asked: Queue,
    /// Set by whoever has taken the event of the parent's exit.
    seen_gone: AtomicBool,
    /// Shut down to end the watch; a plain close would not do while a forked child has a copy.
    stop: UnixStream,
    stopped: UnixStream,
}

impl Watch {
    fn start(parent: Parent, action: Action) -> Result<Arc<Self>, ArmError> {
        let wakeup = |errno| ArmError::Os {
            step: ArmStep::Wakeup,
            errno,
        };
        let (stop, stopped) = UnixStream::pair().map_err(wakeup)?;
        let watch = Arc::new(Self {
            waited: parent.queue()?,
            asked: parent.queue()?,
            parent,
            seen_gone: AtomicBool::new(false),
            stop,
            stopped,
        });
        let end = Interest::Readable(watch.stopped.as_fd());
        let registered = watch.waited.add(STOP, end);
        registered.map_err(ArmError::os(ArmStep::Wakeup))?;
        // Registered: if the parent is the same now, it was the right one, and will be noticed.
        still_parent(watch.parent.known)?;
        if watch.is_parent_gone() {
            return Err(watch.parent.gone());
        }
        watch.spawn(action)?;
        Ok(watch)
    }

    fn spawn(self: &Arc<Self>, action: Action) -> Result<(), ArmError> {
        let event = ParentExited {
            pid: pid_of(self.parent.known),
        };
        let watch = Arc::clone(self);
        // The thread must never run a handler of the program's: it is born with all signals blocked.
        let before = SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_SETMASK)
            .map_err(ArmError::os(ArmStep::Thread))?;
        let spawned = thread::Builder::new()
            .name("exit-with-parent".to_owned())
            .spawn(move || watcher::run(&*watch, &action, event));
        let restored = before.thread_set_mask();
        spawned.map(drop).map_err(|errno| ArmError::Os {
            step: ArmStep::Thread,
            errno,
        })?;
        restored.map_err(ArmError::os(ArmStep::Thread))
    }

    /// Takes what a queue has to say.
    fn look(&self, queue: &Queue, limit: Option<Duration>) -> Wake {
        let mut events = [Event::NONE; 2];
        // The program has closed the queue: there is nothing left to wait for.
        let Ok(count) = queue.wait(limit, &mut events) else {
            return Wake::Disarmed;
        };
        let mut stopped = false;
        for event in events.iter().take(count) {
            if event.key == PARENT {
                self.seen_gone.store(true, Ordering::Release);
            } else {
                stopped = true;
            }
        }
        if stopped {
            Wake::Disarmed
        } else if self.seen_gone.load(Ordering::Acquire) {
            Wake::ParentExited
        } else {
            Wake::Nothing
        }
    }

    fn is_parent_gone(&self) -> bool {
        self.seen_gone.load(Ordering::Acquire)
            || self.look(&self.asked, Some(Duration::ZERO)) == Wake::ParentExited
    }
}

impl Watched for Watch {
    fn wait(&self, limit: Option<Duration>) -> Wake {
        self.look(&self.waited, limit)
    }

    fn wait_disarmed(&self, limit: Duration) -> Wake {
        // The parent's event was taken out by `wait`: what wakes us is the end of the watch.
        self.look(&self.waited, Some(limit))
    }

    fn signal_self(&self, signal: Signal) {
        // Every signal of these systems that `Signal` can hold has a name.
        if let Ok(named) = nix_signal::Signal::try_from(signal.number()) {
            let _ = nix_signal::kill(Pid::this(), named);
        }
    }
}

fn close_on_exec(fd: impl AsFd) -> Result<(), Errno> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}
