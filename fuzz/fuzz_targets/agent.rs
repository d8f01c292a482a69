//! What an agent sends, any bytes in any pieces: it is out of step until it has answered the synchronisation, and a
//! synchronisation after it is always found.
//!
//! `cargo +nightly fuzz run agent fuzz/corpus/agent fuzz/seeds/agent`

#![no_main]

use captive::qemu::monitor::codec::{AgentCodec, AgentReply};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 256;
/// More digits than what the fuzzer will write.
const FIRST: u64 = 123_456_789_012_345;

fuzz_target!(|bytes: &[u8]| {
    let Some((length, bytes)) = bytes.split_first() else {
        return;
    };
    let mut codec = AgentCodec::new(LIMIT, FIRST);
    let _ = codec.synchronise();
    for piece in bytes.chunks(usize::from(*length).max(1)) {
        codec.push(piece);
        while let Some(reply) = codec.next() {
            if let AgentReply::Synchronised = reply {
                let _ = codec.command("guest-ping", &());
            }
        }
        assert!(codec.kept() <= LIMIT);
    }
    let sync = codec.synchronise();
    let text = String::from_utf8_lossy(&sync).into_owned();
    let id: String = text.chars().filter(char::is_ascii_digit).collect();
    codec.push(format!("{{\"return\":{id}}}\n").as_bytes());
    // Without the delimiter it may have been anything.
    codec.push(b"\xff");
    codec.push(format!("{{\"return\":{id}}}\n").as_bytes());
    let found = std::iter::from_fn(|| codec.next()).any(|r| matches!(r, AgentReply::Synchronised));
    assert!(found);
});
