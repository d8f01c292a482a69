#![allow(unused)]
#[path = "../guests.rs"]
mod guests;
use guests::*;
use captive::qemu::domain::*;

fn main() {
    let (driver, mut domain, _lifeline) = running();
    let first = domain.begin_job(Modification::Modify);
    let second = domain.begin_query();
    drop(first);
}
