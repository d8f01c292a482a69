//! A kill at every system call of run-with's start: run-with, its guard and the command's process
//! before its exec are traced, and at the n-th stop (before or after a system call of any of them)
//! the victim is killed and everybody let go; for n = 1, 2, 3, ... until the command runs and there
//! is nothing left to stop at.
//!
//! The tracer is neither the launcher nor an ancestor that matters: who is traced keeps its parent.
//! A vfork's parent cannot be stopped until the child has exec'ed, so nothing waits for it here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use nix::unistd::pipe;

use super::Fallible;
use super::launch::{Launch, Page, await_running};
use super::namespace::check;
use super::phase::Phase;
use super::trace::{self, Call, Event};
use super::variant::Variant;

/// Stops that there are at the very least: run-with's own start, its guard and the command's.
const FEWEST: usize = 80;

/// How long one run may take before the tracer's wait is interrupted, in seconds.
const HUNG: libc::c_uint = 60;

/// Every stop in turn; the stopped process is held for `hold` after the kill, while the others act.
pub fn run(variant: &Variant, hold: Duration) -> Fallible<String> {
    trace::interrupt_on_alarm()?;
    let mut counted = sweep(variant, hold, Guard::Free)?;
    if !variant.execs() {
        let late = sweep(variant, hold, Guard::Late)
            .map_err(|error| format!("with a late guard: {error}"))?;
        counted = format!("{counted}; with a late guard {late}");
    }
    Ok(counted)
}

/// When the guard gets to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// As it comes, and its system calls are stops too.
    Free,
    /// Not before the kill. run-with and the command's process take turns then: the same order of
    /// stops in every run.
    Late,
}

fn sweep(variant: &Variant, hold: Duration, guard: Guard) -> Fallible<String> {
    let page = Page::map()?;
    let mut by_phase: BTreeMap<Phase, usize> = BTreeMap::new();
    let mut survivors = 0;
    let mut nth = 0;
    loop {
        nth += 1;
        unsafe { libc::alarm(HUNG) };
        let mut run = Run::start(variant, &page, guard)?;
        let stop = run.step_to(nth).map_err(|error| run.context(nth, &error))?;
        let phase = run.progress.phase(variant);
        *by_phase.entry(phase).or_default() += 1;
        let lived = run
            .kill(hold)
            .and_then(|()| run.judge(phase))
            .map_err(|error| run.context(nth, &error))?;
        survivors += usize::from(lived);
        if stop == Reached::TheCommandRuns {
            break;
        }
    }
    let missing: BTreeSet<Phase> = phases(variant)
        .iter()
        .copied()
        .filter(|phase| !by_phase.contains_key(phase))
        .collect();
    if nth < FEWEST || !missing.is_empty() {
        return Err(format!("{nth} stops, none in {missing:?}").into());
    }
    if variant.may_survive(Phase::BeforeExec) && survivors == 0 {
        return Err("no survivor under a subreaper: the documentation says otherwise".into());
    }
    Ok(format!("{nth} stops, {by_phase:?}, {survivors} survived"))
}

/// The phases in which there are stops. With `--exec`, "before the fork" is before the second exec.
fn phases(variant: &Variant) -> &'static [Phase] {
    use Phase::{BeforeArming, BeforeExec, BeforeFork, BeforeItsExec, Running};
    if variant.execs() {
        &[BeforeExec, BeforeArming, BeforeFork, Running]
    } else {
        &[BeforeExec, BeforeArming, BeforeFork, BeforeItsExec, Running]
    }
}

/// Who a traced process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Seen before its maker said so.
    Unknown,
    RunWith,
    Guard,
    Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    TheStop,
    TheCommandRuns,
}

/// How far run-with has come, by its system calls.
#[derive(Default)]
struct Progress {
    execs: usize,
    armed: bool,
    guarded: bool,
    forked: bool,
    command_runs: bool,
}

impl Progress {
    fn phase(&self, variant: &Variant) -> Phase {
        if self.execs == 0 {
            Phase::BeforeExec
        } else if self.command_runs || (variant.execs() && self.execs == 2) {
            Phase::Running
        } else if !self.armed {
            Phase::BeforeArming
        } else if self.forked {
            Phase::BeforeItsExec
        } else {
            Phase::BeforeFork
        }
    }

    /// The parent is held from here on by a pidfd or the parent-death signal; a pipe that is asked
    /// about (by waitid, whether it is a pidfd) was held all along.
    fn after(&mut self, call: Call) {
        let sets_signal =
            call.number == libc::SYS_prctl && call.first == libc::PR_SET_PDEATHSIG as u64;
        let looks = [libc::SYS_pidfd_open, libc::SYS_waitid].contains(&call.number);
        self.armed |= sets_signal || looks;
    }
}

struct Tracee {
    who: Who,
    last: Option<Call>,
    /// Stopped before its first instruction, and not resumed.
    parked: bool,
}

/// One run of run-with under the tracer.
struct Run<'a> {
    variant: &'a Variant,
    guard: Guard,
    launch: Launch,
    tracees: BTreeMap<i32, Tracee>,
    progress: Progress,
    /// Who is stopped when the victim is killed.
    held: Option<i32>,
}

impl<'a> Run<'a> {
    fn start(variant: &'a Variant, page: &Page, guard: Guard) -> Fallible<Self> {
        let (gate, opener) = pipe()?;
        for end in [&gate, &opener] {
            let end = std::os::fd::AsRawFd::as_raw_fd(end);
            check(unsafe { libc::fcntl(end, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        }
        let launch = Launch::start(variant, page, Some(&gate))?;
        let pid = launch.run_with.pid;
        trace::seize(pid)?;
        nix::unistd::write(&opener, b"!")?;
        let first = Tracee {
            who: Who::RunWith,
            last: None,
            parked: false,
        };
        Ok(Self {
            variant,
            guard,
            launch,
            tracees: BTreeMap::from([(pid, first)]),
            progress: Progress::default(),
            held: None,
        })
    }

    /// Runs everybody to the n-th stop of all, or until the command runs and all wait.
    fn step_to(&mut self, nth: usize) -> Fallible<Reached> {
        let mut count = 0;
        // Asked after every event: a vfork's parent can go on before its child's exec is reported.
        while !self.all_wait() {
            let (pid, event) = trace::next()?;
            match event {
                Event::Call(call) => {
                    count += 1;
                    self.note(pid, call);
                    if count == nth {
                        self.held = Some(pid);
                        return Ok(Reached::TheStop);
                    }
                    trace::resume(pid, 0)?;
                }
                Event::Made { child } => {
                    // The guard is made first, and again if it ends; the command once.
                    let is_command = self.progress.guarded && !self.progress.forked;
                    let who = if is_command { Who::Command } else { Who::Guard };
                    self.progress.forked |= is_command;
                    self.progress.guarded = true;
                    self.tracee(child).who = who;
                    self.unpark(child)?;
                    trace::resume(pid, 0)?;
                }
                Event::Exec if self.tracee(pid).who == Who::RunWith => {
                    self.progress.execs += 1;
                    if self.progress.execs == 2 {
                        self.held = Some(pid);
                        return Ok(Reached::TheCommandRuns);
                    }
                    trace::resume(pid, 0)?;
                }
                Event::Exec => {
                    self.progress.command_runs = true;
                    self.tracees.remove(&pid);
                    trace::detach(pid, 0);
                }
                Event::Stop if self.tracee(pid).last.is_none() => {
                    self.tracee(pid).parked = true;
                    self.unpark(pid)?;
                }
                Event::Stop => trace::resume(pid, 0)?,
                Event::Signal(signal) => trace::resume(pid, signal)?,
                Event::Ended => return Err(format!("pid {pid} ended, unkilled").into()),
            }
        }
        Ok(Reached::TheCommandRuns)
    }

    fn tracee(&mut self, pid: i32) -> &mut Tracee {
        self.tracees.entry(pid).or_insert(Tracee {
            who: Who::Unknown,
            last: None,
            parked: false,
        })
    }

    /// Lets a new process run, once it is known who it is and if it may.
    fn unpark(&mut self, pid: i32) -> io::Result<()> {
        let late = self.guard == Guard::Late;
        let tracee = self.tracee(pid);
        let may = match tracee.who {
            Who::Unknown => false,
            Who::Guard => !late,
            Who::RunWith | Who::Command => true,
        };
        if tracee.parked && may {
            tracee.parked = false;
            trace::resume(pid, 0)?;
        }
        Ok(())
    }

    fn note(&mut self, pid: i32, mut call: Call) {
        let tracee = self.tracee(pid);
        if !call.entry {
            // What the exit does not tell.
            if let Some(entry) = tracee.last {
                call = Call {
                    entry: false,
                    ..entry
                };
            }
        }
        tracee.last = Some(call);
        if tracee.who == Who::RunWith && !call.entry {
            self.progress.after(call);
        }
    }

    /// Whether the command runs, and run-with and its guard wait in ppoll.
    fn all_wait(&self) -> bool {
        let waits = |call: Call| call.entry && call.number == libc::SYS_ppoll;
        let mut tracees = self.tracees.values();
        self.progress.command_runs
            && tracees.all(|tracee| tracee.parked || tracee.last.is_some_and(waits))
    }

    /// Kills the victims, waits until they are gone, and lets everybody go, the held one last.
    fn kill(&mut self, hold: Duration) -> Fallible {
        for victim in self.launch.victims(self.variant) {
            victim.signal(libc::SIGKILL);
            // The tracer is told first; only what it has reaped is gone for the parent.
            if self.tracees.remove(&victim.pid).is_some() {
                trace::await_end(victim.pid)?;
            } else if !victim.gone() {
                return Err(format!("the SIGKILLed {} does not end", victim.pid).into());
            }
        }
        for (pid, tracee) in &self.tracees {
            if tracee.parked {
                trace::detach(*pid, 0);
            } else if Some(*pid) != self.held {
                trace::interrupt(*pid);
            }
        }
        let until = Instant::now() + hold;
        loop {
            trace::detach_all_that_stop()?;
            if Instant::now() >= until {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(pid) = self.held {
            trace::detach(pid, 0);
        }
        Ok(())
    }

    /// Whether something lived on, where that is what the documentation says.
    fn judge(&self, phase: Phase) -> Fallible<bool> {
        let letting_go = || Ok(trace::detach_all_that_stop()?);
        if !self.variant.may_survive(phase) {
            self.launch.judge(self.variant, letting_go)?;
            return Ok(false);
        }
        let lived = await_running(&self.launch, self.variant, letting_go)?;
        self.launch.end_the_rest(letting_go)?;
        Ok(lived)
    }

    fn context(&self, nth: usize, error: &dyn fmt::Display) -> Box<dyn std::error::Error> {
        let phase = self.progress.phase(self.variant);
        let stops: Vec<String> = self
            .tracees
            .iter()
            .map(|(pid, tracee)| {
                let held = if Some(*pid) == self.held { "held " } else { "" };
                match tracee.last {
                    Some(call) => format!("{held}{:?} {pid} {call}", tracee.who),
                    None => format!("{held}{:?} {pid}", tracee.who),
                }
            })
            .collect();
        format!("stop {nth}, {phase:?} ({}): {error}", stops.join(", ")).into()
    }
}
