//! The init of a captive's PID namespace: it waits, and ends when the launcher and its guard are gone.
//!
//! When it ends the kernel ends everything in the namespace (pid_namespaces(7)), so whoever is to end a tree
//! sends it SIGKILL. No signal from inside does anything to it: all are blocked, and an init gets neither SIGKILL nor
//! SIGSTOP from its own namespace.
//!
//! | what happens | what the init does |
//! |---|---|
//! | a process becomes its child and ends | nothing: SIGCHLD is ignored, so the kernel reaps it |
//! | the launcher ends, and the tree is to end at once then | nothing: its parent-death signal ends it |
//! | the same, and the tree is to end in its turn | nothing: it has no such signal from the start, since the guard may know the tree at any moment |
//! | no writer of its pipe is left (the launcher, and the guard if that knew the tree) | ends |
//! | a word: the tree has been let go | ends when it is alone |

use crate::protocol::{INIT_LET_GO, INIT_PIPE};
use crate::sys::{self, int, plain, syscall};

pub fn run() -> ! {
    sys::set_name(b"captive-init\0\0\0\0");
    // SAFETY: a NUL-terminated string.
    let _ = unsafe { syscall(sys::CHDIR, [b"/\0".as_ptr() as usize, 0, 0, 0, 0, 0]) };
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    let _ = plain(sys::PRCTL, [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0]);
    block_all_signals();
    ignore_children();
    loop {
        let mut word = 0_u8;
        let place = (&raw mut word) as usize;
        // SAFETY: the kernel writes at most one byte.
        match unsafe { syscall(sys::READ, [int(INIT_PIPE), place, 1, 0, 0, 0]) } {
            Ok(1) if word == INIT_LET_GO => live_alone(),
            Ok(1) | Err(sys::EINTR) => {}
            _ => sys::exit(0),
        }
    }
}

fn block_all_signals() {
    const SIG_SETMASK: usize = 2;
    let all = u64::MAX;
    // SAFETY: the kernel reads eight bytes.
    let _ = unsafe {
        syscall(
            sys::RT_SIGPROCMASK,
            [SIG_SETMASK, (&raw const all) as usize, 0, 8, 0, 0],
        )
    };
}

/// SIG_IGN for SIGCHLD: nothing becomes a zombie; wait(2), notes.
fn ignore_children() {
    const SIGCHLD: usize = 17;
    // struct kernel_sigaction: the handler SIG_IGN, no flags, (x86-64: no restorer), an empty mask.
    let action = [1_usize, 0, 0, 0];
    // SAFETY: the kernel reads at most the four words.
    let _ = unsafe {
        syscall(
            sys::RT_SIGACTION,
            [SIGCHLD, (&raw const action) as usize, 0, 8, 0, 0],
        )
    };
}

/// Nothing tells that a namespace has become empty.
fn live_alone() -> ! {
    // One that may be let go has no parent-death signal.
    sys::close(INIT_PIPE);
    loop {
        let time = [1_i64, 0];
        let place = (&raw const time) as usize;
        // SAFETY: no descriptors; the kernel reads one timespec.
        let _ = unsafe { syscall(sys::PPOLL, [0, 0, place, 0, 0, 0]) };
        // Everybody in the namespace but the caller; kill(2).
        let everybody = int(-1);
        if plain(sys::KILL, [everybody, 0, 0, 0, 0, 0]) == Err(sys::ESRCH) {
            sys::exit(0)
        }
    }
}
