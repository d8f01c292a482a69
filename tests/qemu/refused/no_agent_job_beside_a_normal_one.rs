#![allow(unused)]
#[path = "../guests.rs"]
mod guests;
use guests::*;
use captive::qemu::domain::*;

fn main() {
    let (driver, mut domain, _lifeline) = running();
    let normal = domain.begin_query();
    let agent = domain.begin_agent_job(AgentJobKind::Query);
    drop(normal);
}
