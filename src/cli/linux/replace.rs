//! `--exec`: run-with becomes the command, and the kernel's parent-death signal is all there is.

use std::ffi::CStr;
use std::os::unix::fs::PermissionsExt;

use super::super::Failure;
use super::super::args::{Invocation, ParentFlag};
use super::is_bound;
use super::program::Program;
use crate::exit_with_parent::{ExitWithParent, Mechanism};
use crate::run_with::PrepareError;
use crate::sys::linux as sys;

/// Becomes the command; returns only if that fails.
pub(crate) fn become_command(invocation: &Invocation) -> Result<i32, Failure> {
    let bound = is_bound(invocation)?;
    let mut program = Program::new(&invocation.command, std::process::id())?;
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
    let errno = program.exec();
    Err(program.failure(errno))
}

/// The kernel clears the parent-death signal when it executes a program that gains an id or a
/// capability (prctl(2)): that is found out beforehand, in the root where the command is looked up.
fn refuse_set_id(program: &Program) -> Result<(), Failure> {
    for path in program.candidates() {
        if let Some(gains) = gains(path) {
            return Err(Failure::own(format!(
                "--exec: {} is {gains}: the kernel clears the parent-death signal; leave out --exec",
                path.to_string_lossy()
            )));
        }
        if nix::unistd::access(path.as_c_str(), nix::unistd::AccessFlags::X_OK) == Ok(()) {
            break;
        }
    }
    Ok(())
}

/// What executing this file would give.
fn gains(path: &CStr) -> Option<&'static str> {
    use std::os::unix::ffi::OsStrExt;
    let file = std::ffi::OsStr::from_bytes(path.to_bytes());
    let mode = std::fs::metadata(file)
        .ok()
        .filter(std::fs::Metadata::is_file)?
        .permissions()
        .mode();
    // Set-group-ID without group execution means nothing; exec ignores it.
    let set_gid = mode & 0o2010 == 0o2010;
    match (
        mode & 0o4000 != 0,
        set_gid,
        sys::has_file_capabilities(path),
    ) {
        (true, _, _) => Some("set-user-ID"),
        (_, true, _) => Some("set-group-ID"),
        (_, _, true) => Some("given capabilities"),
        _ => None,
    }
}
