//! The command, ready to be executed where nothing can be allocated any more.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::{Failure, NOT_EXECUTABLE, NOT_FOUND, systemd};
use crate::sys::exec::{self, StringArray};

/// A command with its arguments, its environment, and every place where it may be found.
#[derive(Debug)]
pub(super) struct Program {
    name: OsString,
    /// The paths to try, in order.
    candidates: Vec<CString>,
    /// The shell for files without an interpreter line, then the command's own.
    argv: StringArray,
    envp: StringArray,
    /// The variables whose value is to be the command's own pid: their index in `envp`, and where
    /// their digits begin.
    own_pid: Vec<(usize, usize)>,
}

fn c_string(text: &OsStr) -> Result<CString, Failure> {
    // The arguments come from the kernel, which knows no NUL in them.
    CString::new(text.as_bytes()).map_err(Failure::own)
}

impl Program {
    /// The command of `command[0]`, to be looked for along PATH. `pid` is run-with's: variables of
    /// systemd's that name it will name the command. `variables` are set for it besides.
    pub(super) fn new(
        command: &[OsString],
        pid: u32,
        variables: &[(&str, String)],
    ) -> Result<Self, Failure> {
        let name = command.first().cloned().unwrap_or_default();
        let path = env::var_os("PATH");
        let candidates = exec::candidates(&name, path.as_deref());
        let mut argv = vec![c"/bin/sh".to_owned()];
        for arg in command {
            argv.push(c_string(arg)?);
        }
        let mut environment = exec::environment();
        for (name, value) in variables {
            let entry = format!("{name}=");
            environment.retain(|old| !old.as_bytes().starts_with(entry.as_bytes()));
            environment.push(c_string(format!("{entry}{value}").as_ref())?);
        }
        let mut own_pid = Vec::new();
        for (index, entry) in environment.iter_mut().enumerate() {
            if let Some(name) = pid_variable(entry.as_bytes(), pid) {
                own_pid.push((index, name.len() + 1));
                *entry = c_string(format!("{name}={}", exec::PID_DIGITS).as_ref())?;
            }
        }
        Ok(Self {
            candidates: candidates
                .iter()
                .map(|path| c_string(path))
                .collect::<Result<_, _>>()?,
            name,
            argv: StringArray::new(argv),
            envp: StringArray::new(environment),
            own_pid,
        })
    }

    /// The paths to try, for who wants to look at the file first.
    pub(super) fn candidates(&self) -> &[CString] {
        &self.candidates
    }

    /// Executes the command in the process with this pid, the calling one; returns only if that fails. System
    /// calls, nothing allocated, so that a fresh child can call it.
    pub(super) fn exec(&mut self, pid: i32) -> Errno {
        self.write_own_pid(pid.unsigned_abs());
        exec::exec_first(&self.candidates, &mut self.argv, &mut self.envp)
    }

    /// Writes the calling process's pid where it is wanted.
    fn write_own_pid(&mut self, pid: u32) {
        for (entry, start) in &self.own_pid {
            self.envp.write_decimal(*entry, *start, pid);
        }
    }

    /// Why the command was not executed.
    pub(super) fn failure(&self, errno: Errno) -> Failure {
        let status = match errno {
            Errno::ENOENT | Errno::ENOTDIR => NOT_FOUND,
            _ => NOT_EXECUTABLE,
        };
        let cause = std::io::Error::from(errno);
        Failure {
            status,
            message: format!("{}: {cause}", self.name.to_string_lossy()),
        }
    }
}

/// The variable of systemd's that this entry of the environment is, if its value is `pid`.
fn pid_variable(entry: &[u8], pid: u32) -> Option<&'static str> {
    systemd::PID_VARIABLES.into_iter().find(|name| {
        let rest = entry.strip_prefix(name.as_bytes());
        let value = rest.and_then(|rest| rest.strip_prefix(b"="));
        systemd::names(value.map(OsStr::from_bytes), pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_that_name_a_pid() {
        assert_eq!(pid_variable(b"LISTEN_PID=42", 42), Some("LISTEN_PID"));
        assert_eq!(pid_variable(b"WATCHDOG_PID=42", 42), Some("WATCHDOG_PID"));
        for entry in [
            &b"LISTEN_PID=43"[..],
            b"LISTEN_PID=",
            b"LISTEN_PID",
            b"LISTEN_PIDS=42",
            b"listen_pid=42",
            b"",
        ] {
            assert_eq!(pid_variable(entry, 42), None, "{entry:?}");
        }
    }
}
