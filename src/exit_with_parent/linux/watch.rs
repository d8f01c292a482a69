//! The watch: a thread that waits for the parent's end, and a handle's hold on it.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::Parent;
use crate::exit_with_parent::binding::Binding;
use crate::exit_with_parent::known;
use crate::exit_with_parent::watcher::{self, Process, Refused, Watcher};
use crate::exit_with_parent::{Action, ArmError, ArmStep, ParentExited, Signal};
use crate::sys::event_source::{Event, EventSource, Interest};
use crate::sys::linux as sys;

/// The watcher thread's side of a handle. Its descriptors stay open when the handle is dropped:
/// the watch goes on.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) parent: ManuallyDrop<Parent>,
    stop: ManuallyDrop<OwnedFd>,
    /// The thread's id.
    thread: i32,
    /// Whether the thread has a descriptor table of its own.
    own_table: bool,
    /// What it meets the thread by.
    binding: Arc<Binding>,
}

impl Watch {
    pub(super) fn start(parent: Parent, action: Action) -> Result<Self, ArmError> {
        let stop = sys::eventfd().map_err(ArmError::os(ArmStep::Wakeup))?;
        let binding = Arc::new(Binding::new());
        let fds = WatcherFds {
            parent: parent.poll_fd().as_fd().as_raw_fd(),
            is_pipe: parent.is_pipe(),
            stop: stop.as_raw_fd(),
        };
        let shared = Arc::clone(&binding);
        let event = ParentExited { pid: parent.pid() };
        let (ready, is_ready) = crossbeam_channel::bounded(1);
        watcher::spawn(move || {
            let own_table = fds.leave_the_programs_descriptors();
            match fds.register(shared) {
                Ok(watcher) => {
                    let _ = ready.send(Ok((sys::gettid(), own_table)));
                    watcher.run(&OwnProcess, &action, event);
                }
                Err(errno) => {
                    let _ = ready.send(Err(errno));
                }
            }
        })?;
        let (thread, own_table) = is_ready
            .recv()
            .unwrap_or(Err(Errno::ESRCH))
            .map_err(ArmError::os(ArmStep::Wakeup))?;
        Ok(Self {
            parent: ManuallyDrop::new(parent),
            stop: ManuallyDrop::new(stop),
            thread,
            own_table,
            binding,
        })
    }

    /// Whether the thread watches and has not seen the parent's end, nor have we.
    pub(super) fn sees_the_parent(&self) -> bool {
        self.binding.is_watched() && known::still_parent(self.parent.known()).is_ok()
    }

    /// Whether the program has closed our descriptors (closefrom(3)): their numbers may mean anything
    /// by now. The thread, which has its own, is asked; once it has ended nobody can say.
    pub(super) fn is_closed_here(&self) -> bool {
        let same = |fd: RawFd| match sys::is_same_file_in(self.thread, fd) {
            Ok(same) => same,
            Err(errno) => errno != Errno::EBADF,
        };
        let parent = self.parent.poll_fd();
        !(same(self.stop.as_raw_fd()) && same(parent.as_fd().as_raw_fd()))
    }

    /// In a forked child: whether the parent's descriptor is still ours. The thread's number may mean
    /// somebody else there (another PID namespace), or nobody (its process has ended): only a file
    /// that is the same proves anything, and else the file is looked at by itself.
    pub(super) fn has_parent_in_child(&self) -> bool {
        let fd = self.parent.poll_fd().as_fd().as_raw_fd();
        self.is_vouched_for(fd) || self.parent.is_open_here()
    }

    fn is_vouched_for(&self, fd: RawFd) -> bool {
        sys::is_same_file_in(self.thread, fd) == Ok(true)
    }

    /// In a forked child: the parent, without the thread, which did not come along. The wake-up is
    /// shared with the process we were forked from. One that nobody can vouch for stays open: the
    /// number may be the program's by now.
    pub(super) fn into_parent(self) -> Parent {
        let is_certain = self.is_vouched_for(self.stop.as_raw_fd());
        let Self { parent, stop, .. } = self;
        if is_certain {
            drop(ManuallyDrop::into_inner(stop));
        }
        ManuallyDrop::into_inner(parent)
    }

    pub(super) fn stop(self) -> Result<(), ArmError> {
        if self.is_closed_here() {
            return Err(ArmError::os(ArmStep::Wakeup)(Errno::EBADF));
        }
        // Before the thread is woken: it may be awake already.
        self.binding.end();
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
    is_pipe: bool,
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

    /// Made by the thread, so that the set is in its own table; and never closed by hand: the thread's
    /// end closes its table, and in a shared one the program may have closed the number and given it
    /// another meaning.
    fn register(self, binding: Arc<Binding>) -> Result<ManuallyDrop<Watcher<sys::Epoll>>, Errno> {
        let set = sys::Epoll::new()?;
        // A wait that a filter refuses is said now; later nobody would hear of it.
        set.wait(Some(Duration::ZERO), &mut [Event::NONE])?;
        let watcher = sys::with_raw_fd(self.stop, |stop| {
            sys::with_raw_fd(self.parent, |parent| {
                let end = if self.is_pipe {
                    Interest::Closed(parent)
                } else {
                    Interest::ProcessDescriptor(parent)
                };
                Watcher::register(set, binding, end, stop)
            })
        });
        watcher
            .map(ManuallyDrop::new)
            .map_err(|(Refused::Parent(errno) | Refused::Stop(errno))| errno)
    }
}

/// What the thread does to the process.
#[derive(Debug)]
struct OwnProcess;

impl Process for OwnProcess {
    fn signal_self(&self, signal: Signal) {
        // The init of a PID namespace drops signals at their default disposition, SIGKILL from
        // inside included (pid_namespaces(7)): what would have ended it ends it by hand. One that
        // the main thread blocks is not dropped: somebody waits for it.
        let number = signal.number();
        if sys::getpid() == 1 && sys::is_at_default(number) && !main_thread_blocks(number) {
            sys::exit_group(128 + number);
        }
        // Nobody but a filter refuses it, which would leave us here for ever.
        if sys::kill(sys::getpid(), number).is_err() {
            sys::exit_group(128 + number);
        }
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
