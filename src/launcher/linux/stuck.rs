//! What a process that does not end is doing; proc(5), as far as it may be read.

use std::fs;

use super::super::captive::Stuck;

pub(super) fn look_at(pid: i32) -> Stuck {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat).into_owned();
    // The name before it may have any character, also a parenthesis.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    let wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let mut descendants = Vec::new();
    collect(pid, &mut descendants);
    Stuck {
        pid: pid.unsigned_abs(),
        state,
        // 0 is what the kernel says to those who may not know.
        wchan: if wchan == "0" { String::new() } else { wchan },
        descendants,
    }
}

/// Processes that move meanwhile may be missing: a report, not a way to find them all.
fn collect(pid: i32, found: &mut Vec<u32>) {
    const MOST: usize = 1000;
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return;
    };
    for task in tasks.flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().flat_map(str::parse::<u32>) {
            if found.len() < MOST && !found.contains(&child) {
                found.push(child);
                if let Ok(child) = i32::try_from(child) {
                    collect(child, found);
                }
            }
        }
    }
}
