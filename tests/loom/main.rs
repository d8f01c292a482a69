//! Meeting points of threads, as loom models: every interleaving within loom's bounds.
//!
//! The files are the crate's own, compiled here with loom's primitives in place of std's
//! (`src/launcher/primitive.rs`, `src/exit_with_parent/primitive.rs`). Bounds: three threads, all interleavings (no preemption bound).

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

mod primitive {
    pub(super) use loom::sync::atomic::{AtomicU32, Ordering};
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use std::sync::PoisonError;
}
#[path = "../../src/exit_with_parent/binding.rs"]
mod binding;
#[path = "../../src/launcher/linux/claim.rs"]
mod claim;
mod jobs;
#[path = "../../src/launcher/news.rs"]
mod news;
#[path = "../../src/launcher/outcome.rs"]
mod outcome;
#[path = "../../src/launcher/linux/slot.rs"]
mod slot;
mod sync;

use std::convert::Infallible;

use loom::sync::Arc;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;

use binding::Binding;
use claim::{Claim, Settled};
use news::News;
use outcome::Outcome;
use slot::Slot;

/// One asks for a child and gives up; another makes it at the same time.
///
/// The child has one owner in the end, and the one who gives up signals no descriptor that has been
/// closed.
#[test]
fn a_child_has_one_owner() {
    loom::model(|| {
        let claim = Arc::new(Claim::new());
        let open = Arc::new(AtomicBool::new(true));
        let answered = Arc::new(AtomicBool::new(false));
        let maker = {
            let (claim, open, answered) = (claim.clone(), open.clone(), answered.clone());
            thread::spawn(move || {
                if claim.settle(Settled::Answered) {
                    // The descriptor goes with the answer.
                    answered.store(true, Ordering::Release);
                    false
                } else {
                    open.store(false, Ordering::Release);
                    true
                }
            })
        };
        // The limit is up: SIGKILL to the number, then the claim.
        assert!(open.load(Ordering::Acquire), "signalled a closed number");
        let gave_up = claim.settle(Settled::GivenUp);
        let maker_ended_it = maker.join().unwrap();
        assert_eq!(gave_up, maker_ended_it, "none or two own the child");
        assert_ne!(gave_up, answered.load(Ordering::Acquire));
    });
}

/// Two hand over, one sleeps and takes: whatever was handed over is taken.
#[test]
fn no_news_is_lost() {
    loom::model(|| {
        let news = Arc::new(News::new());
        let bell = Arc::new(Notify::new());
        let pushers: Vec<_> = (0..2)
            .map(|number| {
                let (news, bell) = (news.clone(), bell.clone());
                thread::spawn(move || news.push(number, || bell.notify()))
            })
            .collect();
        let mut taken = Vec::new();
        while taken.len() < 2 {
            // A lost wake-up is a deadlock here, which loom reports. Waiting clears the bell.
            bell.wait();
            taken.extend(news.take(|| {}));
        }
        taken.sort_unstable();
        assert_eq!(taken, [0, 1]);
        for pusher in pushers {
            pusher.join().unwrap();
        }
    });
}

/// A job handed over and its answer: neither is waited for in vain.
#[test]
fn an_answer_arrives() {
    loom::model(|| {
        let (job, answer) = (Arc::new(Slot::new()), Arc::new(Slot::new()));
        let spawner = {
            let (job, answer) = (job.clone(), answer.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let number: u32 = job.take();
                    answer.put(number + 1);
                }
            })
        };
        for number in [1, 7] {
            job.put(number);
            assert_eq!(answer.take(), number + 1);
        }
        spawner.join().unwrap();
    });
}

/// Two wait for the same end, a third sends signals: the kernel tells the status to one of them, once,
/// and both have it.
#[test]
fn everybody_has_the_status() {
    loom::model(|| {
        let outcome: Arc<Outcome<u32, u32>> = Arc::new(Outcome::new(0));
        let kernel = Arc::new(AtomicU32::new(7));
        let wait = |outcome: &Outcome<u32, u32>, kernel: &AtomicU32| {
            outcome
                .get(|sent| match kernel.swap(0, Ordering::AcqRel) {
                    // ECHILD: somebody else has been told.
                    0 => panic!("asked twice"),
                    status => Ok::<_, Infallible>(Some(status * 10 + sent)),
                })
                .unwrap()
        };
        let other = {
            let (outcome, kernel) = (outcome.clone(), kernel.clone());
            thread::spawn(move || wait(&outcome, &kernel))
        };
        let sender = {
            let outcome = outcome.clone();
            thread::spawn(move || outcome.note(|sent| *sent = 1))
        };
        let mine = wait(&outcome, &kernel);
        let theirs = other.join().unwrap();
        sender.join().unwrap();
        assert_eq!(mine, theirs);
        assert!(mine == Some(70) || mine == Some(71));
        assert!(outcome.is_known());
    });
}

/// The thread has been told of the parent's exit, and the handle ends the binding: once that has returned,
/// the process is not signalled.
#[test]
fn the_end_of_a_binding_wins() {
    loom::model(|| {
        let binding = Arc::new(Binding::new());
        let ended = Arc::new(AtomicBool::new(false));
        let signals = Arc::new(AtomicU32::new(0));
        let watcher = {
            let (binding, ended, signals) = (binding.clone(), ended.clone(), signals.clone());
            thread::spawn(move || {
                binding.note_gone();
                // SIGTERM, and after the grace SIGKILL.
                let mut done = 0;
                while done < 2
                    && binding.act(|| {
                        assert!(!ended.load(Ordering::SeqCst), "signalled after the end");
                        signals.fetch_add(1, Ordering::SeqCst);
                    })
                {
                    done += 1;
                }
                binding.note_unwatched();
                done
            })
        };
        binding.end();
        ended.store(true, Ordering::SeqCst);
        let before = signals.load(Ordering::SeqCst);
        assert_eq!(watcher.join().unwrap(), before);
        assert!(!binding.act(|| ()));
    });
}

/// The parent's exit is an event in two queues, one the thread's and one the handle's, which two threads
/// of the program ask. Whoever asks once it has happened is told so, whoever took the event out.
#[test]
fn nobody_is_told_otherwise() {
    loom::model(|| {
        let binding = Arc::new(Binding::new());
        // It has happened, and stands in both queues.
        let asked = Arc::new(AtomicBool::new(true));
        let ask = |binding: &Binding, asked: &AtomicBool| {
            binding
                .is_gone(|| Ok::<_, Infallible>(asked.swap(false, Ordering::AcqRel)))
                .unwrap()
        };
        let other = {
            let (binding, asked) = (binding.clone(), asked.clone());
            thread::spawn(move || ask(&binding, &asked))
        };
        let watcher = {
            let binding = binding.clone();
            thread::spawn(move || binding.note_gone())
        };
        assert!(ask(&binding, &asked), "the exit was lost to the first");
        assert!(other.join().unwrap(), "the exit was lost to the other");
        watcher.join().unwrap();
        assert!(ask(&binding, &asked));
        assert!(!binding.is_watched());
    });
}
