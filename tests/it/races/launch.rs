//! One launcher with run-with as its child:
//!
//! ```text
//! init ── experimenter ── [subreaper] ── launcher ── run-with ── guard, command
//! ```
//!
//! The processes between do nothing but reap. Each is a fork of this binary: one thread, small.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command as Program, Stdio};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::{ForkResult, fork, pipe};

use super::Fallible;
use super::namespace::{await_end_of_others, check, reap};
use super::phase::{Phase, children, guard, seen};
use super::variant::{Command, Said, Variant, Victim};
use crate::support::process::{run_with_path, state};
use crate::support::{HANG, Witness};

/// The pids, in memory that all share.
#[derive(Default)]
#[repr(C)]
struct Pids {
    subreaper: AtomicI32,
    launcher: AtomicI32,
    run_with: AtomicI32,
}

/// Where the launcher and its kin write who they are.
pub struct Page(&'static Pids);

impl Page {
    pub fn map() -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let size = size_of::<Pids>();
        let at = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(unsafe { &*at.cast::<Pids>() }))
    }
}

/// A launcher that runs, and everything it has started.
pub struct Launch {
    pub subreaper: Option<i32>,
    pub launcher: Witness,
    pub run_with: Witness,
    /// When the launcher had forked, as seen from here.
    pub forked: Instant,
}

impl Launch {
    /// Starts a launcher. Its child waits for an end of file on `gate` before it executes run-with.
    pub fn start(variant: &Variant, page: &Page, gate: Option<&OwnedFd>) -> Fallible<Self> {
        let pids = page.0;
        pids.subreaper.store(0, Ordering::SeqCst);
        pids.launcher.store(0, Ordering::SeqCst);
        pids.run_with.store(0, Ordering::SeqCst);
        if let ForkResult::Child = unsafe { fork() }? {
            if !variant.subreaper {
                launcher(variant, pids, gate);
            }
            pids.subreaper.store(own_pid(), Ordering::SeqCst);
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
            if let Ok(ForkResult::Child) = unsafe { fork() } {
                launcher(variant, pids, gate);
            }
            reap_for_ever();
        }
        let started = Instant::now();
        let run_with = loop {
            match pids.run_with.load(Ordering::SeqCst) {
                0 if started.elapsed() > HANG => return Err("the launcher did not fork".into()),
                0 => std::hint::spin_loop(),
                pid => break pid,
            }
        };
        let forked = Instant::now();
        let subreaper = pids.subreaper.load(Ordering::SeqCst);
        Ok(Self {
            subreaper: Some(subreaper).filter(|pid| *pid != 0),
            launcher: Witness::of(pids.launcher.load(Ordering::SeqCst))?,
            run_with: Witness::of(run_with)?,
            forked,
        })
    }

    /// The processes that are to be killed, in order. The guard is found now.
    pub fn victims(&self, variant: &Variant) -> Vec<Witness> {
        let guard = || guard(self.run_with.pid);
        let pids = match variant.victim {
            Victim::Launcher => [Some(self.launcher.pid), None],
            Victim::RunWith => [None, Some(self.run_with.pid)],
            Victim::RunWithAndGuard => [guard(), Some(self.run_with.pid)],
            Victim::Guard => [guard(), None],
        };
        // None has been reaped: the launcher reaps only what has ended, and nothing has been killed.
        let pids = pids.into_iter().flatten();
        pids.filter_map(|pid| Witness::of(pid).ok()).collect()
    }

    /// The victims have been killed: what must be gone is.
    pub fn judge(&self, variant: &Variant, mut pump: impl FnMut() -> Fallible) -> Fallible {
        if variant.victim == Victim::Guard {
            if !await_running(self, variant, &mut pump)? {
                return Err("without its guard, run-with ended".into());
            }
            self.await_guard(&mut pump)?;
            self.run_with.signal(libc::SIGKILL);
        }
        self.require_the_end(pump)
    }

    /// Waits until a guard guards.
    fn await_guard(&self, mut pump: impl FnMut() -> Fallible) -> Fallible {
        let deadline = Instant::now() + HANG;
        while Instant::now() < deadline {
            pump()?;
            let mut children = children(self.run_with.pid).into_iter();
            if children.any(|(pid, name)| {
                name == "run-with-guard" && state(pid).is_some_and(|state| !"ZX".contains(state))
            }) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Err("the guard was not replaced".into())
    }

    /// The victim has been killed: requires that everything run-with started is gone, then that
    /// nothing at all is left once the subreaper and the launcher are gone too.
    fn require_the_end(&self, mut pump: impl FnMut() -> Fallible) -> Fallible {
        let keep: Vec<i32> = [self.subreaper, Some(self.launcher.pid)]
            .into_iter()
            .flatten()
            .filter(|pid| Some(*pid) == self.subreaper || self.launcher.alive())
            .collect();
        await_end_of_others(&keep, &mut pump)?;
        self.end_the_rest(pump)
    }

    /// Ends the subreaper and the launcher; what they would leave behind fails.
    pub fn end_the_rest(&self, pump: impl FnMut() -> Fallible) -> Fallible {
        self.launcher.signal(libc::SIGKILL);
        if let Some(pid) = self.subreaper {
            // Our child, which we have not reaped: we reap it below.
            check(unsafe { libc::kill(pid, libc::SIGKILL) })?;
        }
        await_end_of_others(&[], pump)
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn launcher(variant: &Variant, pids: &Pids, gate: Option<&OwnedFd>) -> ! {
    pids.launcher.store(own_pid(), Ordering::SeqCst);
    let ends = pipe().expect("pipe");
    let mut program = program(variant, &ends.0);
    // The test binary's descriptors are close-on-exec; so must these be, but for the read end.
    for end in [&ends.0, &ends.1] {
        let inherited = variant.said == Said::Pipe && end.as_raw_fd() == ends.0.as_raw_fd();
        let flag = if inherited { 0 } else { libc::FD_CLOEXEC };
        unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, flag) };
    }
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            if let Some(gate) = gate {
                let mut byte = 0_u8;
                unsafe { libc::read(gate.as_raw_fd(), (&raw mut byte).cast(), 1) };
            }
            let error = program.exec();
            panic!("{}: {error}", run_with_path());
        }
        ForkResult::Parent { child } => {
            pids.run_with.store(child.as_raw(), Ordering::SeqCst);
            reap_for_ever()
        }
    }
}

fn program(variant: &Variant, pipe: &OwnedFd) -> Program {
    let mut args: Vec<OsString> = variant.options.iter().map(OsString::from).collect();
    match variant.said {
        Said::Nothing => {}
        Said::Pid => args.extend(["--expect-parent".into(), own_pid().to_string().into()]),
        Said::Pipe => args.extend(["--parent-fd".into(), pipe.as_raw_fd().to_string().into()]),
    }
    args.push("--".into());
    match variant.command {
        Command::Sleep => args.extend(["sleep".into(), "100000".into()]),
        Command::OtherUser => {
            let this = std::env::current_exe().expect("this binary");
            args.extend([this.into(), "--role".into(), "races-other-user".into()]);
        }
    }
    let mut program = Program::new(run_with_path());
    // run-with says that the parent is gone, hundreds of times.
    let null = File::options().write(true).open("/dev/null");
    program
        .args(args)
        .stdin(Stdio::null())
        .stderr(null.map_or_else(|_| Stdio::inherit(), Stdio::from));
    program
}

fn reap_for_ever() -> ! {
    loop {
        reap();
        unsafe {
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            let flags = libc::WEXITED | libc::WNOWAIT;
            if libc::waitid(libc::P_ALL, 0, &raw mut info, flags) == -1 {
                // Nobody is left: wait to be killed.
                libc::usleep(1000);
            }
        }
    }
}

/// Waits until run-with's command runs; false if run-with is gone instead.
pub fn await_running(
    launch: &Launch,
    variant: &Variant,
    mut pump: impl FnMut() -> Fallible,
) -> Fallible<bool> {
    let deadline = Instant::now() + HANG;
    while Instant::now() < deadline {
        pump()?;
        if !launch.run_with.alive() {
            return Ok(false);
        }
        if seen(launch.run_with.pid, variant).is_some_and(|now| now >= Phase::Running) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Err("run-with neither ran its command nor ended".into())
}
