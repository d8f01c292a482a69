//! What the child does between clone and exec, with the launcher's memory: raw system calls, no
//! allocation, no lock, no thread-local storage, no destructor.
//!
//! The order, and why each step stands where it does:
//!
//! 1. the parent-death signal, and a look at the parent: from here on the launcher's death is ours.
//! 2. the guard is told, before anything that can stall or that the user wrote.
//! 3. session, process group, terminal; network namespace; descriptors.
//! 4. umask, nice, working directory: with the launcher's rights.
//! 5. resource limits: none of the steps before them is to fail for want of what they take away.
//! 6. dispositions, then the signal mask, last: before, a signal of the launcher's handlers would run
//!    them on shared memory.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use nix::errno::Errno;

use super::super::SpawnStep;
use super::protocol::Message;
use super::request::{Names, Program, Request};
use crate::sys::linux::{self as sys, Never};

/// Where the child is, in memory that both see.
#[derive(Debug)]
pub(super) struct Progress {
    /// The step it makes; see the codes below.
    step: AtomicU32,
    /// Why it failed; 0 if it has not.
    errno: AtomicI32,
    /// Its pidfd's number in the launcher's table, written by the kernel.
    pidfd: AtomicI32,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            step: AtomicU32::new(CLONE),
            errno: AtomicI32::new(0),
            pidfd: AtomicI32::new(-1),
        }
    }
}

impl Progress {
    pub(super) fn step(&self) -> u32 {
        self.step.load(Ordering::Acquire)
    }

    pub(super) fn pidfd(&self) -> &AtomicI32 {
        &self.pidfd
    }

    pub(super) fn failure(&self) -> Option<(u32, Errno)> {
        match self.errno.load(Ordering::Acquire) {
            0 => None,
            errno => Some((self.step(), Errno::from_raw(errno))),
        }
    }

    /// Takes over the descriptor; by the thread that made the child, once.
    pub(super) fn take_pidfd(&self) -> Option<OwnedFd> {
        let fd = self.pidfd.load(Ordering::Acquire);
        (fd >= 0).then(|| sys::adopt(fd))
    }

    /// SIGKILL to the child, if there is one; the number must still be its own.
    pub(super) fn kill(&self) {
        let fd: RawFd = self.pidfd.load(Ordering::Acquire);
        if fd >= 0 {
            sys::with_raw_fd(fd, |fd| {
                let _ = sys::pidfd_send_signal(fd, libc::SIGKILL);
            });
        }
    }

    fn at(&self, step: u32) {
        self.step.store(step, Ordering::Release);
    }
}

pub(super) const CLONE: u32 = 0;
const PARENT: u32 = 1;
const GUARD: u32 = 2;
const SESSION: u32 = 3;
const GROUP: u32 = 4;
const TERMINAL: u32 = 5;
const NETWORK: u32 = 6;
const DESCRIPTOR: u32 = 7;
const CLOSE: u32 = 8;
const NICE: u32 = 9;
const LIMIT: u32 = 10;
const DIRECTORY: u32 = 11;
const SIGNALS: u32 = 12;
const EXEC: u32 = 13;

/// A step of which there are several.
fn nth(step: u32, index: usize) -> u32 {
    step | u32::try_from(index).unwrap_or(0) << 8
}

/// What a code means.
pub(super) fn step_of(code: u32, names: &Names) -> SpawnStep {
    let index = (code >> 8) as usize;
    match code & 0xff {
        PARENT => SpawnStep::ParentDeathSignal,
        GUARD => SpawnStep::TellGuard,
        SESSION => SpawnStep::NewSession,
        GROUP => SpawnStep::ProcessGroup(names.group),
        TERMINAL => SpawnStep::ControllingTerminal,
        NETWORK => SpawnStep::NetworkNamespace,
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
        _ => SpawnStep::Clone,
    }
}

/// The child's life up to its exec.
pub(super) fn run(request: &mut Request, progress: &Progress) -> Never {
    let errno = if let Err(errno) = prepare(request, progress) {
        errno
    } else {
        progress.at(EXEC);
        exec(request, progress)
    };
    progress.errno.store(errno as i32, Ordering::Release);
    sys::exit_group(127)
}

fn prepare(request: &mut Request, progress: &Progress) -> Result<(), Errno> {
    progress.at(PARENT);
    if request.parent_death_signal != 0 {
        sys::set_parent_death_signal(request.parent_death_signal)?;
    }
    look_at_the_parent(request)?;
    progress.at(GUARD);
    if let Some(socket) = request.guard_socket {
        tell_guard(socket, &request.message)?;
        if !request.second_line {
            sys::set_parent_death_signal(0)?;
        }
    }
    if request.session {
        progress.at(SESSION);
        sys::setsid()?;
    }
    if let Some(group) = request.group {
        progress.at(GROUP);
        sys::set_process_group(group)?;
    }
    if let Some(terminal) = request.terminal {
        progress.at(TERMINAL);
        sys::set_controlling_terminal(terminal)?;
    }
    if let Some(namespace) = request.network_namespace {
        progress.at(NETWORK);
        sys::enter_network_namespace(namespace)?;
    }
    give_descriptors(request, progress)?;
    if let Some(mask) = request.umask {
        sys::set_umask(mask);
    }
    if let Some(nice) = request.nice {
        progress.at(NICE);
        sys::set_nice(nice)?;
    }
    if let Some(directory) = &request.directory {
        progress.at(DIRECTORY);
        sys::chdir(directory)?;
    }
    for (index, (resource, limit)) in request.limits.iter().enumerate() {
        progress.at(nth(LIMIT, index));
        sys::set_resource_limit(*resource, limit)?;
    }
    progress.at(SIGNALS);
    sys::reset_dispositions(request.defaulted, request.ignored)
}

/// A launcher that died before the parent-death signal was set has not sent it.
fn look_at_the_parent(request: &Request) -> Result<(), Errno> {
    if sys::getppid() == request.launcher {
        Ok(())
    } else {
        Err(Errno::ESRCH)
    }
}

/// Our own pidfd, for the guard to keep. In a table of our own: exec closes it.
fn tell_guard(socket: RawFd, message: &Message) -> Result<(), Errno> {
    let own = sys::pidfd_open(sys::getpid())?;
    let own = std::mem::ManuallyDrop::new(own);
    let own = std::os::fd::AsRawFd::as_raw_fd(&*own);
    sys::send_with_fd(socket, message.as_bytes(), Some(own))
}

/// Puts each descriptor under its number, and has all others closed by the exec.
fn give_descriptors(request: &mut Request, progress: &Progress) -> Result<(), Errno> {
    // First all out of the way: a number that is wanted may be another's source.
    for (index, given) in request.descriptors.iter_mut().enumerate() {
        progress.at(nth(DESCRIPTOR, index));
        given.source = sys::dup_at_least(given.source, request.beyond)?;
    }
    if let Program::Stage { program, kept, .. } = &mut request.program {
        // The helper's own: its pipe and the new root; it closes them itself.
        for (place, fd) in kept.iter_mut().enumerate() {
            progress.at(CLOSE);
            if *fd >= 0 {
                *fd = sys::dup_at_least(*fd, request.beyond)?;
                sys::set_close_on_exec(*fd, false)?;
                if let Some(at) = request.keep_places.get(place) {
                    if let Some(number) = request.keep.get_mut(*at) {
                        *number = *fd;
                    }
                }
            }
        }
        *program = sys::dup_at_least(*program, request.beyond)?;
    }
    for (index, given) in request.descriptors.iter().enumerate() {
        progress.at(nth(DESCRIPTOR, index));
        sys::dup_to(given.source, given.target)?;
    }
    progress.at(CLOSE);
    request.keep.sort_unstable();
    sys::close_all_on_exec_but(&request.keep)
}

fn exec(request: &mut Request, progress: &Progress) -> Errno {
    match &mut request.program {
        Program::Direct {
            candidates,
            argv,
            envp,
        } => {
            // The mask last: what is pending for the launcher's group may act from here on.
            if let Err(errno) = sys::set_signal_mask(request.mask) {
                progress.at(SIGNALS);
                return errno;
            }
            sys::exec_first(candidates, argv, envp)
        }
        Program::Stage {
            program,
            kept,
            argv,
            envp,
        } => {
            if let Some(text) = argv.bytes_mut(NUMBERS) {
                let [pipe, root] = *kept;
                // The first two numbers of the text.
                write_numbers(text, pipe, root);
            }
            sys::exec_fd(*program, argv, envp)
        }
    }
}

/// Where in the helper's arguments its numbers are.
pub(super) const NUMBERS: usize = 2;

/// Room for a descriptor's number in the text: a sign and ten digits.
pub(super) const NUMBER_ROOM: usize = 11;

/// Writes two numbers to the first two places of the text, with blanks before them.
fn write_numbers(text: &mut [u8], pipe: RawFd, root: RawFd) {
    for (place, number) in [pipe, root].into_iter().enumerate() {
        let start = place * (NUMBER_ROOM + 1);
        let Some(digits) = text.get_mut(start..start + NUMBER_ROOM) else {
            return;
        };
        let mut rest = number.unsigned_abs();
        let mut negative = number < 0;
        for digit in digits.iter_mut().rev() {
            *digit = match (rest, negative) {
                (0, true) => {
                    negative = false;
                    b'-'
                }
                (0, false) => b' ',
                (rest, _) => b'0' + (rest % 10) as u8,
            };
            rest /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_place() {
        let mut text = b"00000000000 00000000000 7 8".to_vec();
        write_numbers(&mut text, 42, -1);
        assert_eq!(text, b"         42          -1 7 8");
    }
}
