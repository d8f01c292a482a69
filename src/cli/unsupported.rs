//! Systems for which the supervisor has not been written: asking for it is an error.

use std::ffi::CStr;

use super::Failure;
use super::args::Invocation;
use super::mechanisms::{Fact, Offer, Survey, Value};
use crate::exit_with_parent;
use crate::run_with::KEYS;

pub(crate) fn supervise(_invocation: &Invocation) -> Result<i32, Failure> {
    Err(Failure::own(
        "run-with has not been written for this system",
    ))
}

pub(crate) fn exec_refusal() -> Option<&'static str> {
    Some("run-with has not been written for this system")
}

pub(crate) fn gains(_mode: u32, _path: &CStr) -> Option<&'static str> {
    None
}

/// What can be told without a platform of run-with's own.
pub(crate) fn survey() -> Survey {
    let library = if exit_with_parent::is_supported() {
        "yes"
    } else {
        "no"
    };
    let options = KEYS.iter().map(|key| Offer {
        name: key.name,
        available: false,
        note: "run-with has not been written for this system".to_owned(),
    });
    Survey {
        system: std::env::consts::OS.to_owned(),
        process: vec![
            Fact {
                name: "pid",
                value: Value::Number(std::process::id()),
                note: String::new(),
            },
            Fact {
                name: "library",
                value: Value::Word(library),
                note: "whether captive::exit_with_parent works here".to_owned(),
            },
        ],
        mechanisms: Vec::new(),
        options: options.collect(),
    }
}
