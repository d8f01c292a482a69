#![allow(unused)]
#[path = "../guests.rs"]
mod guests;
use guests::*;
use captive::qemu::domain::*;

fn main() {
    let (driver, mut domain, _lifeline) = running();
    let mut job = domain.begin_query().unwrap();
    let monitor = job.enter_monitor().unwrap();
    let is_active = job.object().is_active();
    monitor.exit().unwrap();
}
