#![allow(unused)]
#[path = "../guests.rs"]
mod guests;
use guests::*;
use captive::qemu::domain::*;

fn main() {
    let (driver, mut domain, _lifeline) = running();
    let mut job = domain.begin_query().unwrap();
    std::thread::scope(|scope| {
        let monitor = job.enter_monitor().unwrap();
        scope.spawn(move || monitor.exit());
    });
}
