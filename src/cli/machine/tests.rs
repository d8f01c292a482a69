//! Scripted sequences, one for each line of the table, and random ones for what must hold always.

use proptest::prelude::*;

use super::*;

const OWN: i32 = 100;
const COMMAND: i32 = 200;
const STRANGER: i32 = 300;

/// What is so, as the test says.
#[derive(Debug, Clone, Copy)]
struct Given {
    now: Time,
    own_group: i32,
    command_group: Option<i32>,
    foreground: Option<i32>,
    leads_session: bool,
    raised: c_int,
}

impl Facts for Given {
    fn now(&self) -> Time {
        self.now
    }

    fn own_group(&self) -> i32 {
        self.own_group
    }

    fn command_group(&self) -> Option<i32> {
        self.command_group
    }

    fn foreground(&self) -> Option<i32> {
        self.foreground
    }

    fn leads_session(&self) -> bool {
        self.leads_session
    }

    fn has_raised(&self, signal: c_int) -> bool {
        self.raised == signal
    }
}

fn millis(n: u64) -> Time {
    Duration::from_millis(n)
}

fn setup() -> Setup {
    Setup {
        own_pid: OWN,
        command: COMMAND,
        forward: true,
        guarded: true,
        kill_after: Some(millis(1000)),
        now: Duration::ZERO,
    }
}

/// Nobody has a terminal, run-with and the command are in one group.
fn facts(now: Time) -> Given {
    Given {
        now,
        own_group: OWN,
        command_group: Some(OWN),
        foreground: None,
        leads_session: false,
        raised: 0,
    }
}

/// The command leads a group of its own.
fn apart() -> Given {
    Given {
        command_group: Some(COMMAND),
        ..facts(Duration::ZERO)
    }
}

/// The same as `apart`, at a terminal that `foreground` has.
fn at_terminal(foreground: i32) -> Given {
    Given {
        foreground: Some(foreground),
        ..apart()
    }
}

fn machine() -> Machine {
    Machine::new(setup())
}

#[test]
fn the_command_ends_and_nothing_follows() {
    for end in [End::Exited(3), End::Killed(libc::SIGSEGV)] {
        let mut machine = machine();
        let facts = facts(millis(1));
        assert_eq!(machine.step(Input::ParentGone, &facts).len(), 2);
        assert_eq!(
            machine.step(Input::Ended(end), &facts),
            [Action::Finish(end)]
        );
        assert_eq!(machine.due(), None);
        let later = Given {
            now: millis(5000),
            ..facts
        };
        assert_eq!(machine.step(Input::Tick, &later), []);
        assert_eq!(machine.step(Input::GuardEnded, &later), []);
    }
}

#[test]
fn an_end_that_is_told_is_looked_for_until_it_is_there() {
    let mut machine = machine();
    let look = [Action::LookAtCommand];
    assert_eq!(machine.step(Input::Ending, &facts(millis(5))), look);
    assert_eq!(machine.due(), Some(millis(6)));
    assert_eq!(machine.step(Input::Tick, &facts(millis(5))), []);
    assert_eq!(machine.step(Input::Tick, &facts(millis(6))), look);
    assert_eq!(machine.due(), Some(millis(7)));
}

#[test]
fn the_parent_exits() {
    let mut machine = machine();
    let first = [Action::SignalUnlessClaimed, Action::TellParentGone];
    assert_eq!(machine.step(Input::ParentGone, &facts(millis(10))), first);
    // Told twice, done once.
    assert_eq!(machine.step(Input::ParentGone, &facts(millis(11))), []);
    assert_eq!(machine.due(), Some(millis(110)));
    assert_eq!(machine.step(Input::Tick, &facts(millis(109))), []);
    let again = [Action::SignalUnlessSent];
    assert_eq!(machine.step(Input::Tick, &facts(millis(110))), again);
    assert_eq!(machine.due(), Some(millis(1010)));
    assert_eq!(machine.step(Input::Tick, &facts(millis(1009))), []);
    let kill = [Action::Kill];
    assert_eq!(machine.step(Input::Tick, &facts(millis(1010))), kill);
    assert_eq!(machine.due(), None);
    assert_eq!(machine.step(Input::Tick, &facts(millis(99_000))), []);
}

#[test]
fn without_a_limit_nobody_is_killed() {
    for kill_after in [None, Some(Duration::MAX)] {
        let mut machine = Machine::new(Setup {
            kill_after,
            ..setup()
        });
        machine.step(Input::ParentGone, &facts(millis(10)));
        machine.step(Input::Tick, &facts(millis(110)));
        assert_eq!(machine.due(), None);
    }
}

#[test]
fn a_grace_that_is_shorter_than_the_patience() {
    let mut machine = Machine::new(Setup {
        kill_after: Some(Duration::ZERO),
        ..setup()
    });
    assert_eq!(
        machine.step(Input::ParentGone, &facts(millis(10))),
        [
            Action::SignalUnlessClaimed,
            Action::TellParentGone,
            Action::Kill
        ]
    );
}

#[test]
fn a_guard_is_replaced_and_no_more_often_than_that() {
    let mut machine = machine();
    let start = [Action::StartGuard];
    // At once where the last start is long ago.
    assert_eq!(machine.step(Input::GuardEnded, &facts(millis(50))), start);
    assert_eq!(machine.due(), None);
    assert_eq!(machine.step(Input::GuardEnded, &facts(millis(50))), []);
    assert_eq!(machine.step(Input::GuardStarted, &facts(millis(51))), []);
    assert_eq!(machine.step(Input::GuardEnded, &facts(millis(52))), []);
    assert_eq!(machine.due(), Some(millis(61)));
    assert_eq!(machine.step(Input::Tick, &facts(millis(61))), start);
    assert_eq!(machine.step(Input::GuardFailed, &facts(millis(62))), []);
    assert_eq!(machine.due(), Some(millis(1062)));
    assert_eq!(machine.step(Input::Tick, &facts(millis(1061))), []);
    assert_eq!(machine.step(Input::Tick, &facts(millis(1062))), start);
}

#[test]
fn who_has_no_guard_gets_none() {
    let mut machine = Machine::new(Setup {
        guarded: false,
        ..setup()
    });
    assert_eq!(machine.step(Input::GuardEnded, &facts(millis(50))), []);
    assert_eq!(machine.due(), None);
}

/// What becomes of a signal.
fn passed_on(signal: c_int, sender: Sender, facts: Given) -> bool {
    let actions = machine().step(Input::Signal(signal, sender), &facts);
    assert!(actions.is_empty() || actions == [Action::Send(signal)]);
    !actions.is_empty()
}

#[test]
fn who_sent_it_decides() {
    let together = facts(Duration::ZERO);
    for facts in [together, apart()] {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1] {
            assert!(passed_on(signal, Sender::Process(STRANGER), facts));
            assert!(passed_on(signal, Sender::Process(0), facts));
            assert!(!passed_on(signal, Sender::Process(COMMAND), facts));
            assert!(!passed_on(signal, Sender::Process(OWN), facts));
        }
        // The alarm that was set before an exec.
        assert!(passed_on(libc::SIGALRM, Sender::Kernel, facts));
        assert!(passed_on(libc::SIGTERM, Sender::Unknown, facts));
    }
}

#[test]
fn what_its_own_writing_has_raised_is_its_own() {
    for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
        for facts in [facts(Duration::ZERO), apart()] {
            let wrote = Given {
                raised: signal,
                ..facts
            };
            for sender in [Sender::Kernel, Sender::Unknown] {
                assert!(!passed_on(signal, sender, wrote));
                assert!(passed_on(signal, sender, facts), "from outside");
                assert!(passed_on(libc::SIGTERM, sender, wrote));
            }
            // A kernel that says who it was is believed.
            assert!(passed_on(signal, Sender::Process(STRANGER), wrote));
            assert!(!passed_on(signal, Sender::Process(OWN), facts));
        }
    }
}

#[test]
fn what_the_terminal_sent_reaches_each_once() {
    let together = facts(Duration::ZERO);
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGWINCH] {
        assert!(!passed_on(signal, Sender::Kernel, together));
        assert!(passed_on(signal, Sender::Kernel, apart()));
    }
    let hang_up = |leads_session, facts| {
        let facts = Given {
            leads_session,
            ..facts
        };
        passed_on(libc::SIGHUP, Sender::Kernel, facts)
    };
    assert!(!hang_up(false, together));
    assert!(hang_up(true, together));
    assert!(hang_up(false, apart()));
}

#[test]
fn where_nobody_says_who_sent_it() {
    let together = facts(Duration::ZERO);
    let in_front = Given {
        foreground: Some(OWN),
        ..together
    };
    let behind = Given {
        foreground: Some(STRANGER),
        ..together
    };
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGHUP] {
        assert!(!passed_on(signal, Sender::Unknown, in_front));
        assert!(passed_on(signal, Sender::Unknown, behind));
        assert!(passed_on(signal, Sender::Unknown, together));
    }
    for signal in [libc::SIGTTIN, libc::SIGTTOU] {
        assert!(!passed_on(signal, Sender::Unknown, behind));
    }
}

#[test]
fn nothing_is_passed_on_where_that_was_asked_for() {
    let mut machine = Machine::new(Setup {
        forward: false,
        ..setup()
    });
    for signal in [libc::SIGTERM, libc::SIGCONT] {
        let input = Input::Signal(signal, Sender::Process(STRANGER));
        assert_eq!(machine.step(input, &apart()), []);
    }
    // But a stopped command is resumed.
    machine.step(Input::Stopped(libc::SIGSTOP), &apart());
    let input = Input::Signal(libc::SIGCONT, Sender::Process(STRANGER));
    assert_eq!(machine.step(input, &apart()), [Action::ResumeGroup]);
}

const CHILD: Input = Input::Signal(libc::SIGCHLD, Sender::Kernel);
const CONT: Input = Input::Signal(libc::SIGCONT, Sender::Process(STRANGER));

#[test]
fn a_stop_without_a_terminal_is_left_alone() {
    let mut machine = machine();
    machine.step(Input::Stopped(libc::SIGTSTP), &apart());
    assert_eq!(machine.step(CHILD, &apart()), []);
}

#[test]
fn a_stop_at_the_terminal_stops_run_with_once() {
    for (signal, foreground, stops) in [
        (libc::SIGTSTP, COMMAND, true),
        (libc::SIGSTOP, COMMAND, true),
        (libc::SIGSTOP, OWN, true),
        (libc::SIGTTIN, STRANGER, true),
        (libc::SIGSTOP, STRANGER, false),
    ] {
        let mut machine = machine();
        let facts = at_terminal(foreground);
        assert_eq!(machine.step(Input::Stopped(signal), &facts), []);
        let stopped = machine.step(CHILD, &facts);
        assert_eq!(stopped == [Action::StopSelf], stops, "{signal}");
        // Another child's news.
        assert_eq!(machine.step(CHILD, &facts), []);
    }
}

#[test]
fn the_shell_resumes_its_job() {
    // It has given the terminal to run-with's group.
    let resumed = at_terminal(OWN);
    let mut machine = machine();
    machine.step(Input::Stopped(libc::SIGTSTP), &at_terminal(COMMAND));
    machine.step(CHILD, &at_terminal(COMMAND));
    assert_eq!(
        machine.step(CONT, &resumed),
        [Action::GiveTerminal, Action::ResumeGroup]
    );
    // The command has not been seen to go on yet; then it has.
    machine.step(Input::Continued, &at_terminal(COMMAND));
    assert_eq!(
        machine.step(CONT, &resumed),
        [Action::Send(libc::SIGCONT)],
        "a command in another group gets every SIGCONT"
    );
}

#[test]
fn a_job_in_the_background_does_not_get_the_terminal() {
    let mut machine = machine();
    machine.step(Input::Stopped(libc::SIGTSTP), &at_terminal(COMMAND));
    machine.step(CHILD, &at_terminal(COMMAND));
    assert_eq!(
        machine.step(CONT, &at_terminal(STRANGER)),
        [Action::ResumeGroup]
    );
}

#[test]
fn what_woke_run_with_does_not_resume_a_later_stop() {
    let mut machine = machine();
    machine.step(Input::Stopped(libc::SIGTSTP), &at_terminal(COMMAND));
    machine.step(CHILD, &at_terminal(COMMAND));
    machine.step(Input::Continued, &at_terminal(COMMAND));
    machine.step(Input::Stopped(libc::SIGTSTP), &at_terminal(COMMAND));
    assert_eq!(machine.step(CONT, &at_terminal(OWN)), []);
    let stopped = machine.step(CHILD, &at_terminal(COMMAND));
    assert_eq!(stopped, [Action::StopSelf]);
}

#[test]
fn a_command_in_our_group_is_resumed_by_itself() {
    let mut machine = machine();
    let together = facts(Duration::ZERO);
    assert_eq!(
        machine.step(CONT, &together),
        [],
        "the group has got it already"
    );
    machine.step(Input::Stopped(libc::SIGSTOP), &together);
    assert_eq!(machine.step(CONT, &together), [Action::Send(libc::SIGCONT)]);
}

fn input() -> impl Strategy<Value = Input> {
    let signals = proptest::sample::select(vec![
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGALRM,
    ]);
    let senders = proptest::sample::select(vec![
        Sender::Kernel,
        Sender::Unknown,
        Sender::Process(OWN),
        Sender::Process(COMMAND),
        Sender::Process(STRANGER),
    ]);
    let stops = proptest::sample::select(vec![libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTOU]);
    prop_oneof![
        6 => (signals, senders).prop_map(|(signal, sender)| Input::Signal(signal, sender)),
        2 => stops.prop_map(Input::Stopped),
        2 => Just(Input::Continued),
        1 => Just(Input::Ending),
        1 => Just(Input::ParentGone),
        2 => Just(Input::GuardEnded),
        3 => Just(Input::Tick),
    ]
}

fn circumstances() -> impl Strategy<Value = Given> {
    let groups = || proptest::sample::select(vec![OWN, COMMAND, STRANGER]);
    let command = proptest::option::of(groups());
    (command, proptest::option::of(groups()), any::<bool>()).prop_map(
        |(command_group, foreground, leads_session)| Given {
            command_group,
            foreground,
            leads_session,
            ..facts(Duration::ZERO)
        },
    )
}

/// What has been done, in whatever order things happened.
#[derive(Debug, Default)]
struct Seen {
    parent_gone: Option<Time>,
    claimed: u32,
    told: u32,
    sent_again: u32,
    kills: Vec<Time>,
    guard_starts: Vec<Time>,
    guards: i32,
    stops: u32,
    sleeps: u32,
}

proptest! {
    #[test]
    fn whatever_happens(
        events in proptest::collection::vec((input(), circumstances(), 0_u64..400), 0..60),
        forward: bool,
        guarded: bool,
        grace in proptest::option::of(0_u64..2000),
        guard_fails: bool,
    ) {
        let kill_after = grace.map(millis);
        let mut machine = Machine::new(Setup { forward, guarded, kill_after, ..setup() });
        let mut seen = Seen { guards: i32::from(guarded), ..Seen::default() };
        let mut now = Duration::ZERO;
        // And at last a long time in which nothing happens.
        let quiet = std::iter::repeat_n((Input::Tick, facts(now), 700), 10);
        for (input, facts, wait) in events.into_iter().chain(quiet) {
            now += millis(wait);
            let facts = Given { now, ..facts };
            if input == Input::ParentGone && seen.parent_gone.is_none() {
                seen.parent_gone = Some(now);
            }
            match input {
                Input::GuardEnded if seen.guards == 0 => continue,
                Input::GuardEnded => seen.guards -= 1,
                Input::Stopped(_) => seen.stops += 1,
                _ => {}
            }
            let mut actions = machine.step(input, &facts);
            while !actions.is_empty() {
                let mut answers = Vec::new();
                for action in actions {
                    match action {
                        Action::Send(signal) => prop_assert!(
                            forward || signal == libc::SIGCONT,
                            "{signal} was passed on"
                        ),
                        Action::ResumeGroup => prop_assert_eq!(facts.command_group, Some(COMMAND)),
                        Action::GiveTerminal => prop_assert_eq!(facts.foreground, Some(OWN)),
                        Action::StopSelf => seen.sleeps += 1,
                        Action::TellParentGone => seen.told += 1,
                        Action::SignalUnlessClaimed => seen.claimed += 1,
                        Action::SignalUnlessSent => seen.sent_again += 1,
                        Action::Kill => seen.kills.push(now),
                        Action::StartGuard => {
                            seen.guard_starts.push(now);
                            answers.push(if guard_fails {
                                Input::GuardFailed
                            } else {
                                seen.guards += 1;
                                Input::GuardStarted
                            });
                        }
                        Action::LookAtCommand => {}
                        Action::Finish(_) => prop_assert!(false, "it has not ended"),
                    }
                }
                actions = Vec::new();
                for answer in answers {
                    actions.extend(machine.step(answer, &facts));
                }
            }
            // Nothing is due that has not been done: a driver that sleeps until then does not spin.
            prop_assert!(machine.due().is_none_or(|at| at > now), "{:?}", machine);
            prop_assert!(seen.guards <= i32::from(guarded), "{} guards", seen.guards);
            prop_assert!(seen.sleeps <= seen.stops);
        }
        // Each once, and only if the parent went.
        let gone = u32::from(seen.parent_gone.is_some());
        prop_assert_eq!([seen.claimed, seen.told, seen.sent_again], [gone; 3]);
        match (seen.parent_gone, kill_after) {
            (Some(gone), Some(grace)) => {
                prop_assert_eq!(seen.kills.len(), 1);
                prop_assert!(seen.kills[0] >= gone + grace, "before its time");
            }
            _ => prop_assert!(seen.kills.is_empty()),
        }
        let pause = if guard_fails { GUARD_RETRY } else { GUARD_INTERVAL };
        for pair in seen.guard_starts.windows(2) {
            prop_assert!(pair[1] >= pair[0] + pause, "{pair:?}");
        }
        if !guarded {
            prop_assert!(seen.guard_starts.is_empty());
        } else if !guard_fails {
            prop_assert_eq!(seen.guards, 1, "unguarded");
        }
    }
}
