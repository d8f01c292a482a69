//! Whatever comes in, in whatever pieces.

use proptest::prelude::*;

use super::{AgentCodec, AgentReply, Frame, Frames, Incoming, Malformed, QmpCodec, TooLong};

fn all(frames: &mut Frames) -> Vec<Result<Frame, TooLong>> {
    std::iter::from_fn(|| frames.next()).collect()
}

#[allow(clippy::unnecessary_wraps, reason = "to be compared with")]
fn line(text: &str) -> Result<Frame, TooLong> {
    Ok(Frame::Line(text.as_bytes().to_vec()))
}

#[test]
fn lines_are_found() {
    let mut frames = Frames::new(8);
    frames.push(b"a\r\n\n  b \nc");
    assert_eq!(all(&mut frames), [line("a"), line("b")]);
    frames.push(b"d\n");
    assert_eq!(all(&mut frames), [line("cd")]);
}

#[test]
fn a_delimiter_begins_anew() {
    let mut frames = Frames::new(8);
    frames.push(b"half a li\xff{}\n\xff\xff");
    let delimiter = || Ok(Frame::Delimiter);
    assert_eq!(
        all(&mut frames),
        [delimiter(), line("{}"), delimiter(), delimiter()]
    );
}

#[test]
fn what_is_too_long_is_told_once_and_skipped() {
    let mut frames = Frames::new(4);
    frames.push(b"12345");
    let too_long = Err(TooLong { limit: 4 });
    assert_eq!(all(&mut frames), std::slice::from_ref(&too_long));
    for _ in 0..1000 {
        frames.push(&[b'x'; 1000]);
        assert_eq!(all(&mut frames), []);
        assert_eq!(frames.kept(), 0);
    }
    frames.push(b"end\n1234\n");
    assert_eq!(all(&mut frames), [line("1234")]);
    // Whole at once, it is too long as well; and a delimiter ends the skipping.
    frames.push(b"12345\n1");
    assert_eq!(all(&mut frames), std::slice::from_ref(&too_long));
    frames.push(b"2345\xff12\n");
    assert_eq!(all(&mut frames), [Ok(Frame::Delimiter), line("12")]);
}

#[test]
fn answers_find_their_commands() {
    let mut codec = QmpCodec::new(1 << 20);
    let (first, _) = codec.command("a", &(), false).unwrap();
    let (second, bytes) = codec
        .command("b", &serde_json::json!({"x": 1}), true)
        .unwrap();
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        "{\"exec-oob\":\"b\",\"arguments\":{\"x\":1},\"id\":2}\n"
    );
    codec.push(b"{\"return\":1,\"id\":2}\n{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":1}\n");
    assert!(matches!(codec.next(), Some(Ok(Incoming::Reply(id, Ok(_)))) if id == second));
    let Some(Ok(Incoming::Reply(id, Err(error)))) = codec.next() else {
        panic!("no error");
    };
    assert_eq!((id, error.desc.as_str()), (first, "no"));
    // Twice, of a forgotten one, without an id, with one that was never given: nobody's.
    let (third, _) = codec.command("c", &(), false).unwrap();
    codec.forget(third);
    codec.push(b"{\"return\":1,\"id\":2}\n{\"return\":1,\"id\":3}\n{\"return\":1}\n{\"return\":1,\"id\":99}\n");
    for _ in 0..4 {
        assert!(matches!(codec.next(), Some(Ok(Incoming::Stray))));
    }
    assert!(codec.next().is_none());
}

#[test]
fn what_is_no_message_is_said_and_skipped() {
    let mut codec = QmpCodec::new(1 << 20);
    codec.push(
        b"garbage\n[1]\n{\"event\":\"STOP\",\"timestamp\":{\"seconds\":1,\"microseconds\":2}}\n",
    );
    for _ in 0..2 {
        assert!(matches!(codec.next(), Some(Err(Malformed::Json { .. }))));
    }
    let Some(Ok(Incoming::Event(event))) = codec.next() else {
        panic!("no event");
    };
    assert_eq!((event.name.as_str(), event.seconds), ("STOP", 1));
    assert!(event.data.is_null());
}

#[test]
fn the_greeting_is_read() {
    let mut codec = QmpCodec::new(1 << 20);
    codec.push(
        b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 1, \"minor\": 2, \"major\": 10}, \
          \"package\": \"Debian\"}, \"capabilities\": [\"oob\", 7]}}\r\n",
    );
    let Some(Ok(Incoming::Greeting(greeting))) = codec.next() else {
        panic!("no greeting");
    };
    assert_eq!(greeting.version.major, 10);
    assert_eq!(greeting.capabilities, ["oob"]);
}

#[test]
fn an_agent_that_answers_the_previous_question_is_not_believed() {
    let mut codec = AgentCodec::new(1 << 20, 5);
    let _ = codec.synchronise();
    codec.push(b"\xff{\"return\":5}\n");
    assert!(matches!(codec.next(), Some(AgentReply::Synchronised)));
    let _ = codec.command("slow", &()).unwrap();
    codec.forget();
    let _ = codec.synchronise();
    codec.push(b"{\"return\":\"slow\"}\n");
    assert!(codec.next().is_none());
    codec.push(b"\xff{\"return\":6}\n");
    assert!(matches!(codec.next(), Some(AgentReply::Synchronised)));
    let _ = codec.command("quick", &()).unwrap();
    codec.push(b"{\"return\":\"quick\"}\n");
    let Some(AgentReply::Reply(Ok(reply))) = codec.next() else {
        panic!("no answer");
    };
    assert_eq!(reply.get(), "\"quick\"");
    // Nothing was asked: it means nothing.
    codec.push(b"{\"return\":\"unasked\"}\n\xff{\"return\":7}\n");
    assert!(codec.next().is_none());
}

#[test]
fn an_agent_s_synchronisation_without_the_delimiter_is_none() {
    let mut codec = AgentCodec::new(1 << 20, 5);
    let _ = codec.synchronise();
    codec.push(b"{\"return\":5}\n\xff{\"return\":4}\n{\"return\":5}\n\xff{\"return\":\"5\"}\n");
    assert!(codec.next().is_none());
    codec.push(b"\xff{\"return\":5}\n");
    assert!(matches!(codec.next(), Some(AgentReply::Synchronised)));
}

/// In pieces, cut anywhere.
fn cut(bytes: &[u8], places: &[usize]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = places.iter().map(|p| p % (bytes.len() + 1)).collect();
    places.sort_unstable();
    places.push(bytes.len());
    let mut begin = 0;
    places
        .into_iter()
        .map(|end| {
            let piece = bytes[begin..end].to_vec();
            begin = end;
            piece
        })
        .collect()
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b"\xff".to_vec()),
        Just(b"{\"return\":{},\"id\":1}".to_vec()),
        Just(b"{\"return\":9}".to_vec()),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// However the bytes are cut, the lines are the same; and no more is kept than the limit and what was pushed last.
    #[test]
    fn pieces_make_no_difference(bytes in noise(), places in prop::collection::vec(any::<usize>(), 0..8)) {
        let limit = 16;
        // Whether what is too long is told before or after its end depends on the pieces: that it is told does not.
        let lines = |pieces: &[Vec<u8>]| {
            let mut frames = Frames::new(limit);
            let mut found = Vec::new();
            for piece in pieces {
                let kept = frames.kept();
                frames.push(piece);
                assert!(kept <= limit);
                found.extend(all(&mut frames));
            }
            found
        };
        let whole = lines(std::slice::from_ref(&bytes));
        let pieces = lines(&cut(&bytes, &places));
        let is_line = |frame: &&Result<Frame, TooLong>| frame.is_ok();
        prop_assert_eq!(
            whole.iter().filter(is_line).collect::<Vec<_>>(),
            pieces.iter().filter(is_line).collect::<Vec<_>>()
        );
    }

    /// Nothing that an agent sends before a synchronisation keeps that from being found, nor is it taken for an answer.
    #[test]
    fn after_any_noise_an_agent_is_found_again(bytes in noise(), places in prop::collection::vec(any::<usize>(), 0..8)) {
        let mut codec = AgentCodec::new(64, 1_000_000);
        let _ = codec.synchronise();
        for piece in cut(&bytes, &places) {
            codec.push(&piece);
            prop_assert!(codec.next().is_none());
        }
        codec.push(b"\xff{\"return\":1000000}\n");
        prop_assert!(matches!(codec.next(), Some(AgentReply::Synchronised)));
    }

    /// Nothing that QEMU sends panics, and every answer is of a command in flight, once.
    #[test]
    fn answers_are_to_questions(bytes in noise(), places in prop::collection::vec(any::<usize>(), 0..8)) {
        let mut codec = QmpCodec::new(64);
        let (id, _) = codec.command("x", &(), false).unwrap();
        let mut answers = 0;
        for piece in cut(&bytes, &places) {
            codec.push(&piece);
            while let Some(incoming) = codec.next() {
                if let Ok(Incoming::Reply(of, _)) = incoming {
                    prop_assert_eq!(of, id);
                    answers += 1;
                }
            }
        }
        prop_assert!(answers <= 1);
    }
}
