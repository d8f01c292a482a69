use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicI8, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::thread;

use proptest::prelude::*;

use super::count::SATURATED;
use super::{FetchOps, Published, RefCount};

#[test]
fn at_its_limit_a_count_stays() {
    let count = RefCount::at(SATURATED - 1);
    assert!(count.try_ref());
    for _ in 0..3 {
        assert!(count.try_ref());
        assert!(!count.unref());
    }
    // It would be dead after so many, were it counted.
    let count = RefCount::at(SATURATED);
    assert!((0..10).all(|_| !count.unref()));
    assert!(!count.is_dead());
}

#[test]
fn no_reference_is_given_back_twice() {
    let count = RefCount::new();
    assert!(!count.is_dead());
    assert!(count.unref());
    assert!(!count.unref());
    assert!(count.is_dead());
    assert!(!count.try_ref());
    assert!(count.is_dead());
}

proptest! {
    /// As std's operation, but the new value.
    #[test]
    fn new_values(start: u32, value: u32) {
        let new = |operation: fn(&AtomicU32, u32) -> u32| {
            let atomic = AtomicU32::new(start);
            let answer = operation(&atomic, value);
            (answer, atomic.into_inner())
        };
        for (found, wanted) in [
            (new(AtomicU32::add_fetch), start.wrapping_add(value)),
            (new(AtomicU32::sub_fetch), start.wrapping_sub(value)),
            (new(AtomicU32::and_fetch), start & value),
            (new(AtomicU32::or_fetch), start | value),
            (new(AtomicU32::xor_fetch), start ^ value),
            (new(|a, _| a.inc_fetch()), start.wrapping_add(1)),
            (new(|a, _| a.dec_fetch()), start.wrapping_sub(1)),
        ] {
            prop_assert_eq!(found, (wanted, wanted));
        }
    }

    #[test]
    fn zero_is_left_alone(start: u8) {
        let atomic = AtomicU8::new(start);
        prop_assert_eq!(atomic.fetch_inc_nonzero(), start);
        let after = if start == 0 { 0 } else { start.wrapping_add(1) };
        prop_assert_eq!(atomic.into_inner(), after);
    }
}

#[test]
fn every_width() {
    assert_eq!(AtomicU8::new(u8::MAX).inc_fetch(), 0);
    assert_eq!(AtomicI8::new(i8::MAX).add_fetch(1), i8::MIN);
    assert_eq!(AtomicU64::new(1 << 40).sub_fetch(1), (1 << 40) - 1);
    assert_eq!(AtomicUsize::new(0).fetch_inc_nonzero(), 0);
    let atomic = AtomicUsize::new(0b1100);
    assert_eq!(atomic.xor_fetch_with(0b1010, Ordering::Relaxed), 0b0110);
}

/// Ended once, by the one who gave the last reference back, whoever that is.
#[test]
fn a_count_among_threads() {
    for _ in 0..200 {
        let count = RefCount::new();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while count.try_ref() {
                        assert!(!ended.load(Ordering::SeqCst), "used after its end");
                        if count.unref() {
                            assert!(!ended.swap(true, Ordering::SeqCst), "ended twice");
                        }
                        thread::yield_now();
                    }
                });
            }
            if count.unref() {
                assert!(!ended.swap(true, Ordering::SeqCst), "ended twice");
            }
        });
        assert!(count.is_dead() && ended.into_inner());
    }
}

#[test]
fn nothing_published_is_lost() {
    let published = Arc::new(Published::new(Vec::new()));
    let first = published.load_full();
    thread::scope(|scope| {
        for number in 0..4 {
            let published = &published;
            scope.spawn(move || {
                for round in 0..100 {
                    published.update(|list| [&list[..], &[(number, round)]].concat());
                }
            });
        }
        // Longer and longer, and each one's in order.
        let mut longest = 0;
        while longest < 400 {
            let list = published.load();
            assert!(list.len() >= longest);
            longest = list.len();
            for number in 0..4 {
                let rounds = list
                    .iter()
                    .filter(|(of, _)| *of == number)
                    .map(|(_, round)| *round);
                assert!(rounds.eq(0..list.iter().filter(|(of, _)| *of == number).count()));
            }
        }
    });
    assert!(first.is_empty(), "a snapshot was changed");
    published.store(Vec::new());
    assert!(published.load().is_empty());
}
