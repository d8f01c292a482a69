//! The jobs of a domain: `src/qemu/domain/gate.rs` with the state machine behind it, as threads meet there.
//!
//! Bounds: three threads, all interleavings. Time does not pass.

mod primitive {
    pub(super) use loom::sync::{Mutex, MutexGuard};
    pub(super) use loom::thread::{Thread, current};
    pub(super) use std::sync::PoisonError;

    pub(super) fn park_until(_until: std::time::Instant) {
        loom::thread::park();
    }
}
#[path = "../../src/qemu/domain/gate.rs"]
mod gate;
#[path = "../../src/qemu/domain/job"]
mod job {
    pub(crate) mod core;
    mod kind;

    pub(crate) use kind::{AgentJobKind, AsyncJobKind, JobKind, Mask};
}

use std::time::{Duration, Instant};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use gate::{Caller, Gate};
use job::core::{Interruption, Refusal, Request, Ticket, Want};
use job::{AgentJobKind, AsyncJobKind, JobKind, Mask};

const MODIFY: Want = Want::Normal(JobKind::Modify);
const QUERY: Want = Want::Normal(JobKind::Query);

fn begin(gate: &Gate, want: Want) -> Result<Ticket, Refusal<Caller>> {
    let now = Instant::now();
    let request = Request {
        want,
        owner: Caller::here(),
        until: now + Duration::from_secs(3600),
    };
    gate.begin(request, now)
}

/// A domain whose machine runs, and that run.
fn running() -> (Gate, job::core::Run) {
    let gate = Gate::new(usize::MAX);
    let start = begin(&gate, Want::Async(AsyncJobKind::Start)).expect("nobody is there");
    let run = gate.look().came_up(start).expect("it is a start");
    gate.end(start);
    (gate, run)
}

/// Three normal jobs: never two at once, and each is had. What one does the next sees.
#[test]
fn normal_jobs_exclude_each_other() {
    loom::model(|| {
        let gate = Arc::new(running().0);
        let data = Arc::new(AtomicUsize::new(0));
        let work = |gate: &Gate, data: &AtomicUsize| {
            let ticket = begin(gate, MODIFY).expect("a job");
            // Relaxed, and not one operation: two at once lose one, and so does one that does not see the other's.
            let before = data.load(Ordering::Relaxed);
            data.store(before + 1, Ordering::Relaxed);
            gate.end(ticket);
        };
        let others: Vec<_> = (0..2)
            .map(|_| {
                let (gate, data) = (gate.clone(), data.clone());
                thread::spawn(move || work(&gate, &data))
            })
            .collect();
        work(&gate, &data);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(data.load(Ordering::Relaxed), 3);
        assert_eq!(gate.look().counts().granted, 4);
    });
}

/// An async job, a query that its mask allows, a modify that it refuses: the modify comes before it or after it, the query
/// whenever.
#[test]
fn the_mask_is_respected() {
    loom::model(|| {
        let gate = Arc::new(running().0);
        let saving = Arc::new(AtomicBool::new(false));
        let modify = {
            let (gate, saving) = (gate.clone(), saving.clone());
            thread::spawn(move || {
                let ticket = begin(&gate, MODIFY).expect("a job");
                assert!(!saving.load(Ordering::SeqCst));
                gate.end(ticket);
            })
        };
        let query = {
            let gate = gate.clone();
            thread::spawn(move || {
                let ticket = begin(&gate, QUERY).expect("a job");
                gate.end(ticket);
            })
        };
        let save = begin(&gate, Want::Async(AsyncJobKind::Save)).expect("a job");
        saving.store(true, Ordering::SeqCst);
        let nested = begin(&gate, Want::Nested(save)).expect("a step");
        gate.end(nested);
        saving.store(false, Ordering::SeqCst);
        gate.end(save);
        query.join().unwrap();
        modify.join().unwrap();
    });
}

/// The owner lets modify in while it runs: who waits for that gets in, though the async job does not end.
#[test]
fn a_wider_mask_wakes() {
    loom::model(|| {
        let gate = Arc::new(running().0);
        let save = begin(&gate, Want::Async(AsyncJobKind::Save)).expect("a job");
        let modify = {
            let gate = gate.clone();
            thread::spawn(move || {
                let ticket = begin(&gate, MODIFY).expect("a job");
                gate.end(ticket);
            })
        };
        assert!(gate.set_mask(save, Mask::ALL));
        modify.join().unwrap();
        gate.end(save);
    });
}

/// The machine dies while one holds the job, one waits for it and one waits for the agent's: both learn it, or had their job
/// before; and the death is told once.
#[test]
fn death_refuses_who_waits() {
    loom::model(|| {
        let (gate, run) = running();
        let gate = Arc::new(gate);
        // Forgotten guards: nothing but the death can end these.
        let _job = begin(&gate, MODIFY).expect("a job");
        let waits = |want| {
            let gate = gate.clone();
            thread::spawn(move || match begin(&gate, want) {
                Err(Refusal::Died | Refusal::Inactive) => None,
                Ok(ticket) => Some(ticket),
                Err(other) => panic!("{other:?}"),
            })
        };
        let agent = waits(Want::Agent(AgentJobKind::Query));
        let save = waits(Want::Async(AsyncJobKind::Save));
        assert!(gate.died(run));
        assert!(!gate.died(run));
        assert!(save.join().unwrap().is_none());
        // The agent's condition was free.
        if let Some(ticket) = agent.join().unwrap() {
            gate.end(ticket);
        }
        assert!(gate.look().run().is_none());
    });
}

/// Destroy gets in beside a holder that never ends its job; the ticket of that one is good for nothing, and who waits gets
/// the job when destroy has ended.
#[test]
fn destroy_gets_in() {
    loom::model(|| {
        let gate = Arc::new(running().0);
        let held = begin(&gate, MODIFY).expect("a job");
        let modify = {
            let gate = gate.clone();
            thread::spawn(move || {
                let ticket = begin(&gate, MODIFY).expect("a job");
                assert!(gate.look().holds(ticket));
                gate.end(ticket);
            })
        };
        let destroy = {
            let gate = gate.clone();
            thread::spawn(move || {
                let ticket = gate.seize(Caller::here());
                assert!(!gate.look().holds(held));
                gate.end(ticket);
            })
        };
        destroy.join().unwrap();
        modify.join().unwrap();
        // Its guard goes at last, and takes nothing from anybody.
        gate.end(held);
        assert!(gate.look().holders().normal.is_none());
    });
}

/// An async job that sleeps between its steps is woken by an abort and by a destroy, whichever comes.
#[test]
fn an_abort_ends_a_pause() {
    loom::model(|| {
        let gate = Arc::new(running().0);
        let save = begin(&gate, Want::Async(AsyncJobKind::Save)).expect("a job");
        let abort = {
            let gate = gate.clone();
            thread::spawn(move || gate.abort_async())
        };
        let destroy = {
            let gate = gate.clone();
            thread::spawn(move || gate.seize(Caller::here()))
        };
        let until = Instant::now() + Duration::from_secs(3600);
        let interruption = gate.pause(save, until).expect("it is interrupted");
        assert_ne!(interruption, Interruption::Died);
        abort.join().unwrap();
        destroy.join().unwrap();
        assert_eq!(gate.pause(save, until), Some(Interruption::Revoked));
    });
}

/// Who waits for the death is woken by it.
#[test]
fn a_death_is_waited_for() {
    loom::model(|| {
        let (gate, run) = running();
        let gate = Arc::new(gate);
        let waits = {
            let gate = gate.clone();
            thread::spawn(move || gate.wait_death(Instant::now() + Duration::from_secs(3600)))
        };
        assert!(gate.died(run));
        assert!(waits.join().unwrap());
    });
}

/// Of two that start a domain one does, and the other learns that it runs.
#[test]
fn a_domain_is_started_once() {
    loom::model(|| {
        let gate = Arc::new(Gate::new(usize::MAX));
        let started = Arc::new(AtomicUsize::new(0));
        let start = |gate: &Gate, started: &AtomicUsize| match begin(
            gate,
            Want::Async(AsyncJobKind::Start),
        ) {
            Ok(ticket) => {
                if gate.look().came_up(ticket).is_some() {
                    started.fetch_add(1, Ordering::SeqCst);
                }
                gate.end(ticket);
            }
            Err(Refusal::Active) => {}
            Err(other) => panic!("{other:?}"),
        };
        let other = {
            let (gate, started) = (gate.clone(), started.clone());
            thread::spawn(move || start(&gate, &started))
        };
        start(&gate, &started);
        other.join().unwrap();
        assert_eq!(started.load(Ordering::SeqCst), 1);
    });
}
