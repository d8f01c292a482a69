//! `--exec`: run-with becomes the command, and the kernel's parent-death signal is all there is.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::args::{Invocation, ParentFlag};
use super::given::is_bound;
use super::program::Program;
use super::{Failure, platform};
use crate::exit_with_parent::{ExitWithParent, Mechanism};
use crate::run_with::PrepareError;

/// Becomes the command; returns only if that fails.
pub(super) fn become_command(invocation: &Invocation) -> Result<i32, Failure> {
    let bound = is_bound(invocation)?;
    if let (true, Some(why)) = (bound, platform::exec_refusal()) {
        return Err(Failure::own(format!("--exec: {why}")));
    }
    let pid = std::process::id();
    let mut program = Program::new(&invocation.command, pid, &[])?;
    let mut binding = ExitWithParent::new()
        .signal(invocation.signal)
        .mechanism(Mechanism::ParentDeathSignal);
    if let ParentFlag::Pid(pid) = invocation.parent {
        binding = binding.expect_parent(pid);
    }
    let prepared = invocation
        .options
        .prepare_with(|| binding.arm().map_err(PrepareError::from))
        .map_err(|error| Failure::caused(&error))?;
    prepared.apply().map_err(|error| Failure::caused(&error))?;
    if bound {
        refuse_set_id(&program)?;
    }
    let errno = program.exec(i32::try_from(pid).unwrap_or(0));
    Err(program.failure(errno))
}

/// The kernel clears the parent-death signal when it executes a program that gains an id or a
/// capability (prctl(2)): that is found out beforehand, in the root where the command is looked up.
///
/// Not seen: an interpreter registered with binfmt_misc, and that of a script we may not read.
fn refuse_set_id(program: &Program) -> Result<(), Failure> {
    for path in program.candidates() {
        let mut file = path.clone();
        for _ in 0..=INTERPRETERS {
            if let Some(gains) = gains(&file) {
                return Err(Failure::own(format!(
                    "--exec: {} is {gains}: the kernel clears the parent-death signal; leave out --exec",
                    file.to_string_lossy()
                )));
            }
            match interpreter(&file) {
                Some(next) => file = next,
                None => break,
            }
        }
        if nix::unistd::access(path.as_c_str(), nix::unistd::AccessFlags::X_OK) == Ok(()) {
            break;
        }
    }
    Ok(())
}

/// How many interpreters the kernel goes through before it answers ELOOP (exec_binprm, fs/exec.c).
const INTERPRETERS: usize = 5;

/// How much of a file the kernel looks at (BINPRM_BUF_SIZE).
const FIRST_LINE: usize = 256;

fn path_of(path: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(path.to_bytes()))
}

/// What the first line of a script names, from which the kernel takes the credentials.
fn interpreter(script: &CStr) -> Option<CString> {
    // Asked first and never waited for: only a regular file can be executed.
    if !fs::metadata(path_of(script)).is_ok_and(|meta| meta.is_file()) {
        return None;
    }
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path_of(script)).ok()?;
    let mut start = Vec::new();
    file.take(FIRST_LINE as u64).read_to_end(&mut start).ok()?;
    CString::new(first_word(&start)?).ok()
}

/// The first word after `#!`, as load_script (fs/binfmt_script.c) reads it: blanks are spaces and tabs,
/// the line ends at a newline or a NUL, and a word that the buffer cuts off is no interpreter.
fn first_word(start: &[u8]) -> Option<&[u8]> {
    let rest = start.strip_prefix(b"#!")?;
    let line_end = |b: &u8| matches!(b, b'\n' | 0);
    let line = rest.split(line_end).next().unwrap_or_default();
    let is_cut = start.len() == FIRST_LINE && line.len() == rest.len();
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let from = line.iter().position(|b| !blank(b))?;
    let words = line.get(from..)?;
    match words.iter().position(blank) {
        Some(end) => words.get(..end),
        None if is_cut => None,
        None => Some(words),
    }
}

/// What executing this file would give.
fn gains(path: &CStr) -> Option<&'static str> {
    let mode = fs::metadata(path_of(path))
        .ok()
        .filter(fs::Metadata::is_file)?
        .permissions()
        .mode();
    platform::gains(mode, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_first_line_names() {
        for (start, word) in [
            (&b"#!/bin/sh\n"[..], Some(&b"/bin/sh"[..])),
            (b"#! \t/bin/sh -e x\nmore", Some(b"/bin/sh")),
            (b"#!/bin/sh\t-e", Some(b"/bin/sh")),
            (b"#!/bin/sh", Some(b"/bin/sh")),
            (b"#!sh\0more\n", Some(b"sh")),
            (b"#!  \n/bin/sh\n", None),
            (b"#!", None),
            (b"# !/bin/sh\n", None),
            (b"\x7fELF", None),
            (b"", None),
        ] {
            assert_eq!(first_word(start), word, "{start:?}");
        }
        let long = [&b"#!/"[..], &[b'x'; FIRST_LINE]].concat();
        assert_eq!(first_word(&long[..FIRST_LINE]), None);
        assert_eq!(
            first_word(&long[..FIRST_LINE - 1]),
            Some(&long[2..FIRST_LINE - 1])
        );
    }
}
