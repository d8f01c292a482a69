//! A QEMU to be started.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::error::ApplianceError;
use super::probe::Binary;
use super::running::Running;
use super::split::{Split, split};
use crate::launcher::Stdio;
use crate::qemu::monitor::{Agent, AgentOptions, Closed, MonitorError, Qmp, QmpEvents, QmpOptions};
use crate::{Command, Containment, RunWith};

/// A QEMU to be started: `-nodefaults -no-user-config -display none`, what [`args`](Self::args) adds, and the monitor.
#[derive(Debug)]
pub struct Appliance {
    binary: Arc<Binary>,
    args: Vec<OsString>,
    descriptors: Vec<(OwnedFd, i32)>,
    run_with: RunWith,
    containment: Containment,
    agent: Option<AgentOptions>,
    qmp: QmpOptions,
    log: usize,
}

/// The monitor's end that QEMU has, and the agent's.
const MONITOR: i32 = 3;
const AGENT: i32 = 4;

impl Appliance {
    /// One of this binary, with nothing in it.
    pub fn new(binary: Arc<Binary>) -> Self {
        Self {
            binary,
            args: Vec::new(),
            descriptors: Vec::new(),
            run_with: RunWith::new(),
            containment: Containment::Tree,
            agent: None,
            qmp: QmpOptions::default(),
            log: 64 << 10,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.args.extend(args);
        self
    }

    /// Gives QEMU a descriptor, under this number: 5 or more, since the monitor and the agent have those before.
    #[must_use]
    pub fn descriptor(mut self, descriptor: impl Into<OwnedFd>, number: i32) -> Self {
        self.descriptors.push((descriptor.into(), number));
        self
    }

    /// What `-run-with` is to do, by QEMU as far as it can and by the launcher for the rest.
    #[must_use]
    pub fn run_with(mut self, options: RunWith) -> Self {
        self.run_with = options;
        self
    }

    /// How it is contained. [`Containment::Tree`].
    #[must_use]
    pub fn containment(mut self, containment: Containment) -> Self {
        self.containment = containment;
        self
    }

    /// Gives the guest a channel for an agent (`org.qemu.guest_agent.0`, on a virtio-serial device), which may be there or
    /// not.
    #[must_use]
    pub fn agent(mut self, options: AgentOptions) -> Self {
        self.agent = Some(options);
        self
    }

    /// How its monitor is used.
    #[must_use]
    pub fn qmp(mut self, options: QmpOptions) -> Self {
        self.qmp = options;
        self
    }

    /// How many bytes of what it writes to its standard error are kept: the last. 64 KiB.
    #[must_use]
    pub fn log(mut self, bytes: usize) -> Self {
        self.log = bytes;
        self
    }

    /// The arguments that QEMU will get.
    ///
    /// # Errors
    ///
    /// [`ApplianceError::Options`].
    pub fn argv(&self) -> Result<Vec<OsString>, ApplianceError> {
        Ok(self.argv_with(&self.split()?.qemu))
    }

    /// Who does what of `-run-with`.
    fn split(&self) -> Result<Split, ApplianceError> {
        split(&self.run_with, &self.binary.abilities).map_err(ApplianceError::Options)
    }

    fn argv_with(&self, run_with: &RunWith) -> Vec<OsString> {
        let mut argv: Vec<OsString> = ["-nodefaults", "-no-user-config", "-display", "none"]
            .map(OsString::from)
            .into();
        let monitor = format!("socket,id=captive-monitor,fd={MONITOR}");
        argv.extend(["-chardev", &monitor].map(OsString::from));
        argv.extend(["-mon", "chardev=captive-monitor,mode=control"].map(OsString::from));
        if self.agent.is_some() {
            let agent = format!("socket,id=captive-agent,fd={AGENT}");
            argv.extend(["-chardev", &agent].map(OsString::from));
            argv.extend(["-device", "virtio-serial-pci,id=captive-serial"].map(OsString::from));
            let port = "virtserialport,chardev=captive-agent,name=org.qemu.guest_agent.0";
            argv.extend(["-device", port].map(OsString::from));
        }
        if !run_with.is_empty() {
            argv.push("-run-with".into());
            argv.push(run_with.to_os_string());
        }
        argv.extend(self.args.iter().cloned());
        argv
    }

    /// Starts it, and connects its monitor.
    ///
    /// # Errors
    ///
    /// [`ApplianceError`]; nothing of it is left.
    pub fn spawn(self) -> Result<Running, ApplianceError> {
        let (mut running, events) = self.launch()?;
        running.keep(events);
        Ok(running)
    }

    pub(super) fn launch(self) -> Result<(Running, QmpEvents), ApplianceError> {
        let split = self.split()?;
        let pair = || UnixStream::pair().map_err(ApplianceError::Setup);
        let (monitor, its_monitor) = pair()?;
        let mut command = Command::new(&self.binary.path);
        command
            .args(self.argv_with(&split.qemu))
            .descriptor(its_monitor, MONITOR)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .containment(self.containment)
            .run_with(split.launcher);
        let agent = match self.agent {
            None => None,
            Some(options) => {
                let (agent, its_agent) = pair()?;
                command.descriptor(its_agent, AGENT);
                Some((agent, options))
            }
        };
        for (descriptor, number) in self.descriptors {
            command.descriptor(descriptor, number);
        }
        let captive = command.spawn().map_err(ApplianceError::Launch)?;
        // With the copies of its ends: when QEMU's are closed ours are at their end.
        drop(command);
        let running = Running::new(captive, self.log).map_err(ApplianceError::Setup)?;
        let connected = Qmp::negotiate(monitor, self.qmp).and_then(|(qmp, events)| {
            let agent = agent.map(|(agent, options)| Agent::new(agent, options));
            Ok((qmp, events, agent.transpose()?))
        });
        match connected {
            Ok((qmp, events, agent)) => Ok((running.connected(qmp, agent), events)),
            Err(cause) => Err(running.failed(cause)),
        }
    }
}

/// Whether the other side has ended the connection, as a QEMU does that ends.
pub(super) fn is_gone(cause: &MonitorError) -> bool {
    matches!(
        cause,
        MonitorError::Closed {
            cause: Closed::Gone,
            ..
        }
    )
}
