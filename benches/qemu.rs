//! What a domain costs: jobs beside a mutex and a condition as libvirt has them, lookups beside a map under a lock,
//! `query-status` through domain, job and monitor beside a raw socket client.
//!
//! ```sh
//! cargo bench --features qemu --bench qemu
//! ```
//!
//! Rounds are interleaved; a ratio is the peer's median time by ours: above 1, ours is faster. `CAPTIVE_BENCH_ROUNDS`
//! (41), `CAPTIVE_BENCH_GUESTS` (100: QEMUs at once, each with 64 MiB of its own). QEMU is Debian's, with TCG, and paused.

#![allow(missing_docs, clippy::pedantic, clippy::print_stdout)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use captive::qemu::Uuid;
use captive::qemu::appliance::{Appliance, Binary, Probe};
use captive::qemu::domain::{
    AgentJobKind, AsyncJobKind, Domain, Driver, Model, Modification, MonitorAccess,
};
use captive::qemu::monitor::{Agent, AgentOptions, Qmp};
use serde_json::Value;

#[derive(Debug)]
struct Guests;

impl Model for Guests {
    type Config = ();
    type Definition = ();
    type Live = ();
    type Monitor = Qmp;
    type Agent = Agent;
    type Statistics = ();
}

/// A manager without machines.
#[derive(Debug)]
struct Nothing;

impl Model for Nothing {
    type Config = ();
    type Definition = ();
    type Live = ();
    type Monitor = ();
    type Agent = ();
    type Statistics = ();
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn main() {
    let rounds = number("CAPTIVE_BENCH_ROUNDS", 41).max(3);
    println!(
        "ratios: the peer's median by ours (in brackets the quartiles of a round's), {rounds} rounds"
    );
    jobs(rounds);
    lookups(rounds);
    let Ok(binary) = Probe::new().binary(Path::new("qemu-system-x86_64")) else {
        println!("no qemu-system-x86_64 here: the rest is not measured");
        return;
    };
    commands(rounds, &binary);
    beside_a_stuck_agent(rounds, &binary);
    deaths(rounds, &binary);
    many(rounds, &binary, number("CAPTIVE_BENCH_GUESTS", 100));
}

/// Prints the ratio of two, measured in turn.
fn ratio(
    name: &str,
    rounds: usize,
    mut peer: impl FnMut() -> Duration,
    mut ours: impl FnMut() -> Duration,
) {
    // The first round is for the caches.
    let _ = (peer(), ours());
    let mut ratios: Vec<f64> = Vec::new();
    let (mut peers, mut own) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (a, b) = if round % 2 == 0 {
            let a = peer();
            (a, ours())
        } else {
            let b = ours();
            (peer(), b)
        };
        ratios.push(a.as_secs_f64() / b.as_secs_f64());
        peers.push(a);
        own.push(b);
    }
    ratios.sort_by(f64::total_cmp);
    peers.sort();
    own.sort();
    let median = peers[rounds / 2].as_secs_f64() / own[rounds / 2].as_secs_f64();
    println!(
        "{name:<58} {median:.2} ({:.2}..{:.2})",
        ratios[rounds / 4],
        ratios[rounds * 3 / 4]
    );
}

fn timed(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

/// libvirt's normal job: a mutex, a flag, a condition that is broadcast.
#[derive(Default)]
struct Plain {
    active: Mutex<bool>,
    free: Condvar,
}

impl Plain {
    fn begin(&self) {
        let mut active = self.active.lock().unwrap();
        while *active {
            active = self.free.wait(active).unwrap();
        }
        *active = true;
    }

    fn end(&self) {
        *self.active.lock().unwrap() = false;
        self.free.notify_all();
    }
}

/// So many threads, each with so many turns.
fn together(threads: usize, work: impl Fn() + Send + Sync) -> Duration {
    timed(|| {
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(&work);
            }
        });
    })
}

fn jobs(rounds: usize) {
    const TURNS: usize = 20_000;
    let driver = Driver::<Nothing>::new(());
    let domain = driver.define("a", Uuid::from_u128(1), ()).unwrap();
    let plain = Plain::default();
    for threads in [1, 8] {
        let turns = TURNS / threads;
        let peer = || {
            together(threads, || {
                for _ in 0..turns {
                    plain.begin();
                    black_box(&plain);
                    plain.end();
                }
            })
        };
        let ours = || {
            together(threads, || {
                let mut domain = domain.clone();
                for _ in 0..turns {
                    drop(black_box(domain.begin_job(Modification::Modify).unwrap()));
                }
            })
        };
        let name = format!("begin and end a job, {threads} threads (mutex and condition)");
        ratio(&name, rounds, peer, ours);
    }
}

fn lookups(rounds: usize) {
    const DOMAINS: u128 = 10_000;
    const TURNS: usize = 20_000;
    let name = |number: u128| format!("guest-{number}");
    let driver = Driver::<Nothing>::new(());
    let map = RwLock::new(HashMap::new());
    for number in 0..DOMAINS {
        drop(
            driver
                .define(name(number), Uuid::from_u128(number), ())
                .unwrap(),
        );
        map.write().unwrap().insert(name(number), Arc::new(number));
    }
    let names: Vec<String> = (0..TURNS as u128)
        .map(|turn| name(turn * 7919 % DOMAINS))
        .collect();
    let done = AtomicBool::new(false);
    let peer = |writer: bool| {
        done.store(!writer, Ordering::Relaxed);
        timed(|| {
            thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    for name in &names {
                        black_box(map.read().unwrap().get(name).cloned());
                    }
                });
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        map.write().unwrap().insert("new".to_owned(), Arc::new(0));
                        map.write().unwrap().remove("new");
                    }
                });
                reader.join().unwrap();
                done.store(true, Ordering::Relaxed);
            });
        })
    };
    let ours = |writer: bool| {
        done.store(!writer, Ordering::Relaxed);
        timed(|| {
            thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    for name in &names {
                        black_box(driver.find_by_name(name));
                    }
                });
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let mut domain = driver.create("new", Uuid::from_u128(u128::MAX)).unwrap();
                        domain
                            .begin_job(Modification::Modify)
                            .unwrap()
                            .undefine()
                            .unwrap();
                    }
                });
                reader.join().unwrap();
                done.store(true, Ordering::Relaxed);
            });
        })
    };
    let title = "lookups among 10,000 domains (a map under a lock)";
    ratio(title, rounds, || peer(false), || ours(false));
    let title = "lookups while another comes and goes (the same)";
    ratio(title, rounds, || peer(true), || ours(true));
}

/// A client as short as can be.
struct Raw(BufReader<UnixStream>, String);

impl Raw {
    fn new(stream: UnixStream) -> Self {
        let mut raw = Self(BufReader::new(stream), String::new());
        raw.line();
        raw.ask("{\"execute\":\"qmp_capabilities\"}\n");
        raw
    }

    fn line(&mut self) {
        self.1.clear();
        assert!(self.0.read_line(&mut self.1).unwrap() > 0);
    }

    fn ask(&mut self, command: &str) {
        self.0.get_mut().write_all(command.as_bytes()).unwrap();
        self.line();
        assert!(self.1.contains("\"return\""), "{}", self.1);
    }

    fn status(&mut self) {
        self.ask("{\"execute\":\"query-status\"}\n");
        black_box(serde_json::from_str::<Value>(&self.1).unwrap());
    }
}

/// A paused machine with a second monitor, for the raw client.
fn start(driver: &Driver<Guests>, binary: &Arc<Binary>, number: usize) -> (Domain<Guests>, Raw) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let appliance = Appliance::new(binary.clone())
        .args(["-machine", "none", "-S"])
        .args([
            "-chardev",
            "socket,id=raw,fd=9",
            "-mon",
            "chardev=raw,mode=control",
        ])
        .descriptor(theirs, 9);
    let name = format!("guest-{number}");
    let mut domain = driver
        .create(name, Uuid::from_u128(number as u128))
        .unwrap();
    let mut job = domain.begin_async_job(AsyncJobKind::Start).unwrap();
    appliance.start(&mut job, (), ()).unwrap();
    drop(job);
    (domain, Raw::new(ours))
}

fn status(domain: &mut Domain<Guests>) {
    let mut job = domain.begin_query().unwrap();
    let monitor = job.enter_monitor().unwrap();
    black_box(monitor.execute("query-status", &()).unwrap());
    monitor.exit().unwrap();
}

const COMMANDS: usize = 200;

fn commands(rounds: usize, binary: &Arc<Binary>) {
    let driver = Driver::<Guests>::new(());
    let (mut domain, mut raw) = start(&driver, binary, 0);
    ratio(
        "query-status through domain, job and monitor (raw socket)",
        rounds,
        || timed(|| (0..COMMANDS).for_each(|_| raw.status())),
        || timed(|| (0..COMMANDS).for_each(|_| status(&mut domain))),
    );
}

/// The same machine: its agent's channel is asked by another thread, and nobody answers.
fn beside_a_stuck_agent(rounds: usize, binary: &Arc<Binary>) {
    let driver = Driver::<Guests>::new(());
    let appliance = Appliance::new(binary.clone())
        .args(["-machine", "q35,accel=tcg", "-S"])
        .agent(AgentOptions::default());
    let mut domain = driver.create("guest", Uuid::from_u128(1)).unwrap();
    let mut job = domain.begin_async_job(AsyncJobKind::Start).unwrap();
    appliance.start(&mut job, (), ()).unwrap();
    drop(job);
    let asks = |stuck: bool| {
        let done = AtomicBool::new(!stuck);
        thread::scope(|scope| {
            let (mut asking, done) = (domain.clone(), &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let mut job = asking.begin_agent_job(AgentJobKind::Query).unwrap();
                    let agent = job.enter_agent().unwrap();
                    let limit = Duration::from_millis(20);
                    let _ = agent.execute_within::<Value>("guest-ping", &(), limit);
                }
            });
            let mut domain = domain.clone();
            let time = timed(|| (0..COMMANDS).for_each(|_| status(&mut domain)));
            done.store(true, Ordering::Relaxed);
            time
        })
    };
    let title = "query-status beside an agent that never answers (without it)";
    ratio(title, rounds, || asks(false), || asks(true));
}

/// From SIGKILL to when four who wait have been told, beside when the process's descriptor says so.
fn deaths(rounds: usize, binary: &Arc<Binary>) {
    let once = |ours: bool| {
        let driver = Driver::<Guests>::new(());
        let (domain, _raw) = start(&driver, binary, 0);
        let mut holder = domain.clone();
        let job = holder.begin_query().unwrap();
        let captive = Appliance::new(binary.clone())
            .args(["-machine", "none", "-S"])
            .spawn()
            .unwrap();
        if !ours {
            drop(job);
            let captive = captive.captive();
            return timed(|| {
                captive.kill().unwrap();
                captive.wait().unwrap();
            });
        }
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| {
                    let mut domain = domain.clone();
                    scope.spawn(move || domain.begin_job(Modification::Modify).map(drop))
                })
                .collect();
            while domain.jobs().waiting < 4 {
                thread::yield_now();
            }
            let mut killer = domain.clone();
            timed(|| {
                let destroy = killer.destroy().unwrap();
                // The job is kept, so that only the death lets them go.
                for waiter in waiters {
                    assert!(waiter.join().unwrap().is_err());
                }
                drop(destroy);
                drop(job);
            })
        })
    };
    let title = "SIGKILL to four waiters told (to the process waited for)";
    ratio(title, rounds, || once(false), || once(true));
}

fn many(rounds: usize, binary: &Arc<Binary>, count: usize) {
    let driver = Driver::<Guests>::new(());
    let guests: Vec<_> = (0..count)
        .map(|number| start(&driver, binary, number))
        .collect();
    let (domains, raws): (Vec<_>, Vec<_>) = guests.into_iter().unzip();
    let raws: Vec<_> = raws.into_iter().map(Mutex::new).collect();
    let peer = || {
        timed(|| {
            thread::scope(|scope| {
                for raw in &raws {
                    scope.spawn(|| {
                        let mut raw = raw.lock().unwrap();
                        (0..COMMANDS / 10).for_each(|_| raw.status());
                    });
                }
            });
        })
    };
    let ours = || {
        timed(|| {
            thread::scope(|scope| {
                for domain in &domains {
                    let mut domain = domain.clone();
                    scope.spawn(move || (0..COMMANDS / 10).for_each(|_| status(&mut domain)));
                }
            });
        })
    };
    let title = format!("query-status of {count} domains at once (raw sockets)");
    ratio(&title, rounds, peer, ours);
}
