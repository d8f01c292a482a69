//! The option string, from any bytes: it is taken or refused at a position, never a panic, and
//! what was taken is written so that it reads as the same.
//!
//! `cargo +nightly fuzz run options fuzz/corpus/options fuzz/seeds/options`

#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use captive::RunWith;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    match RunWith::parse(OsStr::from_bytes(text)) {
        Ok(options) => {
            let written = options.to_os_string();
            assert_eq!(RunWith::parse(&written), Ok(options), "{written:?}");
        }
        Err(error) => {
            assert!(error.position() <= text.len(), "{error:?}");
            assert!(!error.to_string().is_empty());
        }
    }
});
