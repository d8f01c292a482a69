//! The thread that waits for supervisors, tells of captives' ends, and ends a captive whose supervisor was killed.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::super::Event as Told;
use super::super::events::Sink;
use super::super::news::News;
use super::caught::Told as Signal;
use super::process::{Gone, Process};
use super::runtime::Runtime;
use super::sys::{self, Queue};
use crate::sys::event_source::{Event, EventSource, Interest, Key};

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
    /// A captive's supervisor is to be waited for.
    Process(Arc<Process>),
    /// The captive's end is to be told.
    Watch(Arc<Process>, Sink),
    /// A signal that is to be told, under this number.
    Signal(u64, Signal),
    /// One that is to be told no more.
    NoSignal(u64),
}

/// How often to look at what cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long after the word of its end a process may take to be one that can be waited for.
const SOON: Duration = Duration::from_millis(1);

const WAKE: Key = Key(0);

// What the rest of a key is about, in its lowest bits.
const SUPERVISOR: u32 = 0;
const ENDED: u32 = 1;
const CAPTIVE: u32 = 2;

fn key(id: u32, what: u32) -> Key {
    Key(id << 2 | what)
}

impl Reaper {
    pub(super) fn new() -> Self {
        Self {
            wake: Mutex::new(None),
            news: News::new(),
            next_signal: AtomicU64::new(0),
        }
    }

    /// Starts the thread, once.
    pub(in super::super) fn start(&self, runtime: &'static Runtime) -> Result<(), Errno> {
        let mut started_before = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
        if started_before.is_some() {
            return Ok(());
        }
        let (woken, wake) = sys::pipe()?;
        sys::set_nonblocking(woken.as_fd())?;
        sys::set_nonblocking(wake.as_fd())?;
        let queue = Queue::new()?;
        queue.add(WAKE, Interest::Readable(woken.as_fd()))?;
        // Every signal is for the launcher's own threads.
        let mask = sys::block_all_signals()?;
        let started = std::thread::Builder::new()
            .name("captive-reaper".into())
            .stack_size(256 * 1024)
            .spawn(move || Thread::new(runtime, queue, woken).run());
        sys::restore_signal_mask(&mask);
        started.map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
        *started_before = Some(Arc::new(wake));
        Ok(())
    }

    /// Takes over the waiting for a captive's supervisor.
    pub(super) fn take(&self, process: Arc<Process>) {
        self.tell(New::Process(process));
    }

    /// Tells of a captive's end.
    pub(in super::super) fn watch(&self, process: Arc<Process>, sink: Sink) {
        self.tell(New::Watch(process, sink));
    }

    /// What wakes the thread, which then looks at the counts of signals; once it runs.
    pub(super) fn waker(&self) -> Option<Arc<OwnedFd>> {
        let wake = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
        wake.clone()
    }

    /// Tells of a signal as often as it is counted; under the number that is the answer.
    pub(super) fn take_signal(&self, signal: Signal) -> u64 {
        let number = self.next_signal.fetch_add(1, Ordering::Relaxed);
        self.tell(New::Signal(number, signal));
        number
    }

    /// Tells of it no more.
    pub(super) fn leave_signal(&self, number: u64) {
        self.tell(New::NoSignal(number));
    }

    fn tell(&self, new: New) {
        self.news.push(new, || {
            if let Some(wake) = self.waker() {
                // No room: it will wake.
                let _ = sys::write(wake.as_fd(), &[0]);
            }
        });
    }
}

struct Entry {
    process: Arc<Process>,
    /// Who is to be told of its end.
    sinks: Vec<Sink>,
    /// Its supervisor has ended.
    is_alone: bool,
}

struct Thread {
    runtime: &'static Runtime,
    queue: Queue,
    woken: OwnedFd,
    entries: HashMap<u32, Entry>,
    next_id: u32,
    /// Those of which the queue says nothing (any more): for want of room there, or because an end that was told is not one
    /// that can be waited for yet. How soon to look again.
    unwatched: HashMap<u32, Duration>,
    signals: HashMap<u64, Signal>,
}

impl Thread {
    fn new(runtime: &'static Runtime, queue: Queue, woken: OwnedFd) -> Self {
        Self {
            runtime,
            queue,
            woken,
            entries: HashMap::new(),
            next_id: 1,
            unwatched: HashMap::new(),
            signals: HashMap::new(),
        }
    }

    fn run(mut self) {
        loop {
            let mut events = [Event::NONE; 16];
            let limit = self.unwatched.values().min().copied();
            // The queue is ours alone; there is an error if somebody has closed its number.
            let count = self.queue.wait(limit, &mut events).unwrap_or_else(|_| {
                std::thread::sleep(LOOK_AGAIN);
                let all = self.entries.keys().map(|id| (*id, LOOK_AGAIN));
                self.unwatched.extend(all);
                0
            });
            for event in events.iter().take(count) {
                let id = event.key.0 >> 2;
                match event.key.0 & 3 {
                    _ if event.key == WAKE => {}
                    SUPERVISOR => self.look_at_the_supervisor(id, SOON),
                    CAPTIVE => self.lost_has_ended(id),
                    _ => self.tell_end(id),
                }
            }
            // Whatever woke it: a byte may stand for several things.
            self.take_news();
            for (id, again) in std::mem::take(&mut self.unwatched) {
                self.look_at_the_supervisor(id, again);
            }
        }
    }

    fn take_news(&mut self) {
        let news = self.runtime.reaper().news.take(|| {
            let mut bytes = [0; 64];
            while sys::read(self.woken.as_fd(), &mut bytes).is_ok_and(|read| read > 0) {}
        });
        for new in news {
            match new {
                New::Process(process) => self.watch(process),
                New::Watch(process, sink) => self.add_sink(&process, sink),
                New::Signal(number, signal) => {
                    self.signals.insert(number, signal);
                }
                New::NoSignal(number) => {
                    self.signals.remove(&number);
                }
            }
        }
        for signal in self.signals.values() {
            signal.tell();
        }
    }

    fn watch(&mut self, process: Arc<Process>) {
        let id = self.free_id();
        let supervisor = process.supervisor_pid();
        let ended = self
            .queue
            .add(key(id, ENDED), Interest::Closed(process.as_fd()));
        let watched = match supervisor {
            Some(pid) => self.queue.add(key(id, SUPERVISOR), Interest::Exit(pid)),
            None => Err(Errno::ESRCH),
        };
        self.entries.insert(
            id,
            Entry {
                process,
                sinks: Vec::new(),
                is_alone: false,
            },
        );
        match watched {
            // It has ended, and is or was a zombie.
            Err(Errno::ESRCH) => self.unwatched.insert(id, SOON),
            Ok(()) if ended.is_ok() => None,
            _ => self.unwatched.insert(id, LOOK_AGAIN),
        };
    }

    /// A number that no captive has that is still watched.
    fn free_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            // 30 bits, without 0.
            self.next_id = if id >= u32::MAX >> 2 { 1 } else { id + 1 };
            if !self.entries.contains_key(&id) {
                return id;
            }
        }
    }

    fn add_sink(&mut self, process: &Arc<Process>, sink: Sink) {
        let entry = self
            .entries
            .iter_mut()
            .find(|(_, entry)| Arc::ptr_eq(&entry.process, process));
        match entry {
            Some((id, entry)) => {
                let id = *id;
                entry.sinks.push(sink);
                self.tell_end(id);
            }
            None => tell(process, &[sink]),
        }
    }

    /// Tells those who are to be told, if it has ended.
    fn tell_end(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id) {
            if entry.process.report().is_some() {
                tell(&entry.process, &std::mem::take(&mut entry.sinks));
            }
        }
    }

    /// `again`: after which time to look again if it has not ended.
    fn look_at_the_supervisor(&mut self, id: u32, again: Duration) {
        self.tell_end(id);
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if entry.is_alone {
            return;
        }
        match entry.process.reap_supervisor() {
            Gone::NotYet => {
                self.unwatched.insert(id, again);
            }
            Gone::Done => self.lost_has_ended(id),
            Gone::Lost => {
                entry.is_alone = true;
                entry.process.end_lost();
                let pid = entry.process.pid();
                let watched = self.queue.add(key(id, CAPTIVE), Interest::Exit(pid));
                // It has ended, or may not be watched.
                if watched.is_err() {
                    self.lost_has_ended(id);
                }
            }
        }
    }

    /// It has ended, and so has its supervisor, which has reported or never will.
    fn lost_has_ended(&mut self, id: u32) {
        if let Some(entry) = self.entries.remove(&id) {
            entry.process.set_unknown();
            tell(&entry.process, &entry.sinks);
        }
    }
}

/// The end of one that has ended.
fn tell(process: &Process, sinks: &[Sink]) {
    let pid = process.pid().unsigned_abs();
    if let Some(report) = process.report() {
        for sink in sinks {
            let report = report.clone();
            sink.send(Told::Exited { pid, report });
        }
    }
}
