//! What a process that does not end is doing; proc(5), as far as it may be read.

use std::fs;
use std::path::Path;

use super::super::captive::Stuck;
use super::proc;
use super::process::Process;

pub(super) fn look_at(process: &Process) -> Stuck {
    let mut stuck = Stuck {
        pid: process.pid().unsigned_abs(),
        state: None,
        wchan: String::new(),
        descendants: Vec::new(),
    };
    let Some(directory) = proc::directory(process) else {
        return stuck;
    };
    let stat = fs::read(directory.join("stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat).into_owned();
    // The name before it may have any character, also a parenthesis.
    stuck.state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    // 0 is what the kernel says to those who may not know.
    stuck.wchan = fs::read_to_string(directory.join("wchan"))
        .ok()
        .filter(|wchan| wchan != "0")
        .unwrap_or_default();
    collect(&directory, &mut stuck.descendants);
    stuck
}

/// Processes that move meanwhile may be missing: a report, not a way to find them all.
pub(super) fn collect(process: &Path, found: &mut Vec<u32>) {
    const MOST: usize = 1000;
    let Ok(tasks) = fs::read_dir(process.join("task")) else {
        return;
    };
    for task in tasks.flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().flat_map(str::parse::<u32>) {
            if found.len() < MOST && !found.contains(&child) {
                found.push(child);
                collect(Path::new(&format!("/proc/{child}")), found);
            }
        }
    }
}
