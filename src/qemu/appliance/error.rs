//! Why there is no running QEMU.

use std::fmt;
use std::io;

use super::split::SplitError;
use crate::launcher::{ExitReport, SpawnError};
use crate::qemu::monitor::MonitorError;

/// Why there is no running QEMU. Nothing of it is left.
#[derive(Debug)]
#[non_exhaustive]
pub enum ApplianceError {
    /// Its options cannot be had with this binary.
    Options(SplitError),
    /// A socket, or a thread, cannot be had.
    Setup(io::Error),
    /// It cannot be launched.
    Launch(SpawnError),
    /// It ended before it could be talked to.
    Ended {
        /// How.
        report: Option<ExitReport>,
        /// Its last words.
        log: String,
    },
    /// It runs, and cannot be talked to; it was killed.
    Monitor {
        /// Why.
        cause: MonitorError,
        /// Its last words.
        log: String,
    },
}

impl fmt::Display for ApplianceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options(_) => f.write_str("QEMU cannot be started so"),
            Self::Setup(_) => f.write_str("QEMU's start cannot be prepared"),
            Self::Launch(_) => f.write_str("QEMU cannot be launched"),
            Self::Ended { report, log } => {
                f.write_str("QEMU ended at its start")?;
                if let Some(report) = report {
                    write!(f, ", {}", report.status())?;
                }
                match log.trim() {
                    "" => Ok(()),
                    log => write!(f, ": {log}"),
                }
            }
            Self::Monitor { .. } => f.write_str("QEMU cannot be talked to"),
        }
    }
}

impl std::error::Error for ApplianceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Options(cause) => Some(cause),
            Self::Setup(cause) => Some(cause),
            Self::Launch(cause) => Some(cause),
            Self::Ended { .. } => None,
            Self::Monitor { cause, .. } => Some(cause),
        }
    }
}
