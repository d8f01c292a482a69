//! The threads that make children.
//!
//! A thread is held from clone until the child's exec (vfork), so a child that stalls holds up its
//! thread and nobody else: who asks takes an idle thread or a new one. None of them ever ends: the
//! parent-death signal of a child is bound to the thread that made it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::super::command::Command;
use super::super::{SpawnError, SpawnStep};
use super::child::{self, Progress};
use super::claim::{Claim, Settled};
use super::request::Request;
use super::slot::Slot;
use crate::sys::linux::{self as sys, GuardedStack, Half};

/// Where each thread that has nothing to do waits for its next job.
type Idle = Mutex<Vec<Arc<Slot<Job>>>>;

#[derive(Debug, Default)]
pub(super) struct Spawners {
    /// Shared with the threads, which put themselves back.
    idle: Arc<Idle>,
}

/// A child that has executed its program.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// A child that failed before its exec, and has been reaped.
#[derive(Debug)]
struct Failed {
    /// The step's code.
    step: u32,
    errno: Errno,
    /// Its pidfd, to be closed by the one who asked: that one may be about to send SIGKILL to the number.
    _pidfd: Option<OwnedFd>,
}

/// Why there is no child.
#[derive(Debug)]
pub(super) enum NotMade {
    Step(SpawnStep, Errno),
    Stalled(SpawnStep, Duration),
    /// Its exec came too late: it has been sent SIGKILL, and is to be reaped.
    Late(Made, Duration),
}

impl NotMade {
    /// As an error of the caller's, and the child that is to be reaped.
    pub(super) fn into_error(self, command: &Command) -> (SpawnError, Option<Made>) {
        let program = command.program.clone();
        let (step, after, late) = match self {
            Self::Step(step, errno) => {
                let errno = errno.into();
                return (
                    SpawnError::Step {
                        program,
                        step,
                        errno,
                    },
                    None,
                );
            }
            Self::Stalled(step, after) => (step, after, None),
            Self::Late(made, after) => (SpawnStep::Exec, after, Some(made)),
        };
        let stalled = SpawnError::Stalled {
            program,
            step,
            after,
        };
        (stalled, late)
    }
}

/// One child to be made.
#[derive(Debug)]
struct Job {
    request: Request,
    progress: Arc<Progress>,
    claim: Arc<Claim>,
    answer: Arc<Slot<Result<Made, Failed>>>,
}

impl Spawners {
    /// Makes a child, and waits for its exec.
    pub(super) fn make(&self, request: Request, limit: Duration) -> Result<Made, NotMade> {
        let names = request.names();
        let progress = Arc::new(Progress::default());
        let claim = Arc::new(Claim::new());
        let answered = Arc::new(Slot::new());
        let job = Job {
            request,
            progress: Arc::clone(&progress),
            claim: Arc::clone(&claim),
            answer: Arc::clone(&answered),
        };
        self.hand_over(job)
            .map_err(|errno| NotMade::Step(SpawnStep::StartThread, errno))?;
        let step_of = |code: u32| child::step_of(code, &names);
        let mut answer = answered.take_within(limit);
        let late = answer.is_none();
        if late {
            let step = step_of(progress.step());
            // A child that has its pidfd gets SIGKILL; one that is only being made sees that nobody wants
            // it. As long as the claim is open, the number is the child's.
            progress.abandon();
            if claim.settle(Settled::GivenUp) {
                return Err(NotMade::Stalled(step, limit));
            }
            // Settled in the last moment: the thread's answer is on its way.
            answer = Some(answered.take());
        }
        match answer {
            Some(Ok(made)) if late => {
                let _ = sys::pidfd_send_signal(made.pidfd.as_fd(), libc::SIGKILL);
                Err(NotMade::Late(made, limit))
            }
            Some(Ok(made)) => Ok(made),
            // Ended by us, or told that nobody wants it.
            Some(Err(failed)) if late && failed.errno == Errno::ECANCELED => {
                Err(NotMade::Stalled(step_of(failed.step), limit))
            }
            Some(Err(failed)) => Err(NotMade::Step(step_of(failed.step), failed.errno)),
            None => Err(NotMade::Stalled(SpawnStep::Clone, limit)),
        }
    }

    fn hand_over(&self, job: Job) -> Result<(), Errno> {
        let idle = self.lock().pop();
        if let Some(idle) = idle {
            idle.put(job);
            return Ok(());
        }
        let slot = Arc::new(Slot::new());
        let (own, all) = (Arc::clone(&slot), Arc::clone(&self.idle));
        // From its first instruction on: what comes for the launcher is for its own threads.
        let mask = sys::set_signal_mask(sys::ALL_BUT_THE_LIBRARYS)?;
        let started = std::thread::Builder::new()
            .name("captive-spawner".into())
            .stack_size(128 * 1024)
            .spawn(move || serve(&own, &all));
        let _ = sys::set_signal_mask(mask);
        started.map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
        slot.put(job);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Slot<Job>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The life of a thread.
fn serve(own: &Arc<Slot<Job>>, idle: &Idle) {
    let mut stack = None;
    loop {
        let Job {
            mut request,
            progress,
            claim,
            answer,
        } = own.take();
        let made = make(&mut stack, &mut request, &progress);
        // The pipe of a stage ends here too.
        drop(request);
        let wanted = claim.settle(Settled::Answered);
        if let (false, Ok(made)) = (wanted, &made) {
            let _ = sys::pidfd_send_signal(made.pidfd.as_fd(), libc::SIGKILL);
            sys::reap_pidfd(made.pidfd.as_fd());
        }
        // Idle before the answer: who gets it may ask again at once.
        idle.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(own));
        if wanted {
            answer.put(made);
        }
    }
}

/// Through a process that enters the namespace, makes the child there, and ends.
fn make_in_namespace(
    stack: &GuardedStack,
    request: &mut Request,
    progress: &Progress,
) -> Result<i32, Errno> {
    let own = AtomicI32::new(-1);
    let flags = u64::from(libc::CLONE_FILES.unsigned_abs());
    let pid = sys::clone_child(stack, Half::Upper, flags, None, &own, None, || {
        child::enter(stack, request, progress)
    })?;
    match own.load(Ordering::Acquire) {
        fd if fd >= 0 => sys::reap_pidfd(sys::adopt(fd).as_fd()),
        _ => sys::reap_pid(pid),
    }
    match (progress.has_left(), progress.entered()) {
        (true, Some(pid)) => return Ok(pid),
        // It says why.
        (true, None) => {}
        // Somebody has killed it. The child runs on, with our memory: it must end before we go on.
        (false, Some(_)) => {
            progress.abandon();
            sys::with_raw_fd(progress.pidfd().load(Ordering::Acquire), |child| {
                let _ = sys::pidfd_send_signal(child, libc::SIGKILL);
                sys::reap_pidfd(child);
            });
        }
        // The same, where a filter lets no clone3 through, or before there was a child. If there is one, it is in the
        // namespace: SIGKILL to all there is what the kernel does first when the init ends. That takes until somebody has
        // reaped it, whose number nobody knows: so not for ever.
        (false, None) => {
            progress.abandon();
            if let Some((init, _)) = request.namespace {
                sys::with_raw_fd(init, |init| {
                    let _ = sys::pidfd_send_signal(init, libc::SIGKILL);
                    let _ = sys::poll_within(init, libc::POLLIN, Duration::from_secs(1));
                });
            }
        }
    }
    Err(Errno::ECANCELED)
}

/// Whether a child of ours can enter a tree, if that is a namespace: what the next child is to do, by one that ends at once.
#[cfg(feature = "cli")]
pub(super) fn try_to_enter(tree: super::Holds) -> Result<(), Errno> {
    if !tree.is_namespace() {
        return Ok(());
    }
    let stack = GuardedStack::for_child()?;
    let (own, answer) = (AtomicI32::new(-1), AtomicI32::new(0));
    // No handler of ours may run in the child, on shared memory.
    let mask = sys::set_signal_mask(sys::ALL_SIGNALS)?;
    let made = sys::clone_child(&stack, Half::Upper, 0, None, &own, None, || {
        if let Err(errno) = tree.enter() {
            answer.store(child::number_of(errno), Ordering::Release);
        }
        sys::exit_group(0)
    });
    let _ = sys::set_signal_mask(mask);
    made?;
    sys::reap_pidfd(sys::adopt(own.load(Ordering::Acquire)).as_fd());
    match answer.load(Ordering::Acquire) {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Makes a child of the calling thread.
#[cfg(feature = "cli")]
pub(super) fn make_here(
    request: &mut Request,
    progress: &Progress,
) -> Result<Made, (SpawnStep, Errno)> {
    let names = request.names();
    make(&mut None, request, progress)
        .map_err(|failed| (child::step_of(failed.step, &names), failed.errno))
}

fn make(
    stack: &mut Option<GuardedStack>,
    request: &mut Request,
    progress: &Progress,
) -> Result<Made, Failed> {
    let clone_failed = |errno| Failed {
        step: child::CLONE,
        errno,
        _pidfd: None,
    };
    let stack = match stack {
        Some(stack) => stack,
        None => stack.insert(GuardedStack::for_child().map_err(clone_failed)?),
    };
    let made = make_once(stack, request, progress);
    // Linux 6.18 kills at its birth a child that is born into another cgroup than its parent's, if cgroup.kill has
    // ever been written in the parent's (the two have counted different kills). It can move there itself.
    let born_dead = matches!(&made, Err(failed) if failed.errno == Errno::ECANCELED)
        && !progress.has_begun()
        && progress.check_wanted().is_ok();
    if born_dead && request.cgroup.is_some() && !request.joins_cgroup {
        drop(made);
        request.joins_cgroup = true;
        progress.begin_again();
        return make_once(stack, request, progress);
    }
    made
}

fn make_once(
    stack: &GuardedStack,
    request: &mut Request,
    progress: &Progress,
) -> Result<Made, Failed> {
    let clone_failed = |errno| Failed {
        step: child::CLONE,
        errno,
        _pidfd: None,
    };
    // No handler of the launcher's may run in the child, on shared memory.
    let mask = sys::set_signal_mask(sys::ALL_SIGNALS).map_err(clone_failed)?;
    let made = if request.namespace.is_some() {
        make_in_namespace(stack, request, progress)
    } else {
        child::make(stack, Half::Upper, false, request, progress)
    };
    let _ = sys::set_signal_mask(mask);
    // There is none, but perhaps a reason other than clone's; or who made it in the namespace was killed when it was at
    // its exec.
    let failed_at = match request.namespace {
        Some(_) => child::ENTER,
        None => child::CLONE,
    };
    let pid = made.map_err(|errno| {
        let (step, noted) = progress.failure().unwrap_or((failed_at, errno));
        // Where no child began, none has noted why.
        let errno = if noted == Errno::ECANCELED {
            errno
        } else {
            noted
        };
        Failed {
            step,
            errno,
            _pidfd: (progress.has_begun() || progress.entered().is_some())
                .then(|| progress.take_pidfd())
                .flatten(),
        }
    })?;
    let Some(pidfd) = progress.take_pidfd() else {
        // Linux before 5.2 ignores CLONE_PIDFD; `is_supported` has looked. Our child, not reaped.
        let _ = sys::kill(pid, libc::SIGKILL);
        sys::reap_pid(pid);
        return Err(clone_failed(Errno::ENOSYS));
    };
    if let Some((step, errno)) = progress.failure() {
        sys::reap_pidfd(pidfd.as_fd());
        return Err(Failed {
            step,
            errno,
            _pidfd: Some(pidfd),
        });
    }
    Ok(Made { pid, pidfd })
}
