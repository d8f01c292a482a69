#![allow(unused)]
#[path = "../guests.rs"]
mod guests;
use guests::*;
use captive::qemu::domain::*;

fn main() {
    let (driver, mut domain, _lifeline) = running();
    let mut migration = domain.begin_async_job(AsyncJobKind::MigrationOut).unwrap();
    let remote = migration.enter_remote().unwrap();
    let is_active = migration.object().is_active();
    remote.exit().unwrap();
}
