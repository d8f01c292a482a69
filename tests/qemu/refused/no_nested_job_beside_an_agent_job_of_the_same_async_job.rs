#![allow(unused)]
#[path = "../guests.rs"]
mod guests;
use guests::*;
use captive::qemu::domain::*;

fn main() {
    let (driver, mut domain, _lifeline) = running();
    let mut snapshot = domain.begin_async_job(AsyncJobKind::Snapshot).unwrap();
    let freeze = snapshot.begin_agent_job(AgentJobKind::Modify);
    let step = snapshot.begin_nested();
    drop(freeze);
}
