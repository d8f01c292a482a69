#![allow(unused)]
#[path = "../guests.rs"]
mod guests;
use guests::*;
use captive::qemu::domain::*;

fn main() {
    let (driver, mut domain, _lifeline) = running();
    let mut save = domain.begin_async_job(AsyncJobKind::Save).unwrap();
    let monitor = save.enter_monitor();
}
