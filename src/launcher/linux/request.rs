//! A launch with everything resolved and allocated, so that the child only makes system calls.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::super::command::{Command, Defaults, LauncherExit};
use super::super::prepare::{self, Executable};
use super::super::settings::{Given, Names, Settings};
use super::super::stdio::Pipes;
use super::super::{Containment, SpawnError};
use super::guard::{Helper, Line};
use super::protocol::{ADD, Message};
use super::stage::{self, Stage};
use super::tree::Tree;
use crate::sys::linux::{self as sys, StringArray};
use crate::sys::signal::Signal;

/// What the child executes.
#[derive(Debug)]
pub(super) enum Program {
    /// The program itself.
    Direct(Executable),
    /// The crate's helper.
    Stage {
        /// The file in memory.
        program: RawFd,
        /// The descriptors that it takes over and closes: its pipe, and the new root or -1.
        kept: [RawFd; 2],
        argv: StringArray,
        envp: StringArray,
        /// As the program's own.
        own_pid: Option<(usize, usize)>,
    },
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
    pub(super) network_namespace: Option<RawFd>,
    pub(super) settings: Settings,
    pub(super) program: Program,
    stage: Option<Stage>,
    /// Kept open until the child has them.
    held: Vec<OwnedFd>,
    tree: Option<Arc<Tree>>,
    guard: Option<Arc<OwnedFd>>,
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
        let plan = prepare::plan(command)?;
        let mut held = Vec::new();
        let mut pipes = Pipes::default();
        let descriptors = prepare::descriptors(command, defaults, &mut held, &mut pipes)?;
        let (launcher_signal, grace) = match command.launcher_exit {
            LauncherExit::Kill => (Signal::KILL, -1),
            LauncherExit::Signal { signal, kill_after } => (
                signal,
                i64::try_from(kill_after.as_millis()).unwrap_or(i64::MAX),
            ),
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
        let mut extra = extra.to_vec();
        extra.extend(tree.and_then(|tree| tree.mark()).map(|(variable, name)| {
            let variable = OsStr::from_bytes(variable.strip_suffix(b"=").unwrap_or(variable));
            let name = OsStr::from_bytes(name.bytes());
            (variable.to_owned(), name.to_owned())
        }));
        let environment = prepare::environment(command, &extra)?;
        let program = Program::Direct(Executable::new(command, environment)?);
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
            network_namespace: command.network_namespace.as_ref().map(AsRawFd::as_raw_fd),
            held,
            ..Self::bare(program, Settings::new(command, descriptors)?)
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
            own_pid: None,
        };
        let settings = Settings {
            defaulted: u64::MAX,
            ..Settings::bare(descriptors)
        };
        Self {
            parent_death_signal,
            ..Self::bare(program, settings)
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

    /// A program, and what it is to be.
    fn bare(program: Program, settings: Settings) -> Self {
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
            network_namespace: None,
            settings,
            program,
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
        self.settings.names.clone()
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
