//! What a supervisor of one command needs: every signal taken and told, a child's stops, its own end by a
//! signal. **Never run**, see `docs/platforms.md`.
//!
//! Signals stay blocked. kqueue's EVFILT_SIGNAL tells that one has come, and [`Signals::next`] takes it: it is let
//! through alone, to a handler that notes who sent it. A handler, because a signal whose default is to be
//! ignored is thrown away at once, blocked or not, where there is none (`sys/kern/kern_sig.c` of FreeBSD,
//! NetBSD and OpenBSD, tdsendsignal() and kpsignal2() and ptsignal(); xnu's psignal_internal(): p_sigignore). exec gives
//! a signal with a handler its default back.
//!
//! Who sent it: FreeBSD notes it with the pending signal, and the kernel's own have no pid. xnu notes
//! nothing for a blocked signal (KERN_SIG_HOLD in psignal_internal()), OpenBSD never. Elsewhere a pid is believed, and none means
//! nothing.
//!
//! FreeBSD's real-time signals, beyond 64, are blocked and not read.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;

use super::child::reset_dispositions;
use super::process::getpid;
use super::queue::Queue;
pub(crate) use crate::sys::change::Change;
use crate::sys::event_source::{EventSource, Interest, Key};
use crate::sys::posix::{SignalMask, block_all_signals, kill, restore_signal_mask};

/// A signal that was sent to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) signal: i32,
    /// Whether the kernel itself sent it, as far as that is told.
    pub(crate) from_kernel: bool,
    /// Who sent it; 0 if that is not known.
    pub(crate) sender: i32,
}

/// The signals of this process, all blocked, and how they were before.
#[derive(Debug)]
pub(crate) struct Signals {
    mask: SignalMask,
    /// Those that were ignored: bit n-1 for signal n.
    ignored: u64,
    /// Those that are taken.
    taken: u64,
}

/// What the handler has noted, for the one thread that lets a signal through.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static SENDER: AtomicI32 = AtomicI32::new(0);

/// Stores are all it does.
extern "C" fn note(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: SA_SIGINFO: the kernel passes a siginfo_t that outlives the call, or none.
    let info = unsafe { info.as_ref() };
    // SAFETY: an integer, whatever the signal's kind.
    let sender = info.map_or(0, |info| unsafe { info.si_pid() });
    SENDER.store(sender, Ordering::SeqCst);
    SIGNAL.store(signal, Ordering::SeqCst);
}

impl Signals {
    /// Blocks and takes every signal. The process has one thread, and keeps to it.
    pub(crate) fn take() -> Result<Self, Errno> {
        let mask = block_all_signals()?;
        let (mut ignored, mut taken) = (0, 0);
        for signal in 1..=64 {
            if signal == libc::SIGKILL || signal == libc::SIGSTOP {
                continue;
            }
            match set_handler(signal) {
                Ok(before) => {
                    taken |= bit(signal);
                    if before == libc::SIG_IGN {
                        ignored |= bit(signal);
                    }
                }
                // No signal, or not one to be had.
                Err(Errno::EINVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Self {
            mask,
            ignored,
            taken,
        })
    }

    /// Has the queue tell that a signal has come.
    pub(crate) fn watch(&self, queue: &Queue, key: Key) -> Result<(), Errno> {
        for signal in (1..=64).filter(|signal| self.taken & bit(*signal) != 0) {
            queue.add(key, Interest::Signal(signal))?;
        }
        Ok(())
    }

    /// A descriptor that it needs: none.
    #[allow(clippy::unused_self, reason = "as in the stand-in, which has one")]
    pub(crate) fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    /// The next signal that is pending, if there is one.
    pub(crate) fn next(&self) -> Option<Received> {
        let mut pending = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the kernel writes one set.
        unsafe { libc::sigpending(pending.as_mut_ptr()) };
        for signal in (1..=64).filter(|signal| self.taken & bit(*signal) != 0) {
            // SAFETY: a set that has been written, and all zeroes before; a number that is a signal's.
            if unsafe { libc::sigismember(pending.as_ptr(), signal) } != 1 {
                continue;
            }
            SIGNAL.store(0, Ordering::SeqCst);
            with_unblocked(signal);
            // Not there: a stop that a SIGCONT has made undone meanwhile.
            if SIGNAL.load(Ordering::SeqCst) == signal {
                let sender = if TELLS_SENDER {
                    SENDER.load(Ordering::SeqCst)
                } else {
                    0
                };
                return Some(Received {
                    signal,
                    from_kernel: KERNEL_HAS_NO_PID && sender == 0,
                    sender,
                });
            }
        }
        None
    }

    /// Gives back what the process had, in a child before its exec.
    pub(crate) fn restore(&self) -> Result<(), Errno> {
        reset_dispositions(self.taken, self.ignored)?;
        restore_signal_mask(&self.mask);
        Ok(())
    }
}

/// Whether the handler of a signal that was blocked is told who sent it.
const TELLS_SENDER: bool = !cfg!(any(target_os = "macos", target_os = "openbsd"));

/// Whether a signal without a sender is certain to be the kernel's: pgsignal() from tty_signal_pgrp() with
/// SI_KERNEL, and kern_psignal() without siginfo, which no system call uses.
const KERNEL_HAS_NO_PID: bool = cfg!(target_os = "freebsd");

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Installs [`note`], which is run with every signal blocked; sigaction(2). What was there.
fn set_handler(signal: i32) -> Result<libc::sighandler_t, Errno> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    let place = action.as_mut_ptr();
    // SAFETY: a plain C structure, for which all zeroes are a value.
    let action = unsafe { &mut *place };
    action.sa_sigaction = note as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the whole set is written.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    // SAFETY: reads one structure and writes one; the handler stores two integers.
    Errno::result(unsafe { libc::sigaction(signal, action, before.as_mut_ptr()) })?;
    // SAFETY: written by the call, and all zeroes before.
    Ok(unsafe { before.assume_init() }.sa_sigaction)
}

/// Lets this one signal through: it is delivered before the first of the two calls returns, if it is pending
/// (pthread_sigmask(3)).
fn with_unblocked(signal: i32) {
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the whole set is written.
    unsafe { libc::sigfillset(mask.as_mut_ptr()) };
    // SAFETY: a set that has been written.
    unsafe { libc::sigdelset(mask.as_mut_ptr(), signal) };
    // SAFETY: reads one set, and writes none.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), std::ptr::null_mut()) };
    let _ = block_all_signals();
}

/// Stops this process as the terminal's stop character would have: not at all if nobody is there to
/// resume it (an orphaned process group).
pub(crate) fn stop_self() {
    // SAFETY: the default disposition is no code of ours.
    unsafe { libc::signal(libc::SIGTSTP, libc::SIG_DFL) };
    let _ = kill(getpid(), libc::SIGTSTP);
    with_unblocked(libc::SIGTSTP);
    let _ = set_handler(libc::SIGTSTP);
}

/// Ends this process by `signal`, without a core dump. Returns if that is impossible.
pub(crate) fn die_of(signal: i32) {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel reads one structure.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    // SAFETY: the default disposition is no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    let _ = kill(getpid(), signal);
    with_unblocked(signal);
}

/// Whether the kernel can send a process a signal when its parent ends: [`arm_parent_death`](super::arm_parent_death).
pub(crate) fn has_parent_death_signal() -> bool {
    cfg!(target_os = "freebsd")
}
