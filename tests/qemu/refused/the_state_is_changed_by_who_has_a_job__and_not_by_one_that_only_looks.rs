#![allow(unused)]
#[path = "../guests.rs"]
mod guests;
use guests::*;
use captive::qemu::domain::*;

fn main() {
    let (driver, mut domain, _lifeline) = running();
    let mut job = domain.begin_query().unwrap();
    job.object_mut().unwrap().definition_mut().unwrap().memory_mib = 1024;
}
