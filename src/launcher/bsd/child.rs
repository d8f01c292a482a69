//! The captive between fork and exec: system calls, no allocation, no lock, no destructor.
//!
//! The order, and why each step stands where it does:
//!
//! 1. its pid, for whoever must end it; then it waits until its supervisor watches it.
//! 2. all that is set, in the order of `settings.rs`, with the launcher's rights.
//! 3. the plan of `run_with`: root, groups, gid, uid, the proof. The working directory, if it is one in the new root.
//! 4. FreeBSD's parent-death signal, once more what the process descriptor does (in the stand-in a change of user
//!    clears it), and a look at the parent: a supervisor that was killed before has not sent it.
//! 5. the signal mask, last: before, a signal would find the launcher's handlers.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::super::prepare::Executable;
use super::super::settings::{CLOSE, DIRECTORY, EXEC, SIGNALS, nth};
use super::request::Request;
use super::sys;
use super::words::{PARENT, PLAN, Page};
use crate::run_with::InChild;

/// What a child says to those who ask with wait(2): nobody does, the page says it.
const FAILED: i32 = 127;

/// Becomes the program.
pub(super) fn run(
    request: &mut Request,
    plan: &InChild<'_>,
    page: &Page,
    start: BorrowedFd<'_>,
    supervisor: i32,
) -> ! {
    page.set_pid(sys::getpid());
    // The end of the file: nobody watches.
    if !hears(start) {
        sys::exit(FAILED);
    }
    let errno = match prepare(request, plan, page, start, supervisor) {
        Ok(()) => exec(request, page),
        Err(errno) => errno,
    };
    page.fail(errno);
    sys::exit(FAILED)
}

/// Waits for the supervisor's word.
fn hears(start: BorrowedFd<'_>) -> bool {
    let mut word = [0];
    loop {
        match sys::read(start, &mut word) {
            Err(Errno::EINTR) => {}
            answer => return answer == Ok(1),
        }
    }
}

fn prepare(
    request: &mut Request,
    plan: &InChild<'_>,
    page: &Page,
    start: BorrowedFd<'_>,
    supervisor: i32,
) -> Result<(), Errno> {
    let at = |step| page.at(step);
    let settings = &mut request.settings;
    settings.enter_session(&at)?;
    settings.give_descriptors(&mut [start.as_raw_fd(), -1, -1], &at)?;
    at(CLOSE);
    // SAFETY: a copy of the launcher, of which nothing is run but this: it uses none of what is closed.
    #[expect(unsafe_code, reason = "closing what was not given to the child")]
    unsafe {
        sys::close_all_but(&settings.keep);
    }
    settings.settle(&at)?;
    plan.make().map_err(|(index, errno)| {
        at(nth(PLAN, index));
        errno
    })?;
    if let Some(directory) = &request.directory {
        at(DIRECTORY);
        sys::chdir(directory)?;
    }
    at(PARENT);
    if !request.detachable && sys::has_process_descriptors() {
        sys::arm_parent_death(libc::SIGKILL)?;
    }
    if sys::getppid() == supervisor {
        Ok(())
    } else {
        Err(Errno::ESRCH)
    }
}

fn exec(request: &mut Request, page: &Page) -> Errno {
    let Executable {
        candidates,
        argv,
        envp,
        own_pid,
    } = &mut request.executable;
    if let Some((entry, start)) = *own_pid {
        envp.write_decimal(entry, start, sys::getpid().unsigned_abs());
    }
    page.at(SIGNALS);
    if let Err(errno) = sys::set_signal_mask(request.settings.mask) {
        return errno;
    }
    page.at(EXEC);
    sys::exec_first(candidates, argv, envp)
}
