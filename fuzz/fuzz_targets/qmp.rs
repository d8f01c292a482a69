//! What QEMU sends, any bytes in any pieces: every answer is of a command in flight, once; no more is kept than the limit.
//!
//! `cargo +nightly fuzz run qmp fuzz/corpus/qmp fuzz/seeds/qmp`

#![no_main]

use captive::qemu::monitor::codec::{Incoming, QmpCodec};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    let mut codec = QmpCodec::new(LIMIT);
    let mut waits: Vec<u64> = (0..3)
        .map(|_| codec.command("x", &(), false).expect("a command").0)
        .collect();
    // The first byte says how long the pieces are.
    let Some((length, bytes)) = bytes.split_first() else {
        return;
    };
    for piece in bytes.chunks(usize::from(*length).max(1)) {
        codec.push(piece);
        while let Some(incoming) = codec.next() {
            if let Ok(Incoming::Reply(id, _)) = incoming {
                let place = waits.iter().position(|wait| *wait == id);
                waits.remove(place.expect("a command that waits"));
            }
        }
        assert!(codec.kept() <= LIMIT);
    }
});
