//! FreeBSD: the kernel sends the signal, and kqueue does what a signal cannot. **Never run**,
//! see `docs/platforms.md`.
//!
//! procctl(2), PROC_PDEATHSIG_CTL (FreeBSD 11.2) needs no thread and no descriptor, so it is what is
//! used when a plain signal is all that was asked for. A grace, a channel, a callback and a pipe need
//! a watcher: that of [`kqueue`].
//!
//! What holds there, and is not as on Linux, by the kernel's source (`sys/kern`, versions
//! from 12 to 15 read):
//!
//! - The setting is the process's (p_pdeathsig in struct proc), not a thread's, so any thread may
//!   make it; and only for itself (pdeathsig_ctl(), kern_procctl.c). It means the parent *process*:
//!   exit1(), kern_exit.c, goes through the children when the process exits, not when a thread ends.
//! - It is sent whatever the users are (kern_psignal() asks for no permission), after the child has its
//!   new parent, and before NOTE_EXIT.
//! - No change of credentials touches it: setuid(2) and its kin (kern_prot.c) keep it, and nothing
//!   but procctl, fork and exec was found to write it. What clears it:
//!   - fork: it lies in the part of struct proc that a new process has zeroed.
//!   - exec of a file that would change credentials (do_execve(), kern_exec.c, credential_changing):
//!     set-user-ID with an owner who is not our effective user, set-group-ID likewise, or one whose label
//!     a MAC policy would change. Looked at before everything that may forbid the change (a nosuid
//!     mount, a tracer, capability mode) and before the file is known to be executable, so it is cleared
//!     also where the ids stay as they are, and where the exec fails. A plain exec keeps it.
//!
//!   [`Limit::SetIdExec`] stands for that exec. [`rearm`](Armed::rearm) sets it again, and is needed
//!   after an exec that failed, nowhere else.
//! - It is not cleared by having been sent: exit1() sends it at the exit of *every* parent the process
//!   has, so of the reaper that adopted it as well. As on Linux.
//! - Under a debugger the original parent counts: its exit signals the children whom a debugger holds
//!   (p_orphans). The debugger's own exit sends them SIGKILL, whatever was set.

#![allow(unsafe_code)]

use std::process;

use nix::errno::Errno;

use super::known::{self, still_parent};
use super::{
    Action, ArmError, ArmStep, Expected, Known, Limit, Mechanism, Report, Request, Scope, Signal,
    kqueue,
};

pub(super) use super::kqueue::is_supported;

/// What was armed, and by which process.
#[derive(Debug)]
pub(super) struct Armed {
    /// The process that armed: in any other (a forked child) this handle is inert.
    pid: u32,
    watch: Option<kqueue::Armed>,
    signal: Option<DeathSignal>,
}

impl Armed {
    pub(super) fn arm(request: Request) -> Result<Self, ArmError> {
        let mut armed = Self {
            pid: process::id(),
            watch: None,
            signal: None,
        };
        let signal = plain_signal(&request);
        match (request.mechanism, request.second_line, signal) {
            (Some(Mechanism::Pidfd), ..) => return Err(ArmError::Unsupported(request.mechanism)),
            (Some(Mechanism::ParentDeathSignal), false, None)
            | (Some(Mechanism::ParentDeathSignal), true, _) => {
                return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
            }
            (None | Some(Mechanism::ParentDeathSignal), false, Some(signal)) => {
                let known = match request.expected {
                    Expected::Pid(pid) => Known::Expected(pid),
                    _ => Known::Unsaid(known::unsaid_parent()?),
                };
                armed.signal = Some(DeathSignal::set(signal, known)?);
            }
            (None | Some(Mechanism::Kqueue), second_line, _) => {
                let second = match &request.action {
                    Action::Signal { signal, .. } if second_line => Some(*signal),
                    Action::Call(_) if second_line => {
                        return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
                    }
                    _ => None,
                };
                let watch = kqueue::Armed::arm(Request {
                    second_line: false,
                    ..request
                })?;
                let known = watch.known();
                armed.watch = Some(watch);
                if let Some(signal) = second {
                    armed.set_second_line(signal, known)?;
                }
            }
        }
        Ok(armed)
    }

    /// On failure nothing is armed.
    fn set_second_line(&mut self, signal: Signal, known: Known) -> Result<(), ArmError> {
        match DeathSignal::set(signal, known) {
            Ok(set) => {
                self.signal = Some(set);
                Ok(())
            }
            Err(error) => {
                self.watch.take().map_or(Ok(()), kqueue::Armed::disarm)?;
                Err(error)
            }
        }
    }

    pub(super) fn report(&self) -> Report {
        let Some(watch) = &self.watch else {
            return self.signal_report();
        };
        let mut report = watch.report();
        if self.signal.is_some() {
            report.second_line = Some(Mechanism::ParentDeathSignal);
            report.limits.push(Limit::SetIdExec);
        }
        report
    }

    fn signal_report(&self) -> Report {
        let mut limits = vec![
            Limit::Stopped,
            Limit::ParentsMemory,
            Limit::Fork,
            Limit::ParentsExec,
            Limit::SetIdExec,
        ];
        // Every way through `arm` sets one of the two.
        let known = self.signal.map_or(Known::Descriptor, |set| set.known);
        if matches!(known, Known::Unsaid(_)) {
            limits.push(Limit::AdoptedBefore);
        }
        Report {
            mechanism: Mechanism::ParentDeathSignal,
            second_line: None,
            scope: Scope::Process,
            parent: known,
            signal: self.signal.map(|set| set.signal),
            kill_after: None,
            limits,
        }
    }

    pub(super) fn parent_is_alive(&self) -> bool {
        match (&self.watch, self.signal) {
            (Some(watch), _) => watch.parent_is_alive(),
            (None, Some(set)) => self.is_ours() && still_parent(set.known).is_ok(),
            (None, None) => false,
        }
    }

    fn is_ours(&self) -> bool {
        self.pid == process::id()
    }

    pub(super) fn rearm(&mut self) -> Result<(), ArmError> {
        if self.is_ours() {
            if let Some(set) = self.signal {
                self.signal = Some(DeathSignal::set(set.signal, set.known)?);
            }
            return self.watch.as_mut().map_or(Ok(()), kqueue::Armed::rearm);
        }
        let Some(watch) = &mut self.watch else {
            return Err(ArmError::NeedsWatcher(Mechanism::ParentDeathSignal));
        };
        watch.rearm()?;
        self.signal = None;
        self.pid = process::id();
        Ok(())
    }

    pub(super) fn disarm(self) -> Result<(), ArmError> {
        if !self.is_ours() {
            return Ok(());
        }
        if let Some(set) = self.signal {
            let step = ArmStep::ParentDeathSignal(set.signal);
            set_parent_death_signal(0).map_err(ArmError::os(step))?;
        }
        self.watch.map_or(Ok(()), kqueue::Armed::disarm)
    }
}

/// The signal, if a signal from the kernel is all that was asked for.
fn plain_signal(request: &Request) -> Option<Signal> {
    match (&request.action, &request.expected) {
        (_, Expected::Fd(_)) => None,
        (
            Action::Signal {
                signal,
                kill_after: None,
            },
            _,
        ) => Some(*signal),
        _ => None,
    }
}

/// The parent-death signal, as it was set.
#[derive(Debug, Clone, Copy)]
struct DeathSignal {
    signal: Signal,
    known: Known,
}

impl DeathSignal {
    /// Sets it, reads it back, and looks at the parent again: one that exited before has sent
    /// nothing.
    fn set(signal: Signal, known: Known) -> Result<Self, ArmError> {
        let step = ArmStep::ParentDeathSignal(signal);
        set_parent_death_signal(signal.number()).map_err(ArmError::os(step))?;
        let set = parent_death_signal().map_err(ArmError::os(step))?;
        if set != signal.number() {
            return Err(ArmError::os(step)(Errno::EINVAL));
        }
        still_parent(known).inspect_err(|_| {
            let _ = set_parent_death_signal(0);
        })?;
        Ok(Self { signal, known })
    }
}

/// Sets this process's parent-death signal; 0 clears it. EINVAL for what is no signal.
#[doc(alias = "PROC_PDEATHSIG_CTL")]
fn set_parent_death_signal(mut signal: libc::c_int) -> Result<(), Errno> {
    let place = (&raw mut signal).cast();
    // SAFETY: PROC_PDEATHSIG_CTL reads one int from `place`, which lives until after the call; the id
    // 0 means the calling process.
    let answer = unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_PDEATHSIG_CTL, place) };
    Errno::result(answer).map(drop)
}

/// This process's parent-death signal, 0 for none.
#[doc(alias = "PROC_PDEATHSIG_STATUS")]
fn parent_death_signal() -> Result<libc::c_int, Errno> {
    let mut signal: libc::c_int = 0;
    let place = (&raw mut signal).cast();
    // SAFETY: PROC_PDEATHSIG_STATUS writes one int to `place`, which lives until after the call; the
    // id 0 means the calling process.
    let answer = unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_PDEATHSIG_STATUS, place) };
    Errno::result(answer).map(|_| signal)
}
