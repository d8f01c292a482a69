//! Scripts of what may happen to a domain, each step checked against what the rules say.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::core::{Core, Owner, Refusal, Request, Run, Standing, Ticket, Want};
use super::kind::{AgentJobKind, AsyncJobKind, JobKind, Mask};

#[derive(Debug, Clone, PartialEq)]
struct Who(u8);

impl Owner for Who {
    fn is(&self, other: &Self) -> bool {
        self == other
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// So many milliseconds to wait.
    Begin(Kind, u16),
    /// The ticket with this number, modulo how many there are.
    End(usize),
    Poll(usize),
    Seize,
    CameUp,
    Died,
    Mask(u8),
    Abort,
    Pass(u16),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Normal(JobKind),
    Nested,
    Agent,
    Async(AsyncJobKind),
}

fn job_kind() -> impl Strategy<Value = JobKind> {
    prop_oneof![
        Just(JobKind::Query),
        Just(JobKind::Modify),
        Just(JobKind::Modify),
        Just(JobKind::Suspend),
        Just(JobKind::Abort),
        Just(JobKind::MigrationOperation),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => job_kind().prop_map(Kind::Normal),
        2 => Just(Kind::Nested),
        1 => Just(Kind::Agent),
        2 => prop_oneof![Just(AsyncJobKind::Start), Just(AsyncJobKind::Save)].prop_map(Kind::Async),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (kind(), prop_oneof![Just(0), Just(1000), 1..20_u16]).prop_map(|(k, t)| Op::Begin(k, t)),
        6 => any::<usize>().prop_map(Op::End),
        3 => any::<usize>().prop_map(Op::Poll),
        1 => Just(Op::Seize),
        3 => Just(Op::CameUp),
        1 => Just(Op::Died),
        1 => any::<u8>().prop_map(Op::Mask),
        1 => Just(Op::Abort),
        2 => (1..20_u16).prop_map(Op::Pass),
    ]
}

/// What is known of a ticket from the answers alone.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    Waits,
    Holds,
    Over,
}

#[derive(Debug, Clone)]
struct Record {
    ticket: Ticket,
    want: Want,
    known: Known,
    until: Instant,
    woken: bool,
    /// It has been refused by a mask or an async job since it came: others may have passed.
    passable: bool,
}

const LIMIT: usize = 4;

struct Trial {
    core: Core<Who, usize>,
    now: Instant,
    records: Vec<Record>,
    run: Option<Run>,
    ended: Vec<Run>,
    mask: Mask,
}

impl Trial {
    fn new() -> Self {
        Self {
            core: Core::new(LIMIT),
            now: Instant::now(),
            records: Vec::new(),
            run: None,
            ended: Vec::new(),
            mask: Mask::default(),
        }
    }

    fn held(&self, which: impl Fn(&Want) -> bool) -> Option<&Record> {
        let holds = |r: &&Record| r.known == Known::Holds && which(&r.want);
        self.records.iter().find(holds)
    }

    fn normal(&self) -> Option<&Record> {
        self.held(|want| matches!(want, Want::Normal(_) | Want::Nested(_)))
    }

    fn agent(&self) -> Option<&Record> {
        self.held(|want| matches!(want, Want::Agent(_)))
    }

    fn asynchronous(&self) -> Option<&Record> {
        self.held(|want| matches!(want, Want::Async(_)))
    }

    /// Refused by a mask, an async job, or the end of its own.
    fn refused(&self, want: Want) -> bool {
        match (want, self.asynchronous()) {
            (Want::Normal(kind), Some(_)) => !self.mask.allows(kind),
            (Want::Async(_), held) => held.is_some(),
            (Want::Nested(parent), held) => held.is_none_or(|held| held.ticket != parent),
            _ => false,
        }
    }

    /// By the rules: nothing is in the way.
    fn free(&self, want: Want) -> bool {
        match want {
            Want::Agent(_) => self.agent().is_none(),
            _ => self.normal().is_none() && !self.refused(want),
        }
    }

    /// What the last step has granted and refused, and whom it woke.
    fn settle(&mut self, woken: &[usize]) {
        for number in woken {
            self.records[*number].woken = true;
        }
        let before = self.records.clone();
        // In the order of the grants that the rules ask for: what has been granted is known at the end only.
        let granted: Vec<usize> = (0..self.records.len())
            .filter(|i| {
                let record = &self.records[*i];
                record.known == Known::Waits && self.core.holds(record.ticket)
            })
            .collect();
        for number in &granted {
            assert!(self.records[*number].woken, "granted, not woken: {number}");
            // An async job begins with the default mask.
            if matches!(self.records[*number].want, Want::Async(_)) {
                self.mask = Mask::default();
            }
            self.records[*number].known = Known::Holds;
        }
        self.one_each();
        for number in &granted {
            if let Want::Normal(kind) = self.records[*number].want {
                assert!(self.asynchronous().is_none() || self.mask.allows(kind));
            }
        }
        let blocked: Vec<bool> = before.iter().map(|r| self.refused(r.want)).collect();
        for (record, blocked) in self.records.iter_mut().zip(blocked) {
            record.passable |= blocked;
        }
        self.nobody_forgotten();
        self.nobody_passed(&granted);
    }

    fn one_each(&self) {
        let count = |which: fn(&Want) -> bool| {
            let holds = |r: &&Record| r.known == Known::Holds && which(&r.want);
            self.records.iter().filter(holds).count()
        };
        assert!(count(|want| matches!(want, Want::Normal(_) | Want::Nested(_))) <= 1);
        assert!(count(|want| matches!(want, Want::Agent(_))) <= 1);
        assert!(count(|want| matches!(want, Want::Async(_))) <= 1);
    }

    /// Whoever waits, and has not been woken to learn that it is over, waits for something.
    fn nobody_forgotten(&self) {
        for record in &self.records {
            if record.known == Known::Waits && !record.woken {
                assert!(!self.free(record.want), "forgotten: {record:?}");
                let orphaned = matches!(record.want, Want::Nested(_)) && self.refused(record.want);
                assert!(!orphaned, "its async job has ended: {record:?}");
            }
        }
    }

    /// Only an abort goes before who waits for the same, and was not refused meanwhile.
    fn nobody_passed(&self, granted: &[usize]) {
        let line = |want: Want| matches!(want, Want::Agent(_));
        let is_abort = |want: Want| want == Want::Normal(JobKind::Abort);
        for number in granted {
            let later = &self.records[*number];
            for record in &self.records[..*number] {
                let waits = record.known == Known::Waits && !record.woken;
                let passed = waits && line(record.want) == line(later.want) && !record.passable;
                let may = is_abort(later.want) && !is_abort(record.want);
                assert!(!passed || may, "{later:?} passed {record:?}");
            }
            for record in &self.records {
                let waits = record.known == Known::Waits && !record.woken;
                let abort = waits && is_abort(record.want);
                assert!(
                    !abort || is_abort(later.want) || line(later.want),
                    "{later:?} before {record:?}"
                );
            }
        }
    }

    fn pick(&self, number: usize, known: &[Known]) -> Option<usize> {
        let some: Vec<usize> = (0..self.records.len())
            .filter(|i| known.contains(&self.records[*i].known))
            .collect();
        (!some.is_empty()).then(|| some[number % some.len()])
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Begin(kind, wait) => self.begin(kind, wait),
            Op::End(number) => {
                if let Some(number) = self.pick(number, &[Known::Holds, Known::Waits]) {
                    self.end(number);
                }
            }
            Op::Poll(number) => {
                if let Some(number) = self.pick(number, &[Known::Waits]) {
                    self.poll(number);
                }
            }
            Op::Seize => {
                let (ticket, woken) = self.core.seize(Who(u8::MAX), self.now);
                for record in &mut self.records {
                    if record.known == Known::Holds {
                        record.known = Known::Over;
                        assert!(!self.core.holds(record.ticket));
                    }
                }
                assert!(self.core.holds(ticket));
                self.record(
                    ticket,
                    Want::Normal(JobKind::Destroy),
                    Known::Holds,
                    self.now,
                );
                self.settle(&woken);
            }
            Op::CameUp => {
                let Some(record) = self.asynchronous().cloned() else {
                    return;
                };
                let run = self.core.came_up(record.ticket);
                let starts = record.want == Want::Async(AsyncJobKind::Start);
                assert_eq!(run.is_some(), starts && self.run.is_none());
                self.run = run.or(self.run);
                for ended in &self.ended {
                    assert!(self.core.died(*ended).is_none(), "it died twice");
                }
            }
            Op::Died => {
                let Some(run) = self.run.take() else {
                    return;
                };
                let woken = self.core.died(run).expect("it ran");
                self.ended.push(run);
                for number in &woken {
                    self.records[*number].woken = true;
                }
                // Nobody who waits for an agent waits on.
                for record in &self.records {
                    if record.known == Known::Waits && matches!(record.want, Want::Agent(_)) {
                        assert!(record.woken);
                    }
                }
                self.settle(&[]);
            }
            Op::Mask(bits) => self.set_mask(bits),
            Op::Abort => {
                let (kind, _) = self.core.abort_async();
                assert_eq!(kind.is_some(), self.asynchronous().is_some());
                if let Some(record) = self.asynchronous() {
                    assert!(self.core.interruption(record.ticket).is_some());
                }
            }
            Op::Pass(time) => self.now += Duration::from_millis(time.into()),
        }
    }

    fn end(&mut self, number: usize) {
        let woken = self.core.end(self.records[number].ticket, self.now);
        self.records[number].known = Known::Over;
        self.settle(&woken);
    }

    fn set_mask(&mut self, bits: u8) {
        let Some(record) = self.asynchronous() else {
            return;
        };
        let mut mask = Mask::NONE;
        for (bit, kind) in [JobKind::Query, JobKind::Modify, JobKind::Suspend]
            .into_iter()
            .enumerate()
        {
            if bits & (1 << bit) != 0 {
                mask = mask.and(kind);
            }
        }
        let woken = self.core.set_mask(record.ticket, mask, self.now);
        self.mask = mask;
        self.settle(&woken.expect("it is held"));
    }

    fn record(&mut self, ticket: Ticket, want: Want, known: Known, until: Instant) {
        self.records.push(Record {
            ticket,
            want,
            known,
            until,
            woken: false,
            passable: self.refused(want),
        });
    }

    fn begin(&mut self, kind: Kind, patience: u16) {
        let want = match kind {
            Kind::Normal(kind) => Want::Normal(kind),
            Kind::Agent => Want::Agent(AgentJobKind::Query),
            Kind::Async(kind) => Want::Async(kind),
            Kind::Nested => match self.asynchronous() {
                Some(record) => Want::Nested(record.ticket),
                None => return,
            },
        };
        let number = self.records.len();
        let until = self.now + Duration::from_millis(patience.into());
        // Everybody is somebody else, so that nobody waits for himself.
        let owner = Who(u8::try_from(number % 250).expect("a byte"));
        let own = self.records.len() >= 250;
        let request = Request { want, owner, until };
        let waiting = |r: &&Record| {
            r.known == Known::Waits
                && !r.woken
                && !matches!(r.want, Want::Async(_) | Want::Nested(_))
                && r.want != Want::Normal(JobKind::Abort)
        };
        let exempt = matches!(want, Want::Async(_) | Want::Nested(_))
            || want == Want::Normal(JobKind::Abort);
        let queue = self.records.iter().filter(waiting).count();
        let free = self.free(want);
        match self.core.begin(request, self.now, || number) {
            Ok((ticket, granted)) => {
                assert_eq!(granted, free, "{want:?}");
                assert!(granted || exempt || queue < LIMIT);
                let needs = matches!(want, Want::Agent(_) | Want::Async(AsyncJobKind::Save));
                assert!(!needs || self.run.is_some());
                assert!(want != Want::Async(AsyncJobKind::Start) || self.run.is_none());
                let known = if granted { Known::Holds } else { Known::Waits };
                if granted && matches!(want, Want::Async(_)) {
                    self.mask = Mask::default();
                }
                self.record(ticket, want, known, until);
                self.settle(&[]);
            }
            Err(Refusal::Busy(holders)) => {
                assert!(!free && patience == 0);
                assert!(
                    holders.normal.is_some()
                        || holders.agent.is_some()
                        || holders.r#async.is_some()
                );
            }
            Err(Refusal::QueueFull(limit, _)) => {
                assert!(!free && !exempt && limit == LIMIT && queue >= LIMIT);
            }
            Err(Refusal::Inactive) => assert!(self.run.is_none()),
            Err(Refusal::Active) => assert!(self.run.is_some()),
            Err(Refusal::OwnJob(_) | Refusal::AgentAndNormal(_)) => assert!(own),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn poll(&mut self, number: usize) {
        let record = self.records[number].clone();
        match self.core.standing(record.ticket, self.now) {
            Standing::Waiting => {
                assert!(record.until > self.now && !record.woken, "{record:?}");
            }
            // It would have been told when it was granted.
            Standing::Granted => panic!("{record:?}"),
            Standing::Refused(refusal) => {
                self.records[number].known = Known::Over;
                match refusal {
                    Refusal::Timeout(holders) => {
                        assert!(record.until <= self.now);
                        let some = holders.normal.or(holders.agent).or(holders.r#async);
                        assert!(some.is_some(), "nobody is named");
                    }
                    Refusal::Died => assert!(record.woken),
                    Refusal::Revoked => {
                        assert!(record.woken && matches!(record.want, Want::Nested(_)));
                    }
                    other => panic!("{other:?}"),
                }
                // Nobody is any better or worse for it.
                self.settle(&[]);
            }
        }
    }

    /// When all who hold have ended, nobody waits.
    fn finish(&mut self) {
        while let Some(number) = self.pick(0, &[Known::Holds]) {
            self.end(number);
        }
        let waits: HashMap<_, _> = self
            .records
            .iter()
            .enumerate()
            .filter(|(_, record)| record.known == Known::Waits && !record.woken)
            .collect();
        assert!(waits.is_empty(), "{waits:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// No job is held by two, the mask is respected, nobody is forgotten, nobody is passed, destroy gets in.
    #[test]
    fn every_script_obeys_the_rules(ops in prop::collection::vec(op(), 1..60)) {
        let mut trial = Trial::new();
        for op in &ops {
            trial.step(op);
        }
        trial.finish();
    }
}

#[test]
fn who_has_died_takes_no_place_in_the_queue() {
    let now = Instant::now();
    let mut core: Core<Who, usize> = Core::new(LIMIT);
    let mut people = 0;
    let mut begin = |core: &mut Core<Who, usize>, want| {
        people += 1;
        let request = Request {
            want,
            owner: Who(people),
            until: now + Duration::from_secs(1),
        };
        core.begin(request, now, || 0)
    };
    let (start, _) = begin(&mut core, Want::Async(AsyncJobKind::Start)).unwrap();
    let run = core.came_up(start).unwrap();
    core.end(start, now);
    let modify = Want::Normal(JobKind::Modify);
    assert!(begin(&mut core, modify).unwrap().1);
    for _ in 0..LIMIT {
        assert!(!begin(&mut core, modify).unwrap().1);
    }
    let full = begin(&mut core, modify);
    assert!(matches!(full, Err(Refusal::QueueFull(LIMIT, _))));
    // They have been told, and have not looked yet.
    assert_eq!(core.died(run).unwrap().len(), LIMIT);
    assert!(begin(&mut core, modify).is_ok());
}
