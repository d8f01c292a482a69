//! What the child does between clone and exec, with the launcher's memory: raw system calls, no
//! allocation, no lock, no thread-local storage, no destructor.
//!
//! The order, and why each step stands where it does:
//!
//! 0. for a PID namespace, in a process that only enters it: what it makes is born there, as a child of the
//!    launcher.
//! 1. the parent-death signal, and a look at the parent: from here on the launcher's death is ours. The cgroup, if
//!    it was not born there.
//! 2. the guard is told, before anything that can stall or that the user wrote.
//! 3. session, process group, terminal; network namespace; descriptors and what else is set, in the order of
//!    `settings.rs`.
//! 4. the signal mask, last: before, a signal of the launcher's handlers would run them on shared memory.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use nix::errno::Errno;

use super::super::SpawnStep;
use super::super::prepare::Executable;
use super::super::settings::{self, EXEC, GROUP, Names, OWN, SIGNALS};
use super::request::{Program, Request};
use crate::sys::linux::{self as sys, GuardedStack, Half, Never};

/// Where the child is, in memory that both see.
#[derive(Debug)]
pub(super) struct Progress {
    /// The step it makes; see the codes below.
    step: AtomicU32,
    /// Why it failed; 0 if it has not.
    errno: AtomicI32,
    /// Its pidfd's number in the launcher's table, written by the kernel.
    pidfd: AtomicI32,
    /// Nobody waits for it any more.
    abandoned: AtomicBool,
    /// The pid of the child that was made in a namespace: from its birth on, or, without clone3, from its exec or end.
    entered: AtomicI32,
    /// Who makes it there has seen it to its exec or end, or has made none.
    has_left: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            step: AtomicU32::new(CLONE),
            errno: AtomicI32::new(0),
            pidfd: AtomicI32::new(-1),
            abandoned: AtomicBool::new(false),
            entered: AtomicI32::new(0),
            has_left: AtomicBool::new(false),
        }
    }
}

impl Progress {
    pub(super) fn step(&self) -> u32 {
        self.step.load(Ordering::SeqCst)
    }

    pub(super) fn pidfd(&self) -> &AtomicI32 {
        &self.pidfd
    }

    /// Why there was no exec, once the child has ended or exec'ed.
    pub(super) fn failure(&self) -> Option<(u32, Errno)> {
        let step = self.step();
        match self.errno.load(Ordering::Acquire) {
            0 if step == EXEC => None,
            // Killed on the way.
            0 => Some((step, Errno::ECANCELED)),
            errno => Some((step, Errno::from_raw(errno))),
        }
    }

    /// For another child: this one has ended before its first instruction, and has been reaped.
    pub(super) fn begin_again(&self) {
        self.pidfd.store(-1, Ordering::SeqCst);
        self.entered.store(0, Ordering::SeqCst);
        self.has_left.store(false, Ordering::SeqCst);
        self.errno.store(0, Ordering::SeqCst);
        self.step.store(CLONE, Ordering::SeqCst);
    }

    pub(super) fn check_wanted(&self) -> Result<(), Errno> {
        if self.abandoned.load(Ordering::SeqCst) {
            Err(Errno::ECANCELED)
        } else {
            Ok(())
        }
    }

    /// Takes over the descriptor; by the thread that made the child, once.
    pub(super) fn take_pidfd(&self) -> Option<OwnedFd> {
        let fd = self.pidfd.load(Ordering::Acquire);
        (fd >= 0).then(|| sys::adopt(fd))
    }

    /// Nobody wants the child any more: SIGKILL if there is one (the number must still be its own), and a
    /// word to one that is only being made. In this order: a child that has not seen the word before its
    /// exec had its pidfd before.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        // One that has not begun will see the word; and a clone that failed may have left a number.
        if [CLONE, ENTER].contains(&self.step()) {
            return;
        }
        let fd: RawFd = self.pidfd.load(Ordering::Acquire);
        if fd >= 0 {
            sys::with_raw_fd(fd, |fd| {
                let _ = sys::pidfd_send_signal(fd, libc::SIGKILL);
            });
        }
    }

    /// Whether who was to make a child in a namespace has come to its end; otherwise it was killed.
    pub(super) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::SeqCst)
    }

    /// The pid of the child in a namespace, if it is known that there is one.
    pub(super) fn entered(&self) -> Option<i32> {
        Some(self.entered.load(Ordering::Acquire)).filter(|pid| *pid > 0)
    }

    /// Whether that child had begun.
    pub(super) fn has_begun(&self) -> bool {
        ![CLONE, ENTER].contains(&self.step())
    }

    fn at(&self, step: u32) {
        self.step.store(step, Ordering::SeqCst);
    }
}

pub(super) const CLONE: u32 = OWN;
const PARENT: u32 = OWN + 1;
const GUARD: u32 = OWN + 2;
const NETWORK: u32 = OWN + 3;
const PIDFD: u32 = OWN + 4;
pub(super) const ENTER: u32 = OWN + 5;
const CGROUP: u32 = OWN + 6;

/// What a code means.
pub(super) fn step_of(code: u32, names: &Names) -> SpawnStep {
    match code & 0xff {
        PARENT => SpawnStep::ParentDeathSignal,
        PIDFD => SpawnStep::OpenPidfd,
        ENTER => SpawnStep::EnterNamespace,
        CGROUP => SpawnStep::EnterCgroup,
        GUARD => SpawnStep::TellGuard,
        NETWORK => SpawnStep::NetworkNamespace,
        _ => settings::step_of(code, names).unwrap_or(SpawnStep::Clone),
    }
}

/// Makes the child that the request describes: by a spawner thread, or by [`enter`]. Its pid.
pub(super) fn make(
    stack: &GuardedStack,
    half: Half,
    sibling: bool,
    request: &mut Request,
    progress: &Progress,
) -> Result<i32, Errno> {
    let parent = if sibling { libc::CLONE_PARENT } else { 0 };
    let flags = request.flags | u64::from(parent.unsigned_abs());
    let cgroup = request.cgroup.filter(|_| !request.joins_cgroup);
    let born = |request: &mut Request, cgroup, pid| {
        sys::clone_child(stack, half, flags, cgroup, progress.pidfd(), pid, || {
            run(request, progress)
        })
    };
    let pid = sibling.then_some(&progress.entered);
    match born(request, cgroup, pid) {
        // A filter that does not know clone3, or a kernel that does not know the flag.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL | Errno::E2BIG)
            if cgroup.is_some() || pid.is_some() =>
        {
            request.joins_cgroup |= cgroup.is_some();
            born(request, None, None)
        }
        answer => answer,
    }
}

/// A process that enters a PID namespace, which only its children are in; it makes the child there, as a child of
/// the launcher's, and ends when that has executed its program. It shares the launcher's descriptors, so that the
/// child's pidfd is the launcher's.
pub(super) fn enter(stack: &GuardedStack, request: &mut Request, progress: &Progress) -> Never {
    progress.at(ENTER);
    let made = go_there(request).and_then(|()| {
        make(stack, Half::Lower, true, request, progress).map_err(|errno| (ENTER, errno))
    });
    match made {
        Ok(pid) => progress.entered.store(pid, Ordering::Release),
        Err((step, errno)) => {
            // In this order: a step past ENTER without an errno would be a child's that has been killed.
            progress.errno.store(number_of(errno), Ordering::Release);
            progress.at(step);
        }
    }
    progress.has_left.store(true, Ordering::SeqCst);
    sys::exit_group(0)
}

/// Which step failed, and why, if one did.
fn go_there(request: &Request) -> Result<(), (u32, Errno)> {
    let entering = |errno| (ENTER, errno);
    sys::set_parent_death_signal(libc::SIGKILL).map_err(entering)?;
    if sys::getppid() != request.launcher {
        return Err(entering(Errno::ESRCH));
    }
    // A group's number means nothing there, and is inherited.
    if let Some(group) = request.settings.group.filter(|group| *group != 0) {
        sys::set_process_group(group).map_err(|errno| (GROUP, errno))?;
    }
    match request.namespace {
        Some((init, user)) => sys::enter_namespaces(init, user).map_err(entering),
        None => Ok(()),
    }
}

/// 0 stands for no failure; an errno that nix does not know comes as one.
pub(super) fn number_of(errno: Errno) -> i32 {
    match errno as i32 {
        0 => libc::EIO,
        errno => errno,
    }
}

/// The child's life up to its exec.
fn run(request: &mut Request, progress: &Progress) -> Never {
    let errno = if let Err(errno) = prepare(request, progress) {
        errno
    } else {
        progress.at(EXEC);
        exec(request, progress)
    };
    progress.errno.store(number_of(errno), Ordering::Release);
    sys::exit_group(127)
}

fn prepare(request: &mut Request, progress: &Progress) -> Result<(), Errno> {
    progress.at(PARENT);
    // Past this, our descriptors are those that the request names: who asked has not let go of them.
    progress.check_wanted()?;
    // Whatever the second line is to be: nobody else ends us before the guard knows us.
    let early = if request.guard_socket.is_some() {
        libc::SIGKILL
    } else {
        request.parent_death_signal
    };
    sys::set_parent_death_signal(early)?;
    look_at_the_parent(request)?;
    if let (true, Some(cgroup)) = (request.joins_cgroup, request.cgroup) {
        progress.at(CGROUP);
        sys::join_cgroup(cgroup)?;
    }
    if let Some(socket) = request.guard_socket {
        tell_guard(socket, request, progress)?;
        progress.at(PARENT);
        if early != request.parent_death_signal {
            sys::set_parent_death_signal(request.parent_death_signal)?;
        }
    }
    let at = |step| progress.at(step);
    // In a namespace a group has no number, and was joined before.
    if request.namespace.is_some() {
        request.settings.group = request.settings.group.filter(|group| *group == 0);
    }
    request.settings.enter_session(&at)?;
    if let Some(namespace) = request.network_namespace {
        progress.at(NETWORK);
        sys::enter_network_namespace(namespace)?;
    }
    give_descriptors(request, &at)?;
    request.settings.settle(&at)
}

/// A launcher that died before the parent-death signal was set has not sent it.
fn look_at_the_parent(request: &Request) -> Result<(), Errno> {
    if sys::getppid() == request.parent {
        Ok(())
    } else {
        Err(Errno::ESRCH)
    }
}

/// Our own pidfd, for the guard to keep. In a table of our own, and closed with what nobody gave us.
fn tell_guard(socket: RawFd, request: &Request, progress: &Progress) -> Result<(), Errno> {
    progress.at(PIDFD);
    let own = sys::pidfd_open(sys::getpid())?;
    let own = std::mem::ManuallyDrop::new(own);
    let own = std::os::fd::AsRawFd::as_raw_fd(&*own);
    progress.at(GUARD);
    let mut fds = [own; sys::MOST_SENT];
    let mut count = 1;
    for (place, fd) in fds.iter_mut().skip(1).zip(&request.tree_fds) {
        *place = *fd;
        count += 1;
    }
    let fds = fds.get(..count).unwrap_or_default();
    sys::send_with_fds(socket, request.message.as_bytes(), fds)
}

/// Puts each descriptor under its number, and closes all others.
fn give_descriptors(request: &mut Request, at: &impl Fn(u32)) -> Result<(), Errno> {
    // What exec has to find, and the helper's own, which it closes itself.
    let mut more = [-1; 3];
    if let Program::Stage { program, kept, .. } = &request.program {
        let [pipe, root] = *kept;
        more = [*program, pipe, root];
    }
    request.settings.give_descriptors(&mut more, at)?;
    if let Program::Stage { program, kept, .. } = &mut request.program {
        let [file, pipe, root] = more;
        (*program, *kept) = (file, [pipe, root]);
        for fd in kept.iter().filter(|fd| **fd >= 0) {
            sys::set_close_on_exec(*fd, false)?;
        }
    }
    // SAFETY: a table of our own (no CLONE_FILES). What is closed is used by nobody in this process:
    // everything was given away above, and the launcher's owners of the same numbers are not run here.
    #[expect(unsafe_code, reason = "closing what was not given to the child")]
    unsafe {
        sys::close_all_but(&request.settings.keep)
    }
}

fn exec(request: &mut Request, progress: &Progress) -> Errno {
    let (Program::Direct(Executable { envp, own_pid, .. }) | Program::Stage { envp, own_pid, .. }) =
        &mut request.program;
    if let Some((entry, start)) = *own_pid {
        // In the namespace that the program will see itself in.
        envp.write_decimal(entry, start, sys::getpid().unsigned_abs());
    }
    match &mut request.program {
        Program::Direct(executable) => {
            if let Err(errno) = progress.check_wanted() {
                return errno;
            }
            // The mask last: what is pending for the launcher's group may act from here on.
            if let Err(errno) = sys::set_signal_mask(request.settings.mask) {
                progress.at(SIGNALS);
                return errno;
            }
            let Executable {
                candidates,
                argv,
                envp,
                ..
            } = executable;
            sys::exec_first(candidates, argv, envp)
        }
        Program::Stage {
            program,
            kept,
            argv,
            envp,
            ..
        } => {
            if let Some(text) = argv.bytes_mut(NUMBERS) {
                let [pipe, root] = *kept;
                // The first two numbers of the text.
                write_numbers(text, pipe, root);
            }
            match progress.check_wanted() {
                Ok(()) => sys::exec_fd(*program, argv, envp),
                Err(errno) => errno,
            }
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
