//! What a command says, resolved and allocated before there is a child: the same for every system that launches.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::command::{Command, Defaults};
use super::platform::sys::{self, StringArray};
use super::settings::{Given, Names, Settings};
use super::stdio::{Pipes, Stdio};
use super::{SpawnError, SpawnStep};
use crate::run_with::Plan;
use crate::sys::signal::Signal;

/// What execve(2) is called with.
#[derive(Debug)]
pub(super) struct Executable {
    /// Where the program is looked for, in order.
    pub(super) candidates: Vec<CString>,
    /// The shell first, for a file without an interpreter line.
    pub(super) argv: StringArray,
    pub(super) envp: StringArray,
    /// The entry of the environment that is to name the captive's pid: its place, and where the digits begin.
    pub(super) own_pid: Option<(usize, usize)>,
}

/// The variables of a captive.
pub(super) type Environment = BTreeMap<OsString, OsString>;

impl Executable {
    /// What the command says to execute, and with what.
    pub(super) fn new(command: &Command, environment: Environment) -> Result<Self, SpawnError> {
        let path = environment.get(OsStr::new("PATH")).map(OsString::as_os_str);
        let candidates = sys::candidates(&command.program, path)
            .iter()
            .map(|path| c_string(command, path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut argv = vec![c"/bin/sh".to_owned()];
        let name = command.arg0.as_ref().unwrap_or(&command.program);
        for arg in std::iter::once(name).chain(&command.args) {
            argv.push(c_string(command, arg)?);
        }
        let mut envp = Vec::with_capacity(environment.len());
        let mut own_pid = None;
        for (mut entry, value) in environment {
            if entry == LISTEN_PID && !command.listeners.is_empty() {
                own_pid = Some((envp.len(), LISTEN_PID.len() + 1));
            }
            entry.push("=");
            entry.push(value);
            envp.push(c_string(command, &entry)?);
        }
        Ok(Self {
            candidates,
            argv: StringArray::new(argv),
            envp: StringArray::new(envp),
            own_pid,
        })
    }
}

/// sd_listen_fds(3)
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// What can be seen to be wrong before anything is made.
pub(super) fn check(command: &Command) -> Result<(), SpawnError> {
    environment(command, &[]).map(drop)
}

/// The steps of its options of [`run_with`](Command::run_with).
pub(super) fn plan(command: &Command) -> Result<Plan, SpawnError> {
    let options = &command.run_with;
    if options.get_exit_with_parent() == Some(false) {
        return Err(command.invalid(
            "exit-with-parent=off: a captive ends with its launcher; `detachable` lets it go later",
        ));
    }
    if options.get_async_teardown() == Some(true) {
        return Err(command.invalid(
            "async-teardown=on: only the program itself can share its memory \
             (captive::async_teardown::start())",
        ));
    }
    Plan::resolve(options).map_err(SpawnError::Prepare)
}

pub(super) fn c_string(command: &Command, text: &OsStr) -> Result<CString, SpawnError> {
    CString::new(text.as_bytes()).map_err(|_| command.invalid(format!("{text:?} has a NUL byte")))
}

/// The command's variables, and the crate's own over them.
pub(super) fn environment(
    command: &Command,
    extra: &[(OsString, OsString)],
) -> Result<Environment, SpawnError> {
    let mut environment = BTreeMap::new();
    if !command.clear_env {
        environment.extend(std::env::vars_os());
        // The launcher's own, to whom the descriptors belong. In a PID namespace the number could even be the captive's,
        // and LISTEN_PIDFDID would have it refuse what it is given.
        for name in [LISTEN_PID, LISTEN_PIDFDID, LISTEN_FDS, LISTEN_FDNAMES] {
            environment.remove(OsStr::new(name));
        }
    }
    for (key, value) in &command.env {
        if key.is_empty() || key.as_bytes().contains(&b'=') {
            return Err(command.invalid(format!("{key:?} cannot be a variable's name")));
        }
        match value {
            Some(value) => environment.insert(key.clone(), value.clone()),
            None => environment.remove(key),
        };
    }
    if !command.listeners.is_empty() {
        let names: Vec<&str> = command.listeners.iter().map(|(_, name)| &**name).collect();
        if let Some(name) = names.iter().find(|name| !is_listener_name(name)) {
            return Err(command.invalid(format!("{name:?} cannot be a listener's name")));
        }
        let mut set = |name: &str, value: String| environment.insert(name.into(), value.into());
        set(LISTEN_PID, sys::PID_DIGITS.to_owned());
        set(LISTEN_FDS, names.len().to_string());
        set(LISTEN_FDNAMES, names.join(":"));
    }
    environment.extend(extra.iter().cloned());
    Ok(environment)
}

/// sd_listen_fds_with_names(3): what systemd takes for FileDescriptorName=.
fn is_listener_name(name: &str) -> bool {
    name.len() <= 255
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b':')
}

/// The captive's descriptors; `held` owns those that were opened for it, `pipes` the launcher's ends.
pub(super) fn descriptors(
    command: &Command,
    defaults: &Defaults,
    held: &mut Vec<OwnedFd>,
    pipes: &mut Pipes,
) -> Result<Vec<Given>, SpawnError> {
    let failed = |errno: std::io::Error| SpawnError::Step {
        program: command.program.clone(),
        step: SpawnStep::OpenStdio,
        errno,
    };
    let mut given = Vec::new();
    let streams = [
        command.stdin.as_ref().unwrap_or(&defaults.stdin),
        command.stdout.as_ref().unwrap_or(&defaults.output),
        command.stderr.as_ref().unwrap_or(&defaults.output),
    ];
    for (target, stream) in (0..).zip(streams) {
        let source = match stream {
            Stdio::Inherit => continue,
            Stdio::Fd(fd) => fd.as_raw_fd(),
            Stdio::Null => {
                let null = OpenOptions::new().read(true).write(true).open("/dev/null");
                hold(held, null.map_err(failed)?.into())
            }
            Stdio::Piped => {
                let (read, write) = sys::pipe().map_err(|errno: Errno| failed(errno.into()))?;
                let theirs = match target {
                    0 => {
                        pipes.stdin = Some(write.into());
                        read
                    }
                    1 => {
                        pipes.stdout = Some(read.into());
                        write
                    }
                    _ => {
                        pipes.stderr = Some(read.into());
                        write
                    }
                };
                hold(held, theirs)
            }
        };
        given.push(Given { source, target });
    }
    // sd_listen_fds(3), SD_LISTEN_FDS_START.
    for (target, (fd, _)) in (3..).zip(&command.listeners) {
        if command
            .descriptors
            .iter()
            .any(|(_, other)| *other == target)
        {
            let what = format!("descriptor {target} is a listener's, and given otherwise");
            return Err(command.invalid(what));
        }
        given.push(Given {
            source: fd.as_raw_fd(),
            target,
        });
    }
    for (fd, target) in &command.descriptors {
        if *target < 0 {
            return Err(command.invalid(format!("{target} is no descriptor's number")));
        }
        given.retain(|other| other.target != *target);
        given.push(Given {
            source: fd.as_raw_fd(),
            target: *target,
        });
    }
    Ok(given)
}

impl Settings {
    /// As the command says, with these descriptors.
    pub(super) fn new(command: &Command, descriptors: Vec<Given>) -> Result<Self, SpawnError> {
        let directory = match &command.current_dir {
            Some(directory) => Some(c_string(command, directory.as_os_str())?),
            None => None,
        };
        Ok(Self {
            session: command.session,
            group: command.process_group,
            terminal: command.terminal.as_ref().map(AsRawFd::as_raw_fd),
            umask: command.umask,
            nice: command.nice,
            directory,
            limits: command
                .limits
                .iter()
                .map(|(resource, limit)| (resource.0, *limit))
                .collect(),
            ignored: set_of(&command.ignored),
            // std does the same: it has made itself ignore SIGPIPE, and no other program expects that.
            defaulted: set_of(&command.defaulted)
                | (bit(libc::SIGPIPE) & !set_of(&command.ignored)),
            mask: set_of(&command.blocked),
            names: Names {
                group: command.process_group.unwrap_or(0),
                nice: command.nice.unwrap_or(0),
                directory: command.current_dir.clone().unwrap_or_default(),
                targets: descriptors.iter().map(|given| given.target).collect(),
                limits: command
                    .limits
                    .iter()
                    .map(|(resource, _)| *resource)
                    .collect(),
            },
            ..Self::bare(descriptors)
        })
    }
}

fn hold(held: &mut Vec<OwnedFd>, fd: OwnedFd) -> RawFd {
    let raw = fd.as_raw_fd();
    held.push(fd);
    raw
}

pub(super) fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn set_of(signals: &[Signal]) -> u64 {
    signals
        .iter()
        .fold(0, |set, signal| set | bit(signal.number()))
}
