//! What a binary prints, any bytes: no panic, and every key is a word that stands in them.
//!
//! `cargo +nightly fuzz run probe fuzz/corpus/probe fuzz/seeds/probe`

#![no_main]

use captive::qemu::appliance::Abilities;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let abilities = Abilities::from_output(bytes);
    for key in &abilities.run_with {
        assert!(!key.is_empty());
        assert!(bytes.windows(key.len()).any(|part| part == key.as_bytes()));
    }
});
