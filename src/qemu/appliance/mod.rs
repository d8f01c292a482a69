//! A QEMU that is started, connected, supervised and stopped.
//!
//! [`Probe`] asks a binary what it can do, once. [`Appliance`] is a machine to be started: its argv, and what of
//! `-run-with` QEMU does by itself. [`Running`] is one that runs: a [`Captive`](crate::Captive) with its whole tree, a
//! [`Qmp`](super::monitor::Qmp) connection over a socket that was made before QEMU was, so that there is no window in
//! which a connection could hang or reach another, and the end of what it wrote.
//!
//! A domain's machine is started by [`Appliance::start`], as the steps of an async job: the domain is told of its end by a
//! thread that does nothing else, with the reason and QEMU's last words.
//!
//! ```no_run
//! use captive::qemu::appliance::{Appliance, Probe, StopPlan};
//!
//! let probe = Probe::new();
//! let qemu = probe.binary("qemu-system-x86_64".as_ref())?;
//! let running = Appliance::new(qemu).args(["-m", "256"]).spawn()?;
//! println!("{}", running.qmp().execute("query-status", &())?);
//! running.stop(&StopPlan::default());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod launch;
mod log;
mod probe;
mod running;
mod split;
mod start;
mod stop;

pub use error::ApplianceError;
pub use launch::Appliance;
pub use log::Log;
pub use probe::{Abilities, Binary, Probe, ProbeError};
pub use running::Running;
pub use split::SplitError;
pub use start::{Machines, StartError, Started};
pub use stop::{StopPlan, StoppedBy};
