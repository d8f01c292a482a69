//! macOS, NetBSD, OpenBSD, DragonFly (and FreeBSD, where the kernel's signal is not enough): the
//! parent's exit as a kqueue event, waited for by a thread. **Never run** there, see
//! `docs/platforms.md`; on Linux its tests run it with epoll in place of the queue.
//!
//! The logic is `asked.rs` and `watcher.rs`, which run on Linux with a script in the place of the kernel
//! (`orderings.rs`); what a queue does is `sys/bsd/queue.rs`. By the kernels' sources
//! (`sys/kern/kern_exit.c`; xnu: `bsd/kern`):
//!
//! - Arming succeeds only after registration, between two looks at getppid: see `known::hold`. An exit
//!   in progress is not missed either. macOS (proc_prepareexit(), before proc_exit()), NetBSD (exit1() sets
//!   SDYING, which proc_find() passes over) and OpenBSD (exit1() sets PS_EXITING; the reaper() thread
//!   tells) first refuse to find the pid, and only then tell NOTE_EXIT and give the children another
//!   parent, in one order or the other. FreeBSD (exit1()) sets P_WEXIT, whose registration is told at
//!   once, gives the children away, and tells, holding proctree_lock; DragonFly makes a zombie first,
//!   whose registration is told at once as well. So whoever registers too late to be told sees ESRCH or
//!   another parent.
//! - ESRCH is the parent's exit; but on FreeBSD also a parent that we may not see, if it is
//!   still our parent: that is the errno.
//! - The queue is not inherited by fork (kqueue(2)) and is close-on-exec. In a forked child the
//!   original parent is but a number that may mean anybody, so only a pipe can be armed again there.
//! - A change of our credentials changes nothing: they are looked at when registering. NetBSD, and
//!   OpenBSD in releases that had no pledge(2) yet, refuse (EACCES) to watch another user's or a set-id
//!   parent unless we are root: then a pipe is the way. OpenBSD after pledge(2) without "proc" lets
//!   nobody register a pid (filt_procattach(), kern_event.c): arm before.
//! - A debugger that has attached to *us* is who getppid names on macOS (p_ppid) and on others whose
//!   getppid() reads the parent of the moment: arm before, or pass a pipe. FreeBSD's names the
//!   original parent (p_oppid, kern_getppid()).
//! - A debugger that has attached to the *parent* is the only one whom macOS tells of its exit; we are told
//!   when it has waited for it (filt_procevent(), reap_child_locked()). Our getppid changes at once.
//! - The thread has no descriptor table of its own here. A program that closes descriptors it does
//!   not know (closefrom(2)) after arming ends the watch, silently; once the signal has been sent, SIGKILL
//!   follows all the same. What it has given those numbers to since is left alone: nothing is shut down, closed or
//!   read by its number before [`Watch::is_whole`].
//! - Whether this process itself holds the pipe's write end is not looked for.
//! - DragonFly's procctl(2) has a parent-death signal as FreeBSD's. It is not used: no source of a kernel
//!   that has it was read, so what clears it is not known here.

#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal as nix_signal;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::Pid;

use super::asked::{self, Asked};
use super::known::{self, pid_of, still_parent};
use super::queued::Parent;
use super::watcher::{self, Process, Watcher};
use super::{
    Action, ArmError, ArmStep, Expected, Known, Limit, Mechanism, ParentExited, Report, Request,
    Scope, Signal,
};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        // Its tests run there.
        use crate::sys::linux::Epoll as Queue;
    } else {
        use crate::sys::bsd::Queue;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;

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
        self.watch.parent.known()
    }

    pub(super) fn report(&self) -> Report {
        let (signal, kill_after) = match &self.action {
            Action::Signal { signal, kill_after } => (Some(*signal), *kill_after),
            Action::Call(_) => (None, None),
        };
        let mut limits = vec![
            Limit::Stopped,
            // On OpenBSD as well: its reaper() tells after uvm_exit(), sys/kern/kern_exit.c.
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
            let Some(pipe) = self.watch.parent.pipe() else {
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
            Err(known::gone(self.known(), known::current()))
        }
    }

    pub(super) fn disarm(self) -> Result<(), ArmError> {
        if !self.is_ours() {
            return Ok(());
        }
        // Before the thread is woken: it may be awake already.
        self.watch.asked.binding().end();
        // After a failure all stays open: the program has closed the numbers, and may have given them
        // another meaning.
        if !self.watch.is_whole() {
            return Err(ArmError::os(ArmStep::Wakeup)(Errno::EBADF));
        }
        self.watch.stop.shutdown(Shutdown::Both).map_err(wakeup)?;
        drop(ManuallyDrop::into_inner(self.watch));
        Ok(())
    }
}

/// Shared by the handle and the thread.
#[derive(Debug)]
struct Watch {
    parent: Parent,
    /// The thread's.
    watcher: Watcher<Queue>,
    /// The handle's.
    asked: Asked<Queue>,
    /// Shut down to end the watch; a plain close would not do while a forked child has a copy. Its number is above all
    /// the others': who closes everything from some number on, and one of them, has closed it.
    stop: UnixStream,
    /// Which socket it was.
    was: Option<libc::ino_t>,
    /// Never read: registered.
    _stopped: UnixStream,
}

impl Watch {
    fn start(parent: Parent, action: Action) -> Result<Arc<Self>, ArmError> {
        let (stop, stopped) = UnixStream::pair().map_err(wakeup)?;
        let who = parent.who();
        let queue = || Queue::new().map_err(ArmError::os(who.step));
        let queues = [queue()?, queue()?];
        let others = queues.iter().map(AsFd::as_fd).chain([stopped.as_fd()]);
        let stop = above(stop.as_fd(), others).map_err(ArmError::os(ArmStep::Wakeup))?;
        let was = socket(stop.as_fd());
        let (end, current) = (parent.interest(), known::current);
        let (watcher, asked) = asked::arm(who, current, queues, end, stopped.as_fd())?;
        let watch = Arc::new(Self {
            parent,
            watcher,
            asked,
            stop,
            was,
            _stopped: stopped,
        });
        watch.spawn(action)?;
        Ok(watch)
    }

    fn spawn(self: &Arc<Self>, action: Action) -> Result<(), ArmError> {
        let event = ParentExited {
            pid: pid_of(self.parent.known()),
        };
        let watch = Arc::clone(self);
        watcher::spawn(move || watch.watcher.run(&OwnProcess, &action, event))
    }

    fn is_parent_gone(&self) -> bool {
        let told = if self.is_whole() {
            self.asked.is_gone()
        } else {
            Err(Errno::EBADF)
        };
        // Where the program has closed the queue, what can be said is who our parent is, and that
        // somebody watches.
        told.unwrap_or_else(|_| {
            !self.asked.binding().is_watched() || still_parent(self.parent.known()).is_err()
        })
    }

    /// Whether the numbers are still ours, as far as can be known: somebody could close them between the look
    /// and what follows.
    fn is_whole(&self) -> bool {
        self.was.is_some() && socket(self.stop.as_fd()) == self.was
    }
}

fn wakeup(errno: std::io::Error) -> ArmError {
    ArmError::Os {
        step: ArmStep::Wakeup,
        errno,
    }
}

/// The same socket with a number above these, close-on-exec.
fn above<'a>(
    socket: BorrowedFd<'_>,
    others: impl Iterator<Item = BorrowedFd<'a>>,
) -> Result<UnixStream, Errno> {
    let highest = others.map(|fd| fd.as_raw_fd()).max().unwrap_or(-1);
    let lowest = highest.saturating_add(1);
    let number = fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) }.into())
}

/// Which socket this is, if it is one: a local one has a number that no other has had, given when it is first asked for
/// (uipc_sense() and its like, `sys/kern/uipc_usrreq.c`); what has none says 0. Where counting begins with 0 (macOS, NetBSD,
/// OpenBSD), the first of all gets another when it is asked again.
fn socket(fd: BorrowedFd<'_>) -> Option<libc::ino_t> {
    let number = || {
        let stat = fstat(fd).ok()?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        (kind == SFlag::S_IFSOCK).then_some(stat.st_ino)
    };
    let first = number()?;
    if first == 0 { number() } else { Some(first) }.filter(|number| *number != 0)
}

/// What the thread does to the process.
#[derive(Debug)]
struct OwnProcess;

impl Process for OwnProcess {
    fn signal_self(&self, signal: Signal) {
        // Every signal of these systems that `Signal` can hold has a name.
        if let Ok(named) = nix_signal::Signal::try_from(signal.number()) {
            let _ = nix_signal::kill(Pid::this(), named);
        }
    }
}
