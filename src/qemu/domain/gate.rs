//! The lock around the jobs: those who wait sleep here, each woken by itself.
//!
//! The lock is held for the length of one step of [`Core`], never while anything sleeps or is called that is not this
//! crate's. Who is woken has what it waited for already, or a refusal.

use std::panic::Location;
use std::time::Instant;

use super::job::core::{Core, Interruption, Owner, Refusal, Request, Run, Standing, Ticket};
use super::primitive::{Mutex, MutexGuard, PoisonError, Thread, current, park_until};

/// Who asks for a job.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) thread: Thread,
    /// Where in the program.
    pub(crate) place: &'static Location<'static>,
}

impl Caller {
    /// This thread, at the place of the call.
    #[track_caller]
    pub(crate) fn here() -> Self {
        Self {
            thread: current(),
            place: Location::caller(),
        }
    }
}

impl Owner for Caller {
    fn is(&self, other: &Self) -> bool {
        self.thread.id() == other.thread.id()
    }
}

/// A domain's jobs, shared.
#[derive(Debug)]
pub(crate) struct Gate(Mutex<Core<Caller, Thread>>);

fn wake_all(woken: impl IntoIterator<Item = Thread>) {
    woken.into_iter().for_each(|thread| thread.unpark());
}

impl Gate {
    pub(crate) fn new(limit: usize) -> Self {
        Self(Mutex::new(Core::new(limit)))
    }

    /// For what neither sleeps nor wakes anybody.
    pub(crate) fn look(&self) -> MutexGuard<'_, Core<Caller, Thread>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets a job, or says why not. Sleeps until then, in the calling thread.
    pub(crate) fn begin(
        &self,
        request: Request<Caller>,
        now: Instant,
    ) -> Result<Ticket, Refusal<Caller>> {
        let waker = current;
        let until = request.until;
        let (ticket, granted) = self.look().begin(request, now, waker)?;
        if granted {
            return Ok(ticket);
        }
        loop {
            park_until(until);
            let standing = self.look().standing(ticket, Instant::now());
            match standing {
                Standing::Granted => return Ok(ticket),
                Standing::Refused(refusal) => return Err(refusal),
                Standing::Waiting => {}
            }
        }
    }

    /// The job is this thread's from now on. `None` if it was taken away.
    pub(crate) fn move_here(&self, ticket: Ticket) -> Option<MutexGuard<'_, Core<Caller, Thread>>> {
        let mut core = self.look();
        core.owner_mut(ticket)?.thread = current();
        Some(core)
    }

    /// Gives a job up.
    pub(crate) fn end(&self, ticket: Ticket) {
        let woken = self.look().end(ticket, Instant::now());
        wake_all(woken);
    }

    /// Takes the domain for destroy.
    pub(crate) fn seize(&self, owner: Caller) -> Ticket {
        let (ticket, woken) = self.look().seize(owner, Instant::now());
        wake_all(woken);
        ticket
    }

    /// The machine has died. False if that was known.
    pub(crate) fn died(&self, run: Run) -> bool {
        let woken = self.look().died(run);
        let is_news = woken.is_some();
        wake_all(woken.unwrap_or_default());
        is_news
    }

    /// Waits for the machine's death. False: the deadline passed.
    pub(crate) fn wait_death(&self, until: Instant) -> bool {
        let Some((ticket, run)) = self.look().mourn(current) else {
            return true;
        };
        loop {
            // What runs then is another run.
            if self.look().run() != Some(run) {
                return true;
            }
            if until <= Instant::now() {
                self.look().stop_mourning(ticket);
                return false;
            }
            park_until(until);
        }
    }

    /// Sleeps in an async job until then, or until something keeps it from going on: what.
    pub(crate) fn pause(&self, ticket: Ticket, until: Instant) -> Option<Interruption> {
        loop {
            let interruption = self.look().pause(ticket, current());
            if interruption.is_some() || until <= Instant::now() {
                return interruption;
            }
            park_until(until);
        }
    }

    /// Sets an async job's mask. False if it was taken away.
    pub(crate) fn set_mask(&self, ticket: Ticket, mask: super::job::Mask) -> bool {
        let woken = self.look().set_mask(ticket, mask, Instant::now());
        let is_ours = woken.is_some();
        wake_all(woken.unwrap_or_default());
        is_ours
    }

    /// Asks the async job to end: which it is.
    pub(crate) fn abort_async(&self) -> Option<super::job::AsyncJobKind> {
        let (kind, waker) = self.look().abort_async();
        wake_all(waker);
        kind
    }
}
