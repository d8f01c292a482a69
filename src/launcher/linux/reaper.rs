//! The thread that reaps what nobody waits for, and replaces a guard that has died.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::process::Process;
use super::runtime::Runtime;
use crate::sys::linux as sys;

#[derive(Debug, Default)]
pub(super) struct Reaper(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What wakes the thread, once it runs.
    wake: Option<Arc<OwnedFd>>,
    /// What it has not seen yet.
    new: Vec<Arc<Process>>,
    look_at_the_guard: bool,
}

/// Numbers in the set that are no captive's.
const WAKE: u64 = 0;
const GUARD: u64 = u64::MAX;

/// How long to wait before another guard is tried where one cannot be started, and between two that
/// somebody kills.
const RETRY: Duration = Duration::from_millis(500);
const INTERVAL: Duration = Duration::from_millis(10);

impl Reaper {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread, once.
    pub(super) fn start(&self, runtime: &'static Runtime) -> Result<(), Errno> {
        let mut state = self.lock();
        if state.wake.is_some() {
            return Ok(());
        }
        let wake = Arc::new(sys::eventfd()?);
        let set = sys::epoll()?;
        sys::epoll_add_as(set.as_fd(), wake.as_fd(), WAKE)?;
        let own = Arc::clone(&wake);
        // As for the spawners: every signal is for the launcher's own threads.
        let mask = sys::set_signal_mask(sys::ALL_SIGNALS)?;
        let started = std::thread::Builder::new()
            .name("captive-reaper".into())
            .stack_size(256 * 1024)
            .spawn(move || Thread::new(runtime, set, own).run());
        let _ = sys::set_signal_mask(mask);
        started.map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
        state.wake = Some(wake);
        Ok(())
    }

    /// Takes over a process that nobody waits for any more.
    pub(super) fn take(&self, process: Arc<Process>) {
        let mut state = self.lock();
        state.new.push(process);
        state.wake();
    }

    /// There is another guard.
    pub(super) fn look_at_the_guard(&self) {
        let mut state = self.lock();
        state.look_at_the_guard = true;
        state.wake();
    }
}

impl State {
    fn wake(&self) {
        if let Some(wake) = &self.wake {
            let _ = sys::eventfd_wake(wake.as_fd());
        }
    }
}

struct Thread {
    runtime: &'static Runtime,
    set: OwnedFd,
    wake: Arc<OwnedFd>,
    processes: HashMap<u64, Arc<Process>>,
    guard: Option<(Arc<OwnedFd>, u64)>,
}

impl Thread {
    fn new(runtime: &'static Runtime, set: OwnedFd, wake: Arc<OwnedFd>) -> Self {
        Self {
            runtime,
            set,
            wake,
            processes: HashMap::new(),
            guard: None,
        }
    }

    fn run(mut self) {
        loop {
            // A traced zombie is readable all the time, and not to be reaped: looked at again later.
            let limit = if self.processes.is_empty() {
                -1
            } else {
                60_000
            };
            let ready = match sys::epoll_wait_ids::<64>(self.set.as_fd(), limit) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                // The set is ours alone; somebody has closed its number.
                Err(_) => return,
            };
            for id in ready {
                match id {
                    WAKE => {
                        sys::eventfd_clear(self.wake.as_fd());
                        self.take_news();
                    }
                    GUARD => self.guard_ended(),
                    id => self.reap(id),
                }
            }
        }
    }

    fn take_news(&mut self) {
        let (new, look) = {
            let mut state = self.runtime.reaper().lock();
            let look = std::mem::take(&mut state.look_at_the_guard);
            (std::mem::take(&mut state.new), look)
        };
        for process in new {
            let id = process.id();
            let added = sys::epoll_add_as(self.set.as_fd(), process.as_fd(), id);
            self.processes.insert(id, process);
            if added.is_err() {
                // No room in the set (fs.epoll.max_user_watches): looked at now and then.
                self.reap(id);
            }
        }
        if look {
            self.watch_guard();
        }
    }

    fn watch_guard(&mut self) {
        let watched = self.runtime.guard().watched();
        let same = |other: &(Arc<OwnedFd>, u64)| {
            watched
                .as_ref()
                .is_some_and(|(_, generation)| *generation == other.1)
        };
        if self.guard.as_ref().is_some_and(same) {
            return;
        }
        if let Some((old, _)) = self.guard.take() {
            sys::epoll_remove(self.set.as_fd(), old.as_raw_fd());
        }
        if let Some((pidfd, generation)) = watched {
            let _ = sys::epoll_add_as(self.set.as_fd(), pidfd.as_fd(), GUARD);
            self.guard = Some((pidfd, generation));
        }
    }

    fn guard_ended(&mut self) {
        let Some((pidfd, generation)) = self.guard.take() else {
            return;
        };
        sys::epoll_remove(self.set.as_fd(), pidfd.as_raw_fd());
        sys::reap_ended(pidfd.as_fd());
        drop(pidfd);
        while self
            .runtime
            .guard()
            .replace(self.runtime, generation)
            .is_err()
        {
            std::thread::sleep(RETRY);
        }
        std::thread::sleep(INTERVAL);
        self.watch_guard();
    }

    fn reap(&mut self, id: u64) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        // A failure to wait would be one for ever.
        if !matches!(process.try_wait(), Ok(None)) {
            sys::epoll_remove(self.set.as_fd(), process.as_fd().as_raw_fd());
            self.runtime.ended(process);
            self.processes.remove(&id);
        }
    }
}
