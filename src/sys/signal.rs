//! A signal number that exists on this system, with its name.
//!
//! nix's `Signal` has no real-time signals, and a foreign type would tie this crate's public
//! interface to nix's version.

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal as Named;

/// A signal number that exists on this system: 1 to 31 by name, and the real-time signals.
///
/// Written and read as kill(1) does: `TERM`, `SIGTERM` or `15`, `RTMIN+3`.
///
/// ```
/// use captive::exit_with_parent::Signal;
/// let signal: Signal = "SIGTERM".parse()?;
/// assert_eq!(signal, Signal::TERM);
/// assert_eq!(signal.to_string(), "TERM");
/// # Ok::<(), captive::exit_with_parent::UnknownSignal>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(i32);

impl Signal {
    /// SIGHUP.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// SIGINT.
    pub const INT: Self = Self(libc::SIGINT);
    /// SIGTERM: what a process gets when its parent is gone, unless another was asked for.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// SIGKILL.
    pub const KILL: Self = Self(libc::SIGKILL);

    /// The number, as in signal(7).
    pub const fn number(self) -> i32 {
        self.0
    }
}

/// The real-time range a program may use: the C library keeps the first few for itself.
#[cfg(target_os = "linux")]
fn realtime() -> std::ops::RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Real-time signals are named on Linux alone: elsewhere the range is empty.
#[cfg(not(target_os = "linux"))]
fn realtime() -> std::ops::RangeInclusive<i32> {
    std::ops::RangeInclusive::new(1, 0)
}

/// No signal of this name or number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownSignal(String);

impl fmt::Display for UnknownSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no signal {:?}: expected a name such as TERM or a number",
            self.0
        )
    }
}

impl std::error::Error for UnknownSignal {}

impl TryFrom<i32> for Signal {
    type Error = UnknownSignal;

    fn try_from(number: i32) -> Result<Self, UnknownSignal> {
        if realtime().contains(&number) || Named::try_from(number).is_ok() {
            Ok(Self(number))
        } else {
            Err(UnknownSignal(number.to_string()))
        }
    }
}

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let unknown = || UnknownSignal(text.to_owned());
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let number: i32 = text.parse().map_err(|_| unknown())?;
            return Self::try_from(number).map_err(|_| unknown());
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Ok(named) = Named::from_str(&format!("SIG{name}")) {
            return Ok(Self(named as i32));
        }
        let range = realtime();
        let (min, max) = (*range.start(), *range.end());
        let offset = |digits: &str| {
            if digits.bytes().all(|b| b.is_ascii_digit()) {
                digits.parse().ok()
            } else {
                None
            }
        };
        let number = match (name, name.split_once('+'), name.split_once('-')) {
            ("RTMIN", _, _) => Some(min),
            ("RTMAX", _, _) => Some(max),
            (_, Some(("RTMIN", digits)), _) => offset(digits).and_then(|n: i32| min.checked_add(n)),
            (_, _, Some(("RTMAX", digits))) => offset(digits).and_then(|n: i32| max.checked_sub(n)),
            _ => None,
        };
        number
            .filter(|n| range.contains(n))
            .map(Self)
            .ok_or_else(unknown)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let min = *realtime().start();
        match Named::try_from(self.0) {
            Ok(named) => f.write_str(named.as_str().trim_start_matches("SIG")),
            Err(_) if self.0 == min => f.write_str("RTMIN"),
            Err(_) => write!(f, "RTMIN+{}", self.0 - min),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signal({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_its_name() {
        for number in 1..=64 {
            let Ok(signal) = Signal::try_from(number) else {
                continue;
            };
            assert_eq!(signal.to_string().parse(), Ok(signal), "{number}");
            assert_eq!(number.to_string().parse(), Ok(signal), "{number}");
        }
    }

    #[test]
    fn what_is_no_signal() {
        for text in [
            "",
            "0",
            "65",
            "-1",
            "+15",
            "TERMINATE",
            "SIG",
            "SIGSIGTERM",
            "RTMIN+99",
            "RTMIN+",
            "RTMAX-+1",
            "15 ",
        ] {
            assert!(text.parse::<Signal>().is_err(), "{text:?}");
        }
        assert_eq!("sigterm".parse(), Ok(Signal::TERM));
    }
}
