//! The guard: a small process that outlives run-with just long enough to end the command.
//!
//! It exists before the command does, and shares run-with's descriptor *table* but not its memory
//! (CLONE_FILES without CLONE_VM). The kernel puts the command's pidfd into that table, and its number
//! into a page both see, before the command can run: there is no moment at which the command exists
//! and the guard could not reach it, and nothing has to be sent. The guard has the credentials of
//! run-with, so it may signal a command that has changed its user; it is in a session of its own, so
//! what the terminal or `kill -- -pgid` sends does not reach it.
//!
//! | what happens | what the guard does |
//! |---|---|
//! | run-with ends, and has said that all is done | ends |
//! | run-with ends otherwise (SIGKILL, a crash) | SIGKILL to the command and a group it leads, then to the rest of its tree (`--tree`); ends |
//! | run-with ends while the guard is stopped | the kernel resumes it (its parent-death signal is SIGCONT), then as above |
//! | the parent exits, run-with runs | nothing: run-with does what is to be done |
//! | the parent exits, run-with does not act within [`PATIENCE`] (it is stopped) | the signal, the grace and SIGKILL in its place; SIGCONT to run-with once the command is gone |
//!
//! Who acts on the parent's exit is decided by one atomic exchange: the command gets its signal once.
//! Only if the one who is to send it is stopped or killed between the exchange and the sending, the
//! other sends it after [`PATIENCE`]; a claimant that is resumed after that sends it a second time.
//!
//! Between clone and exit: raw system calls, no allocation.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use super::super::machine::{Ending, PATIENCE};
use super::page::Page;
use super::tree::Holds;
use crate::exit_with_parent::{Parent, Signal};
use crate::sys::linux::{self as sys, Share, Shared};

/// How long a command may take to end after SIGKILL before the rest of its tree has its turn, and that to end.
pub(super) const TREE_PATIENCE: Duration = Duration::from_secs(5);

/// The guard as run-with knows it.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) pid: i32,
    pidfd: OwnedFd,
    /// run-with's own pidfd, for the guard to poll: a number in the table both share.
    supervisor: OwnedFd,
}

impl Guard {
    /// Starts a guard for this process. The calling process must have one thread.
    pub(super) fn start(
        page: &Shared<Page>,
        parent: Option<&Parent>,
        ending: Ending,
        tree: Option<Holds>,
    ) -> Result<Self, Errno> {
        let supervisor = own_pidfd()?;
        let parent = parent.map(Parent::poll_fd);
        let watch = Watch {
            page,
            supervisor: supervisor.as_raw_fd(),
            supervisor_pid: sys::getpid(),
            // -1 is nobody, to poll(2).
            parent: parent
                .as_ref()
                .map_or(-1, |parent| parent.as_fd().as_raw_fd()),
            parent_events: parent.as_ref().map_or(0, |parent| parent.events().bits()),
            ending,
            tree,
        };
        let pidfd = AtomicI32::new(-1);
        let pid = sys::clone_running(Share::Descriptors, &pidfd, || watch.run())?;
        let pidfd = sys::adopt(pidfd.load(Ordering::Relaxed));
        Ok(Self {
            pid,
            pidfd,
            supervisor,
        })
    }

    /// Ends the guard and reaps it, so that nobody else has to. A guard that somebody traces is its
    /// tracer's first: that one is left to init.
    pub(super) fn end(&self) {
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::poll_within(self.pidfd.as_fd(), libc::POLLIN, PATIENCE);
        sys::reap_ended(self.pidfd.as_fd());
    }

    /// The descriptors that must stay open: the guard's, and ours on it.
    pub(super) fn raw_fds(&self) -> [RawFd; 2] {
        [self.supervisor.as_raw_fd(), self.pidfd.as_raw_fd()]
    }
}

/// run-with's own, which has been sent signal 0: where a filter refuses that (seccomp) nobody could end anything.
pub(super) fn own_pidfd() -> Result<OwnedFd, Errno> {
    let own = sys::pidfd_open(sys::getpid())?;
    sys::pidfd_send_signal(own.as_fd(), 0)?;
    Ok(own)
}

/// What the guard knows: numbers in the shared table, and the page.
struct Watch<'a> {
    page: &'a Shared<Page>,
    supervisor: RawFd,
    supervisor_pid: i32,
    parent: RawFd,
    parent_events: i16,
    ending: Ending,
    tree: Option<Holds>,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    Supervisor,
    Other,
    TimedOut,
}

impl Watch<'_> {
    fn run(&self) -> ! {
        // A new session: away from the terminal's signals and from the group's. None of the four
        // can fail for a process just made; if one did, the guard would still guard.
        let _ = sys::setsid();
        let _ = sys::set_name(b"run-with-guard\0\0");
        let _ = sys::set_no_new_privs();
        // A guard that somebody stopped is resumed when run-with dies: nobody else would do it.
        let _ = sys::set_parent_death_signal(libc::SIGCONT);
        loop {
            match self.wait(self.parent, self.parent_events, None) {
                Wake::Supervisor => self.supervisor_ended(),
                Wake::Other => self.parent_ended(),
                Wake::TimedOut => {}
            }
        }
    }

    /// run-with is gone: unless it said that all is done, so must the command be.
    fn supervisor_ended(&self) -> ! {
        if !self.page.is_done() {
            if let Some(command) = self.page.command() {
                sys::with_raw_fd(command, |command| {
                    let _ = sys::pidfd_send_signal(command, libc::SIGKILL);
                    let _ = sys::pidfd_send_signal_to_group(command, libc::SIGKILL);
                    if self.tree.is_some() {
                        let _ = sys::poll_within(command, libc::POLLIN, TREE_PATIENCE);
                    }
                });
            }
            self.end_tree();
        }
        sys::exit_group(0)
    }

    /// The rest of the tree, after the command.
    fn end_tree(&self) {
        if let Some(tree) = self.tree {
            tree.end();
            let since = sys::now();
            while !tree.remove() && sys::now().saturating_sub(since) < TREE_PATIENCE {
                sys::sleep(Duration::from_millis(2));
            }
        }
    }

    /// The parent is gone, and run-with has the first word.
    fn parent_ended(&self) -> ! {
        let since = sys::now();
        self.pause(PATIENCE);
        // A command that is only just being made has its pidfd in a moment.
        let command = loop {
            match self.page.command() {
                Some(command) if sys::is_open(command) => break command,
                _ => self.pause(Duration::from_millis(10)),
            }
        };
        sys::with_raw_fd(command, |command| {
            if !self.page.claim_signal() && !self.page.is_signalled() {
                // Claimed, and not sent: run-with was stopped in between, or a guard before this one
                // was killed.
                self.pause(PATIENCE);
            }
            if !self.page.is_signalled() {
                let _ = send(command, self.ending.signal);
                self.page.set_signalled();
            }
            self.see_it_end(command, since);
            self.end_tree();
            // A stopped run-with can go on and collect the command's status.
            sys::with_raw_fd(self.supervisor, |supervisor| {
                let _ = sys::pidfd_send_signal(supervisor, libc::SIGCONT);
            });
        });
        loop {
            self.pause(Duration::from_secs(3600));
        }
    }

    /// Waits for the command's end; past the grace it gets SIGKILL.
    fn see_it_end(&self, command: BorrowedFd<'_>, since: Duration) {
        let deadline = self
            .ending
            .kill_after
            .and_then(|grace| since.checked_add(grace)?.checked_add(PATIENCE));
        let mut killed = false;
        loop {
            let left = match deadline {
                Some(deadline) if !killed => Some(deadline.saturating_sub(sys::now())),
                _ => None,
            };
            match self.wait(command.as_raw_fd(), libc::POLLIN, left) {
                Wake::Supervisor => self.supervisor_ended(),
                Wake::Other => return,
                Wake::TimedOut if left.is_some_and(|left| left.is_zero()) => {
                    killed = true;
                    kill(command, self.page.pid());
                }
                Wake::TimedOut => {}
            }
        }
    }

    /// Waits for `other` or for run-with's end.
    fn wait(&self, other: RawFd, events: i16, limit: Option<Duration>) -> Wake {
        let mut fds = [
            sys::pollfd(self.supervisor, libc::POLLIN),
            sys::pollfd(other, events),
        ];
        match sys::poll(&mut fds, limit) {
            Ok(n) if n > 0 => {
                let [supervisor, _] = fds;
                if supervisor.revents == 0 {
                    Wake::Other
                } else {
                    Wake::Supervisor
                }
            }
            Ok(_) | Err(Errno::EINTR) => Wake::TimedOut,
            Err(_) => {
                // Somebody has lowered the limit of descriptors (EINVAL). Our parent is run-with.
                sys::sleep(Duration::from_millis(10));
                if sys::getppid() == self.supervisor_pid {
                    Wake::TimedOut
                } else {
                    Wake::Supervisor
                }
            }
        }
    }

    /// Lets time pass, unless run-with ends.
    fn pause(&self, time: Duration) {
        if self.wait(-1, 0, Some(time)) == Wake::Supervisor {
            self.supervisor_ended();
        }
    }
}

/// The signal for the parent's exit, and SIGCONT after it: a stopped command acts on no signal but
/// SIGKILL.
pub(super) fn send(command: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    let sent = sys::pidfd_send_signal(command, signal.number());
    let _ = sys::pidfd_send_signal(command, libc::SIGCONT);
    sent
}

/// SIGKILL to the command, and to its process group if it leads one: another group may be the
/// launcher's own. Before Linux 6.9 the group is named by `pid`, the command's: exact for run-with,
/// which has not reaped it; the guard acts so only when run-with has not for all of the grace.
pub(super) fn kill(command: BorrowedFd<'_>, pid: i32) {
    let group = sys::pidfd_send_signal_to_group(command, libc::SIGKILL);
    if group == Err(Errno::EINVAL) && pid > 1 && sys::getpgid(pid) == Ok(pid) {
        let _ = sys::kill(-pid, libc::SIGKILL);
    }
    let _ = sys::pidfd_send_signal(command, libc::SIGKILL);
}
