//! A launch with everything resolved and allocated, so that the child only makes system calls.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::super::command::{Command, Defaults, LauncherExit, Resource};
use super::super::stdio::{Pipes, Stdio};
use super::super::{Containment, SpawnError, SpawnStep};
use super::guard::{Helper, Line};
use super::protocol::{ADD, Message};
use super::stage::{self, Stage};
use super::tree::Tree;
use crate::run_with::Plan;
use crate::sys::linux::{self as sys, StringArray};
use crate::sys::signal::Signal;

/// What the child executes.
#[derive(Debug)]
pub(super) enum Program {
    /// The program itself.
    Direct {
        candidates: Vec<CString>,
        /// The shell first, for a file without an interpreter line.
        argv: StringArray,
        envp: StringArray,
    },
    /// The crate's helper.
    Stage {
        /// The file in memory.
        program: RawFd,
        /// The descriptors that it takes over and closes: its pipe, and the new root or -1.
        kept: [RawFd; 2],
        argv: StringArray,
        envp: StringArray,
    },
}

/// A descriptor for the child.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) source: RawFd,
    pub(super) target: RawFd,
}

/// What the child is to do.
#[derive(Debug)]
pub(super) struct Request {
    /// The launcher's pid.
    pub(super) launcher: i32,
    /// What getppid(2) answers while the launcher lives: its pid, or 0 from within another PID namespace.
    pub(super) parent: i32,
    /// The second line; 0 for none.
    pub(super) parent_death_signal: i32,
    pub(super) guard_socket: Option<RawFd>,
    pub(super) message: Message,
    /// What the guard gets of the tree.
    pub(super) tree_fds: Vec<RawFd>,
    /// Flags for its clone: CLONE_NEWPID and CLONE_NEWUSER for an init, CLONE_PIDFD_AUTOKILL.
    pub(super) flags: u64,
    /// The pidfd of the init whose PID namespace is its own, and whether to enter that one's user namespace.
    pub(super) namespace: Option<(RawFd, bool)>,
    /// The cgroup that it belongs to.
    pub(super) cgroup: Option<RawFd>,
    /// It is to move there itself.
    pub(super) joins_cgroup: bool,
    pub(super) session: bool,
    pub(super) group: Option<i32>,
    pub(super) terminal: Option<RawFd>,
    pub(super) network_namespace: Option<RawFd>,
    pub(super) descriptors: Vec<Given>,
    /// What stays open; three 0s first, which make room for what only the child knows.
    pub(super) keep: Vec<RawFd>,
    pub(super) umask: Option<u32>,
    pub(super) nice: Option<i32>,
    pub(super) directory: Option<CString>,
    pub(super) limits: Vec<(i32, [u64; 2])>,
    pub(super) ignored: u64,
    pub(super) defaulted: u64,
    pub(super) mask: u64,
    pub(super) program: Program,
    /// The entry of the environment that is to name the captive's pid: its place, and where the digits begin.
    pub(super) own_pid: Option<(usize, usize)>,
    names: Names,
    stage: Option<Stage>,
    /// Kept open until the child has them.
    held: Vec<OwnedFd>,
    tree: Option<Arc<Tree>>,
    guard: Option<Arc<OwnedFd>>,
}

/// The operands of steps, for errors.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) group: i32,
    pub(super) nice: i32,
    pub(super) directory: PathBuf,
    pub(super) targets: Vec<i32>,
    pub(super) limits: Vec<Resource>,
}

/// A request, and the launcher's ends of its pipes.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) request: Request,
    pub(super) pipes: Pipes,
}

impl Message {
    /// The bytes to send.
    pub(super) fn as_bytes(&self) -> &[u8] {
        sys::bytes_of(self)
    }
}

// SAFETY: integers only, in an order that leaves no padding.
#[allow(unsafe_code)]
unsafe impl sys::Plain for Message {}

impl Request {
    /// Resolves what a command says.
    pub(super) fn prepare(
        command: &Command,
        defaults: &Defaults,
        id: u64,
        helper: &Helper,
        tree: Option<&Arc<Tree>>,
        extra: &[(OsString, OsString)],
    ) -> Result<Prepared, SpawnError> {
        let plan = plan(command)?;
        let mut held = Vec::new();
        let mut pipes = Pipes::default();
        let descriptors = descriptors(command, defaults, &mut held, &mut pipes)?;
        let (launcher_signal, grace) = match command.launcher_exit {
            LauncherExit::Kill => (Signal::KILL, -1),
            LauncherExit::Signal { signal, kill_after } => (
                signal,
                i64::try_from(kill_after.as_millis()).unwrap_or(i64::MAX),
            ),
        };
        let directory = match &command.current_dir {
            Some(directory) => Some(c_string(command, directory.as_os_str())?),
            None => None,
        };
        let second_line = if command.detachable || command.order != 0 {
            0
        } else {
            launcher_signal.number()
        };
        let (tree_bits, name) = tree.map_or((0, 0), |tree| tree.for_message());
        let namespace = tree.and_then(|tree| tree.namespace());
        let namespace = namespace
            .map(|namespace| (namespace.init().as_fd().as_raw_fd(), namespace.is_of_user()));
        let cgroup = tree.and_then(|tree| tree.cgroup());
        let (program, own_pid) = program(command, environment(command, extra, tree)?)?;
        let autokill = command.containment == Containment::PidfdAutokill;
        let mut request = Self {
            parent: if namespace.is_some() {
                0
            } else {
                sys::getpid()
            },
            tree_fds: tree.map(|tree| tree.descriptors()).unwrap_or_default(),
            flags: if autokill { sys::CLONE_AUTOKILL } else { 0 },
            namespace,
            cgroup: cgroup.map(|cgroup| cgroup.as_fd().as_raw_fd()),
            tree: tree.cloned(),
            parent_death_signal: second_line,
            message: Message {
                id,
                grace,
                kind: ADD,
                signal: launcher_signal.number(),
                order: command.order,
                tree: tree_bits,
                name,
            },
            session: command.session,
            group: command.process_group,
            terminal: command.terminal.as_ref().map(AsRawFd::as_raw_fd),
            network_namespace: command.network_namespace.as_ref().map(AsRawFd::as_raw_fd),
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
            held,
            own_pid,
            ..Self::bare(program, descriptors)
        };
        if !plan.steps().is_empty() {
            stage::insert(&mut request, plan, command, helper)?;
        }
        Ok(Prepared { request, pipes })
    }

    /// One of the crate's own, to be executed from a file in memory: no user's options.
    pub(super) fn helper(
        program: RawFd,
        argv: Vec<CString>,
        descriptors: Vec<Given>,
        parent_death_signal: i32,
    ) -> Self {
        let program = Program::Stage {
            program,
            kept: [-1; 2],
            argv: StringArray::new(argv),
            envp: StringArray::new(Vec::new()),
        };
        Self {
            parent_death_signal,
            defaulted: u64::MAX,
            names: Names {
                targets: descriptors.iter().map(|given| given.target).collect(),
                ..Names::default()
            },
            ..Self::bare(program, descriptors)
        }
    }

    /// As the init of a PID namespace: nothing there says whether its parent lives.
    pub(super) fn in_new_namespaces(mut self, flags: i32) -> Self {
        self.flags = u64::from(flags.unsigned_abs());
        self.parent = 0;
        self
    }

    pub(super) fn tree(&self) -> Option<&Arc<Tree>> {
        self.tree.as_ref()
    }

    /// A program and its descriptors.
    fn bare(program: Program, descriptors: Vec<Given>) -> Self {
        let targets = descriptors.iter().map(|given| given.target);
        Self {
            launcher: sys::getpid(),
            parent: sys::getpid(),
            tree_fds: Vec::new(),
            flags: 0,
            namespace: None,
            cgroup: None,
            joins_cgroup: false,
            parent_death_signal: 0,
            guard_socket: None,
            message: Message::default(),
            session: false,
            group: None,
            terminal: None,
            network_namespace: None,
            keep: [0, 0, 0, 0, 1, 2].into_iter().chain(targets).collect(),
            descriptors,
            umask: None,
            nice: None,
            directory: None,
            limits: Vec::new(),
            ignored: 0,
            defaulted: 0,
            mask: 0,
            program,
            own_pid: None,
            names: Names::default(),
            stage: None,
            held: Vec::new(),
            tree: None,
            guard: None,
        }
    }

    /// With the guard to tell.
    pub(super) fn with_guard(mut self, line: &Line) -> Self {
        let socket = line.socket();
        self.guard_socket = Some(socket.as_raw_fd());
        self.guard = Some(socket);
        self
    }

    pub(super) fn message(&self) -> Message {
        self.message
    }

    pub(super) fn names(&self) -> Names {
        self.names.clone()
    }

    /// The launcher's side of the stage, if there is one.
    pub(super) fn take_stage(&mut self) -> Option<Stage> {
        self.stage.take()
    }

    /// Makes the helper the program, which then executes the command.
    pub(super) fn set_stage(&mut self, stage: Stage, program: Program, held: [Option<OwnedFd>; 2]) {
        self.program = program;
        self.stage = Some(stage);
        self.held.extend(held.into_iter().flatten());
    }
}

/// The variables of a captive.
type Environment = BTreeMap<OsString, OsString>;

/// What the command says to execute, and with what; and where its own pid is to be written.
fn program(
    command: &Command,
    environment: Environment,
) -> Result<(Program, Option<(usize, usize)>), SpawnError> {
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
    let program = Program::Direct {
        candidates,
        argv: StringArray::new(argv),
        envp: StringArray::new(envp),
    };
    Ok((program, own_pid))
}

/// sd_listen_fds(3)
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// What can be seen to be wrong before anything is made.
pub(super) fn check(command: &Command) -> Result<(), SpawnError> {
    environment(command, &[], None).map(drop)
}

/// The user that a command changes to.
pub(super) fn user_of(command: &Command) -> Result<Option<u32>, SpawnError> {
    Ok(plan(command)?.user())
}

fn plan(command: &Command) -> Result<Plan, SpawnError> {
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
fn environment(
    command: &Command,
    extra: &[(OsString, OsString)],
    tree: Option<&Arc<Tree>>,
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
    if let Some((variable, name)) = tree.and_then(|tree| tree.mark()) {
        let variable = OsStr::from_bytes(variable.strip_suffix(b"=").unwrap_or(variable));
        environment.insert(
            variable.to_owned(),
            OsStr::from_bytes(name.bytes()).to_owned(),
        );
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

fn descriptors(
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
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
                    .map_err(|errno: Errno| failed(errno.into()))?;
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

fn hold(held: &mut Vec<OwnedFd>, fd: OwnedFd) -> RawFd {
    let raw = fd.as_raw_fd();
    held.push(fd);
    raw
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn set_of(signals: &[Signal]) -> u64 {
    signals
        .iter()
        .fold(0, |set, signal| set | bit(signal.number()))
}
