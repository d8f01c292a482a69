//! The thread that reaps what nobody waits for, and replaces a guard that has died.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::Event;
use super::super::events::Sink;
use super::super::news::News;
use super::caught::Told;
use super::guard::Watched;
use super::process::Process;
use super::runtime::Runtime;
use super::tree::{self, Cgroup, Events, Tree};
use crate::sys::linux as sys;
use crate::sys::signal::Signal;

#[derive(Debug)]
pub(in super::super) struct Reaper {
    /// What wakes the thread, once it runs.
    wake: Mutex<Option<Arc<OwnedFd>>>,
    news: News<New>,
    next_signal: AtomicU64,
}

/// What the thread is told.
#[derive(Debug)]
enum New {
    /// A process that nobody waits for any more.
    Process(Arc<Process>),
    /// There is another guard.
    Guard,
    /// A tree that is to end, or one that has been let go: to be removed when it is empty.
    Tree(Arc<Tree>),
    /// A process whose end is to be told.
    Watch(Arc<Process>, Sink),
    /// A signal that is to be told, under this number.
    Signal(u64, Told),
    /// One that is to be told no more.
    NoSignal(u64),
}

/// Numbers in the set that are no captive's.
const WAKE: u64 = 0;
const GUARD: u64 = u64::MAX;

/// Numbers from here on are trees'; processes count up from 1, and from `1 << 63`.
const TREES: u64 = 1 << 62;

/// The same for signals.
const SIGNALS: u64 = TREES | 1 << 61;

/// How often a tree is looked for that only a walk finds.
const MOST_LOOKS: u32 = 100;

/// How long after a guard another is started: whoever kills them all does not make this thread do nothing
/// else.
const INTERVAL: Duration = Duration::from_millis(20);

/// A guard that lives longer than this was not ended by what it was asked to do.
const LIVES: Duration = Duration::from_secs(2);

/// How often to look at what cannot be waited for, in milliseconds.
const LOOK_AGAIN: i32 = 100;

impl Reaper {
    pub(super) fn new() -> Self {
        Self {
            wake: Mutex::new(None),
            news: News::new(),
            next_signal: AtomicU64::new(SIGNALS),
        }
    }

    /// Starts the thread, once.
    pub(in super::super) fn start(&self, runtime: &'static Runtime) -> Result<(), Errno> {
        let mut started_before = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
        if started_before.is_some() {
            return Ok(());
        }
        let wake = Arc::new(sys::eventfd()?);
        let set = sys::epoll()?;
        sys::epoll_add_as(set.as_fd(), wake.as_fd(), WAKE)?;
        // Tried here: the thread could tell nobody that a filter refuses it.
        sys::epoll_wait_ids::<1>(set.as_fd(), 0).map(drop)?;
        let own = Arc::clone(&wake);
        // As for the spawners: every signal is for the launcher's own threads.
        let mask = sys::set_signal_mask(sys::ALL_BUT_THE_LIBRARYS)?;
        let started = std::thread::Builder::new()
            .name("captive-reaper".into())
            .stack_size(256 * 1024)
            .spawn(move || Thread::new(runtime, set, own).run());
        let _ = sys::set_signal_mask(mask);
        started.map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
        *started_before = Some(wake);
        Ok(())
    }

    /// Takes over a process that nobody waits for any more; of another's, sees only that it has ended.
    pub(super) fn take(&self, process: Arc<Process>) {
        self.tell(New::Process(process));
    }

    /// Takes over a tree whose main process has ended, or that has been let go.
    pub(super) fn take_tree(&self, tree: Arc<Tree>) {
        self.tell(New::Tree(tree));
    }

    /// Tells of a process's end.
    pub(in super::super) fn watch(&self, process: Arc<Process>, sink: Sink) {
        self.tell(New::Watch(process, sink));
    }

    /// Tells of a signal as often as its eventfd counts; under the number that is the answer.
    pub(super) fn take_signal(&self, signal: Signal, count: Arc<OwnedFd>, sink: Sink) -> u64 {
        let number = self.next_signal.fetch_add(1, Ordering::Relaxed);
        let told = Told {
            signal,
            count,
            sink,
        };
        self.tell(New::Signal(number, told));
        number
    }

    /// Tells of it no more.
    pub(super) fn leave_signal(&self, number: u64) {
        self.tell(New::NoSignal(number));
    }

    /// There is another guard.
    pub(super) fn look_at_the_guard(&self) {
        self.tell(New::Guard);
    }

    fn tell(&self, new: New) {
        self.news.push(new, || {
            let wake = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(wake) = wake.as_ref() {
                let _ = sys::eventfd_wake(wake.as_fd());
            }
        });
    }
}

/// A tree that is to end, or has been let go.
struct Dying {
    tree: Arc<Tree>,
    events: Option<Events>,
    looks: u32,
}

impl Dying {
    /// Nothing wakes us when it is empty: it is no cgroup, or one that the guard may remove before we have heard of its
    /// end, of which the kernel then does not tell.
    fn tells_nothing(&self) -> bool {
        self.events.is_none() || !self.tree.is_let_go()
    }
}

struct Thread {
    runtime: &'static Runtime,
    set: OwnedFd,
    wake: Arc<OwnedFd>,
    processes: HashMap<u64, Arc<Process>>,
    /// Those of which the set says nothing useful: for want of room there (fs.epoll.max_user_watches), or
    /// because they have ended and a tracer has not let go of them.
    unwatched: Vec<u64>,
    /// Trees that are not empty yet, and what tells of it for those that are cgroups.
    trees: HashMap<u64, Dying>,
    /// The number of the next one.
    next_tree: u64,
    /// Who is to be told of a process's end.
    told: HashMap<u64, Vec<Sink>>,
    signals: HashMap<u64, Told>,
    guard: Option<Watched>,
    /// A guard of this generation has ended, and there is no other yet.
    missing: Option<u64>,
    /// When the last one was started here.
    last_guard: Option<Instant>,
    /// How long after it the next may be.
    pause: Duration,
    /// The set has no room for the guard: it is looked at now and then.
    guard_unwatched: bool,
}

impl Thread {
    fn new(runtime: &'static Runtime, set: OwnedFd, wake: Arc<OwnedFd>) -> Self {
        Self {
            runtime,
            set,
            wake,
            processes: HashMap::new(),
            unwatched: Vec::new(),
            trees: HashMap::new(),
            next_tree: TREES,
            told: HashMap::new(),
            signals: HashMap::new(),
            guard: None,
            missing: None,
            last_guard: None,
            pause: INTERVAL,
            guard_unwatched: false,
        }
    }

    fn run(mut self) {
        // What launchers before this one have left.
        tree::sweep_own();
        loop {
            let blind = self.trees.values().any(Dying::tells_nothing);
            let limit = if self.unwatched.is_empty()
                && self.missing.is_none()
                && !self.guard_unwatched
                && !blind
            {
                -1
            } else {
                LOOK_AGAIN
            };
            let ready = match sys::epoll_wait_ids::<64>(self.set.as_fd(), limit) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                // The set is ours alone; somebody has closed its number.
                Err(_) => return,
            };
            for id in ready {
                match id {
                    WAKE => self.take_news(),
                    GUARD => self.look_at_the_guard(),
                    id if id & SIGNALS == SIGNALS => self.tell_signal(id),
                    id if id & TREES != 0 => self.look_at_a_tree(id),
                    id => self.reap(id),
                }
            }
            for id in std::mem::take(&mut self.unwatched) {
                self.reap(id);
            }
            if blind {
                let blind = self.trees.iter().filter(|(_, dying)| dying.tells_nothing());
                let ids: Vec<_> = blind.map(|(id, _)| *id).collect();
                for id in ids {
                    self.look_at_a_tree(id);
                }
            }
            if self.guard_unwatched {
                self.look_at_the_guard();
            }
            if let Some(generation) = self.missing.take() {
                self.replace_guard(generation);
            }
        }
    }

    fn take_news(&mut self) {
        let wake = Arc::clone(&self.wake);
        let news = self.runtime.reaper().news.take(|| {
            sys::eventfd_take(wake.as_fd());
        });
        for new in news {
            match new {
                New::Process(process) => self.watch(process),
                New::Guard => self.watch_guard(),
                New::Tree(tree) => self.watch_tree(tree),
                New::Watch(process, sink) => {
                    self.told.entry(process.id()).or_default().push(sink);
                    self.watch(process);
                }
                New::Signal(number, told) => {
                    let set = self.set.as_fd();
                    // One that cannot be watched is told when something else is.
                    let _ = sys::epoll_add_as(set, told.count.as_fd(), number);
                    self.signals.insert(number, told);
                    self.tell_signal(number);
                }
                New::NoSignal(number) => {
                    if let Some(told) = self.signals.remove(&number) {
                        sys::epoll_remove(self.set.as_fd(), told.count.as_fd().as_raw_fd());
                    }
                }
            }
        }
    }

    fn tell_signal(&mut self, number: u64) {
        if let Some(told) = self.signals.get(&number) {
            for _ in 0..sys::eventfd_take(told.count.as_fd()) {
                told.sink.send(Event::Signal(told.signal));
            }
        }
    }

    fn watch(&mut self, process: Arc<Process>) {
        let id = process.id();
        // One that is watched for its end may be dropped too.
        if self.processes.contains_key(&id) {
            return;
        }
        let added = sys::epoll_add_as(self.set.as_fd(), process.as_fd(), id);
        self.processes.insert(id, process);
        if added.is_err() {
            self.unwatched.push(id);
        }
    }

    fn watch_tree(&mut self, tree: Arc<Tree>) {
        let id = self.next_tree;
        self.next_tree += 1;
        let mut events = tree.cgroup().and_then(Cgroup::events);
        if let Some(fd) = &events {
            if sys::epoll_add_changes(self.set.as_fd(), fd.as_fd(), id).is_err() {
                events = None;
            }
        }
        let looks = 0;
        let dying = Dying {
            tree,
            events,
            looks,
        };
        self.trees.insert(id, dying);
        self.look_at_a_tree(id);
    }

    /// Ends it, unless it has been let go, and removes it if it is empty.
    fn look_at_a_tree(&mut self, id: u64) {
        let Some(dying) = self.trees.get_mut(&id) else {
            return;
        };
        let tree = &dying.tree;
        if !tree.is_let_go() {
            tree.end();
        }
        dying.looks += 1;
        let empty = match &dying.events {
            Some(events) => events.say_empty(),
            None => tree.is_empty(),
        };
        // What a walk may not end it will not end later either.
        if empty || (tree.is_marked() && dying.looks > MOST_LOOKS) {
            tree.remove();
            if let Some(events) = &dying.events {
                sys::epoll_remove(self.set.as_fd(), events.as_fd().as_raw_fd());
            }
            self.trees.remove(&id);
        }
    }

    fn watch_guard(&mut self) {
        let watched = self.runtime.guard().watched();
        let generation = |guard: &Option<Watched>| guard.as_ref().map(|guard| guard.generation);
        if generation(&self.guard) == generation(&watched) {
            return;
        }
        if let Some(old) = self.guard.take() {
            sys::epoll_remove(self.set.as_fd(), old.pidfd.as_raw_fd());
            sys::epoll_remove(self.set.as_fd(), old.socket.as_raw_fd());
        }
        if let Some(new) = watched {
            let add = |fd: &OwnedFd| sys::epoll_add_as(self.set.as_fd(), fd.as_fd(), GUARD).is_ok();
            self.guard_unwatched = !(add(&new.pidfd) && add(&new.socket));
            self.guard = Some(new);
        }
    }

    /// Something is said of a guard, perhaps of one that has been replaced since.
    fn look_at_the_guard(&mut self) {
        let ready = |fd: &OwnedFd| {
            // It never writes: readable is hung up.
            sys::poll_within(fd.as_fd(), libc::POLLIN, Duration::ZERO) == Ok(true)
        };
        if let Some(guard) = self
            .guard
            .take_if(|guard| ready(&guard.pidfd) || ready(&guard.socket))
        {
            sys::epoll_remove(self.set.as_fd(), guard.pidfd.as_raw_fd());
            sys::epoll_remove(self.set.as_fd(), guard.socket.as_raw_fd());
            sys::reap_ended(guard.pidfd.as_fd());
            self.replace_guard(guard.generation);
        }
    }

    /// Starts another guard, now or a little later.
    fn replace_guard(&mut self, generation: u64) {
        // One that did not live long is followed ever more slowly.
        let lived = self.last_guard.map(|last| last.elapsed());
        let soon = lived.is_some_and(|lived| lived < self.pause);
        if soon
            || self
                .runtime
                .guard()
                .replace(self.runtime, generation)
                .is_err()
        {
            self.missing = Some(generation);
            return;
        }
        self.pause = match lived {
            Some(lived) if lived < LIVES => (self.pause * 2).min(LIVES / 10),
            _ => INTERVAL,
        };
        self.last_guard = Some(Instant::now());
        self.watch_guard();
    }

    /// Its status is for whoever launched it.
    fn forget_another(&mut self, id: u64) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        if sys::poll_within(process.as_fd(), libc::POLLIN, Duration::ZERO) == Ok(true) {
            self.runtime.guard().forget(id);
            self.processes.remove(&id);
        } else {
            self.unwatched.push(id);
        }
    }

    fn reap(&mut self, id: u64) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        sys::epoll_remove(self.set.as_fd(), process.as_fd().as_raw_fd());
        if process.is_anothers() {
            return self.forget_another(id);
        }
        // A failure to wait would be one for ever.
        let report = process.try_wait();
        if matches!(report, Ok(None)) {
            self.unwatched.push(id);
            return;
        }
        self.runtime.ended(process);
        let pid = process.pid().unsigned_abs();
        self.processes.remove(&id);
        if let (Some(told), Ok(Some(report))) = (self.told.remove(&id), report) {
            for sink in told {
                let report = report.clone();
                sink.send(Event::Exited { pid, report });
            }
        }
    }
}
