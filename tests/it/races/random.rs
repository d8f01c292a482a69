//! Kills at random times after the fork, counted by the phase that was seen just before each.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Fallible;
use super::launch::{Launch, Page, await_running};
use super::namespace::{kill_others, others, reaping};
use super::phase::{Phase, seen};
use super::variant::Variant;
use crate::support::Witness;

/// Kills are at most this long after the fork, or twice as long as the start takes here.
const LATEST: Duration = Duration::from_millis(3);

/// Kills that must have come in each phase.
const MINIMUM: usize = 5;

struct Kills<'a> {
    variant: &'a Variant,
    page: Page,
    random: Random,
    /// When the kills of each phase came.
    by_phase: BTreeMap<Phase, Vec<Duration>>,
    survivors: BTreeMap<Phase, usize>,
}

/// `trials` random kills, then more where a phase has not had its share. The answer says what was
/// counted.
pub fn run(variant: &Variant, trials: usize, seed: u64) -> Fallible<String> {
    let mut kills = Kills {
        variant,
        page: Page::map()?,
        random: Random(seed),
        by_phase: BTreeMap::new(),
        survivors: BTreeMap::new(),
    };
    let start_up = kills.start_up()?;
    let latest = LATEST.max(start_up * 2);
    for _ in 0..trials {
        let at = kills.random.below(latest);
        kills.once(at)?;
    }
    let aimed = kills.aim(latest, trials)?;
    kills.check()?;
    let mut counts: Vec<String> = Vec::new();
    for (phase, times) in &kills.by_phase {
        let survived = kills.survivors.get(phase).copied().unwrap_or(0);
        counts.push(format!("{phase:?} {} ({survived} survived)", times.len()));
    }
    Ok(format!(
        "{trials} kills within {latest:?} and {aimed} aimed, start-up {start_up:?}: {}",
        counts.join(", ")
    ))
}

impl Kills<'_> {
    /// How long it takes until the command runs: without a kill, it does.
    fn start_up(&self) -> Fallible<Duration> {
        let mut times = Vec::new();
        for _ in 0..9 {
            let launch = Launch::start(self.variant, &self.page, None)?;
            if !await_running(&launch, self.variant, reaping)? {
                return Err("without a kill: run-with ended".into());
            }
            times.push(launch.forked.elapsed());
            kill_others()?;
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    }

    fn once(&mut self, at: Duration) -> Fallible {
        let variant = self.variant;
        let launch = Launch::start(variant, &self.page, None)?;
        while launch.forked.elapsed() < at {
            std::hint::spin_loop();
        }
        let came = launch.forked.elapsed();
        let phase = seen(launch.run_with.pid, variant);
        let victims = launch.victims(variant);
        for victim in &victims {
            victim.signal(libc::SIGKILL);
        }
        let Some(phase) = phase else {
            return Err(format!("run-with was gone {came:?} after the fork, unkilled").into());
        };
        if !victims.iter().all(Witness::gone) {
            return Err("the SIGKILLed process does not end".into());
        }
        self.by_phase.entry(phase).or_default().push(came);
        self.judge(&launch, phase)
            .map_err(|error| format!("killed {came:?} after the fork, {phase:?}: {error}").into())
    }

    fn judge(&mut self, launch: &Launch, phase: Phase) -> Fallible {
        if self.variant.is_bound() && !self.variant.may_survive(phase) {
            return launch.judge(self.variant, reaping);
        }
        if await_running(launch, self.variant, reaping)? {
            *self.survivors.entry(phase).or_default() += 1;
        }
        if self.variant.is_bound() {
            // The subreaper was taken for the launcher: they are bound to it.
            return launch.end_the_rest(reaping);
        }
        kill_others()
    }

    /// Kills at the times at which a phase is likely that has not been hit often enough.
    fn aim(&mut self, latest: Duration, cap: usize) -> Fallible<usize> {
        let wanted = self.variant.phases();
        let mut aimed = 0;
        while let Some(missing) = wanted.iter().position(|phase| self.count(*phase) < MINIMUM) {
            if aimed == cap.max(1000) {
                break;
            }
            let before = wanted[..missing].iter().rev();
            let low = before.filter_map(|phase| self.median(*phase)).next();
            let after = wanted[missing + 1..].iter();
            let high = after.filter_map(|phase| self.median(*phase)).next();
            let low = low.unwrap_or_default();
            let high = high.unwrap_or(latest * 2).max(low);
            let at = low + self.random.below(high - low + Duration::from_micros(20));
            self.once(at)?;
            aimed += 1;
        }
        Ok(aimed)
    }

    fn count(&self, phase: Phase) -> usize {
        self.by_phase.get(&phase).map_or(0, Vec::len)
    }

    fn median(&self, phase: Phase) -> Option<Duration> {
        let mut times = self.by_phase.get(&phase)?.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    fn check(&self) -> Fallible {
        let left = others(&[]);
        if !left.is_empty() {
            return Err(format!("left over at the end: {left:?}").into());
        }
        for phase in self.variant.phases() {
            let count = self.count(*phase);
            if count < MINIMUM {
                return Err(format!("{count} kills {phase:?}: fewer than {MINIMUM}").into());
            }
        }
        let survived: usize = self.survivors.values().sum();
        if !self.variant.is_bound() {
            // It is the option that ends the command: without it, it lives on.
            let late = self.count(Phase::Running);
            let orphans = self.survivors.get(&Phase::Running).copied().unwrap_or(0);
            if orphans != late {
                return Err(format!("without the option {orphans} of {late} lived on").into());
            }
        } else if self.variant.may_survive(Phase::BeforeExec) && survived == 0 {
            return Err("no survivor under a subreaper: the documentation says otherwise".into());
        }
        Ok(())
    }
}

/// splitmix64: the same seed, the same times.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: Duration) -> Duration {
        Duration::from_nanos(self.next() % (limit.as_nanos() as u64).max(1))
    }
}
