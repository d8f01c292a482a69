//! Deadlines, of limits of any length.

use std::time::{Duration, Instant};

/// A year: as good as for ever, and no overflow of a clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// That long after `begin`, or a year, if that is less.
pub(super) fn deadline(begin: Instant, limit: Duration) -> Instant {
    begin + limit.min(LONGEST)
}
