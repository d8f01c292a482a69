//! Every order in which a watch can go, replayed: a script in the place of the system.
//!
//! Wherever the logic calls the system, anything may have happened in between: the parent takes a step of
//! its exit, the handle ends the binding or asks, the program closes the sources. And every call has several
//! answers: a registration is refused, a wait is interrupted, tells one event or two, in either order. A run
//! is a sequence of such choices; all sequences are run, none by chance.
//!
//! Threads are taken apart at their calls of the system here: what they do to each other in between
//! is `tests/loom`'s.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::asked::{Asked, arm};
use super::known::Who;
use super::watcher::Process;
use super::{Action, ArmError, ArmStep, Known, ParentExited, Signal};
use crate::sys::event_source::{Event, EventSource, Interest, Key};

const PARENT_PID: u32 = 4711;
const INIT: u32 = 1;
const GRACE: Duration = Duration::from_secs(5);

/// One thing that happens while a process exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is registered still, and told with the next wait.
    Exiting,
    /// Nobody finds its pid any more.
    Unfindable,
    /// Its children have another parent.
    Given,
    /// Those who have registered are told.
    Told,
    /// Its pid is a stranger's.
    Reused,
}

/// A kernel: what happens at once, in order, when a process exits. The sources: `kqueue.rs`.
#[derive(Debug, Clone, Copy)]
struct System {
    name: &'static str,
    exit: &'static [&'static [Step]],
    known: Known,
    may_hide: bool,
}

const BY_PID: System = System {
    name: "FreeBSD",
    exit: &[
        &[Step::Exiting],
        &[Step::Given],
        &[Step::Told],
        &[Step::Unfindable],
        &[Step::Reused],
    ],
    known: Known::Expected(PARENT_PID),
    may_hide: true,
};

const SYSTEMS: [System; 5] = [
    BY_PID,
    System {
        name: "macOS, OpenBSD",
        exit: &[
            &[Step::Unfindable],
            &[Step::Given],
            &[Step::Told],
            &[Step::Reused],
        ],
        known: Known::Unsaid(PARENT_PID),
        may_hide: false,
    },
    System {
        name: "NetBSD",
        exit: &[
            &[Step::Unfindable],
            &[Step::Told, Step::Given],
            &[Step::Reused],
        ],
        may_hide: false,
        ..BY_PID
    },
    System {
        name: "told before the children are given away",
        exit: &[
            &[Step::Unfindable],
            &[Step::Told],
            &[Step::Given],
            &[Step::Reused],
        ],
        may_hide: false,
        ..BY_PID
    },
    System {
        name: "a pipe",
        exit: &[&[Step::Exiting, Step::Told]],
        known: Known::Descriptor,
        may_hide: false,
    },
];

/// What may happen besides, and how often.
#[derive(Debug, Clone, Copy, Default)]
struct Budget {
    refusals: usize,
    spurious: usize,
    asks: usize,
    disarm: bool,
    close: bool,
}

/// The choices of a run, of which the next run changes the last that can be changed.
#[derive(Debug, Default)]
struct Choices {
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    /// One of `of`, 0 first.
    fn choose(&mut self, of: usize) -> usize {
        if self.at == self.made.len() {
            self.made.push((0, of));
        }
        let (choice, had) = self.made[self.at];
        assert_eq!(had, of, "a run that is not the same again");
        self.at += 1;
        choice
    }

    /// The next run; false after the last.
    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, of)) = self.made.pop() {
            if choice + 1 < of {
                self.made.push((choice + 1, of));
                return true;
            }
        }
        false
    }
}

/// What can happen between two calls.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Exit,
    Disarm,
    Close,
    Ask,
}

#[derive(Debug, Default)]
struct Registered {
    keys: Vec<Key>,
    pending: Vec<Event>,
    /// The end of the watch.
    stop: Option<Key>,
    /// Somebody who has our parent's pid.
    stranger: bool,
}

/// What the process did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Signal(Signal, Duration),
    Called,
}

#[allow(clippy::struct_excessive_bools, reason = "each is one fact of the run")]
struct World {
    choices: Choices,
    system: System,
    left: Budget,
    exited: usize,
    /// 1: the binding is ended, 2: and the thread is being woken.
    disarmed: usize,
    ended: Arc<AtomicBool>,
    /// The logic knows, or could, that our parent is another.
    knows_of_another: bool,
    closed: bool,
    /// Two sources: the thread's and the handle's.
    sources: [Registered; 2],
    asked: Option<Rc<Asked<Source>>>,
    /// What the handle was answered at last.
    said_gone: bool,
    now: Duration,
    deeds: Vec<Deed>,
    /// Nothing more will ever happen, and somebody waits.
    at_rest: bool,
    refused: bool,
}

impl World {
    fn has(&self, step: Step) -> bool {
        let done = &self.system.exit[..self.exited];
        done.iter().any(|steps| steps.contains(&step))
    }

    /// What may happen now.
    fn happenings(&self) -> Vec<Happening> {
        let armed = self.asked.is_some();
        let mut all = Vec::new();
        // Once armed nobody names the pid again, so that it does not matter who has it.
        let next = self.system.exit.get(self.exited);
        if next.is_some_and(|steps| !armed || !steps.contains(&Step::Reused)) {
            all.push(Happening::Exit);
        }
        if armed && self.left.disarm && self.disarmed < 2 {
            all.push(Happening::Disarm);
        }
        if armed && self.left.close && !self.closed {
            all.push(Happening::Close);
        }
        if armed && self.left.asks > 0 && self.disarmed == 0 {
            all.push(Happening::Ask);
        }
        all
    }

    fn take_a_step_of_the_exit(&mut self) {
        let steps = self.system.exit[self.exited];
        self.exited += 1;
        if steps.contains(&Step::Told) {
            for source in &mut self.sources {
                for key in source.keys.drain(..) {
                    source.pending.push(Event { key, eof: true });
                }
            }
        }
    }
}

/// A world and what is behind it: shared by all who take part.
#[derive(Clone)]
struct Script(Rc<RefCell<World>>);

impl Script {
    /// Anything that may happen happens, or does not.
    fn pass(&self) {
        loop {
            let happenings = self.0.borrow().happenings();
            let choice = self.choose(happenings.len() + 1);
            let Some(happening) = choice.checked_sub(1).map(|index| happenings[index]) else {
                return;
            };
            self.happen(happening);
        }
    }

    fn choose(&self, of: usize) -> usize {
        self.0.borrow_mut().choices.choose(of)
    }

    fn happen(&self, happening: Happening) {
        let mut world = self.0.borrow_mut();
        match happening {
            Happening::Exit => world.take_a_step_of_the_exit(),
            Happening::Close => world.closed = true,
            Happening::Disarm => {
                world.disarmed += 1;
                if world.disarmed == 1 {
                    world.ended.store(true, Ordering::Relaxed);
                    world.asked.as_ref().unwrap().binding().end();
                }
            }
            Happening::Ask => {
                world.left.asks -= 1;
                drop(world);
                self.ask();
            }
        }
    }

    /// The handle asks; what it has once been told stays.
    fn ask(&self) {
        let asked = self.0.borrow().asked.clone().unwrap();
        let answer = asked.is_gone();
        let mut world = self.0.borrow_mut();
        match answer {
            Ok(gone) => {
                assert!(gone || !world.said_gone, "gone, and there again");
                assert!(!gone || world.exited > 0, "gone, of one that lives");
                let told = world.has(Step::Told) && world.disarmed == 0;
                assert!(gone || !told, "the exit is lost to the handle");
                world.said_gone = gone;
            }
            Err(errno) => assert!(world.closed, "{errno}"),
        }
    }

    fn current_parent(&self) -> u32 {
        self.pass();
        let mut world = self.0.borrow_mut();
        let given = world.has(Step::Given);
        world.knows_of_another |= given;
        if given { INIT } else { PARENT_PID }
    }
}

/// A scripted source of events.
struct Source {
    script: Script,
    which: usize,
}

impl EventSource for Source {
    fn add(&self, key: Key, interest: Interest<'_>) -> Result<(), Errno> {
        self.script.pass();
        if self.script.0.borrow().left.refusals > 0 && self.script.choose(2) == 1 {
            let mut world = self.script.0.borrow_mut();
            world.left.refusals -= 1;
            world.refused = true;
            return Err(Errno::EACCES);
        }
        let mut world = self.script.0.borrow_mut();
        let (exiting, unfindable) = (world.has(Step::Exiting), world.has(Step::Unfindable));
        let reused = world.has(Step::Reused);
        assert!(!world.knows_of_another, "a stranger's pid is registered");
        let source = &mut world.sources[self.which];
        match interest {
            Interest::Readable(_) => source.stop = Some(key),
            _ if reused => source.stranger = true,
            _ if unfindable => return Err(Errno::ESRCH),
            _ if exiting => source.pending.push(Event { key, eof: true }),
            _ => source.keys.push(key),
        }
        Ok(())
    }

    fn wait(&self, limit: Option<Duration>, events: &mut [Event]) -> Result<usize, Errno> {
        // Who asks does not sleep, and is a happening itself.
        let sleeps = limit != Some(Duration::ZERO);
        if sleeps {
            self.script.pass();
        }
        loop {
            let world = self.script.0.borrow();
            if world.closed {
                return Err(Errno::EBADF);
            }
            let mut ready = world.sources[self.which].pending.clone();
            let stop = world.sources[self.which].stop;
            if let Some(key) = stop.filter(|_| world.disarmed == 2) {
                ready.push(Event { key, eof: true });
            }
            let happenings = world.happenings();
            let spurious = usize::from(sleeps && world.left.spurious > 0);
            drop(world);
            if !ready.is_empty() {
                return Ok(self.tell(&ready, spurious, events));
            }
            if !sleeps {
                return Ok(0);
            }
            // Asleep: something happens, the limit is up, something wakes us, or nothing does for ever.
            let choice = self.script.choose(1 + spurious + happenings.len());
            let mut world = self.script.0.borrow_mut();
            if choice == 0 {
                let Some(limit) = limit else {
                    world.at_rest = true;
                    return Err(Errno::EBADF);
                };
                world.now += limit;
                return Ok(0);
            }
            if choice == 1 && spurious == 1 {
                world.left.spurious -= 1;
                return Ok(0);
            }
            drop(world);
            self.script.happen(happenings[choice - 1 - spurious]);
        }
    }
}

impl Source {
    /// Tells one of what is ready, or all in either order, or nothing.
    fn tell(&self, ready: &[Event], spurious: usize, events: &mut [Event]) -> usize {
        let ways: &[&[usize]] = match ready.len() {
            1 => &[&[0]],
            _ => &[&[0, 1], &[1, 0], &[0], &[1]],
        };
        let choice = self.script.choose(ways.len() + spurious);
        let mut world = self.script.0.borrow_mut();
        let Some(way) = ways.get(choice) else {
            world.left.spurious -= 1;
            return 0;
        };
        for (place, index) in events.iter_mut().zip(*way) {
            *place = ready[*index];
            // Told once; the end of the watch for as long as it is so.
            let pending = &mut world.sources[self.which].pending;
            pending.retain(|event| event.key != place.key);
        }
        way.len()
    }
}

/// The scripted process.
struct Subject {
    script: Script,
    start: Instant,
}

impl Process for Subject {
    fn signal_self(&self, signal: Signal) {
        // The binding is locked: nobody can end it now, and nothing else matters to it.
        let mut world = self.script.0.borrow_mut();
        assert_eq!(world.disarmed, 0, "signalled after the end of the binding");
        let now = world.now;
        world.deeds.push(Deed::Signal(signal, now));
    }

    fn now(&self) -> Instant {
        self.script.pass();
        self.start + self.script.0.borrow().now
    }

    fn sleep(&self, time: Duration) {
        self.script.pass();
        self.script.0.borrow_mut().now += time;
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
enum Form {
    Signal,
    Grace,
    Call,
}

/// One run, by the choices in the script.
fn run(choices: Choices, system: System, left: Budget, form: Form) -> (Choices, bool) {
    let script = Script(Rc::new(RefCell::new(World {
        choices,
        system,
        left,
        exited: 0,
        disarmed: 0,
        ended: Arc::default(),
        knows_of_another: false,
        closed: false,
        sources: Default::default(),
        asked: None,
        said_gone: false,
        now: Duration::ZERO,
        deeds: Vec::new(),
        at_rest: false,
        refused: false,
    })));
    let source = |which| Source {
        script: script.clone(),
        which,
    };
    let who = Who {
        known: system.known,
        step: ArmStep::Register(PARENT_PID),
        may_be_hidden: system.may_hide,
    };
    // Any descriptor: the script looks at none.
    let input = std::io::stdin();
    let parent = match system.known {
        Known::Descriptor => Interest::Closed(input.as_fd()),
        _ => Interest::Exit(4711),
    };
    script.pass();
    let gone_before = {
        let mut world = script.0.borrow_mut();
        // Whoever looks first can know.
        world.knows_of_another = world.has(Step::Given);
        world.has(Step::Told)
    };
    let armed = arm(
        who,
        || Some(script.current_parent()),
        [source(0), source(1)],
        parent,
        input.as_fd(),
    );
    let armed = match armed {
        Ok((watcher, asked)) => {
            assert!(!gone_before, "armed, by one who was gone");
            script.0.borrow_mut().asked = Some(Rc::new(asked));
            let called = Arc::new(AtomicUsize::new(0));
            let ended = Arc::clone(&script.0.borrow().ended);
            let action = action(form, &called, ended);
            let subject = Subject {
                script: script.clone(),
                start: Instant::now(),
            };
            watcher.run(&subject, &action, ParentExited { pid: None });
            let calls = called.load(Ordering::Relaxed);
            let mut world = script.0.borrow_mut();
            world.deeds.extend(vec![Deed::Called; calls]);
            drop(world);
            check_the_watch(&script, form);
            true
        }
        Err(error) => {
            check_the_refusal(&script, &error);
            false
        }
    };
    let mut world = script.0.borrow_mut();
    // A circle: it holds the script.
    world.asked = None;
    (std::mem::take(&mut world.choices), armed)
}

fn action(form: Form, called: &Arc<AtomicUsize>, ended: Arc<AtomicBool>) -> Action {
    let called = Arc::clone(called);
    let signal = |kill_after| Action::Signal {
        signal: Signal::TERM,
        kill_after,
    };
    match form {
        Form::Signal => signal(None),
        Form::Grace => signal(Some(GRACE)),
        Form::Call => Action::Call(Arc::new(move |_| {
            assert!(!ended.load(Ordering::Relaxed), "called after the end");
            called.fetch_add(1, Ordering::Relaxed);
        })),
    }
}

fn check_the_refusal(script: &Script, error: &ArmError) {
    let world = script.0.borrow();
    assert_eq!(world.deeds, [], "armed nothing, and did something");
    if error.is_parent_gone() {
        assert!(world.exited > 0, "{error}, and it lives");
    } else {
        assert!(world.refused, "{error}, and nothing was refused");
    }
}

fn check_the_watch(script: &Script, form: Form) {
    let world = script.0.borrow();
    let deeds = world.deeds.clone();
    assert!(!world.refused, "armed in spite of a refusal");
    let stranger = world.sources.iter().any(|source| source.stranger);
    assert!(!stranger, "a stranger is watched");
    let first = match form {
        Form::Call => Deed::Called,
        Form::Signal | Form::Grace => {
            let at = deeds.first().map_or(Duration::ZERO, |deed| match deed {
                Deed::Signal(_, at) => *at,
                Deed::Called => Duration::ZERO,
            });
            Deed::Signal(Signal::TERM, at)
        }
    };
    let second = match (form, first) {
        (Form::Grace, Deed::Signal(_, at)) => Some(Deed::Signal(Signal::KILL, at + GRACE)),
        _ => None,
    };
    let whole: Vec<Deed> = std::iter::once(first).chain(second).collect();
    assert!(whole.starts_with(&deeds), "{deeds:?}");
    assert!(deeds.is_empty() || world.exited > 0, "of one that lives");
    let undisturbed = world.disarmed == 0 && !world.closed;
    if world.has(Step::Told) && undisturbed {
        assert_eq!(deeds, whole, "the exit is lost");
    }
    // Once the signal is sent, only the end of the binding keeps SIGKILL away.
    if world.disarmed == 0 && !deeds.is_empty() {
        assert_eq!(deeds, whole, "no SIGKILL after the grace");
    }
    if world.disarmed == 2 || world.closed {
        assert!(!world.at_rest, "the thread waits for ever");
    }
    drop(world);
    if undisturbed {
        script.ask();
    }
}

/// All runs; how many there were, and how many of them were armed.
fn replay(system: System, left: Budget, form: Form) -> (usize, usize) {
    let mut choices = Choices::default();
    let (mut runs, mut armed) = (0, 0);
    loop {
        let (made, is_armed) = run(choices, system, left, form);
        choices = made;
        runs += 1;
        armed += usize::from(is_armed);
        if !choices.advance() {
            return (runs, armed);
        }
    }
}

fn replay_all(left: Budget) {
    for system in SYSTEMS {
        for form in [Form::Signal, Form::Grace, Form::Call] {
            let (runs, armed) = replay(system, left, form);
            assert!(
                armed > 0 && armed < runs,
                "{}: {armed} of {runs}",
                system.name
            );
        }
    }
}

#[test]
fn the_parent_exits_at_any_time() {
    replay_all(Budget {
        refusals: 1,
        spurious: 2,
        ..Budget::default()
    });
}

#[test]
fn the_binding_ends_at_any_time() {
    replay_all(Budget {
        spurious: 1,
        disarm: true,
        ..Budget::default()
    });
}

#[test]
fn the_program_closes_the_sources_at_any_time() {
    replay_all(Budget {
        spurious: 1,
        disarm: true,
        close: true,
        ..Budget::default()
    });
}

#[test]
fn the_handle_asks_at_any_time() {
    replay_all(Budget {
        asks: 2,
        spurious: 1,
        ..Budget::default()
    });
}

#[test]
fn everything_at_any_time() {
    replay_all(Budget {
        refusals: 1,
        spurious: 1,
        asks: 1,
        disarm: true,
        close: true,
    });
}

/// What the second look is for: where a process that has told its exit already could be registered, and
/// gave its children away later still, an exit would be lost. No system is so; the script is shown to notice.
#[test]
#[should_panic(expected = "the exit is lost")]
fn a_system_that_loses_an_exit_is_noticed() {
    let system = System {
        name: "none",
        exit: &[&[Step::Told], &[Step::Unfindable], &[Step::Given]],
        may_hide: false,
        ..BY_PID
    };
    replay(system, Budget::default(), Form::Signal);
}

/// A parent that may not be seen is there all the same: not gone.
#[test]
fn a_hidden_parent_is_not_gone() {
    struct Hidden;
    impl EventSource for Hidden {
        fn add(&self, _: Key, interest: Interest<'_>) -> Result<(), Errno> {
            match interest {
                Interest::Exit(_) => Err(Errno::ESRCH),
                _ => Ok(()),
            }
        }
        fn wait(&self, _: Option<Duration>, _: &mut [Event]) -> Result<usize, Errno> {
            panic!("nothing is registered");
        }
    }
    let who = |may_be_hidden| Who {
        known: Known::Unsaid(PARENT_PID),
        step: ArmStep::Register(PARENT_PID),
        may_be_hidden,
    };
    let input = std::io::stdin();
    let stop: BorrowedFd<'_> = input.as_fd();
    let exit = Interest::Exit(4711);
    let parent_is = |pid| move || Some(pid);
    let refusal = |who, pid| {
        let armed = arm(who, parent_is(pid), [Hidden, Hidden], exit, stop);
        armed.map(drop).unwrap_err()
    };
    assert!(matches!(
        refusal(who(true), PARENT_PID),
        ArmError::Os {
            step: ArmStep::Register(PARENT_PID),
            ..
        }
    ));
    assert!(refusal(who(true), INIT).is_parent_gone());
    assert!(refusal(who(false), PARENT_PID).is_parent_gone());
}
