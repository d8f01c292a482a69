//! A captive's cgroup, by its directory; cgroups(7), version 2.

use crate::files::{self, each_entry, open_directory};
use crate::protocol::Name;
use crate::sys;

/// As deep as cgroups below one are removed.
const DEPTH: u32 = 16;

/// SIGKILL to all that is in it; one that has been removed is empty.
pub fn kill(directory: i32) {
    const WRITE_ONLY: usize = 1;
    if let Ok(file) = files::open(directory, b"cgroup.kill\0", WRITE_ONLY) {
        files::write(file, b"1");
        sys::close(file);
    }
}

/// What tells of its becoming empty. ENOENT and ENODEV: it has been removed; anything else (EMFILE) says nothing of it.
pub fn events(directory: i32) -> Result<i32, i32> {
    files::open(directory, b"cgroup.events\0", 0)
}

/// Also so where it cannot be read any more: then it has been removed.
pub fn is_empty(events: i32) -> bool {
    const BUSY: &[u8] = b"populated 1";
    let mut text = [0; 256];
    let read = files::read_at_start(events, &mut text);
    let text = text.get(..read).unwrap_or_default();
    !text.windows(BUSY.len()).any(|words| words == BUSY)
}

/// Removes it and what is below, as far as it is empty.
pub fn remove(directory: i32, name: &Name) {
    remove_below(directory, DEPTH);
    if let Ok(parent) = open_directory(directory, b"..\0") {
        files::remove_directory(parent, name.with_nul());
        sys::close(parent);
    }
}

fn remove_below(directory: i32, depth: u32) {
    each_entry(directory, &mut |name, is_directory| {
        if !is_directory {
            return;
        }
        if depth > 0 {
            if let Ok(below) = open_directory(directory, name) {
                remove_below(below, depth - 1);
                sys::close(below);
            }
        }
        files::remove_directory(directory, name);
    });
}
