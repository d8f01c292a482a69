//! The rules, one test each.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use captive::qemu::Uuid;
use captive::qemu::domain::{
    AgentJobKind, AsyncJobKind, DefineError, Domain, Driver, EnterError, HeldKind, Interrupted,
    JobError, JobKind, Lifeline, Limits, Machine, Mask, Modification, ModifyAccess, MonitorAccess,
    Reason, Revoked, Wait,
};

use super::guests::{Definition, Guests, Monitor, Nobody, driver, machine, running, start};
use super::{HANG, Outcome, go};

/// A domain whose monitor and agent are known.
struct Known {
    driver: Driver<Guests>,
    domain: Domain<Guests>,
    lifeline: Lifeline<Guests>,
    monitor: Arc<Monitor>,
    agent: Arc<Monitor>,
    process: Arc<Nobody>,
}

fn known(limits: Limits) -> Known {
    let (driver, mut domain) = driver(limits);
    let monitor = Arc::new(Monitor::default());
    let agent = Arc::new(Monitor::default());
    let process = Arc::new(Nobody::default());
    let machine = Machine {
        monitor: monitor.clone(),
        agent: Some(agent.clone()),
        process: process.clone(),
        ..machine()
    };
    let mut job = domain.begin_async_job(AsyncJobKind::Start).unwrap();
    let lifeline = job.came_up(machine).unwrap();
    drop(job);
    Known {
        driver,
        domain,
        lifeline,
        monitor,
        agent,
        process,
    }
}

/// Waits until that many wait for jobs of the domain.
fn until_waiting(domain: &Domain<Guests>, count: usize) {
    let begin = Instant::now();
    while domain.jobs().waiting != count {
        assert!(begin.elapsed() < HANG, "{:?}", domain.jobs());
        thread::yield_now();
    }
}

fn modify(domain: &Domain<Guests>) -> Outcome<Result<(), JobError>> {
    let mut domain = domain.clone();
    go(move || domain.begin_job(Modification::Modify).map(drop))
}

#[test]
fn a_job_waits_for_another_and_then_has_it() {
    let (_driver, mut domain, _lifeline) = running();
    let other = domain.clone();
    let job = domain.begin_query().unwrap();
    let waits = modify(&other);
    waits.waits();
    drop(job);
    waits.get().unwrap();
    let counts = other.jobs().counts;
    assert_eq!((counts.granted, counts.waited, counts.timed_out), (3, 1, 0));
}

#[test]
fn who_waited_too_long_is_told_for_whom() {
    let (_driver, mut domain, _lifeline) = running();
    let mut other = domain
        .clone()
        .waiting(Wait::AtMost(Duration::from_millis(30)));
    let _job = domain.begin_job(Modification::Suspend).unwrap();
    let error = go(move || other.begin_query().map(drop).unwrap_err()).get();
    let JobError::Timeout { held_by, waited } = &error else {
        panic!("{error}");
    };
    assert!(*waited >= Duration::from_millis(30));
    let holder = held_by.normal.as_ref().unwrap();
    assert_eq!(holder.kind(), HeldKind::Normal(JobKind::Suspend));
    assert!(holder.held() >= Duration::from_millis(30));
    assert!(holder.place().file().ends_with("domain.rs"));
    let text = error.to_string();
    assert!(text.contains("suspend job of thread"), "{text}");
    assert!(text.contains("who_waited_too_long"), "{text}");
}

#[test]
fn a_mask_s_refusal_names_the_async_job_and_its_phase() {
    let (_driver, mut domain, _lifeline) = running();
    let mut other = domain.clone().waiting(Wait::No);
    let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
    save.set_phase("sending memory").unwrap();
    let error = go(move || other.begin_job(Modification::Modify).map(drop).unwrap_err()).get();
    let text = error.to_string();
    assert!(text.contains("async save job (sending memory)"), "{text}");
}

#[test]
fn who_is_not_to_wait_is_told_at_once() {
    let (_driver, mut domain, _lifeline) = running();
    let mut other = domain.clone().waiting(Wait::No);
    let _job = domain.begin_query().unwrap();
    let error = go(move || other.begin_query().map(drop).unwrap_err()).get();
    assert!(matches!(error, JobError::Busy { .. }), "{error}");
}

#[test]
fn a_full_queue_refuses_all_but_those_who_end_things() {
    let mut limits = Limits::default();
    limits.queue = 1;
    let mut known = known(limits);
    let other = known.domain.clone();
    let _job = known.domain.begin_query().unwrap();
    let first = modify(&other);
    until_waiting(&other, 1);
    let error = modify(&other).get().unwrap_err();
    assert!(
        matches!(error, JobError::QueueFull { limit: 1, .. }),
        "{error}"
    );
    // An abort and an async job wait all the same.
    let exempt: Vec<_> = [true, false]
        .into_iter()
        .map(|abort| {
            let mut domain = other.clone();
            go(move || {
                if abort {
                    domain.begin_job(Modification::Abort).map(drop)
                } else {
                    domain.begin_async_job(AsyncJobKind::Save).map(drop)
                }
            })
        })
        .collect();
    for exempt in &exempt {
        exempt.waits();
    }
    let mut destroyer = other.clone();
    go(move || destroyer.destroy().map(drop)).get().unwrap();
    for exempt in exempt {
        exempt.get().unwrap();
    }
    first.get().unwrap();
}

#[test]
fn a_thread_does_not_wait_for_itself() {
    let (_driver, mut domain, _lifeline) = running();
    let (mut second, mut third) = (domain.clone(), domain.clone());
    {
        let _job = domain.begin_query().unwrap();
        assert!(matches!(second.begin_query(), Err(JobError::OwnJob(_))));
        let agent = second.begin_agent_job(AgentJobKind::Query).map(drop);
        assert!(matches!(agent, Err(JobError::AgentAndNormal(_))));
        let save = second.begin_async_job(AsyncJobKind::Save);
        assert!(matches!(save, Err(JobError::OwnJob(_))));
    }
    {
        let _job = domain.begin_agent_job(AgentJobKind::Query).unwrap();
        let agent = second.begin_agent_job(AgentJobKind::Query).map(drop);
        assert!(matches!(agent, Err(JobError::OwnJob(_))));
        assert!(matches!(
            second.begin_query(),
            Err(JobError::AgentAndNormal(_))
        ));
    }
    let _save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
    // What its mask allows it may do beside it.
    drop(second.begin_query().unwrap());
    let job = third.begin_job(Modification::Modify);
    assert!(matches!(job, Err(JobError::OwnJob(_))));
}

#[test]
fn a_thread_that_has_locked_a_state_does_not_wait() {
    let (driver, mut domain, _lifeline) = running();
    let another = driver
        .define("another", Uuid::from_u128(2), Definition { memory_mib: 1 })
        .unwrap();
    let object = another.object();
    let locked = |error: JobError| matches!(error, JobError::ObjectLocked);
    assert!(locked(domain.begin_query().unwrap_err()));
    assert!(locked(
        domain.begin_agent_job(AgentJobKind::Query).unwrap_err()
    ));
    assert!(locked(
        domain.begin_async_job(AsyncJobKind::Save).unwrap_err()
    ));
    assert!(domain.destroy().is_err());
    drop(object);
    let mut job = domain.begin_query().unwrap();
    let object = another.object();
    let entered = job.enter_monitor().map(drop);
    assert!(matches!(entered, Err(EnterError::ObjectLocked)));
    drop(object);
    job.enter_monitor().unwrap().exit().unwrap();
    drop(job);
    let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
    let _object = another.object();
    let pause = save.pause(Duration::ZERO);
    assert_eq!(pause, Err(Interrupted::ObjectLocked));
}

#[test]
fn a_job_that_was_sent_to_a_thread_is_that_threads() {
    let (_driver, mut domain, _lifeline) = running();
    let mut second = domain.clone();
    let job = domain.begin_query().unwrap();
    thread::scope(|scope| {
        let (adopted, is_adopted) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            job.adopt();
            adopted.send(()).unwrap();
            let _ = ends.recv_timeout(HANG);
            drop(job);
        });
        is_adopted.recv_timeout(HANG).unwrap();
        let mut impatient = second
            .clone()
            .waiting(Wait::AtMost(Duration::from_millis(10)));
        let error = impatient.begin_query().map(drop).unwrap_err();
        assert!(matches!(error, JobError::Timeout { .. }), "{error}");
        end.send(()).unwrap();
        drop(second.begin_query().unwrap());
    });
}

#[test]
fn a_panic_ends_the_job() {
    let (_driver, mut domain, _lifeline) = running();
    let mut other = domain.clone().waiting(Wait::No);
    let panics = catch_unwind(AssertUnwindSafe(|| {
        let mut job = domain.begin_job(Modification::Modify).unwrap();
        let _monitor = job.enter_monitor().unwrap();
        panic!("on purpose");
    }));
    assert!(panics.is_err());
    drop(other.begin_query().unwrap());
    // One with the state locked leaves it to be locked.
    let panics = catch_unwind(AssertUnwindSafe(|| {
        let _object = other.object();
        panic!("on purpose");
    }));
    assert!(panics.is_err());
    assert!(other.object().is_active());
}

#[test]
fn destroy_gets_in_beside_a_forgotten_guard() {
    let mut known = known(Limits::default());
    let mut second = known.domain.clone();
    let _forgotten = ManuallyDrop::new(known.domain.begin_job(Modification::Modify).unwrap());
    let mut save = second.clone();
    let mut destroyer = second.clone();
    // Without the thread of its own it would be told that it waits for itself.
    let waits = go(move || save.begin_async_job(AsyncJobKind::Save).map(drop));
    waits.waits();
    go(move || {
        let job = destroyer.destroy().unwrap();
        assert!(job.was_active());
    })
    .get();
    assert!(known.process.0.load(Ordering::SeqCst));
    waits.get().unwrap();
    known.lifeline.died(Reason::Crashed("signal 9".to_owned()));
    assert_eq!(*second.object().reason(), Reason::Destroyed);
    // And it can be started again.
    let lifeline = start(&mut second);
    assert!(second.object().is_active());
    drop(lifeline);
}

#[test]
fn destroy_ends_who_hangs_in_the_monitor() {
    let known = known(Limits::default());
    known.monitor.hang(true);
    let mut holder = known.domain.clone();
    let hangs = go(move || {
        let mut job = holder.begin_job(Modification::Modify).unwrap();
        let monitor = job.enter_monitor().unwrap();
        let answer = monitor.ask();
        let left = monitor.exit();
        (answer.is_err(), left.is_ok(), job.object_mut().is_err())
    });
    hangs.waits();
    let mut domain = known.domain.clone();
    let job = domain.destroy().unwrap();
    let (failed, _, revoked) = hangs.get();
    assert!(failed && revoked);
    drop(job);
}

#[test]
fn who_was_destroyed_is_told_at_every_step() {
    let known = known(Limits::default());
    let (mut domain, mut destroyer) = (known.domain.clone(), known.domain.clone());
    let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
    drop(destroyer.destroy().unwrap());
    assert_eq!(save.set_mask(Mask::ALL), Err(Revoked));
    assert_eq!(save.set_phase("x"), Err(Revoked));
    assert_eq!(save.set_progress(1, 2), Err(Revoked));
    assert_eq!(save.pause(HANG), Err(Interrupted::Revoked));
    assert_eq!(save.object_mut().map(drop), Err(Revoked));
    assert!(matches!(save.begin_nested(), Err(JobError::Revoked)));
    assert!(matches!(save.enter_remote(), Err(Interrupted::Revoked)));
}

#[test]
fn who_was_destroyed_does_not_enter() {
    let known = known(Limits::default());
    let (mut domain, mut destroyer) = (known.domain.clone(), known.domain.clone());
    let mut job = domain.begin_job(Modification::Modify).unwrap();
    drop(destroyer.destroy().unwrap());
    let entered = job.enter_monitor().map(drop);
    assert!(matches!(entered, Err(EnterError::Revoked)));
    drop(job);
    let mut job = domain.begin_agent_job(AgentJobKind::Query).unwrap();
    drop(destroyer.destroy().unwrap());
    let entered = job.enter_agent().map(drop);
    assert!(matches!(entered, Err(EnterError::Revoked)));
}

#[test]
fn destroy_while_it_starts_gives_the_machine_back() {
    let (_driver, mut domain) = driver(Limits::default());
    let mut destroyer = domain.clone();
    let mut job = domain.begin_async_job(AsyncJobKind::Start).unwrap();
    let destroy = destroyer.destroy().unwrap();
    assert!(!destroy.was_active());
    let error = job.came_up(machine()).unwrap_err();
    assert!(matches!(error.cause, JobError::Revoked), "{error:?}");
    drop(destroy);
    drop(job);
    assert!(!domain.object().is_active());
    let _lifeline = start(&mut domain);
}

#[test]
fn only_a_start_starts() {
    let (_driver, mut domain, lifeline) = running();
    let error = domain.begin_async_job(AsyncJobKind::Start).unwrap_err();
    assert!(matches!(error, JobError::Active), "{error}");
    {
        let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
        let error = save.came_up(machine()).unwrap_err();
        assert!(
            matches!(error.cause, JobError::NotAStart(AsyncJobKind::Save)),
            "{error:?}"
        );
    }
    lifeline.died(Reason::Shutdown);
    let error = domain.begin_async_job(AsyncJobKind::Save).unwrap_err();
    assert!(
        matches!(error, JobError::Inactive(Reason::Shutdown)),
        "{error}"
    );
}

#[test]
fn of_two_who_start_it_one_does() {
    let (_driver, mut domain) = driver(Limits::default());
    let mut other = domain.clone();
    let mut job = domain.begin_async_job(AsyncJobKind::Start).unwrap();
    let second = go(move || other.begin_async_job(AsyncJobKind::Start).map(drop));
    second.waits();
    let _lifeline = job.came_up(machine()).unwrap();
    drop(job);
    assert!(matches!(second.get(), Err(JobError::Active)));
}

#[test]
fn a_death_is_told_to_everybody() {
    let known = known(Limits::default());
    known.monitor.hang(true);
    known.agent.hang(true);
    let domain = known.domain.clone();
    let in_monitor = {
        let mut domain = domain.clone();
        go(move || {
            let mut job = domain.begin_job(Modification::Modify).unwrap();
            let monitor = job.enter_monitor().unwrap();
            let answer = monitor.ask().is_err();
            (answer, monitor.exit())
        })
    };
    let in_agent = {
        let mut domain = domain.clone();
        go(move || {
            let mut job = domain.begin_agent_job(AgentJobKind::Query).unwrap();
            let agent = job.enter_agent().unwrap();
            let answer = agent.ask().is_err();
            (answer, agent.exit())
        })
    };
    in_monitor.waits();
    in_agent.waits();
    let waiters = [
        modify(&domain),
        {
            let mut domain = domain.clone();
            go(move || domain.begin_agent_job(AgentJobKind::Modify).map(drop))
        },
        {
            let mut domain = domain.clone();
            go(move || domain.begin_async_job(AsyncJobKind::Save).map(drop))
        },
    ];
    // The async one does not count.
    until_waiting(&domain, 2);
    waiters[2].waits();
    let mourner = {
        let domain = domain.clone();
        go(move || domain.wait_inactive(HANG))
    };
    mourner.waits();
    let id = domain.object().id().unwrap();
    assert_eq!(known.driver.find_by_id(id).as_ref(), Some(&domain));
    let reason = Reason::Crashed("signal 11".to_owned());
    known.lifeline.died(reason.clone());
    for waiter in waiters {
        let error = waiter.get().unwrap_err();
        assert!(
            matches!(&error, JobError::Died(why) if *why == reason),
            "{error}"
        );
    }
    for outcome in [in_monitor, in_agent] {
        let (failed, left) = outcome.get();
        assert!(failed);
        // It may have left before the death was done with.
        assert!(left.is_ok() || left.unwrap_err().reason == reason);
    }
    assert!(mourner.get());
    assert!(known.driver.find_by_id(id).is_none());
    assert!(domain.object().live().is_none());
    let jobs = domain.jobs();
    assert_eq!(jobs.waiting, 0);
}

#[test]
fn the_persistent_definition_is_back_after_a_death() {
    let (_driver, mut domain, lifeline) = running();
    let mut job = domain.begin_job(Modification::Modify).unwrap();
    let mut object = job.object_mut().unwrap();
    object.definition_mut().unwrap().memory_mib = 1024;
    assert_eq!(object.persistent().unwrap().memory_mib, 512);
    assert_eq!(object.definition().unwrap().memory_mib, 1024);
    drop(object);
    lifeline.died(Reason::Shutdown);
    // Who has the job keeps it, and sees what is so now.
    let object = job.object_mut().unwrap();
    assert_eq!(object.definition().unwrap().memory_mib, 512);
    drop(object);
    let entered = job.enter_monitor().map(drop);
    assert!(matches!(
        entered,
        Err(EnterError::Inactive(Reason::Shutdown))
    ));
}

#[test]
fn a_limit_beyond_the_clock_is_a_long_one() {
    let (_driver, domain, lifeline) = running();
    let mut domain = domain.waiting(Wait::AtMost(Duration::MAX));
    drop(domain.begin_query().unwrap());
    let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
    lifeline.died(Reason::Shutdown);
    let pause = save.pause(Duration::MAX);
    assert_eq!(pause, Err(Interrupted::Died(Reason::Shutdown)));
    drop(save);
    assert!(domain.wait_inactive(Duration::MAX));
    assert!(domain.destroy().unwrap().wait(Duration::MAX));
}

#[test]
fn what_nobody_watches_is_killed() {
    let known = known(Limits::default());
    drop(known.lifeline);
    assert!(known.process.0.load(Ordering::SeqCst));
    let object = known.domain.object();
    assert!(!object.is_active());
    assert_eq!(*object.reason(), Reason::Unwatched);
}

#[test]
fn a_stuck_agent_delays_no_normal_job() {
    let known = known(Limits::default());
    known.agent.hang(true);
    let mut asks = known.domain.clone();
    let stuck = go(move || {
        let mut job = asks.begin_agent_job(AgentJobKind::Query).unwrap();
        let agent = job.enter_agent().unwrap();
        let answer = agent.ask();
        agent.exit().map(|()| answer.is_ok())
    });
    stuck.waits();
    let mut domain = known.domain.clone().waiting(Wait::No);
    for _ in 0..1000 {
        let mut job = domain.begin_query().unwrap();
        let monitor = job.enter_monitor().unwrap();
        assert!(monitor.ask().is_ok());
        monitor.exit().unwrap();
    }
    // It recovers, and the next has it.
    known.agent.hang(false);
    assert!(stuck.get().unwrap());
    drop(domain.begin_agent_job(AgentJobKind::Query).unwrap());
}

#[test]
fn without_an_agent_its_job_says_so() {
    let (_driver, mut domain) = driver(Limits::default());
    let machine = Machine {
        agent: None,
        ..machine()
    };
    let mut job = domain.begin_async_job(AsyncJobKind::Start).unwrap();
    let _lifeline = job.came_up(machine).unwrap();
    drop(job);
    let mut job = domain.begin_agent_job(AgentJobKind::Query).unwrap();
    let entered = job.enter_agent().map(drop);
    assert!(matches!(entered, Err(EnterError::AgentUnavailable)));
}

/// One helper for a normal job and for a step of an async one.
fn ask(job: &mut impl MonitorAccess<Guests>) -> Option<u64> {
    let monitor = job.enter_monitor().ok()?;
    let answer = monitor.ask().ok();
    monitor.exit().ok()?;
    answer
}

#[test]
fn a_helper_is_written_once() {
    let (_driver, mut domain, _lifeline) = running();
    assert_eq!(ask(&mut domain.begin_query().unwrap()), Some(42));
    let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
    assert_eq!(ask(&mut save.begin_nested().unwrap()), Some(42));
}

#[test]
fn an_async_job_lets_in_what_its_mask_says() {
    let (_driver, mut domain, _lifeline) = running();
    let other = domain.clone();
    let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
    let query = {
        let mut domain = other.clone();
        go(move || domain.begin_query().map(drop))
    };
    query.get().unwrap();
    let waits = modify(&other);
    waits.waits();
    save.set_progress(1, 4).unwrap();
    let jobs = other.jobs();
    assert_eq!(jobs.progress.map(|p| (p.done, p.total)), Some((1, 4)));
    save.set_mask(Mask::NONE.and(JobKind::Modify)).unwrap();
    waits.get().unwrap();
    // No more query; abort always.
    let mut impatient = other.clone().waiting(Wait::No);
    let refused = {
        let mut domain = impatient.clone();
        go(move || domain.begin_query().map(drop))
    };
    assert!(matches!(refused.get(), Err(JobError::Busy { .. })));
    go(move || impatient.begin_job(Modification::Abort).map(drop))
        .get()
        .unwrap();
}

#[test]
fn an_abort_ends_a_pause_at_once() {
    let (_driver, mut domain, lifeline) = running();
    let other = domain.clone();
    let sleeps = go(move || {
        let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
        let first = save.pause(HANG * 2);
        let then = save.proceed();
        drop(save);
        (first, then, domain)
    });
    sleeps.waits();
    assert_eq!(other.abort_async_job(), Some(AsyncJobKind::Save));
    let (first, then, mut domain) = sleeps.get();
    assert_eq!(first, Err(Interrupted::Aborted));
    assert_eq!(then, Err(Interrupted::Aborted));
    assert_eq!(other.abort_async_job(), None);
    // And so does a death.
    let sleeps = go(move || {
        let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
        save.pause(HANG * 2)
    });
    sleeps.waits();
    lifeline.died(Reason::Shutdown);
    let interrupted = sleeps.get();
    assert_eq!(interrupted, Err(Interrupted::Died(Reason::Shutdown)));
}

#[test]
fn a_remote_call_says_whether_the_domain_lives() {
    let (_driver, mut domain, lifeline) = running();
    let mut migration = domain.begin_async_job(AsyncJobKind::MigrationOut).unwrap();
    migration.enter_remote().unwrap().exit().unwrap();
    let remote = migration.enter_remote().unwrap();
    lifeline.died(Reason::Migrated);
    assert_eq!(remote.exit().unwrap_err().reason, Reason::Migrated);
}

#[test]
fn names_and_uuids_are_one_domain_s_each() {
    let (driver, domain) = driver(Limits::default());
    let definition = Definition { memory_mib: 1 };
    let name = driver.define("guest", Uuid::from_u128(2), definition.clone());
    assert_eq!(
        name.map(drop),
        Err(DefineError::NameTaken("guest".to_owned()))
    );
    let uuid = driver.define("other", *domain.uuid(), definition.clone());
    assert_eq!(uuid.map(drop), Err(DefineError::UuidTaken(*domain.uuid())));
    assert!(driver.find_by_name("other").is_none());
    assert_eq!(driver.find_by_uuid(domain.uuid()), Some(domain.clone()));
    assert_eq!(driver.domains(), [domain]);
}

#[test]
fn a_transient_domain_goes_with_its_machine() {
    let driver = Driver::<Guests>::new(());
    let mut domain = driver.create("passing", Uuid::from_u128(7)).unwrap();
    let lifeline = start(&mut domain);
    assert!(driver.find_by_name("passing").is_some());
    lifeline.died(Reason::Shutdown);
    assert!(driver.find_by_name("passing").is_none());
    assert!(driver.find_by_uuid(domain.uuid()).is_none());
    // Its name is free, though somebody has a handle still.
    let again = driver.create("passing", Uuid::from_u128(7)).unwrap();
    assert_ne!(again, domain);
    // The old one's end takes nothing from the new one.
    domain
        .begin_job(Modification::Modify)
        .unwrap()
        .undefine()
        .unwrap();
    assert_eq!(driver.find_by_name("passing"), Some(again));
}

#[test]
fn undefined_a_domain_goes_when_it_does_not_run() {
    let (driver, mut domain, lifeline) = running();
    let job = domain.begin_job(Modification::Modify).unwrap();
    job.undefine().unwrap();
    assert!(driver.find_by_name("guest").is_some());
    lifeline.died(Reason::Shutdown);
    assert!(driver.find_by_name("guest").is_none());
    assert!(domain.object().definition().is_none());
}

/// Two add and remove a domain again and again, two look for it. Who finds one finds it whole.
#[test]
fn domains_come_and_go_while_others_look() {
    let driver = Driver::<Guests>::new(());
    let done = Arc::new(AtomicBool::new(false));
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let (driver, done) = (driver.clone(), done.clone());
            go(move || {
                let mut found = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    if let Some(domain) = driver.find_by_name("passing") {
                        assert_eq!(domain.name(), "passing");
                        assert_ne!(domain.uuid().as_u128(), 0);
                        found += 1;
                    }
                    for domain in driver.domains() {
                        assert_eq!(domain.name(), "passing");
                    }
                }
                found
            })
        })
        .collect();
    let writers: Vec<_> = (1..3)
        .map(|number| {
            let driver = driver.clone();
            go(move || {
                let begin = Instant::now();
                let mut added = 0;
                for round in 0_u128.. {
                    if added == 1000 || begin.elapsed() > HANG {
                        break;
                    }
                    let uuid = Uuid::from_u128(round * 2 + number);
                    let Ok(mut domain) = driver.create("passing", uuid) else {
                        continue;
                    };
                    added += 1;
                    assert_eq!(driver.find_by_uuid(&uuid), Some(domain.clone()));
                    let job = domain.begin_job(Modification::Modify).unwrap();
                    job.undefine().unwrap();
                    assert!(driver.find_by_uuid(&uuid).is_none());
                }
                added
            })
        })
        .collect();
    let added: u32 = writers.into_iter().map(Outcome::get).sum();
    assert_eq!(added, 2000);
    done.store(true, Ordering::Relaxed);
    for looker in lookers {
        looker.get();
    }
    assert!(driver.domains().is_empty());
}

#[test]
fn statistics_are_read_beside_a_job_that_hangs() {
    let known = known(Limits::default());
    known.monitor.hang(true);
    let mut domain = known.domain.clone();
    let hangs = go(move || {
        let mut job = domain.begin_query().unwrap();
        let monitor = job.enter_monitor().unwrap();
        monitor.ask().is_ok()
    });
    hangs.waits();
    assert!(known.domain.statistics().is_none());
    known.domain.publish_statistics(7);
    let read = {
        let domain = known.domain.clone();
        go(move || (domain.statistics().as_deref().copied(), domain.jobs()))
    };
    let (statistics, jobs) = read.get();
    assert_eq!(statistics, Some(7));
    let holder = jobs.held_by.normal.unwrap();
    assert_eq!(holder.owner(), "thread other");
    known.monitor.hang(false);
    assert!(hangs.get());
}

/// The process is one: a captive, watched by a thread.
#[test]
fn a_real_process_is_destroyed() {
    let (_driver, mut domain) = driver(Limits::default());
    let captive = Arc::new(captive::Command::new("sleep").arg("1000").spawn().unwrap());
    let machine = Machine {
        process: captive.clone(),
        ..machine()
    };
    let mut job = domain.begin_async_job(AsyncJobKind::Start).unwrap();
    let lifeline = job.came_up(machine).unwrap();
    drop(job);
    let watcher = go(move || {
        let report = captive.wait().unwrap();
        lifeline.died(Reason::Crashed(report.status().to_string()));
    });
    let mut destroy = domain.destroy().unwrap();
    assert!(destroy.wait(HANG));
    watcher.get();
    drop(destroy);
    assert_eq!(*domain.object().reason(), Reason::Destroyed);
}
