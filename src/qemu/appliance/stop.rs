//! Ending a machine in order: ask the guest, ask QEMU, SIGTERM, SIGKILL, each with its time.

use std::time::{Duration, Instant};

/// What is tried to end a machine, and for how long each; `None` leaves a step out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopPlan {
    /// `system_powerdown`: the guest is told that the button was pressed, and may do as it likes. 60 s.
    pub powerdown: Option<Duration>,
    /// `quit`: QEMU ends in order, the guest does not. 10 s.
    pub quit: Option<Duration>,
    /// SIGTERM: the same, for a QEMU whose monitor does not answer. 5 s.
    pub terminate: Option<Duration>,
    /// SIGKILL: how long it is waited for. 10 s; what has not ended then is stuck in the kernel.
    pub kill: Duration,
}

impl Default for StopPlan {
    fn default() -> Self {
        Self {
            powerdown: Some(Duration::from_secs(60)),
            quit: Some(Duration::from_secs(10)),
            terminate: Some(Duration::from_secs(5)),
            kill: Duration::from_secs(10),
        }
    }
}

/// What ended a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StoppedBy {
    /// Nothing: it had ended.
    Itself,
    /// `system_powerdown`.
    Powerdown,
    /// `quit`.
    Quit,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    /// Not even that, in its time.
    Stuck,
}

/// What a plan is carried out on.
pub(super) trait Stoppable {
    /// Asks QEMU. Within `limit`; whether it took it.
    fn ask(&mut self, command: &str, limit: Duration) -> bool;
    /// Sends SIGTERM; whether it could.
    fn terminate(&mut self) -> bool;
    /// Sends SIGKILL.
    fn kill(&mut self);
    /// Waits for its end.
    fn wait(&mut self, limit: Duration) -> bool;
}

impl StopPlan {
    /// Tries one after the other. What is refused is not waited for.
    pub(super) fn carry_out(&self, machine: &mut impl Stoppable) -> StoppedBy {
        if machine.wait(Duration::ZERO) {
            return StoppedBy::Itself;
        }
        let steps = [
            (self.powerdown, StoppedBy::Powerdown),
            (self.quit, StoppedBy::Quit),
            (self.terminate, StoppedBy::Terminate),
        ];
        for (limit, step) in steps {
            let Some(limit) = limit else {
                continue;
            };
            let begin = Instant::now();
            let taken = match step {
                StoppedBy::Powerdown => machine.ask("system_powerdown", limit),
                StoppedBy::Quit => machine.ask("quit", limit),
                _ => machine.terminate(),
            };
            // It may have ended before it could say so.
            let left = if taken {
                limit.saturating_sub(begin.elapsed())
            } else {
                Duration::ZERO
            };
            if machine.wait(left) {
                return step;
            }
        }
        machine.kill();
        if machine.wait(self.kill) {
            StoppedBy::Kill
        } else {
            StoppedBy::Stuck
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that ends by some steps only.
    struct Fake {
        ends_by: StoppedBy,
        refuses: bool,
        ended: bool,
        said: Vec<String>,
    }

    impl Fake {
        fn new(ends_by: StoppedBy, refuses: bool) -> Self {
            Self {
                ends_by,
                refuses,
                ended: ends_by == StoppedBy::Itself,
                said: Vec::new(),
            }
        }
        fn step(&mut self, step: StoppedBy, name: &str) -> bool {
            self.said.push(name.to_owned());
            self.ended |= step >= self.ends_by;
            !self.refuses
        }
    }

    impl Stoppable for Fake {
        fn ask(&mut self, command: &str, _limit: Duration) -> bool {
            let quits = command == "quit";
            let step = if quits {
                StoppedBy::Quit
            } else {
                StoppedBy::Powerdown
            };
            self.step(step, command)
        }
        fn terminate(&mut self) -> bool {
            self.step(StoppedBy::Terminate, "SIGTERM")
        }
        fn kill(&mut self) {
            self.step(StoppedBy::Kill, "SIGKILL");
        }
        fn wait(&mut self, limit: Duration) -> bool {
            assert!(self.ended || limit.is_zero() || !self.refuses || self.said.len() == 4);
            self.ended
        }
    }

    #[test]
    fn each_step_is_tried_until_one_ends_it() {
        let all = ["system_powerdown", "quit", "SIGTERM", "SIGKILL"];
        let steps = [
            (StoppedBy::Itself, 0),
            (StoppedBy::Powerdown, 1),
            (StoppedBy::Quit, 2),
            (StoppedBy::Terminate, 3),
            (StoppedBy::Kill, 4),
            (StoppedBy::Stuck, 4),
        ];
        for refuses in [false, true] {
            for (ends_by, count) in steps {
                let mut fake = Fake::new(ends_by, refuses);
                assert_eq!(StopPlan::default().carry_out(&mut fake), ends_by);
                assert_eq!(fake.said, all[..count]);
            }
        }
    }

    #[test]
    fn what_is_left_out_is_left_out() {
        let plan = StopPlan {
            powerdown: None,
            quit: None,
            ..StopPlan::default()
        };
        let mut fake = Fake::new(StoppedBy::Powerdown, false);
        assert_eq!(plan.carry_out(&mut fake), StoppedBy::Terminate);
        assert_eq!(fake.said, ["SIGTERM"]);
    }
}
