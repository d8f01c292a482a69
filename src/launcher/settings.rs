//! What a child sets about itself before it executes its program, on every system that launches: system calls, no
//! allocation, no lock.
//!
//! The order, and why each step stands where it does: session, process group and terminal; descriptors; umask, nice and
//! working directory, with the launcher's rights; resource limits, since none of the steps before is to fail for want of
//! what they take away; dispositions. The signal mask is for the caller, last of all: before, a signal would find
//! the launcher's handlers.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use nix::errno::Errno;

use super::SpawnStep;
use super::command::Resource;
use super::platform::sys;

/// A descriptor for the child.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) source: RawFd,
    pub(super) target: RawFd,
}

/// What the child is to be.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) session: bool,
    pub(super) group: Option<i32>,
    pub(super) terminal: Option<RawFd>,
    pub(super) descriptors: Vec<Given>,
    /// What stays open; three 0s first, which make room for what only the child knows.
    pub(super) keep: Vec<RawFd>,
    pub(super) umask: Option<u32>,
    pub(super) nice: Option<i32>,
    pub(super) directory: Option<CString>,
    pub(super) limits: Vec<(i32, [u64; 2])>,
    pub(super) ignored: u64,
    pub(super) defaulted: u64,
    pub(super) mask: u64,
    pub(super) names: Names,
}

/// The operands of steps, for errors.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) group: i32,
    pub(super) nice: i32,
    pub(super) directory: PathBuf,
    pub(super) targets: Vec<i32>,
    pub(super) limits: Vec<Resource>,
}

pub(super) const SESSION: u32 = 1;
pub(super) const GROUP: u32 = 2;
pub(super) const TERMINAL: u32 = 3;
pub(super) const DESCRIPTOR: u32 = 4;
pub(super) const CLOSE: u32 = 5;
pub(super) const NICE: u32 = 6;
pub(super) const LIMIT: u32 = 7;
pub(super) const DIRECTORY: u32 = 8;
pub(super) const SIGNALS: u32 = 9;
pub(super) const EXEC: u32 = 10;
/// Where a platform's own begin.
pub(super) const OWN: u32 = 16;

/// A step of which there are several.
pub(super) fn nth(step: u32, index: usize) -> u32 {
    step | u32::try_from(index).unwrap_or(0) << 8
}

/// What a code means, if it is none of the platform's own.
pub(super) fn step_of(code: u32, names: &Names) -> Option<SpawnStep> {
    let index = (code >> 8) as usize;
    Some(match code & 0xff {
        SESSION => SpawnStep::NewSession,
        GROUP => SpawnStep::ProcessGroup(names.group),
        TERMINAL => SpawnStep::ControllingTerminal,
        DESCRIPTOR => SpawnStep::Descriptor(names.targets.get(index).copied().unwrap_or(-1)),
        CLOSE => SpawnStep::CloseDescriptors,
        NICE => SpawnStep::Nice(names.nice),
        LIMIT => match names.limits.get(index) {
            Some(resource) => SpawnStep::ResourceLimit(*resource),
            None => SpawnStep::Exec,
        },
        DIRECTORY => SpawnStep::ChangeDirectory(names.directory.clone()),
        SIGNALS => SpawnStep::Signals,
        EXEC => SpawnStep::Exec,
        _ => return None,
    })
}

impl Settings {
    /// Nothing but descriptors.
    pub(super) fn bare(descriptors: Vec<Given>) -> Self {
        let targets = descriptors.iter().map(|given| given.target);
        Self {
            session: false,
            group: None,
            terminal: None,
            keep: [0, 0, 0, 0, 1, 2].into_iter().chain(targets).collect(),
            umask: None,
            nice: None,
            directory: None,
            limits: Vec::new(),
            ignored: 0,
            defaulted: 0,
            mask: 0,
            names: Names {
                targets: descriptors.iter().map(|given| given.target).collect(),
                ..Names::default()
            },
            descriptors,
        }
    }

    /// Session, process group, terminal; `at` is told each step before it is made.
    pub(super) fn enter_session(&self, at: &impl Fn(u32)) -> Result<(), Errno> {
        if self.session {
            at(SESSION);
            sys::setsid()?;
        }
        if let Some(group) = self.group {
            at(GROUP);
            sys::set_process_group(group)?;
        }
        if let Some(terminal) = self.terminal {
            at(TERMINAL);
            sys::set_controlling_terminal(terminal)?;
        }
        Ok(())
    }

    /// Puts each descriptor under its number. `more` are others that the child needs until its exec, -1 for none: they get
    /// numbers of their own, close-on-exec. What is left for the caller is to close all that is not in `keep`: a child that
    /// stalls later must not keep open what others wait for the end of.
    pub(super) fn give_descriptors(
        &mut self,
        more: &mut [RawFd; 3],
        at: &impl Fn(u32),
    ) -> Result<(), Errno> {
        let descriptors = &mut self.descriptors;
        // First all out of the way: a number that is wanted may be another's source.
        for index in 0..descriptors.len() {
            at(nth(DESCRIPTOR, index));
            let Some(source) = descriptors.get(index).map(|given| given.source) else {
                break;
            };
            let copy = out_of_the_way(source, descriptors)?;
            if let Some(given) = descriptors.get_mut(index) {
                given.source = copy;
            }
        }
        at(CLOSE);
        for fd in more.iter_mut().filter(|fd| **fd >= 0) {
            *fd = out_of_the_way(*fd, descriptors)?;
        }
        for (index, given) in descriptors.iter().enumerate() {
            at(nth(DESCRIPTOR, index));
            sys::dup_to(given.source, given.target)?;
        }
        at(CLOSE);
        // There is room for three more than there are, each of which changes nothing as it is.
        for (place, fd) in self.keep.iter_mut().zip(more) {
            if *fd >= 0 {
                *place = *fd;
            }
        }
        self.keep.sort_unstable();
        Ok(())
    }

    /// What comes after the descriptors, up to the dispositions.
    pub(super) fn settle(&self, at: &impl Fn(u32)) -> Result<(), Errno> {
        if let Some(mask) = self.umask {
            sys::set_umask(mask);
        }
        if let Some(nice) = self.nice {
            at(NICE);
            sys::set_nice(nice)?;
        }
        if let Some(directory) = &self.directory {
            at(DIRECTORY);
            sys::chdir(directory)?;
        }
        for (index, (resource, limit)) in self.limits.iter().enumerate() {
            at(nth(LIMIT, index));
            sys::set_resource_limit(*resource, limit)?;
        }
        at(SIGNALS);
        sys::reset_dispositions(self.defaulted, self.ignored)
    }
}

/// A copy of `fd` under a number that none of the targets has; close-on-exec.
fn out_of_the_way(fd: RawFd, descriptors: &[Given]) -> Result<RawFd, Errno> {
    let mut copy = sys::dup_at_least(fd, 3)?;
    // At most as often as there are targets: each copy takes one of their numbers.
    while descriptors.iter().any(|given| given.target == copy) {
        copy = sys::dup_at_least(fd, copy.saturating_add(1))?;
    }
    Ok(copy)
}
