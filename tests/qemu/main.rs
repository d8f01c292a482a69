//! Domains and their jobs, as a manager's threads meet in them. What waits here for longer than [`HANG`] has failed.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod agent;
mod domain;
mod guests;
mod monitor;

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Longer than anything takes, on any machine.
const HANG: Duration = Duration::from_secs(20);

/// What a thread says at its end.
struct Outcome<T>(Receiver<T>);

/// Starts a thread.
fn go<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    let (tell, told) = channel();
    thread::Builder::new()
        .name("other".to_owned())
        .spawn(move || tell.send(work()))
        .unwrap();
    Outcome(told)
}

impl<T> Outcome<T> {
    /// What it has said.
    fn get(self) -> T {
        self.0.recv_timeout(HANG).expect("it ends, without a panic")
    }

    /// It has not come to its end.
    fn waits(&self) {
        assert!(self.0.recv_timeout(Duration::from_millis(50)).is_err());
    }
}
