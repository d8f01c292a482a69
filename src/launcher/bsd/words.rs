//! What launcher, supervisor and captive tell each other: a page that all three see, and orders on a stream socket.
//!
//! What the supervisor has to say is in the page first; a byte on the socket, or its end, only wakes.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use super::super::settings::{EXEC, OWN};
use super::super::{EndedBy, ExitReport, ExitStatus, Usage};
use super::sys::Waited;
use crate::sys::shared::{Shared, SharedWords};
use crate::sys::signal::Signal;

/// The page of one captive.
pub(super) type Page = Shared<Progress>;

/// How far a captive is, and how it ended.
#[derive(Debug)]
pub(super) struct Progress {
    /// The step that is being made, on the way to its exec.
    step: AtomicU32,
    /// Why it failed; 0 if it has not.
    errno: AtomicI32,
    /// The captive's pid, which it writes before anything else.
    pid: AtomicI32,
    launch: AtomicU32,
    /// The number of the last order that was carried out, and the errno in the lower half.
    answer: AtomicU64,
    /// Its end has been told, and the supervisor is about to wait for it: from here on the pid may be anybody's.
    reaping: AtomicU32,
    /// Nothing is left of its tree.
    empty: AtomicU32,
    /// What follows has been written.
    reported: AtomicU32,
    status: AtomicI32,
    ended_by: AtomicU32,
    /// Seconds and microseconds of user and of system time; the largest resident set.
    usage: [AtomicI64; 5],
}

// SAFETY: atomics of integers only, for which all zeroes are values.
unsafe impl SharedWords for Progress {}

// Steps before the captive's own.
const START: u32 = OWN;
pub(super) const REAPER: u32 = OWN + 1;
pub(super) const FORK: u32 = OWN + 2;
pub(super) const CLEAR: u32 = OWN + 3;
pub(super) const WATCH: u32 = OWN + 4;
/// Its plan, by the step's index.
pub(super) const PLAN: u32 = OWN + 5;
/// Its look at its parent.
pub(super) const PARENT: u32 = OWN + 6;

/// How the launch has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launch {
    UnderWay,
    /// The program has been executed.
    Done,
    /// It has not, and nothing is left of the captive.
    Failed(u32, Errno),
}

impl Progress {
    pub(super) fn at(&self, step: u32) {
        self.step.store(step, Ordering::SeqCst);
    }

    pub(super) fn step(&self) -> u32 {
        match self.step.load(Ordering::SeqCst) {
            0 => START,
            step => step,
        }
    }

    /// The step that is being made has failed.
    pub(super) fn fail(&self, errno: Errno) {
        // 0 stands for no failure; an errno that nix does not know comes as one.
        let number = match errno as i32 {
            0 => libc::EIO,
            number => number,
        };
        self.errno.store(number, Ordering::SeqCst);
    }

    /// Whether a captive that has exec'ed or ended has exec'ed.
    pub(super) fn has_executed(&self) -> bool {
        self.errno.load(Ordering::SeqCst) == 0 && self.step() == EXEC
    }

    pub(super) fn set_launch(&self, done: bool) {
        self.launch
            .store(if done { 1 } else { 2 }, Ordering::SeqCst);
    }

    pub(super) fn launch(&self) -> Launch {
        match self.launch.load(Ordering::SeqCst) {
            0 => Launch::UnderWay,
            1 => Launch::Done,
            _ => Launch::Failed(
                self.step(),
                match self.errno.load(Ordering::SeqCst) {
                    // Killed on the way.
                    0 => Errno::ECANCELED,
                    errno => Errno::from_raw(errno),
                },
            ),
        }
    }

    pub(super) fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Ordering::SeqCst);
    }

    /// 0 before there is a captive.
    pub(super) fn pid(&self) -> i32 {
        self.pid.load(Ordering::SeqCst)
    }

    pub(super) fn set_answer(&self, number: u8, errno: i32) {
        let answer = u64::from(number) << 32 | u64::from(errno.unsigned_abs());
        self.answer.store(answer, Ordering::SeqCst);
    }

    /// The errno of the order with this number, or 0, if it is the last that was carried out.
    pub(super) fn answer(&self, number: u8) -> Option<i32> {
        let answer = self.answer.load(Ordering::SeqCst);
        let errno = i32::try_from(answer & 0xffff_ffff).unwrap_or(libc::EIO);
        (answer >> 32 == u64::from(number)).then_some(errno)
    }

    pub(super) fn set_reaping(&self) {
        self.reaping.store(1, Ordering::SeqCst);
    }

    pub(super) fn is_reaping(&self) -> bool {
        self.reaping.load(Ordering::SeqCst) != 0
    }

    pub(super) fn set_empty(&self) {
        self.empty.store(1, Ordering::SeqCst);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.empty.load(Ordering::SeqCst) != 0
    }

    pub(super) fn set_report(&self, waited: &Waited, ended_by: EndedBy) {
        self.status.store(waited.status, Ordering::SeqCst);
        self.ended_by.store(
            match ended_by {
                EndedBy::Itself => 0,
                EndedBy::Signal => 1,
                EndedBy::Kill => 2,
            },
            Ordering::SeqCst,
        );
        let [user, system] = waited.times;
        let usage = [user.0, user.1, system.0, system.1, waited.max_rss];
        for (place, number) in self.usage.iter().zip(usage) {
            place.store(number, Ordering::SeqCst);
        }
        self.reported.store(1, Ordering::SeqCst);
    }

    /// How it ended, once that has been written.
    pub(super) fn report(&self) -> Option<ExitReport> {
        if self.reported.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let [user, user_part, system, system_part, max_rss] = self
            .usage
            .each_ref()
            .map(|number| u64::try_from(number.load(Ordering::SeqCst)).unwrap_or(0));
        Some(ExitReport {
            status: status_of(self.status.load(Ordering::SeqCst)),
            usage: Some(Usage {
                user: Duration::from_secs(user) + Duration::from_micros(user_part),
                system: Duration::from_secs(system) + Duration::from_micros(system_part),
                max_rss,
            }),
            ended_by: match self.ended_by.load(Ordering::SeqCst) {
                0 => EndedBy::Itself,
                1 => EndedBy::Signal,
                _ => EndedBy::Kill,
            },
        })
    }
}

/// wait(2)'s status, of a process that has ended.
fn status_of(status: i32) -> ExitStatus {
    match status & 0x7f {
        0 => ExitStatus::Exited(status >> 8 & 0xff),
        signal => {
            Signal::try_from(signal).map_or(ExitStatus::Unknown, |signal| ExitStatus::Killed {
                signal,
                core_dumped: status & 0x80 != 0,
            })
        }
    }
}

/// What the launcher wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// This signal to the captive.
    Signal(i32),
    /// It is to live on.
    LetGo,
}

/// A wish, with the number that its answer has; 0 if none is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) wish: Wish,
    pub(super) number: u8,
}

impl Order {
    pub(super) const SIZE: usize = 3;

    pub(super) fn to_bytes(self) -> [u8; Self::SIZE] {
        match self.wish {
            // There are fewer than 256 signals.
            Wish::Signal(signal) => [1, u8::try_from(signal).unwrap_or(0), self.number],
            Wish::LetGo => [2, 0, self.number],
        }
    }

    pub(super) fn of(bytes: [u8; Self::SIZE]) -> Option<Self> {
        let [kind, signal, number] = bytes;
        let wish = match kind {
            1 => Wish::Signal(signal.into()),
            2 => Wish::LetGo,
            _ => return None,
        };
        Some(Self { wish, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_back() {
        for wish in [Wish::Signal(1), Wish::Signal(127), Wish::LetGo] {
            for number in [0, 1, 255] {
                let order = Order { wish, number };
                assert_eq!(Order::of(order.to_bytes()), Some(order));
            }
        }
        assert_eq!(Order::of([0; 3]), None);
    }

    #[test]
    fn a_report_and_back() {
        let page = Page::new().expect("a page");
        assert_eq!(page.report(), None);
        let waited = Waited {
            pid: 1,
            status: 9 | 0x80,
            times: [(1, 2), (3, 4)],
            max_rss: 4096,
        };
        page.set_report(&waited, EndedBy::Kill);
        let report = page.report().expect("a report");
        assert_eq!(
            report.status(),
            ExitStatus::Killed {
                signal: Signal::KILL,
                core_dumped: true
            }
        );
        assert_eq!(report.ended_by(), EndedBy::Kill);
        let usage = report.usage().expect("usage");
        assert_eq!(usage.system, Duration::from_micros(3_000_004));
        assert_eq!(usage.max_rss, 4096);
        assert_eq!(status_of(3 << 8), ExitStatus::Exited(3));
    }
}
