//! A PID namespace of the test's own, in which a plain init adopts and reaps orphans, and in which
//! everything that is left can be seen.

use std::fs;
use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::Fallible;
use super::phase::comm;
use crate::support::HANG;
use crate::support::process::{state, status_field};

/// How long a whole role may take before it is ended by SIGALRM.
const ROLE: libc::c_uint = 1800;

/// Runs `body` in a child of the init of a new PID namespace with a /proc of its own; the answer is
/// an exit status. When the body returns, everything in the namespace ends.
pub fn run(body: impl FnOnce() -> i32) -> io::Result<i32> {
    check(unsafe { libc::unshare(libc::CLONE_NEWPID | libc::CLONE_NEWNS) })?;
    match unsafe { fork() }? {
        ForkResult::Child => std::process::exit(init(body)),
        ForkResult::Parent { child } => Ok(match waitpid(child, None)? {
            WaitStatus::Exited(_, status) => status,
            other => {
                eprintln!("the namespace's init: {other:?}");
                3
            }
        }),
    }
}

fn init(body: impl FnOnce() -> i32) -> i32 {
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if let Err(error) = mount_proc() {
        eprintln!("mounting /proc: {error}");
        return 3;
    }
    let body = match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            unsafe { libc::alarm(ROLE) };
            std::process::exit(body())
        }
        Ok(ForkResult::Parent { child }) => child,
        Err(errno) => {
            eprintln!("fork: {errno}");
            return 3;
        }
    };
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == body => return status,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == body => {
                eprintln!("killed by {signal}");
                return 3;
            }
            _ => {}
        }
    }
}

fn mount_proc() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let none = c"none".as_ptr();
    check(unsafe { libc::mount(none, c"/".as_ptr(), ptr::null(), flags, ptr::null()) })?;
    let proc = c"proc".as_ptr();
    check(unsafe { libc::mount(proc, c"/proc".as_ptr(), proc, 0, ptr::null()) })
}

pub fn check(answer: libc::c_int) -> io::Result<()> {
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Every process of the namespace, zombies included, but init, the caller and `keep`.
pub fn others(keep: &[i32]) -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != 1 && *pid != own && !keep.contains(pid))
        .collect()
}

/// Reaps the caller's own children that have ended. Not for a tracer, which has stops to see.
pub fn reap() {
    while unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// [`reap`] as something to do while waiting.
pub fn reaping() -> Fallible {
    reap();
    Ok(())
}

/// Waits until only init, the caller and `keep` are left; `pump` is called while it waits.
pub fn await_end_of_others(keep: &[i32], mut pump: impl FnMut() -> Fallible) -> Fallible {
    let deadline = Instant::now() + HANG;
    loop {
        pump()?;
        let left = others(keep);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let left: Vec<String> = left.into_iter().map(describe).collect();
            return Err(format!("left over: {}", left.join("; ")).into());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Ends everything in the namespace but init and the caller.
pub fn kill_others() -> Fallible {
    unsafe { libc::kill(-1, libc::SIGKILL) };
    await_end_of_others(&[], reaping)
}

fn describe(pid: i32) -> String {
    let field = |name| status_field(pid, name).unwrap_or_default();
    format!(
        "{} (pid {pid}, parent {}, state {}, uid {})",
        comm(pid).unwrap_or_default(),
        field("PPid"),
        state(pid).unwrap_or('?'),
        field("Uid")
    )
}
