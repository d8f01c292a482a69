//! The job conditions of one domain, as a pure state machine: time and owners come in as arguments, whom to wake
//! goes out.
//!
//! Three conditions, after libvirt's rules: *normal* (one holder), *agent* (one holder, apart from all else) and
//! *async* (one holder, with a mask of the normal jobs that may run meanwhile; its own steps are *nested* jobs, which
//! hold the normal condition and ask no mask).
//!
//! - **Handed over**: who ends a job gives the condition to the first in the queue who may have it. Nobody who comes
//!   later gets in between, so no wake-up is lost and none is for nothing.
//! - **The fairness bound**: from when the mask allows it, a waiter gets its job after those that stood before it, and no
//!   others but aborts. An abort goes before all that are none.
//! - **Destroy does not wait**: [`seize`](Core::seize) takes all conditions from who has them. A ticket that was taken
//!   away is good for nothing: its holder learns so at its next step, and its end ends nothing.
//! - **Death** refuses everybody who asked while the machine ran, and waits. Who holds a job keeps it, to clean up.

use std::collections::VecDeque;
use std::time::Instant;

use super::kind::{AgentJobKind, AsyncJobKind, HeldKind, JobKind, Mask};

/// Who holds or wants a job.
pub(crate) trait Owner: Clone {
    /// Whether waiting for `other` would be waiting for oneself.
    fn is(&self, other: &Self) -> bool;
}

/// A claim to a job: held, in the queue, or good for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// One run of the machine: from its start to its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run(u64);

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Normal(JobKind),
    /// A step of the async job with this ticket.
    Nested(Ticket),
    Agent(AgentJobKind),
    Async(AsyncJobKind),
}

/// A request for a job.
#[derive(Debug, Clone)]
pub(crate) struct Request<O> {
    pub(crate) want: Want,
    pub(crate) owner: O,
    pub(crate) until: Instant,
}

/// A job that is held.
#[derive(Debug, Clone)]
pub(crate) struct Held<O> {
    pub(crate) kind: HeldKind,
    pub(crate) owner: O,
    pub(crate) since: Instant,
}

/// All that is held.
#[derive(Debug, Clone)]
pub(crate) struct Holders<O> {
    pub(crate) normal: Option<Held<O>>,
    pub(crate) agent: Option<Held<O>>,
    pub(crate) r#async: Option<Held<O>>,
}

/// Why there is no job.
#[derive(Debug, Clone)]
pub(crate) enum Refusal<O> {
    /// The deadline passed.
    Timeout(Box<Holders<O>>),
    /// It would have to wait, and was not to.
    Busy(Box<Holders<O>>),
    /// So many wait already.
    QueueFull(usize, Box<Holders<O>>),
    /// The machine does not run.
    Inactive,
    /// The machine runs already, and was to be started.
    Active,
    /// The machine died meanwhile.
    Died,
    /// The one who asks holds what it would wait for.
    OwnJob(Held<O>),
    /// The one who asks holds a normal job and wants an agent job, or the other way round.
    AgentAndNormal(Held<O>),
    /// It was taken away: the domain has been destroyed.
    Revoked,
}

/// How a request stands.
#[derive(Debug)]
pub(crate) enum Standing<O> {
    Granted,
    Waiting,
    Refused(Refusal<O>),
}

/// How far an async job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// How much is done, in the unit that the job counts in (bytes, for most).
    pub done: u64,
    /// How much there is to do; may grow.
    pub total: u64,
}

/// What has happened to a domain's jobs so far. Counts never go down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Jobs that were had, of all kinds, destroy included.
    pub granted: u64,
    /// Of these, those that had to wait.
    pub waited: u64,
    /// Requests whose deadline passed.
    pub timed_out: u64,
    /// Requests that were not to wait, or found the queue full.
    pub refused: u64,
    /// Jobs that destroy took away.
    pub revoked: u64,
}

/// What breaks off an async job's pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interruption {
    Aborted,
    Died,
    Revoked,
}

#[derive(Debug)]
struct Slot<O> {
    ticket: Ticket,
    held: Held<O>,
}

#[derive(Debug)]
struct AsyncSlot<O, W> {
    ticket: Ticket,
    kind: AsyncJobKind,
    owner: O,
    since: Instant,
    phase: &'static str,
    mask: Mask,
    progress: Progress,
    aborted: bool,
    /// The run that it belongs to; that of a start begins in it.
    run: Option<Run>,
    pausing: Option<W>,
}

#[derive(Debug)]
struct Waiter<O, W> {
    ticket: Ticket,
    want: Want,
    owner: O,
    until: Instant,
    /// Which run of the machine it is about.
    run: Option<Run>,
    waker: W,
    /// The machine died, and it is to be told so.
    died: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Core<O, W> {
    tickets: u64,
    runs: u64,
    run: Option<Run>,
    normal: Option<Slot<O>>,
    agent: Option<Slot<O>>,
    r#async: Option<AsyncSlot<O, W>>,
    /// One queue for the normal and the async condition, so that neither starves the other; one for agent jobs.
    queues: [VecDeque<Waiter<O, W>>; 2],
    /// Who waits for the machine's death.
    mourners: Vec<(Ticket, W)>,
    /// How many may wait, but for those who are exempt.
    limit: usize,
    counts: Counts,
}

impl<O: Owner, W> Core<O, W> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            tickets: 0,
            runs: 0,
            run: None,
            normal: None,
            agent: None,
            r#async: None,
            queues: [VecDeque::new(), VecDeque::new()],
            mourners: Vec::new(),
            limit,
            counts: Counts::default(),
        }
    }

    /// Asks for a job. Granted at once if nobody is in the way; else it waits in the queue, and `waker` is what wakes it
    /// when [`standing`](Self::standing) has changed.
    pub(crate) fn begin(
        &mut self,
        request: Request<O>,
        now: Instant,
        waker: impl FnOnce() -> W,
    ) -> Result<(Ticket, bool), Refusal<O>> {
        self.possible(&request)?;
        let ticket = self.ticket();
        if self.is_free(&request.want) {
            self.grant(ticket, request.want, request.owner, now);
            return Ok((ticket, true));
        }
        if request.until <= now {
            self.counts.refused += 1;
            return Err(Refusal::Busy(self.holders().into()));
        }
        if !is_exempt(request.want) && self.waiting() >= self.limit {
            self.counts.refused += 1;
            return Err(Refusal::QueueFull(self.limit, self.holders().into()));
        }
        let waiter = Waiter {
            ticket,
            want: request.want,
            owner: request.owner,
            until: request.until,
            run: self.run,
            waker: waker(),
            died: false,
        };
        let queue = &mut self.queues[line(request.want)];
        let place = if is_abort(request.want) {
            queue.iter().take_while(|w| is_abort(w.want)).count()
        } else {
            queue.len()
        };
        queue.insert(place, waiter);
        Ok((ticket, false))
    }

    /// Whether this can be waited for at all.
    fn possible(&self, request: &Request<O>) -> Result<(), Refusal<O>> {
        if let Want::Nested(parent) = request.want {
            if !self.is_async(parent) {
                return Err(Refusal::Revoked);
            }
        }
        if needs_running(request.want) && self.run.is_none() {
            return Err(Refusal::Inactive);
        }
        if let Want::Async(kind) = request.want {
            if kind.brings_up() && self.run.is_some() {
                return Err(Refusal::Active);
            }
        }
        let own = |held: Option<Held<O>>| held.filter(|held| held.owner.is(&request.owner));
        let Holders {
            normal,
            agent,
            r#async,
        } = self.holders();
        let (same, other) = match request.want {
            Want::Agent(_) => (own(agent), own(normal)),
            _ => (own(normal), own(agent)),
        };
        if let Some(held) = same {
            return Err(Refusal::OwnJob(held));
        }
        if let Some(held) = other {
            return Err(Refusal::AgentAndNormal(held));
        }
        let waits_for_async = match request.want {
            Want::Normal(kind) => !self.mask_allows(kind),
            Want::Async(_) => true,
            Want::Nested(_) | Want::Agent(_) => false,
        };
        match own(r#async) {
            Some(held) if waits_for_async => Err(Refusal::OwnJob(held)),
            _ => Ok(()),
        }
    }

    fn mask_allows(&self, kind: JobKind) -> bool {
        self.r#async
            .as_ref()
            .is_none_or(|job| job.mask.allows(kind))
    }

    fn is_async(&self, ticket: Ticket) -> bool {
        self.r#async
            .as_ref()
            .is_some_and(|job| job.ticket == ticket)
    }

    /// Whether it could be granted, apart from who else waits. Who waits for the same condition is granted as soon as
    /// that is free, so there is nobody whom this passes.
    fn is_free(&self, want: &Want) -> bool {
        match *want {
            Want::Agent(_) => self.agent.is_none(),
            Want::Normal(kind) => self.normal.is_none() && self.mask_allows(kind),
            Want::Nested(parent) => self.normal.is_none() && self.is_async(parent),
            Want::Async(_) => self.normal.is_none() && self.r#async.is_none(),
        }
    }

    fn grant(&mut self, ticket: Ticket, want: Want, owner: O, since: Instant) {
        self.counts.granted += 1;
        let kind = match want {
            Want::Normal(kind) => HeldKind::Normal(kind),
            Want::Agent(kind) => HeldKind::Agent(kind),
            Want::Nested(_) => match &self.r#async {
                Some(job) => HeldKind::Nested(job.kind),
                None => return,
            },
            Want::Async(kind) => {
                self.r#async = Some(AsyncSlot {
                    ticket,
                    kind,
                    owner,
                    since,
                    phase: "",
                    mask: Mask::default(),
                    progress: Progress::default(),
                    aborted: false,
                    run: self.run,
                    pausing: None,
                });
                return;
            }
        };
        let slot = Slot {
            ticket,
            held: Held { kind, owner, since },
        };
        match want {
            Want::Agent(_) => self.agent = Some(slot),
            _ => self.normal = Some(slot),
        }
    }

    /// Grants what can be granted, first come, first served. Whom to wake.
    fn settle(&mut self, now: Instant) -> Vec<W> {
        let mut woken = Vec::new();
        for line in [MONITOR, AGENT] {
            let mut place = 0;
            while let Some(waiter) = self.queues[line].get(place) {
                if waiter.died || !self.is_free(&waiter.want) {
                    place += 1;
                } else if let Some(waiter) = self.queues[line].remove(place) {
                    self.counts.waited += 1;
                    self.grant(waiter.ticket, waiter.want, waiter.owner, now);
                    woken.push(waiter.waker);
                }
            }
        }
        woken
    }

    /// How a request stands that was to wait. Granted and refused are final.
    pub(crate) fn standing(&mut self, ticket: Ticket, now: Instant) -> Standing<O> {
        if self.holds(ticket) {
            return Standing::Granted;
        }
        let Some((line, place)) = self.place(ticket) else {
            return Standing::Refused(Refusal::Revoked);
        };
        let waiter = &self.queues[line][place];
        let refusal = if waiter.died {
            Refusal::Died
        } else if waiter.until <= now {
            self.counts.timed_out += 1;
            Refusal::Timeout(self.holders().into())
        } else {
            return Standing::Waiting;
        };
        self.queues[line].remove(place);
        Standing::Refused(refusal)
    }

    /// In which queue it waits, and where.
    fn place(&self, ticket: Ticket) -> Option<(usize, usize)> {
        [MONITOR, AGENT].into_iter().find_map(|line| {
            let place = self.queues[line].iter().position(|w| w.ticket == ticket)?;
            Some((line, place))
        })
    }

    /// Gives a ticket up: the job ends, or the request leaves the queue. Nothing if it was taken away. Whom to wake.
    pub(crate) fn end(&mut self, ticket: Ticket, now: Instant) -> Vec<W> {
        if let Some((line, place)) = self.place(ticket) {
            self.queues[line].remove(place);
            return Vec::new();
        }
        if self
            .normal
            .as_ref()
            .is_some_and(|slot| slot.ticket == ticket)
        {
            self.normal = None;
        } else if self
            .agent
            .as_ref()
            .is_some_and(|slot| slot.ticket == ticket)
        {
            self.agent = None;
        } else if self.is_async(ticket) {
            self.r#async = None;
            return self.orphan_nested(ticket, now);
        } else {
            return Vec::new();
        }
        self.settle(now)
    }

    /// Without its async job nobody waits for a nested one: whom to wake, who then finds it refused.
    fn orphan_nested(&mut self, parent: Ticket, now: Instant) -> Vec<W> {
        let mut woken = Vec::new();
        let queue = &mut self.queues[MONITOR];
        while let Some(place) = queue.iter().position(|w| w.want == Want::Nested(parent)) {
            woken.extend(queue.remove(place).map(|waiter| waiter.waker));
        }
        woken.extend(self.settle(now));
        woken
    }

    /// Takes the domain for destroy: whoever holds a job has lost it. Nothing is waited for.
    pub(crate) fn seize(&mut self, owner: O, now: Instant) -> (Ticket, Vec<W>) {
        let lost = u64::from(self.normal.take().is_some())
            + u64::from(self.agent.take().is_some())
            + u64::from(self.r#async.is_some());
        self.counts.revoked += lost;
        // The normal condition first, so that nobody in the queue gets it.
        let ticket = self.ticket();
        self.grant(ticket, Want::Normal(JobKind::Destroy), owner, now);
        let mut woken = Vec::new();
        if let Some(job) = self.r#async.take() {
            woken.extend(job.pausing);
            woken.extend(self.orphan_nested(job.ticket, now));
        } else {
            woken.extend(self.settle(now));
        }
        (ticket, woken)
    }

    /// The machine runs, started by the async job with this ticket. `None` if that job is not its any more, is not one
    /// that starts, or the machine runs already.
    pub(crate) fn came_up(&mut self, ticket: Ticket) -> Option<Run> {
        let starts = |job: &&mut AsyncSlot<O, W>| job.ticket == ticket && job.kind.brings_up();
        if self.run.is_some() {
            return None;
        }
        let job = self.r#async.as_mut().filter(starts)?;
        self.runs += 1;
        let run = Run(self.runs);
        job.run = Some(run);
        self.run = Some(run);
        Some(run)
    }

    /// The machine has died. `None` if that run has ended before; else whom to wake.
    pub(crate) fn died(&mut self, run: Run) -> Option<Vec<W>>
    where
        W: Clone,
    {
        if self.run != Some(run) {
            return None;
        }
        self.run = None;
        let mut woken: Vec<W> = self.mourners.drain(..).map(|(_, waker)| waker).collect();
        woken.extend(self.r#async.as_mut().and_then(|job| job.pausing.take()));
        for waiter in self.queues.iter_mut().flatten() {
            if waiter.run == Some(run) && !waiter.died {
                waiter.died = true;
                woken.push(waiter.waker.clone());
            }
        }
        Some(woken)
    }

    /// Has `waker` woken at the machine's death; `None` if it does not run.
    pub(crate) fn mourn(&mut self, waker: impl FnOnce() -> W) -> Option<(Ticket, Run)> {
        let run = self.run?;
        let ticket = self.ticket();
        self.mourners.push((ticket, waker()));
        Some((ticket, run))
    }

    /// Does not wait for the death any more.
    pub(crate) fn stop_mourning(&mut self, ticket: Ticket) {
        self.mourners.retain(|(mourner, _)| *mourner != ticket);
    }

    /// The run of this moment.
    pub(crate) fn run(&self) -> Option<Run> {
        self.run
    }

    /// Whether this ticket holds its condition.
    pub(crate) fn holds(&self, ticket: Ticket) -> bool {
        let is = |slot: &Slot<O>| slot.ticket == ticket;
        self.normal.as_ref().is_some_and(is)
            || self.agent.as_ref().is_some_and(is)
            || self.is_async(ticket)
    }

    /// Who holds it.
    pub(crate) fn owner_mut(&mut self, ticket: Ticket) -> Option<&mut O> {
        if self.is_async(ticket) {
            return self.r#async.as_mut().map(|job| &mut job.owner);
        }
        let slots = [&mut self.normal, &mut self.agent];
        let mut slots = slots.into_iter().flatten();
        let slot = slots.find(|slot| slot.ticket == ticket)?;
        Some(&mut slot.held.owner)
    }

    fn async_mut(&mut self, ticket: Ticket) -> Option<&mut AsyncSlot<O, W>> {
        self.r#async.as_mut().filter(|job| job.ticket == ticket)
    }

    /// Which normal jobs may run beside this async job from now on. Whom to wake; `None` if it was taken away.
    pub(crate) fn set_mask(&mut self, ticket: Ticket, mask: Mask, now: Instant) -> Option<Vec<W>> {
        self.async_mut(ticket)?.mask = mask;
        Some(self.settle(now))
    }

    /// What this async job does now. False if it was taken away.
    pub(crate) fn set_phase(&mut self, ticket: Ticket, phase: &'static str) -> bool {
        self.async_mut(ticket)
            .map(|job| job.phase = phase)
            .is_some()
    }

    /// How far this async job is. False if it was taken away.
    pub(crate) fn set_progress(&mut self, ticket: Ticket, progress: Progress) -> bool {
        self.async_mut(ticket)
            .map(|job| job.progress = progress)
            .is_some()
    }

    /// Asks the async job to end, if there is one: what it is. It learns so in its pause, or when it asks. Whom to wake.
    pub(crate) fn abort_async(&mut self) -> (Option<AsyncJobKind>, Option<W>) {
        match &mut self.r#async {
            Some(job) => {
                job.aborted = true;
                (Some(job.kind), job.pausing.take())
            }
            None => (None, None),
        }
    }

    /// What keeps this async job from going on, if anything does.
    pub(crate) fn interruption(&self, ticket: Ticket) -> Option<Interruption> {
        match self.r#async.as_ref().filter(|job| job.ticket == ticket) {
            None => Some(Interruption::Revoked),
            Some(job) if job.run.is_some() && job.run != self.run => Some(Interruption::Died),
            Some(job) if job.aborted => Some(Interruption::Aborted),
            Some(_) => None,
        }
    }

    /// Has `waker` woken when [`interruption`](Self::interruption) says something: at once if it does.
    pub(crate) fn pause(&mut self, ticket: Ticket, waker: W) -> Option<Interruption> {
        let interruption = self.interruption(ticket);
        if interruption.is_none() {
            if let Some(job) = self.async_mut(ticket) {
                job.pausing = Some(waker);
            }
        }
        interruption
    }

    /// The async job's progress.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.r#async.as_ref().map(|job| job.progress)
    }

    /// The async job's mask.
    pub(crate) fn mask(&self) -> Option<Mask> {
        self.r#async.as_ref().map(|job| job.mask)
    }

    /// All that is held.
    pub(crate) fn holders(&self) -> Holders<O> {
        Holders {
            normal: self.normal.as_ref().map(|slot| slot.held.clone()),
            agent: self.agent.as_ref().map(|slot| slot.held.clone()),
            r#async: self.r#async.as_ref().map(|job| Held {
                kind: HeldKind::Async(job.kind, job.phase),
                owner: job.owner.clone(),
                since: job.since,
            }),
        }
    }

    /// How many wait that the limit counts.
    pub(crate) fn waiting(&self) -> usize {
        let waits = |waiter: &&Waiter<O, W>| !waiter.died && !is_exempt(waiter.want);
        self.queues.iter().flatten().filter(waits).count()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }
}

const MONITOR: usize = 0;
const AGENT: usize = 1;

/// The queue for it.
fn line(want: Want) -> usize {
    match want {
        Want::Agent(_) => AGENT,
        _ => MONITOR,
    }
}

/// What is of no use unless the machine runs. A normal job may also change what is to run next.
fn needs_running(want: Want) -> bool {
    match want {
        Want::Normal(_) | Want::Nested(_) => false,
        Want::Agent(_) => true,
        Want::Async(kind) => !kind.brings_up(),
    }
}

fn is_abort(want: Want) -> bool {
    want == Want::Normal(JobKind::Abort)
}

/// Who may always wait: as in libvirt async jobs and their steps, and what ends one.
fn is_exempt(want: Want) -> bool {
    is_abort(want) || matches!(want, Want::Async(_) | Want::Nested(_))
}
