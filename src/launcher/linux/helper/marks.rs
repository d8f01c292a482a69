//! A tree that is found by its marks: what has its name in the environment; proc_pid_environ(5).

use crate::files::{self, each_entry, open_directory};
use crate::protocol::{MARK, Name};
use crate::sys;

/// SIGKILL to all that one walk over `/proc` finds; whether it found any.
pub fn kill(name: &Name) -> bool {
    let Ok(proc) = files::open(0, b"/proc\0", files::DIRECTORY) else {
        return false;
    };
    let mut found = false;
    each_entry(proc, &mut |entry, _| {
        if !entry.iter().all(|byte| byte.is_ascii_digit() || *byte == 0) {
            return;
        }
        // A directory of /proc is a pidfd to pidfd_send_signal(2): of this process and no other.
        let Ok(process) = open_directory(proc, entry) else {
            return;
        };
        if has_mark(process, name) {
            found = true;
            let _ = sys::pidfd_send_signal(process, sys::SIGKILL);
        }
        sys::close(process);
    });
    sys::close(proc);
    found
}

fn has_mark(process: i32, name: &Name) -> bool {
    let Ok(environ) = files::open(process, b"environ\0", 0) else {
        return false;
    };
    let mark = || MARK.iter().chain(name.bytes());
    let mut rest = mark();
    // Whether the entry that is being read is the mark so far.
    let mut so_far = true;
    let mut found = false;
    let mut text = [0; 1024];
    while !found {
        let read = files::read(environ, &mut text);
        if read == 0 {
            break;
        }
        for byte in text.get(..read).unwrap_or_default() {
            if *byte == 0 {
                found |= so_far && rest.next().is_none();
                (rest, so_far) = (mark(), true);
            } else if so_far {
                so_far = rest.next() == Some(byte);
            }
        }
    }
    sys::close(environ);
    found
}
