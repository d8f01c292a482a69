//! Settings of the calling thread and process: signals, names, what exec may give.

use nix::errno::Errno;

use super::{int_arg, plain, syscall};

/// All signals, as the kernel's 64-bit set.
pub(crate) const ALL_SIGNALS: u64 = !0;

/// All signals but those by which a C library makes its threads act together: one that a thread blocks
/// makes setuid(2) of the whole process wait for ever. glibc: 32, 33 (nptl(7)); musl: also 34; libpsx:
/// SIGSYS.
#[cfg(captive_helper)]
pub(crate) const ALL_BUT_THE_LIBRARYS: u64 = {
    let musl = if cfg!(target_env = "musl") {
        1 << 33
    } else {
        0
    };
    !(1 << 31 | 1 << 32 | musl | 1 << (libc::SIGSYS - 1))
};

/// Replaces the calling thread's signal mask; the answer is the old one.
///
/// rt_sigprocmask(2). Not through the C library, which keeps its own signals (32, 33) out of every
/// set it is given. SIGKILL and SIGSTOP stay deliverable whatever the set says.
#[doc(alias = "SYS_rt_sigprocmask")]
pub(crate) fn set_signal_mask(set: u64) -> Result<u64, Errno> {
    let mut old: u64 = 0;
    let (new, place) = (&raw const set as usize, &raw mut old as usize);
    let args = [
        int_arg(libc::SIG_SETMASK),
        new,
        place,
        size_of::<u64>(),
        0,
        0,
    ];
    // SAFETY: reads eight bytes from `new` and writes eight to `place`; both outlive the call.
    unsafe { syscall(libc::SYS_rt_sigprocmask, args)? };
    Ok(old)
}

/// Sets a disposition that has no handler: SIG_DFL or SIG_IGN; rt_sigaction(2).
pub(crate) fn set_disposition(signal: i32, handler: libc::sighandler_t) -> Result<(), Errno> {
    // struct kernel_sigaction: handler, flags, restorer (where there is one), each of the machine's
    // word, then a mask of 64 bits: 20 bytes on a 32-bit machine, 24 or 32 on others. The handler is
    // the first on every architecture that run-with is for; on MIPS the flags are.
    let action: [usize; 5] = [handler, 0, 0, 0, 0];
    let place = &raw const action as usize;
    // SAFETY: the kernel reads at most the five words; SIG_DFL and SIG_IGN run no code.
    unsafe {
        syscall(
            libc::SYS_rt_sigaction,
            [int_arg(signal), place, 0, size_of::<u64>(), 0, 0],
        )
    }
    .map(drop)
}

/// Makes the calling process the leader of a new session and process group, without a terminal.
pub(crate) fn setsid() -> Result<(), Errno> {
    plain(libc::SYS_setsid, [0; 6]).map(drop)
}

/// Names the calling thread, 15 bytes and a NUL; prctl(PR_SET_NAME).
pub(crate) fn set_name(name: &[u8; 16]) -> Result<(), Errno> {
    let args = [
        int_arg(libc::PR_SET_NAME),
        name.as_ptr() as usize,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads at most 16 bytes.
    unsafe { syscall(libc::SYS_prctl, args) }.map(drop)
}

/// No exec from here on gains privileges; prctl(PR_SET_NO_NEW_PRIVS), of the calling thread.
pub(crate) fn set_no_new_privs() -> Result<(), Errno> {
    plain(
        libc::SYS_prctl,
        [int_arg(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0, 0],
    )
    .map(drop)
}

/// Whether this process is as dumpable as any that has just been executed: its files in /proc are its user's;
/// prctl(PR_GET_DUMPABLE). After a change of its user it is not.
#[cfg(captive_helper)]
pub(crate) fn is_dumpable() -> bool {
    let answer = plain(
        libc::SYS_prctl,
        [int_arg(libc::PR_GET_DUMPABLE), 0, 0, 0, 0, 0],
    );
    answer == Ok(1)
}

/// No core dump of this process, whatever core_pattern says; prctl(PR_SET_DUMPABLE).
pub(crate) fn set_not_dumpable() -> Result<(), Errno> {
    plain(
        libc::SYS_prctl,
        [int_arg(libc::PR_SET_DUMPABLE), 0, 0, 0, 0, 0],
    )
    .map(drop)
}

/// Sets the calling thread's parent-death signal; 0 clears it.
///
/// PR_SET_PDEATHSIG(2const): sent when the *thread* that created us ends; cleared for the child of
/// a fork, on exec of a set-id or capability-bearing program, and by any change of the effective or
/// file-system uid or gid.
#[doc(alias = "PR_SET_PDEATHSIG")]
pub(crate) fn set_parent_death_signal(signal: i32) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, int_arg(signal)).map(drop)
}

/// The calling thread's parent-death signal, 0 for none.
#[doc(alias = "PR_GET_PDEATHSIG")]
pub(crate) fn parent_death_signal() -> Result<i32, Errno> {
    let mut signal: libc::c_int = 0;
    let place = &raw mut signal;
    // SAFETY: PR_GET_PDEATHSIG writes one int to `place`, which lives until after the call.
    unsafe {
        syscall(
            libc::SYS_prctl,
            [int_arg(libc::PR_GET_PDEATHSIG), place as usize, 0, 0, 0, 0],
        )?;
    }
    Ok(signal)
}

/// prctl(2) with one plain argument.
fn prctl(option: i32, arg: usize) -> Result<usize, Errno> {
    plain(libc::SYS_prctl, [int_arg(option), arg, 0, 0, 0, 0])
}

/// Whether `signal` is at its default disposition; sigaction(2) only asked, of the whole process.
pub(crate) fn is_at_default(signal: i32) -> bool {
    disposition(signal) == Some(libc::SIG_DFL)
}

/// The disposition of `signal` in this process; SIGKILL's and SIGSTOP's is always the default.
pub(crate) fn disposition(signal: i32) -> Option<libc::sighandler_t> {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action changes nothing; the current one is written to `current`.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), current.as_mut_ptr()) };
    if asked != 0 {
        return None;
    }
    // SAFETY: sigaction succeeded, so it has written the structure.
    Some(unsafe { current.assume_init() }.sa_sigaction)
}

/// Sends `signal` to the process `pid`, as kill(2); our own process may always be signalled.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    plain(libc::SYS_kill, [int_arg(pid), int_arg(signal), 0, 0, 0, 0]).map(drop)
}
