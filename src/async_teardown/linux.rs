//! The helper, made with `clone(CLONE_VM)`, and the process's side of it.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::{Step, TeardownError};
use crate::sys::linux::{self as sys, GuardedStack, StackError};

/// The word of the process whose helper was started and not ended; 0 for none. A forked child has
/// another, so what it inherited here says nothing about it.
static STARTED_BY: AtomicU32 = AtomicU32::new(0);

/// For the helper's stack: it makes no signal frames and calls a few leaf functions.
const STACK: usize = 32 * 1024;

/// How long a process may take from closing the lock's file to being waitable; microseconds, unless
/// closing another descriptor takes time. After an exec the old image stays this much longer.
const LAST_STEPS: Duration = Duration::from_millis(100);

/// How long the process's parent may take to reap it before the helper goes on regardless. The
/// parent of a process usually waits for it; one that does not costs the memory this much time.
const REAPER_FIRST: Duration = Duration::from_millis(5);

/// The helper is on its way.
const STARTING: u32 = 1;
/// The helper waits for the lock.
const READY: u32 = 2;
/// The helper has ended: written by the kernel (`CLONE_CHILD_CLEARTID`), which also wakes
/// the futex.
const ENDED: u32 = 0;

/// What the process and the helper tell each other; in the mapping, above the stack.
#[repr(C, align(64))]
struct Shared {
    /// `STARTING`, `READY` or `ENDED`.
    state: AtomicU32,
    /// Index in [`STEPS`] of the step that failed, if `errno` is not 0.
    step: AtomicU32,
    errno: AtomicI32,
    lock: RawFd,
    /// A pidfd of the process.
    process: RawFd,
    name: [u8; 16],
}

/// The steps taken in the helper, so that one fits in an integer.
const STEPS: [Step; 4] = [
    Step::CloseDescriptors,
    Step::SetName,
    Step::NewSession,
    Step::FindLock,
];

/// The helper's stack with [`Shared`] above it.
#[derive(Debug)]
struct Mapping(GuardedStack);

impl Mapping {
    fn new(shared: Shared) -> Result<Self, TeardownError> {
        let stack =
            GuardedStack::new(STACK + size_of::<Shared>()).map_err(|error| match error {
                StackError::Map(errno) => failed(Step::MapStack, errno),
                StackError::Guard(errno) => failed(Step::GuardStack, errno),
            })?;
        // A forked child has no use for it.
        stack.dont_fork();
        let mapping = Self(stack);
        // SAFETY: inside the writable part, aligned (the end is page-aligned, the size a multiple
        // of the alignment), and nobody else knows the address yet.
        unsafe { mapping.place().write(shared) };
        Ok(mapping)
    }

    /// Where [`Shared`] is; the stack ends there and grows down.
    fn place(&self) -> *mut Shared {
        self.0.top().wrapping_byte_sub(size_of::<Shared>()).cast()
    }

    fn shared(&self) -> &Shared {
        // SAFETY: written in `new`, mapped as long as `self`; from then on only atomics change.
        unsafe { &*self.place() }
    }
}

/// A helper that was ready. Without `end` everything here stays for the life of the process: the
/// mapping is the helper's stack, the descriptor its reason to wait.
#[derive(Debug)]
pub(super) struct Helper {
    owner: sys::Owner,
    pid: i32,
    resources: ManuallyDrop<Resources>,
}

/// What has to stay while the helper runs.
#[derive(Debug)]
struct Resources {
    /// The file whose lock we hold; closing it ends the helper.
    lock: OwnedFd,
    pidfd: OwnedFd,
    mapping: Mapping,
}

impl Resources {
    /// Ends the helper, reaps it, and gives everything back.
    fn end(self) {
        drop(self.lock);
        // In case it is stopped. EPERM if it has another user: then the lock has to do.
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        while sys::reap(self.pidfd.as_raw_fd()) == Err(Errno::EINTR) {}
    }
}

impl Helper {
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn is_running(&self) -> bool {
        if !self.owner.is_this_process() {
            return false;
        }
        // Not poll(2), which looks at nothing when RLIMIT_NOFILE is 0. Nothing is reaped.
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let pidfd = Id::PIDFd(self.resources.pidfd.as_fd());
        waitid(pidfd, ended | WaitPidFlag::__WALL) == Ok(WaitStatus::StillAlive)
    }

    pub(super) fn end(self) -> Result<(), TeardownError> {
        // Before anything is touched: in a forked child the mapping is not there, and the pidfd's
        // process is not ours.
        if !self.owner.is_this_process() {
            return Err(TeardownError::Forked {
                owner: self.owner.pid(),
            });
        }
        ManuallyDrop::into_inner(self.resources).end();
        STARTED_BY.store(0, Ordering::Release);
        Ok(())
    }
}

pub(super) fn is_supported() -> bool {
    // A descriptor that cannot be open: EBADF from a kernel that knows P_PIDFD, EINVAL before 5.4.
    sys::ERRNO_FREE && sys::reap(RawFd::MAX) == Err(Errno::EBADF)
}

pub(super) fn start() -> Result<Helper, TeardownError> {
    if !is_supported() {
        return Err(TeardownError::Unsupported);
    }
    let owner = sys::Owner::this_process();
    if owner.pid() == 1 {
        return Err(TeardownError::Init);
    }
    let before = STARTED_BY.swap(owner.word(), Ordering::AcqRel);
    if before == owner.word() {
        return Err(TeardownError::AlreadyRunning);
    }
    let errno = Errno::last_raw();
    reap_left_over(owner.pid());
    // "No such child" is the usual answer there, and none of the caller's business.
    Errno::set_raw(errno);
    let started = start_unclaimed(owner);
    if started.is_err() {
        STARTED_BY.store(0, Ordering::Release);
    }
    started
}

fn start_unclaimed(owner: sys::Owner) -> Result<Helper, TeardownError> {
    let lock = memory_file().map_err(|errno| failed(Step::CreateFile, errno))?;
    sys::lock_file(lock.as_fd(), false).map_err(|errno| failed(Step::TakeLock, errno))?;
    // Of ourselves, so that there is no doubt whose it is. Only the helper's copy stays open.
    let process = sys::pidfd_open(owner.pid()).map_err(|errno| failed(Step::OpenPidfd, errno))?;
    let mapping = Mapping::new(Shared {
        state: AtomicU32::new(STARTING),
        step: AtomicU32::new(0),
        errno: AtomicI32::new(0),
        lock: lock.as_raw_fd(),
        process: process.as_raw_fd(),
        name: name(owner.pid()),
    })?;
    let (pid, pidfd) = clone(&mapping).map_err(|errno| failed(Step::Clone, errno))?;
    let resources = Resources {
        lock,
        pidfd,
        mapping,
    };
    let shared = resources.mapping.shared();
    let state = loop {
        match shared.state.load(Ordering::Acquire) {
            STARTING => sys::futex_wait(&shared.state, STARTING),
            state => break state,
        }
    };
    if state == ENDED {
        let step = STEPS.get(shared.step.load(Ordering::Relaxed) as usize);
        let errno = shared.errno.load(Ordering::Relaxed);
        resources.end();
        return Err(match (step, errno) {
            (Some(step), 1..) => failed(*step, Errno::from_raw(errno)),
            _ => TeardownError::HelperDied,
        });
    }
    Ok(Helper {
        owner,
        pid,
        resources: ManuallyDrop::new(resources),
    })
}

/// Reaps the helpers of what this process was before it executed this program.
///
/// `__WCLONE` is for children whose exit signal is not SIGCHLD, of which most programs have no
/// others; at the first zombie that is not a helper this stops.
fn reap_left_over(owner: i32) {
    let zombies = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WCLONE;
    let named = name(owner);
    let named = named.split(|b| *b == 0).next().unwrap_or_default();
    while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) =
        waitid(Id::All, zombies | WaitPidFlag::WNOWAIT)
    {
        let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.strip_suffix(b"\n") != Some(named) || waitid(Id::Pid(pid), zombies).is_err() {
            return;
        }
    }
}

fn failed(step: Step, errno: Errno) -> TeardownError {
    TeardownError::Step {
        step,
        source: io::Error::from_raw_os_error(errno as i32),
    }
}

/// `cleanup/PID`, which is 15 bytes for the largest pid there is (2^22).
fn name(pid: i32) -> [u8; 16] {
    let mut name = [0; 16];
    let (text, _nul) = name.split_at_mut(15);
    // A longer one would be cut, as the kernel does.
    let _ = write!(&mut *text, "cleanup/{pid}");
    name
}

/// A file in memory to hold a lock on. Close-on-exec: that is what makes an exec end the helper.
fn memory_file() -> Result<OwnedFd, Errno> {
    let make = |flags: libc::c_uint| {
        // SAFETY: the kernel reads a NUL-terminated string.
        Errno::result(unsafe { libc::memfd_create(c"async-teardown".as_ptr(), flags) })
    };
    // With vm.memfd_noexec=2 only such files can be made; Linux before 6.3 does not know the flag.
    let errno = Errno::last_raw();
    let fd = match make(libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL) {
        Err(Errno::EINVAL) => {
            // Which is none of the caller's business.
            Errno::set_raw(errno);
            make(libc::MFD_CLOEXEC)
        }
        answer => answer,
    }?;
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the helper, with every signal blocked from its first instruction on.
fn clone(mapping: &Mapping) -> Result<(i32, OwnedFd), Errno> {
    // No CLONE_FS: a set-id exec of a process that shares its root gains nothing.
    let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID;
    let mut pidfd: RawFd = -1;
    let (shared, pidfd_place) = (mapping.place(), &raw mut pidfd);
    let mask = sys::set_signal_mask(sys::ALL_SIGNALS)?;
    // The last two are the child's word and its TLS, in an order that is the processor's; without CLONE_SETTLS no TLS is
    // taken.
    let (top, word) = (shared as usize, shared as usize);
    let args = [
        flags.unsigned_abs() as usize,
        top,
        pidfd_place as usize,
        word,
        word,
    ];
    // SAFETY: the stack is `STACK` bytes below `shared`, 64-byte aligned, mapped until the helper
    // is reaped; `helper` makes system calls only, so that it may share this thread's thread-local
    // storage; the kernel writes the pidfd to `pidfd_place` before this returns, and 0 to `state`,
    // the first field of `Shared`, when the helper ends. A descriptor table of its own.
    let pid = unsafe { sys::clone_onto(libc::SYS_clone, args, helper, shared.cast()) };
    // The set came from the kernel, so it cannot refuse it.
    let _ = sys::set_signal_mask(mask);
    let pid = pid?;
    // SAFETY: the kernel has just made it, with close-on-exec set; nobody else owns it.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// The helper's whole life. Nothing here allocates, locks, panics or touches thread-local storage.
extern "C" fn helper(shared: *mut c_void) -> ! {
    // SAFETY: the process keeps the mapping until it has reaped us.
    let shared = unsafe { &*shared.cast::<Shared>() };
    // SAFETY: open in our own table, and one of the two descriptors that are never closed.
    let lock = unsafe { BorrowedFd::borrow_raw(shared.lock) };
    // SAFETY: as above, the other.
    let process = unsafe { BorrowedFd::borrow_raw(shared.process) };
    match prepare(shared, lock) {
        Ok(()) => {
            shared.state.store(READY, Ordering::Release);
            sys::futex_wake(&shared.state);
            // No signal handler can run here; a stop and continue restarts the call. Any other
            // answer is the end: better too early than never.
            while sys::lock_file(lock, true) == Err(Errno::EINTR) {}
            // A process that exits closes its descriptors before it is waitable, and who waits for
            // it has to run. To free memory meanwhile would compete with both for the processor:
            // a kernel that does not preempt its own work lets them wait for a clock tick.
            let _ = match sys::poll_within(process, libc::POLLIN, LAST_STEPS) {
                Ok(true) => sys::poll_within(process, 0, REAPER_FIRST),
                // RLIMIT_NOFILE is 0: nothing can be polled, but time passes.
                Err(_) => sys::poll(&mut [], Some(REAPER_FIRST)).map(|_| false),
                late => late,
            };
        }
        Err((step, errno)) => {
            shared.step.store(step, Ordering::Relaxed);
            shared.errno.store(errno as i32, Ordering::Relaxed);
        }
    }
    // As the last user of the address space this is what frees it.
    sys::exit_group(0)
}

/// The helper's steps; an error is an index in [`STEPS`] and the kernel's answer.
fn prepare(shared: &Shared, lock: BorrowedFd<'_>) -> Result<(), (u32, Errno)> {
    let (lower, higher) = if shared.lock < shared.process {
        (shared.lock, shared.process)
    } else {
        (shared.process, shared.lock)
    };
    // SAFETY: made without CLONE_FILES, so the table is ours, and we use no other descriptor.
    unsafe { sys::close_all_but(&[lower, higher]) }.map_err(|errno| (0, errno))?;
    sys::set_name(&shared.name).map_err(|errno| (1, errno))?;
    sys::setsid().map_err(|errno| (2, errno))?;
    // So that a directory the process has left can be unmounted. Not vital.
    let _ = sys::chdir(c"/");
    match sys::lock_file(lock, false) {
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(()),
        // Not held: the process closed it under our hands, or there are no real locks here.
        Ok(()) => Err((3, Errno::ENOLCK)),
        Err(errno) => Err((3, errno)),
    }
}
