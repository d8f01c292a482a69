// A manager with as little as possible behind it: monitors that answer when they are told to, processes that are none.
// Shared by the tests, the documentation's examples and the programs that must not compile.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use captive::qemu::Uuid;
use captive::qemu::domain::{
    AsyncJobKind, Channel, Domain, Driver, Lifeline, Limits, Machine, Model, Process,
};

/// The manager's types.
#[derive(Debug)]
pub struct Guests;

impl Model for Guests {
    type Config = ();
    type Definition = Definition;
    type Live = ();
    type Monitor = Monitor;
    type Agent = Monitor;
    type Statistics = u64;
}

/// What a guest is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    pub memory_mib: u64,
}

/// A connection that answers at once, or only when it is let to.
#[derive(Debug, Default)]
pub struct Monitor {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

/// The connection has ended.
#[derive(Debug)]
pub struct Gone;

impl Monitor {
    /// Whether it is to keep its callers waiting.
    pub fn hang(&self, hangs: bool) {
        self.state.lock().expect("no panic").1 = hangs;
        self.changed.notify_all();
    }

    /// Asks something.
    pub fn ask(&self) -> Result<u64, Gone> {
        let mut state = self.state.lock().expect("no panic");
        loop {
            match *state {
                (true, _) => return Err(Gone),
                (false, false) => return Ok(42),
                _ => state = self.changed.wait(state).expect("no panic"),
            }
        }
    }
}

impl Channel for Monitor {
    fn shut(&self) {
        self.state.lock().expect("no panic").0 = true;
        self.changed.notify_all();
    }
}

/// A process that is none.
#[derive(Debug, Default)]
pub struct Nobody(pub AtomicBool);

impl Process for Nobody {
    fn kill(&self) -> io::Result<()> {
        self.0.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn terminate(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A driver with one domain, `guest`.
pub fn driver(limits: Limits) -> (Driver<Guests>, Domain<Guests>) {
    let driver = Driver::with_limits((), limits);
    let domain = driver
        .define("guest", Uuid::from_u128(1), Definition { memory_mib: 512 })
        .expect("it is the first");
    (driver, domain)
}

/// A machine that runs.
pub fn machine() -> Machine<Guests> {
    Machine {
        definition: Definition { memory_mib: 512 },
        live: (),
        monitor: Arc::new(Monitor::default()),
        agent: Some(Arc::new(Monitor::default())),
        process: Arc::new(Nobody::default()),
    }
}

/// Starts it.
pub fn start(domain: &mut Domain<Guests>) -> Lifeline<Guests> {
    let mut job = domain
        .begin_async_job(AsyncJobKind::Start)
        .expect("it does not run");
    job.came_up(machine()).expect("nobody destroyed it")
}

/// A driver with one domain that runs, and who watches it.
pub fn running() -> (Driver<Guests>, Domain<Guests>, Lifeline<Guests>) {
    let (driver, mut domain) = driver(Limits::default());
    let lifeline = start(&mut domain);
    (driver, domain, lifeline)
}
