//! A guest agent that never answers, answers garbage, floods, answers the previous question; and recovers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use captive::qemu::domain::Channel;
use captive::qemu::monitor::{Agent, AgentOptions, Closed, MonitorError, Stage};
use serde_json::{Value, json};

use super::{HANG, Outcome, go};

/// An agent that is none, beside QEMU.
struct Guest(BufReader<UnixStream>);

impl Guest {
    fn say(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes);
    }

    /// The next command; `None` at the end.
    fn hear(&mut self) -> Option<Value> {
        loop {
            let mut line = Vec::new();
            let count = self.0.read_until(b'\n', &mut line).ok()?;
            if count == 0 {
                return None;
            }
            // What stood before the byte is half a command.
            let text = line.rsplit(|byte| *byte == 0xff).next().unwrap();
            if let Ok(value) = serde_json::from_slice(text) {
                return Some(value);
            }
        }
    }

    fn answer(&mut self, value: &Value) {
        let reply = json!({ "return": value });
        self.say(format!("{reply}\n").as_bytes());
    }

    /// Answers a synchronisation, if it is one.
    fn synchronises(&mut self, command: &Value) -> bool {
        if command["execute"] != "guest-sync-delimited" {
            return false;
        }
        self.say(b"\xff");
        self.answer(&command["arguments"]["id"]);
        true
    }

    /// The next that is no synchronisation.
    fn question(&mut self) -> Option<Value> {
        loop {
            let command = self.hear()?;
            if !self.synchronises(&command) {
                return Some(command);
            }
        }
    }

    fn echo(&mut self) {
        while let Some(command) = self.question() {
            self.answer(&command["execute"].clone());
        }
    }
}

fn quick() -> AgentOptions {
    let mut options = AgentOptions::default();
    options.deadline = Duration::from_millis(300);
    options.synchronise = Duration::from_millis(150);
    options
}

fn connected<T: Send + 'static>(
    options: AgentOptions,
    guest: impl FnOnce(Guest) -> T + Send + 'static,
) -> (Agent, Outcome<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(HANG)).unwrap();
    let guest = go(move || guest(Guest(BufReader::new(theirs))));
    (Agent::new(ours, options).unwrap(), guest)
}

fn timed_out(error: &MonitorError) -> Option<Stage> {
    match error {
        MonitorError::Timeout { stage, .. } => Some(*stage),
        _ => None,
    }
}

#[test]
fn an_agent_answers() {
    let (agent, _guest) = connected(AgentOptions::default(), |mut guest| guest.echo());
    for name in ["guest-ping", "guest-info"] {
        assert_eq!(agent.execute(name, &()).unwrap(), name);
    }
}

#[test]
fn a_deadline_beyond_the_clock_is_a_long_one() {
    let mut options = AgentOptions::default();
    options.deadline = Duration::MAX;
    options.synchronise = Duration::MAX;
    let (agent, _guest) = connected(options, |mut guest| guest.echo());
    assert_eq!(agent.execute("guest-ping", &()).unwrap(), "guest-ping");
}

#[test]
fn one_that_never_answers_is_given_up_and_found_again() {
    let (agent, _guest) = connected(quick(), |mut guest| {
        // Not there: three synchronisations and nothing else.
        for _ in 0..3 {
            guest.hear();
        }
        guest.echo();
    });
    for _ in 0..3 {
        let error = agent.execute("guest-ping", &()).unwrap_err();
        assert_eq!(timed_out(&error), Some(Stage::Synchronise), "{error}");
        assert!(error.to_string().contains("guest-ping: waited"), "{error}");
    }
    let answer: String = agent.execute_within("guest-ping", &(), HANG).unwrap();
    assert_eq!(answer, "guest-ping");
}

#[test]
fn an_answer_to_the_previous_question_is_not_taken() {
    let (agent, _guest) = connected(quick(), |mut guest| {
        guest.question().unwrap();
        // Answers when the next has begun already, and before it is in step.
        let next = guest.hear().unwrap();
        guest.answer(&json!("of the first"));
        guest.synchronises(&next);
        let second = guest.question().unwrap();
        guest.answer(&second["execute"].clone());
        guest.hear()
    });
    let error = agent.execute("first", &()).unwrap_err();
    assert_eq!(timed_out(&error), Some(Stage::Reply), "{error}");
    assert_eq!(agent.execute("second", &()).unwrap(), "second");
}

#[test]
fn garbage_is_told_and_does_no_harm() {
    let (agent, _guest) = connected(quick(), |mut guest| {
        guest.say(b"noise before anything\n\xff\xff{\"return\": 1}\n");
        guest.question().unwrap();
        guest.say(b"<garbage>\n");
        guest.question().unwrap();
        guest.say(b"{\"neither\": 1}\n");
        guest.question().unwrap();
        guest.say(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n");
        guest.echo();
    });
    for _ in 0..2 {
        let error = agent.execute("guest-ping", &()).unwrap_err();
        assert!(matches!(error, MonitorError::Malformed { .. }), "{error}");
    }
    let error = agent.execute("guest-ping", &()).unwrap_err();
    assert!(matches!(error, MonitorError::Refused { .. }), "{error}");
    assert_eq!(agent.execute("guest-ping", &()).unwrap(), "guest-ping");
}

/// This process's resident memory, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn a_flood_without_an_end_takes_no_memory() {
    const FLOOD: usize = 256 << 20;
    let mut options = AgentOptions::default();
    options.limit = 1 << 20;
    let (agent, guest) = connected(options, |mut guest| {
        guest.question().unwrap();
        let bytes = vec![b'x'; 1 << 20];
        for _ in 0..FLOOD >> 20 {
            guest.say(&bytes);
        }
        guest.echo();
    });
    let before = resident();
    let error = agent.execute("guest-ping", &()).unwrap_err();
    assert!(matches!(error, MonitorError::Malformed { .. }), "{error}");
    // The rest of it is in the way of the next, which finds its answer behind it.
    let answer: String = agent.execute_within("guest-info", &(), HANG).unwrap();
    assert_eq!(answer, "guest-info");
    let grown = resident().saturating_sub(before);
    // The other tests' threads are in the same process.
    assert!(grown < FLOOD / 2, "{grown}");
    drop(agent);
    guest.get();
}

#[test]
fn shut_it_fails_who_waits() {
    let (agent, _guest) = connected(AgentOptions::default(), |mut guest| {
        guest.question();
        guest.hear()
    });
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| agent.execute("guest-ping", &()).unwrap_err());
        std::thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        agent.shut();
        let error = caller.join().unwrap();
        assert!(begin.elapsed() < HANG);
        let MonitorError::Closed { cause, .. } = error else {
            panic!("{error}");
        };
        assert!(matches!(cause, Closed::Shut));
    });
    let error = agent.execute("guest-ping", &()).unwrap_err();
    assert!(matches!(error, MonitorError::Closed { .. }), "{error}");
}

#[test]
fn when_qemu_dies_it_is_told_at_once() {
    let (agent, _guest) = connected(AgentOptions::default(), |mut guest| {
        guest.question();
    });
    let error = agent.execute("guest-ping", &()).unwrap_err();
    let MonitorError::Closed { cause, .. } = error else {
        panic!("{error}");
    };
    assert!(matches!(cause, Closed::Gone));
}

#[test]
fn two_ask_one_after_the_other() {
    let (agent, _guest) = connected(AgentOptions::default(), |mut guest| guest.echo());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(agent.execute("guest-ping", &()).unwrap(), "guest-ping");
                }
            });
        }
    });
    // One that waits for its turn has a deadline as well.
    let (agent, _guest) = connected(AgentOptions::default(), |mut guest| {
        guest.question();
        guest.hear()
    });
    std::thread::scope(|scope| {
        let slow =
            scope.spawn(|| agent.execute_within::<Value>("slow", &(), Duration::from_secs(2)));
        std::thread::sleep(Duration::from_millis(100));
        let limit = Duration::from_millis(50);
        let error = agent
            .execute_within::<Value>("quick", &(), limit)
            .unwrap_err();
        assert_eq!(timed_out(&error), Some(Stage::Turn), "{error}");
        let error = slow.join().unwrap().unwrap_err();
        assert_eq!(timed_out(&error), Some(Stage::Reply), "{error}");
    });
}
