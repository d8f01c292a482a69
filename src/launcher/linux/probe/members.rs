//! The processes of a captive's tree, as `/proc` shows them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::proc;
use super::super::process::Process;
use super::super::protocol::Name;
use super::super::tree::is_marked_in;

/// Their directories: the captive's own first.
pub(super) fn of(process: &Process) -> impl Iterator<Item = PathBuf> + '_ {
    let main = proc::directory(process);
    let mut near = Vec::new();
    if let Some(main) = &main {
        super::super::stuck::collect(main, &mut near);
    }
    let near = near
        .into_iter()
        .map(|pid| PathBuf::from(format!("/proc/{pid}")));
    // Only a tree knows those whose parents have ended.
    let everybody = process
        .tree()
        .map(|_| fs::read_dir("/proc").into_iter().flatten().flatten())
        .into_iter()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_process(path));
    let belongs = belongs(process);
    main.into_iter()
        .chain(near)
        .chain(everybody.filter(move |path| belongs(path)))
}

/// Whether the process of this pid, in our PID namespace, is one.
pub(super) fn is_member(process: &Process, pid: i32) -> bool {
    let path = PathBuf::from(format!("/proc/{pid}"));
    if pid <= 0 {
        return false;
    }
    if belongs(process)(&path) {
        return true;
    }
    let mut near = Vec::new();
    if let Some(main) = proc::directory(process) {
        super::super::stuck::collect(&main, &mut near);
    }
    near.contains(&pid.unsigned_abs())
}

/// Whether one of these sockets is among a process's descriptors; proc_pid_fd(5).
pub(super) fn has_socket(member: &Path, inodes: &[u64]) -> bool {
    let names: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let descriptors = fs::read_dir(member.join("fd"));
    descriptors.into_iter().flatten().flatten().any(|entry| {
        fs::read_link(entry.path())
            .is_ok_and(|target| names.iter().any(|name| target.as_os_str() == name.as_str()))
    })
}

fn is_process(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit))
}

/// What a tree's processes have that others have not.
fn belongs(process: &Process) -> impl Fn(&Path) -> bool + 'static {
    let tree = process.tree();
    let namespace = tree
        .and_then(|tree| tree.init())
        .and_then(|init| proc::directory(init))
        .and_then(|init| fs::read_link(init.join("ns/pid")).ok());
    let name = tree.map(|tree| Name::of(tree.for_message().1));
    let in_cgroup = tree.is_some_and(|tree| tree.cgroup().is_some());
    let mark = tree.and_then(|tree| tree.mark());
    move |path| {
        if let Some(namespace) = &namespace {
            return fs::read_link(path.join("ns/pid")).is_ok_and(|own| own == *namespace);
        }
        if let (true, Some(name)) = (in_cgroup, &name) {
            let groups = fs::read(path.join("cgroup")).unwrap_or_default();
            return groups
                .split(|byte| *byte == b'\n')
                .filter_map(|line| line.strip_prefix(b"0::"))
                .any(|group| {
                    group
                        .split(|byte| *byte == b'/')
                        .any(|part| part == name.bytes())
                });
        }
        if let Some((_, name)) = &mark {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            return is_marked_in(&environment, name);
        }
        false
    }
}
