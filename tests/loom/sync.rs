//! `captive::sync`: the counts behind QEMU's FlatViews, and what went wrong with them.

mod primitive {
    pub(super) use loom::sync::atomic::{
        AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32,
        AtomicU64, AtomicUsize, Ordering,
    };
}
#[path = "../../src/sync/count.rs"]
mod count;
#[path = "../../src/sync/fetch.rs"]
mod fetch;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use loom::thread;

use count::RefCount;
use fetch::FetchOps;

/// A FlatView as far as it matters here: whether it has been destroyed.
struct View<C> {
    references: C,
    destroyed: AtomicBool,
}

/// A reference is taken, or given back: the count and what is done with it.
trait Count {
    fn one() -> Self;
    /// False: it is dead, look again.
    fn take(&self) -> bool;
    /// True: the last one.
    fn give_back(&self) -> bool;
}

impl Count for RefCount {
    fn one() -> Self {
        Self::new()
    }
    fn take(&self) -> bool {
        self.try_ref()
    }
    fn give_back(&self) -> bool {
        self.unref()
    }
}

/// The count as QEMU had it, with the operation that its commit added.
struct IncrementNonzero(AtomicU32);

impl Count for IncrementNonzero {
    fn one() -> Self {
        Self(AtomicU32::new(1))
    }
    fn take(&self) -> bool {
        self.0.fetch_inc_nonzero() != 0
    }
    fn give_back(&self) -> bool {
        self.0.dec_fetch() == 0
    }
}

/// The count as it was before.
struct PlainIncrement(AtomicU32);

impl Count for PlainIncrement {
    fn one() -> Self {
        Self(AtomicU32::new(1))
    }
    fn take(&self) -> bool {
        self.0.inc_fetch();
        true
    }
    fn give_back(&self) -> bool {
        self.0.dec_fetch() == 0
    }
}

/// The three threads of QEMU's commit 447b0d0b9ee8:
///
/// ```text
/// thread 1                thread 2                RCU thread
/// -------------------------------------------------------------
/// rcu_read_lock
/// read as->current_map
///                         set as->current_map
///                         flatview_unref
///                             '--> call_rcu
/// flatview_ref
/// rcu_read_unlock
///                                                 flatview_destroy
/// ```
///
/// Where a view's memory is, is not the question: it stays until the end, as it does until thread 1's
/// rcu_read_unlock there.
fn timeline<C: Count + Send + Sync + 'static>() {
    loom::model(|| {
        let view = || View {
            references: C::one(),
            destroyed: AtomicBool::new(false),
        };
        let views = Arc::new([view(), view()]);
        let current = Arc::new(AtomicUsize::new(0));
        // What call_rcu hands to the RCU thread: whether the old view is to be destroyed.
        let called = Arc::new(AtomicBool::new(false));
        let reading = Arc::new(AtomicBool::new(true));
        let writer = {
            let (views, current, called) = (views.clone(), current.clone(), called.clone());
            thread::spawn(move || {
                current.store(1, Ordering::SeqCst);
                if views[0].references.give_back() {
                    called.store(true, Ordering::SeqCst);
                }
            })
        };
        let rcu = {
            let (views, called, reading) = (views.clone(), called.clone(), reading.clone());
            thread::spawn(move || {
                // A grace period: nobody reads who may have seen the old view. In the model the thread gives up
                // where it would wait.
                if called.load(Ordering::SeqCst) && !reading.load(Ordering::SeqCst) {
                    views[0].destroyed.store(true, Ordering::SeqCst);
                }
            })
        };
        let seen = current.load(Ordering::SeqCst);
        let mine = if views[seen].references.take() {
            seen
        } else {
            // Dead, so it has been replaced, and by one that nobody replaces here.
            let next = current.load(Ordering::SeqCst);
            assert!(views[next].references.take(), "no living view is found");
            next
        };
        reading.store(false, Ordering::SeqCst);
        // Ours: nobody may destroy it under us.
        assert!(
            !views[mine].destroyed.load(Ordering::SeqCst),
            "a dead view was revived"
        );
        writer.join().unwrap();
        rcu.join().unwrap();
        assert!(
            !views[mine].destroyed.load(Ordering::SeqCst),
            "a dead view was revived"
        );
    });
}

#[test]
fn flatview_is_not_resurrected() {
    timeline::<RefCount>();
}

#[test]
fn flatview_is_not_resurrected_by_fetch_inc_nonzero() {
    timeline::<IncrementNonzero>();
}

/// That the model finds what the commit is about.
#[test]
#[should_panic(expected = "a dead view was revived")]
fn flatview_was_resurrected() {
    timeline::<PlainIncrement>();
}

/// Two give back what they have, one of them takes another first: one ends it, once, after the other.
#[test]
fn the_last_one_ends_it() {
    loom::model(|| {
        let count = Arc::new(RefCount::new());
        let users = Arc::new(AtomicU32::new(0));
        let ended = Arc::new(AtomicU32::new(0));
        let end = |users: &AtomicU32, ended: &AtomicU32| {
            assert_eq!(users.load(Ordering::Relaxed), 0, "ended in use");
            ended.fetch_add(1, Ordering::Relaxed);
        };
        let other = {
            let (count, users, ended) = (count.clone(), users.clone(), ended.clone());
            thread::spawn(move || {
                if count.try_ref() {
                    users.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(ended.load(Ordering::Relaxed), 0, "used after its end");
                    users.fetch_sub(1, Ordering::Relaxed);
                    if count.unref() {
                        end(&users, &ended);
                    }
                }
            })
        };
        if count.unref() {
            end(&users, &ended);
        }
        other.join().unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1, "ended once");
        assert!(count.is_dead());
    });
}
