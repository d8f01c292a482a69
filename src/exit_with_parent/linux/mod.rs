//! Linux: a pidfd on the parent and a thread that waits for it; the parent-death signal by name, or
//! where there is no pidfd.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};

use super::known;
use super::watcher::{self, Wake, Watched};
use super::{
    Action, ArmError, ArmStep, Expected, Known, Limit, Mechanism, ParentExited, Report, Request,
    Scope, Signal,
};
use crate::sys::linux as sys;

mod parent;

pub(crate) use parent::Parent;

pub(super) fn is_supported() -> bool {
    true
}

/// What was armed, and by which process.
#[derive(Debug)]
pub(super) struct Armed {
    /// The process that armed: in any other (a forked child) this handle is inert.
    owner: sys::Owner,
    action: Action,
    watch: Option<Watch>,
    signal: Option<KernelSignal>,
}

/// The watcher thread's side of a handle. Its descriptors stay open when the handle is dropped:
/// the watch goes on.
#[derive(Debug)]
struct Watch {
    parent: ManuallyDrop<Parent>,
    stop: ManuallyDrop<OwnedFd>,
    /// The thread's id.
    thread: i32,
    /// Whether the thread has a descriptor table of its own.
    own_table: bool,
    /// Whether the thread watches, and has not seen the parent's end.
    watching: Arc<AtomicBool>,
}

/// The parent-death signal, as it was set.
#[derive(Debug, Clone, Copy)]
struct KernelSignal {
    signal: Signal,
    known: Known,
}

/// Of a parent that was armed, whoever is our parent now.
const PARENT_GONE: ArmError = ArmError::ParentGone {
    expected: None,
    found: None,
};

impl Armed {
    pub(super) fn arm(request: Request) -> Result<Self, ArmError> {
        let Request {
            expected,
            mechanism,
            second_line,
            action,
        } = request;
        let mut armed = Self {
            owner: sys::Owner::this_process(),
            action,
            watch: None,
            signal: None,
        };
        let said = matches!(expected, Expected::Pid(_));
        match mechanism {
            Some(Mechanism::Kqueue) => return Err(ArmError::Unsupported(mechanism)),
            Some(Mechanism::ParentDeathSignal) => {
                let known = match expected {
                    Expected::Fd(_) => {
                        return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
                    }
                    Expected::Pid(pid) => Known::Expected(pid),
                    Expected::Unsaid => Known::Unsaid(known::unsaid_parent()?),
                };
                armed.arm_signal_only(known)?;
            }
            Some(Mechanism::Pidfd) => armed.arm_watch(Parent::open(expected)?)?,
            None => match Parent::open(expected) {
                Ok(parent) => armed.arm_watch(parent)?,
                Err(ArmError::Os {
                    step: ArmStep::OpenPidfd(pid),
                    errno,
                }) if pidfd_is_missing(&errno) => {
                    let known = if said { Known::Expected } else { Known::Unsaid };
                    armed.arm_signal_only(known(pid))?;
                }
                Err(error) => return Err(error),
            },
        }
        if second_line {
            if let Err(error) = armed.arm_second_line() {
                armed.disarm()?;
                return Err(error);
            }
        }
        Ok(armed)
    }

    fn arm_watch(&mut self, parent: Parent) -> Result<(), ArmError> {
        self.watch = Some(Watch::start(parent, self.action.clone())?);
        Ok(())
    }

    fn arm_signal_only(&mut self, known: Known) -> Result<(), ArmError> {
        let Action::Signal {
            signal,
            kill_after: None,
        } = self.action
        else {
            return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
        };
        self.signal = Some(KernelSignal::set(signal, known)?);
        Ok(())
    }

    fn arm_second_line(&mut self) -> Result<(), ArmError> {
        let (Action::Signal { signal, .. }, Some(watch)) = (&self.action, &self.watch) else {
            return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
        };
        self.signal = Some(KernelSignal::set(*signal, watch.parent.known())?);
        Ok(())
    }

    pub(super) fn report(&self) -> Report {
        let (signal, kill_after) = match &self.action {
            Action::Signal { signal, kill_after } => (Some(*signal), *kill_after),
            Action::Call(_) => (None, None),
        };
        let mut limits = vec![Limit::Stopped, Limit::ParentsMemory, Limit::Fork];
        let (mechanism, known) = match (&self.watch, self.signal) {
            (Some(watch), _) => {
                limits.extend([Limit::ParentsExec, Limit::Exec]);
                if watch.parent.is_pipe() {
                    limits.push(Limit::OtherWriters);
                }
                (Mechanism::Pidfd, watch.parent.known())
            }
            (None, Some(set)) => (Mechanism::ParentDeathSignal, set.known),
            // Every way through `arm` sets one of the two.
            (None, None) => (Mechanism::Pidfd, Known::Descriptor),
        };
        if matches!(known, Known::Unsaid(_)) {
            limits.push(Limit::AdoptedBefore);
        }
        if self.signal.is_some() {
            limits.extend([
                Limit::ThreadScope,
                Limit::Credentials,
                Limit::SendersPermission,
            ]);
        }
        let both = self.watch.is_some() && self.signal.is_some();
        Report {
            mechanism,
            second_line: both.then_some(Mechanism::ParentDeathSignal),
            scope: if self.signal.is_some() {
                Scope::Thread
            } else {
                Scope::Process
            },
            parent: known,
            signal,
            kill_after,
            limits,
        }
    }

    pub(super) fn parent_is_alive(&self) -> bool {
        match (&self.watch, self.signal) {
            // The thread watches on; what can be said here is what it has seen and who our parent is.
            (Some(watch), _) if self.is_ours() && watch.is_closed_here() => watch.sees_the_parent(),
            (Some(watch), _) => match watch.parent.has_ended() {
                Ok(ended) => !ended,
                // RLIMIT_NOFILE is 0. In a fork of its process there is no thread that could look.
                Err(_) => self.is_ours() && watch.sees_the_parent(),
            },
            (None, Some(set)) => self.is_ours() && known::still_parent(set.known).is_ok(),
            (None, None) => false,
        }
    }

    fn is_ours(&self) -> bool {
        self.owner.is_this_process()
    }

    pub(super) fn rearm(&mut self) -> Result<(), ArmError> {
        if self.is_ours() {
            if let Some(set) = self.signal {
                self.signal = Some(KernelSignal::set(set.signal, set.known)?);
            }
        } else {
            // The thread's number may mean somebody else here (another PID namespace, or it has ended):
            // who differs from that one is looked at by itself.
            let is_closed = |watch: &&Watch| watch.is_closed_here() && !watch.parent.is_open_here();
            if let Some(watch) = self.watch.as_ref().filter(is_closed) {
                let fd = watch.parent.poll_fd().as_fd().as_raw_fd();
                return Err(ArmError::os(ArmStep::ParentFd(fd))(Errno::EBADF));
            }
            // Looked at first: a watcher would end this process before the error could be read.
            if self.watch.is_some() && !self.parent_is_alive() {
                return Err(PARENT_GONE);
            }
            let Some(watch) = self.watch.take() else {
                return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
            };
            // The wake-up is shared with the process we were forked from: it needs its own. One that
            // nobody can vouch for stays open: the number may be the program's by now.
            let is_certain = !watch.is_closed_here();
            let Watch { parent, stop, .. } = watch;
            if is_certain {
                drop(ManuallyDrop::into_inner(stop));
            }
            self.watch = Some(Watch::start(
                ManuallyDrop::into_inner(parent),
                self.action.clone(),
            )?);
            self.signal = None;
            self.owner = sys::Owner::this_process();
        }
        if self.parent_is_alive() {
            Ok(())
        } else {
            Err(PARENT_GONE)
        }
    }

    pub(super) fn disarm(self) -> Result<(), ArmError> {
        if !self.is_ours() {
            return Ok(());
        }
        if let Some(set) = self.signal {
            let step = ArmStep::ParentDeathSignal(set.signal);
            if sys::gettid() != self.owner.pid() {
                return Err(ArmError::NotMainThread);
            }
            sys::set_parent_death_signal(0).map_err(ArmError::os(step))?;
        }
        self.watch.map_or(Ok(()), Watch::stop)
    }
}

/// Whether pidfd_open does not exist here: ENOSYS before Linux 5.3, and EPERM from seccomp profiles
/// older than the system call (pidfd_open itself never answers EPERM).
fn pidfd_is_missing(errno: &std::io::Error) -> bool {
    matches!(errno.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

impl KernelSignal {
    /// Sets the parent-death signal of the main thread, reads it back, and looks at the parent again:
    /// one that died in between has sent nothing.
    ///
    /// It is a setting of the calling *thread*, and that of a thread which ends is gone.
    fn set(signal: Signal, known: Known) -> Result<Self, ArmError> {
        let step = ArmStep::ParentDeathSignal(signal);
        if sys::gettid() != sys::getpid() {
            return Err(ArmError::NotMainThread);
        }
        sys::set_parent_death_signal(signal.number()).map_err(ArmError::os(step))?;
        let set = sys::parent_death_signal().map_err(ArmError::os(step))?;
        if set != signal.number() {
            return Err(ArmError::os(step)(Errno::EINVAL));
        }
        known::still_parent(known).inspect_err(|_| {
            let _ = sys::set_parent_death_signal(0);
        })?;
        Ok(Self { signal, known })
    }
}

impl Watch {
    fn start(parent: Parent, action: Action) -> Result<Self, ArmError> {
        let stop = sys::eventfd().map_err(ArmError::os(ArmStep::Wakeup))?;
        let watching = Arc::new(AtomicBool::new(true));
        let fds = WatcherFds {
            parent: parent.poll_fd().as_fd().as_raw_fd(),
            // A pidfd is to be asked for its EPOLLIN; a pipe's EPOLLHUP needs no asking.
            events: if parent.is_pipe() { 0 } else { libc::EPOLLIN },
            stop: stop.as_raw_fd(),
        };
        let seen = Arc::clone(&watching);
        let event = ParentExited { pid: parent.pid() };
        let (ready, is_ready) = crossbeam_channel::bounded(1);
        // The thread must never run a handler of the program's: it is born with all signals blocked.
        let mut before = SigSet::empty();
        SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_SETMASK)
            .map(|mask| before = mask)
            .map_err(ArmError::os(ArmStep::Thread))?;
        let spawned = thread::Builder::new()
            .name("exit-with-parent".to_owned())
            .spawn(move || {
                let own_table = fds.leave_the_programs_descriptors();
                match WatcherThread::new(fds, seen) {
                    Ok(thread) => {
                        let _ = ready.send(Ok((sys::gettid(), own_table)));
                        watcher::run(&thread, &action, event);
                    }
                    Err(errno) => {
                        let _ = ready.send(Err(errno));
                    }
                }
            });
        let restored = before.thread_set_mask();
        spawned.map_err(|errno| ArmError::Os {
            step: ArmStep::Thread,
            errno,
        })?;
        restored.map_err(ArmError::os(ArmStep::Thread))?;
        let (thread, own_table) = is_ready
            .recv()
            .unwrap_or(Err(Errno::ESRCH))
            .map_err(ArmError::os(ArmStep::Wakeup))?;
        Ok(Self {
            parent: ManuallyDrop::new(parent),
            stop: ManuallyDrop::new(stop),
            thread,
            own_table,
            watching,
        })
    }

    /// Whether the thread watches and has not seen the parent's end, nor have we.
    fn sees_the_parent(&self) -> bool {
        self.watching.load(Ordering::Acquire) && known::still_parent(self.parent.known()).is_ok()
    }

    /// Whether the program has closed our descriptors (closefrom(3)): their numbers may mean anything
    /// by now. The thread, which has its own, is asked; once it has ended nobody can say.
    fn is_closed_here(&self) -> bool {
        let same = |fd: RawFd| match sys::is_same_file_in(self.thread, fd) {
            Ok(same) => same,
            Err(errno) => errno != Errno::EBADF,
        };
        let parent = self.parent.poll_fd();
        !(same(self.stop.as_raw_fd()) && same(parent.as_fd().as_raw_fd()))
    }

    fn stop(self) -> Result<(), ArmError> {
        if self.is_closed_here() {
            return Err(ArmError::os(ArmStep::Wakeup)(Errno::EBADF));
        }
        sys::eventfd_wake(self.stop.as_fd()).map_err(ArmError::os(ArmStep::Wakeup))?;
        if self.own_table {
            drop(ManuallyDrop::into_inner(self.parent));
            drop(ManuallyDrop::into_inner(self.stop));
        }
        // Else the thread may still be on its way to them: its set and these are the price.
        Ok(())
    }
}

/// What the thread waits for: numbers in its own descriptor table.
#[derive(Debug, Clone, Copy)]
struct WatcherFds {
    parent: RawFd,
    events: i32,
    stop: RawFd,
}

impl WatcherFds {
    /// Gives this thread a descriptor table of its own that holds the two descriptors and nothing
    /// else: the program may close what it likes, and nobody's end of file waits for this thread.
    /// False where the kernel has no close_range (Linux 5.9): the table stays shared.
    fn leave_the_programs_descriptors(self) -> bool {
        let (low, high) = (self.parent.min(self.stop), self.parent.max(self.stop));
        sys::unshare_descriptors_except(low, high).is_ok()
    }
}

/// The thread, with the set it waits on: made by itself, so that it is in its own table.
#[derive(Debug)]
struct WatcherThread {
    stop: RawFd,
    /// Never closed by hand: the thread's end closes its table, and in a shared one the program may
    /// have closed the number and given it another meaning.
    set: ManuallyDrop<OwnedFd>,
    watching: Arc<AtomicBool>,
}

impl WatcherThread {
    fn new(fds: WatcherFds, watching: Arc<AtomicBool>) -> Result<Self, Errno> {
        let set = sys::epoll()?;
        sys::epoll_add(set.as_fd(), fds.stop, libc::EPOLLIN)?;
        // Once: a parent stays gone, and the grace is to be slept through.
        sys::epoll_add(set.as_fd(), fds.parent, fds.events | libc::EPOLLONESHOT)?;
        Ok(Self {
            stop: fds.stop,
            set: ManuallyDrop::new(set),
            watching,
        })
    }
}

impl Watched for WatcherThread {
    fn wait(&self, limit: Option<Duration>) -> Wake {
        let wake = match sys::epoll_wait(self.set.as_fd(), limit) {
            Ok(ready) if ready.contains(&Some(self.stop)) => Wake::Disarmed,
            Ok([None, _]) | Err(Errno::EINTR) => Wake::Nothing,
            Ok(_) => Wake::ParentExited,
            // In a shared table the program has closed the set. Nothing is left to wait for.
            Err(_) => Wake::Disarmed,
        };
        if wake != Wake::Nothing {
            self.watching.store(false, Ordering::Release);
        }
        wake
    }

    fn wait_disarmed(&self, limit: Duration) -> Wake {
        // The parent has been said.
        self.wait(Some(limit))
    }

    fn signal_self(&self, signal: Signal) {
        // The init of a PID namespace drops signals at their default disposition, SIGKILL from
        // inside included (pid_namespaces(7)): what would have ended it ends it by hand. One that
        // the main thread blocks is not dropped: somebody waits for it.
        let number = signal.number();
        if sys::getpid() == 1 && sys::is_at_default(number) && !main_thread_blocks(number) {
            sys::exit_group(128 + number);
        }
        let _ = sys::kill(sys::getpid(), signal.number());
    }
}

/// Whether the main thread blocks the signal: /proc/self/status is that thread's (proc(5)). Without
/// /proc it does not, as far as anybody knows.
fn main_thread_blocks(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let set = blocked
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0);
    set >> (signal - 1) & 1 == 1
}
