//! What this system offers and what run-with would use. Every probe leaves everything as it is.

use nix::unistd::{getegid, geteuid, getppid};

use super::super::mechanisms::{Fact, Offer, Survey, Value};
use super::sys::{self, Queue};
use crate::sys::event_source::{EventSource, Interest, Key};

/// Looks at the system, and at this process.
pub(crate) fn survey() -> Survey {
    let queue = probe_queue();
    Survey {
        system: std::env::consts::OS.to_owned(),
        process: process(),
        options: options(queue.is_ok()),
        mechanisms: mechanisms(queue),
    }
}

/// Whether a process's exit can be waited for: tried with our own.
fn probe_queue() -> nix::Result<()> {
    Queue::new()?.add(Key(0), Interest::Exit(sys::getpid()))
}

fn process() -> Vec<Fact> {
    let parent = u32::try_from(getppid().as_raw()).unwrap_or(0);
    let (kind, meaning) = match parent {
        1 => ("init", "pid 1: the launcher has gone, or is pid 1 itself"),
        0 => ("outside", "its pid is not known here"),
        _ => (
            "process",
            "the launcher, or a reaper that adopted us: --expect-parent and --parent-fd tell",
        ),
    };
    let fact = |name, value, note: &str| Fact {
        name,
        value,
        note: note.to_owned(),
    };
    vec![
        fact("pid", Value::Number(std::process::id()), ""),
        fact("parent", Value::Number(parent), ""),
        fact("parent-kind", Value::Word(kind), meaning),
        fact("euid", Value::Number(geteuid().as_raw()), ""),
        fact("egid", Value::Number(getegid().as_raw()), ""),
    ]
}

fn offer(name: &'static str, available: bool, yes: &str, no: &str) -> Offer {
    Offer {
        name,
        available,
        note: if available { yes } else { no }.to_owned(),
    }
}

fn mechanisms(queue: nix::Result<()>) -> Vec<Offer> {
    let refused = queue.err().map_or_else(String::new, |errno| {
        format!("{errno}; without it there is no run-with")
    });
    vec![
        offer(
            "kqueue",
            queue.is_ok(),
            "EVFILT_PROC: tells the exit of the parent and of the command",
            &refused,
        ),
        offer(
            "process-descriptors",
            sys::has_process_descriptors(),
            "pdfork: the kernel ends the command when run-with has ended (not tried, that would make a \
             process)",
            "run-with killed together with its guard leaves the command alive",
        ),
        offer(
            "reapers",
            sys::has_reapers(),
            "PROC_REAP_ACQUIRE: holds the command's tree (not tried, that cannot be undone)",
            "there are no trees",
        ),
        offer(
            "parent-death-signal",
            sys::has_parent_death_signal(),
            "PROC_PDEATHSIG_CTL: all there is with --exec",
            "without it there is no exit-with-parent=on with --exec",
        ),
    ]
}

fn options(queue: bool) -> Vec<Offer> {
    let root = geteuid().is_root();
    vec![
        offer(
            "exit-with-parent",
            queue,
            "the parent's exit as an event, watched by run-with and its guard",
            "kqueue is refused",
        ),
        offer(
            "exit-with-parent --exec",
            sys::has_parent_death_signal(),
            "parent-death signal alone: lost when a set-id program is executed",
            "nothing that watches the parent survives an exec",
        ),
        offer(
            "chroot",
            root,
            "chroot in the command's process, before its exec",
            "needs root",
        ),
        offer(
            "user",
            root,
            "setgroups, setgid, setuid in the command's process, and the proof",
            "needs root",
        ),
        offer(
            "async-teardown",
            false,
            "",
            "not for a command, whose memory is its own after exec; Linux alone has it for others",
        ),
        offer(
            "--tree",
            sys::has_reapers(),
            "a reaper: run-with itself; if that is killed, what the command started lives on",
            "this system has nothing that holds a process and all its descendants",
        ),
        offer("--server", false, "", "not on this system"),
    ]
}
