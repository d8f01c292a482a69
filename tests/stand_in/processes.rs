//! What `/proc` says of processes. A pid that is asked about is a child's of the asker, or one that a scene still waits for.

use std::fs;
use std::time::{Duration, Instant};

use crate::ensure;
use crate::scene::Outcome;

/// Shorter than the limit of whoever waits for the outcome.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Whether the stand-in is for FreeBSD.
pub fn is_freebsd() -> bool {
    std::env::var_os("CAPTIVE_STAND_IN").is_none_or(|kind| kind != "kqueue")
}

/// The fields of /proc/PID/stat from the state on.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit_once(") ")?.1;
    Some(rest.split(' ').map(str::to_owned).collect())
}

pub fn state(pid: i32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

pub fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// Our children, zombies with them.
pub fn children() -> Vec<i32> {
    let own = std::process::id() as i32;
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent(*pid) == Some(own)).collect()
}

pub fn descriptors() -> usize {
    // One is the directory's own.
    fs::read_dir("/proc/self/fd").expect("/proc").count() - 1
}

pub fn mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc");
    maps.lines().count()
}

/// Waits, within the limit.
pub fn await_that(what: &str, mut is_so: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        ensure!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

pub fn kill(pid: i32, signal: nix::sys::signal::Signal) -> Outcome {
    Ok(nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        signal,
    )?)
}
