//! QMP against peers that hang, die, lie, flood or stop in the middle of an answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use captive::qemu::domain::Channel;
use captive::qemu::monitor::{Closed, MonitorError, NoEvent, Qmp, QmpEvents, QmpOptions, Stage};
use serde_json::{Value, json};

use super::{HANG, Outcome, go};

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \
    \"major\": 7}, \"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n";

/// A QEMU that is none.
struct Peer {
    stream: BufReader<UnixStream>,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(HANG)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        // Whoever was told may be gone.
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// The next command; `None` at the end.
    fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line).ok()?;
        (count > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    fn answer(&mut self, command: &Value, value: &Value) {
        let reply = json!({ "return": value, "id": command["id"] });
        self.say(format!("{reply}\r\n").as_bytes());
    }

    /// Greets, and takes what is negotiated.
    fn welcome(&mut self) {
        self.say(GREETING);
        let command = self.hear().unwrap();
        assert_eq!(command["execute"], "qmp_capabilities");
        self.answer(&command, &json!({}));
    }
}

fn quick() -> QmpOptions {
    let mut options = QmpOptions::default();
    options.deadline = Duration::from_millis(100);
    options
}

/// A connection to a peer that does so after negotiation, and what comes of that.
fn connected<T: Send + 'static>(
    options: QmpOptions,
    then: impl FnOnce(Peer) -> T + Send + 'static,
) -> (Qmp, QmpEvents, Outcome<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = go(move || {
        let mut peer = Peer::new(theirs);
        peer.welcome();
        then(peer)
    });
    // Time for the negotiation, however short the rest is to be.
    let (qmp, events) = Qmp::negotiate(ours, options).unwrap();
    (qmp, events, peer)
}

/// Answers every command with its own name.
fn echo(mut peer: Peer) {
    while let Some(command) = peer.hear() {
        let name = command["execute"].clone();
        peer.answer(&command, &name);
    }
}

fn timed_out(error: &MonitorError) -> Option<Stage> {
    match error {
        MonitorError::Timeout { stage, .. } => Some(*stage),
        _ => None,
    }
}

fn cause(error: MonitorError) -> Closed {
    match error {
        MonitorError::Closed { cause, .. } => cause,
        other => panic!("{other}"),
    }
}

#[test]
fn a_command_has_its_answer() {
    let (qmp, _events, peer) = connected(QmpOptions::default(), echo);
    assert_eq!(qmp.greeting().version.major, 7);
    assert_eq!(qmp.execute("query-status", &()).unwrap(), "query-status");
    let named: String = qmp.execute_within("x", &json!({"y": 1}), HANG).unwrap();
    assert_eq!(named, "x");
    let error = qmp.execute_within::<u64>("x", &(), HANG).unwrap_err();
    assert!(matches!(error, MonitorError::Unexpected { .. }), "{error}");
    drop(qmp);
    peer.get();
}

#[test]
fn a_deadline_beyond_the_clock_is_a_long_one() {
    let mut options = QmpOptions::default();
    options.deadline = Duration::MAX;
    let (qmp, _events, _peer) = connected(options, echo);
    assert_eq!(qmp.execute("x", &()).unwrap(), "x");
    let answer: String = qmp.execute_within("y", &(), Duration::MAX).unwrap();
    assert_eq!(answer, "y");
}

#[test]
fn a_peer_that_does_not_greet_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Qmp::negotiate(ours, quick()).unwrap_err();
    assert_eq!(timed_out(&error), Some(Stage::Greeting), "{error}");
}

#[test]
fn a_listener_that_does_not_accept_is_given_up() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("qmp");
    let _listener = UnixListener::bind(&path).unwrap();
    let begin = Instant::now();
    // As many as have a place in its queue greet nobody; the next has none.
    let mut greeted = 0;
    let stage = loop {
        let error = Qmp::connect(&path, quick()).unwrap_err();
        match timed_out(&error) {
            Some(Stage::Greeting) => greeted += 1,
            stage => break stage,
        }
        // The queue is 128 long, and each in it stays there.
        if greeted == 3 {
            break stage_of_full(&path);
        }
    };
    assert_eq!(stage, Some(Stage::Connect));
    assert!(begin.elapsed() < HANG);
}

/// What a connection says when the queue is full.
fn stage_of_full(path: &std::path::Path) -> Option<Stage> {
    let mut held = Vec::new();
    for _ in 0..8192 {
        let mut options = quick();
        options.deadline = Duration::from_millis(1);
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket2::SockAddr::unix(path).unwrap();
        if socket.connect(&address).is_err() {
            let error = Qmp::connect(path, options).unwrap_err();
            return timed_out(&error);
        }
        held.push(socket);
    }
    None
}

#[test]
fn an_answer_that_comes_too_late_is_nobody_s() {
    let (qmp, _events, peer) = connected(quick(), |mut peer| {
        let slow = peer.hear().unwrap();
        // Stops in the middle of it.
        peer.say(b"{\"return\": \"late\"");
        let quick = peer.hear().unwrap();
        let id = &slow["id"];
        peer.say(format!(", \"id\": {id}}}\r\n").as_bytes());
        peer.answer(&quick, &json!("in time"));
        peer.hear()
    });
    let error = qmp.execute("slow", &()).unwrap_err();
    assert_eq!(timed_out(&error), Some(Stage::Reply), "{error}");
    assert!(error.to_string().starts_with("slow: waited 1"), "{error}");
    let answer: String = qmp.execute_within("quick", &(), HANG).unwrap();
    assert_eq!(answer, "in time");
    drop(qmp);
    assert!(peer.get().is_none());
}

#[test]
fn an_answer_to_another_question_is_nobody_s() {
    let (qmp, _events, peer) = connected(quick(), |mut peer| {
        let command = peer.hear().unwrap();
        peer.say(b"{\"return\": 1, \"id\": 77}\n{\"return\": 2}\n{\"return\": 3, \"id\": \"x\"}\n");
        peer.answer(&command, &json!(4));
        peer.answer(&command, &json!(5));
        let next = peer.hear().unwrap();
        peer.answer(&next, &json!(6));
    });
    assert_eq!(qmp.execute("first", &()).unwrap(), 4);
    assert_eq!(qmp.execute("second", &()).unwrap(), 6);
    peer.get();
}

#[test]
fn when_it_dies_everybody_is_told_at_once() {
    let (qmp, events, peer) = connected(QmpOptions::default(), |mut peer| {
        for _ in 0..3 {
            peer.hear().unwrap();
        }
        peer.say(b"{\"return\": {}, \"i");
    });
    let qmp = Arc::new(qmp);
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let qmp = qmp.clone();
            go(move || qmp.execute("query-status", &()).unwrap_err())
        })
        .collect();
    peer.get();
    for caller in callers {
        assert!(matches!(cause(caller.get()), Closed::Gone));
    }
    let error = qmp.execute("query-status", &()).unwrap_err();
    assert!(matches!(cause(error), Closed::Gone));
    assert_eq!(events.next(), Err(NoEvent::Closed));
}

#[test]
fn a_death_while_nobody_asks_is_noticed() {
    let (qmp, events, peer) = connected(QmpOptions::default(), drop);
    peer.get();
    assert_eq!(events.next_within(HANG), Err(NoEvent::Closed));
    assert!(matches!(qmp.closed(), Some(Closed::Gone)));
}

#[test]
fn shut_it_fails_who_waits() {
    let (qmp, _events, peer) = connected(QmpOptions::default(), |mut peer| {
        peer.hear();
        // Says nothing, for as long as it is connected.
        peer.hear()
    });
    let qmp = Arc::new(qmp);
    let caller = {
        let qmp = qmp.clone();
        go(move || qmp.execute("query-status", &()).unwrap_err())
    };
    caller.waits();
    qmp.shut();
    assert!(matches!(cause(caller.get()), Closed::Shut));
    qmp.shut();
    assert!(peer.get().is_none());
}

#[test]
fn garbage_ends_it() {
    let (qmp, _events, _peer) = connected(QmpOptions::default(), |mut peer| {
        peer.hear();
        peer.say(b"<html>\n");
        peer.hear()
    });
    let error = qmp.execute("query-status", &()).unwrap_err();
    assert!(matches!(cause(error), Closed::Malformed(_)));
}

#[test]
fn a_message_without_an_end_ends_it() {
    let mut options = QmpOptions::default();
    options.limit = 1 << 20;
    let (qmp, _events, peer) = connected(options, |mut peer| {
        peer.hear();
        let mut sent = 0;
        while peer.stream.get_mut().write_all(&[b' '; 4096]).is_ok() {
            sent += 4096;
        }
        sent
    });
    let error = qmp.execute("query-status", &()).unwrap_err();
    assert!(matches!(cause(error), Closed::Malformed(_)));
    let sent = peer.get();
    // What was not read stayed with the sender, or in the socket.
    assert!(sent < 4 << 20, "{sent}");
}

#[test]
fn a_flood_of_events_is_kept_within_bounds_and_delays_nobody() {
    let mut options = QmpOptions::default();
    options.events = 10;
    let (qmp, events, peer) = connected(options, |mut peer| {
        let command = peer.hear().unwrap();
        for number in 0..5000 {
            let event = json!({ "event": "FLOOD", "data": number,
                "timestamp": { "seconds": 1, "microseconds": 2 } });
            peer.say(format!("{event}\r\n").as_bytes());
        }
        peer.answer(&command, &json!({}));
        // And some more while nobody asks.
        for _ in 0..100 {
            peer.say(b"{\"event\": \"MORE\"}\n");
        }
    });
    qmp.execute("query-status", &()).unwrap();
    peer.get();
    assert_eq!(events.next().unwrap().data, 0);
    let begin = Instant::now();
    while events.lost() < 5089 {
        assert!(begin.elapsed() < HANG, "{}", events.lost());
        std::thread::yield_now();
    }
    drop(qmp);
    let mut left = 0;
    while events.next().is_ok() {
        left += 1;
    }
    // One place was free for one of the last hundred.
    assert!(left == 9 || left == 10, "{left}");
}

#[test]
fn events_come_while_nobody_asks() {
    let (qmp, events, peer) = connected(QmpOptions::default(), |mut peer| {
        for _ in 0..3 {
            peer.say(
                b"{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 5, \"microseconds\": 6}}\n",
            );
        }
        // Held until it is closed.
        peer.hear();
    });
    for _ in 0..3 {
        let event = events.next_within(HANG).unwrap();
        assert_eq!((event.name.as_str(), event.microseconds), ("STOP", 6));
    }
    assert_eq!(events.try_next(), Err(NoEvent::NotYet));
    drop(qmp);
    peer.get();
}

#[test]
fn many_call_at_once_and_each_has_its_own_answer() {
    let (qmp, events, _peer) = connected(QmpOptions::default(), |mut peer| {
        // Of two that are there it answers the second first.
        let mut held: Option<Value> = None;
        let mut count = 0_u32;
        while let Some(command) = peer.hear() {
            count += 1;
            let name = command["execute"].clone();
            peer.say(b"{\"event\": \"BETWEEN\"}\n");
            match held.take() {
                None if count % 3 == 0 && count < 1500 => held = Some(command),
                before => {
                    peer.answer(&command, &name);
                    if let Some(before) = before {
                        let name = before["execute"].clone();
                        peer.answer(&before, &name);
                    }
                }
            }
        }
    });
    let qmp = Arc::new(qmp);
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let qmp = qmp.clone();
            go(move || {
                for round in 0..200 {
                    let name = format!("{caller}-{round}");
                    assert_eq!(qmp.execute(&name, &()).unwrap(), Value::from(name));
                }
            })
        })
        .collect();
    for caller in callers {
        caller.get();
    }
    assert!(events.next().is_ok());
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (qmp, _events, _peer) = connected(quick(), |peer| {
        std::thread::sleep(Duration::from_secs(2));
        drop(peer);
    });
    // More than a socket takes: half of it is sent.
    let large = "x".repeat(8 << 20);
    let error = qmp.execute("large", &json!({ "text": large })).unwrap_err();
    assert_eq!(timed_out(&error), Some(Stage::Send), "{error}");
    // Nothing can be said after half a command.
    let error = qmp.execute("query-status", &()).unwrap_err();
    assert!(matches!(cause(error), Closed::HalfSent { command } if command == "large"));
}

#[test]
fn a_full_socket_is_waited_for_and_no_harm_is_done() {
    let (go_on, goes_on) = std::sync::mpsc::channel();
    let (qmp, _events, peer) = connected(QmpOptions::default(), move |peer| {
        goes_on.recv_timeout(HANG).unwrap();
        echo(peer);
    });
    // A short command is taken whole or not at all: none is sent by halves.
    let limit = Duration::from_millis(2);
    let mut sent = 0;
    loop {
        let error = qmp.execute_within::<Value>("fill", &(), limit).unwrap_err();
        match timed_out(&error) {
            Some(Stage::Reply) => sent += 1,
            Some(Stage::Send) => break,
            _ => panic!("{error}"),
        }
        assert!(sent < 10_000);
    }
    go_on.send(()).unwrap();
    assert_eq!(qmp.execute("query-status", &()).unwrap(), "query-status");
    drop(qmp);
    peer.get();
}

#[test]
fn out_of_band_is_refused_where_it_is_not_offered() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = go(move || {
        let mut peer = Peer::new(theirs);
        let greeting = String::from_utf8(GREETING.to_vec()).unwrap();
        peer.say(greeting.replace("\"oob\"", "").as_bytes());
        let command = peer.hear().unwrap();
        // An old one knows no arguments.
        assert!(command.get("arguments").is_none());
        peer.answer(&command, &json!({}));
        echo(peer);
    });
    let (qmp, _events) = Qmp::negotiate(ours, QmpOptions::default()).unwrap();
    let error = qmp.execute_out_of_band("yank", &()).unwrap_err();
    assert!(matches!(error, MonitorError::NoOutOfBand { .. }), "{error}");
    drop(qmp);
    peer.get();
}

#[test]
fn out_of_band_overtakes() {
    let (qmp, _events, _peer) = connected(QmpOptions::default(), |mut peer| {
        let slow = peer.hear().unwrap();
        let yank = peer.hear().unwrap();
        assert_eq!(yank["exec-oob"], "yank");
        peer.answer(&yank, &json!("yanked"));
        peer.answer(&slow, &json!("slow"));
    });
    let qmp = Arc::new(qmp);
    let slow = {
        let qmp = qmp.clone();
        go(move || qmp.execute("migrate", &()).unwrap())
    };
    slow.waits();
    assert_eq!(qmp.execute_out_of_band("yank", &()).unwrap(), "yanked");
    assert_eq!(slow.get(), "slow");
}

#[test]
fn a_refusal_is_in_its_words() {
    let (qmp, _events, _peer) = connected(QmpOptions::default(), |mut peer| {
        let command = peer.hear().unwrap();
        let error = json!({ "error": { "class": "CommandNotFound", "desc": "what?" },
            "id": command["id"] });
        peer.say(format!("{error}\n").as_bytes());
        peer.hear();
    });
    let error = qmp.execute("nonsense", &()).unwrap_err();
    let MonitorError::Refused { cause, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(cause.class, "CommandNotFound");
    assert_eq!(error.to_string(), "nonsense was refused");
    assert_eq!(cause.to_string(), "what? (CommandNotFound)");
}

#[test]
fn arguments_that_cannot_be_said_send_nothing() {
    let (qmp, _events, peer) = connected(QmpOptions::default(), |mut peer| peer.hear());
    // JSON's keys are strings.
    let arguments: std::collections::HashMap<Vec<u8>, u8> = [(vec![1], 1)].into();
    let error = qmp.execute("x", &arguments).unwrap_err();
    assert!(matches!(error, MonitorError::Arguments { .. }), "{error}");
    drop(qmp);
    assert!(peer.get().is_none());
}

#[test]
fn descriptors_go_beside_a_command() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut reading, writing) = std::io::pipe().unwrap();
    let peer = go(move || {
        let mut peer = Peer::new(theirs);
        peer.welcome();
        // What was sent beside the bytes is taken by who reads these.
        let mut bytes = [0; 4096];
        let mut room = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let received = nix::sys::socket::recvmsg::<()>(
            peer.stream.get_ref().as_raw_fd(),
            &mut parts,
            Some(&mut room),
            nix::sys::socket::MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        let mut found = Vec::new();
        for message in received.cmsgs().unwrap() {
            if let nix::sys::socket::ControlMessageOwned::ScmRights(fds) = message {
                found.extend(fds);
            }
        }
        let count = found.len();
        for fd in found {
            // SAFETY: the kernel has just made it for this process, and nobody else has it.
            #[allow(unsafe_code)]
            let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
            file.write_all(b"from the peer").unwrap();
        }
        peer.answer(&json!({ "id": 2 }), &json!({}));
        count
    });
    let (qmp, _events) = Qmp::negotiate(ours, QmpOptions::default()).unwrap();
    qmp.execute_with_descriptors("getfd", &json!({ "fdname": "x" }), &[writing.as_fd()])
        .unwrap();
    assert_eq!(peer.get(), 1);
    drop(writing);
    let mut said = String::new();
    reading.read_to_string(&mut said).unwrap();
    assert_eq!(said, "from the peer");
}
