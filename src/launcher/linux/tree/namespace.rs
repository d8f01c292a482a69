//! PID namespaces, with or without a user namespace: their init is the crate's helper.
//!
//! The init is made first, as a child of the launcher. The captive is a child of the launcher as well, made by a
//! process that has entered the namespace; see `child::enter`.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::super::super::SpawnStep;
use super::super::super::settings::Given;
use super::super::guard::Helper;
use super::super::proc;
use super::super::process::Process;
use super::super::protocol::{INIT_PIPE, ROLE_INIT};
use super::super::request::Request;
use super::super::spawner::Made;
use super::cgroup::Why;
use crate::sys::linux as sys;

#[derive(Debug)]
pub(in super::super) struct Namespace {
    init: Arc<Process>,
    /// Our end of a pair of sockets: without any, the init ends.
    pipe: OwnedFd,
    user: bool,
}

/// What the init calls itself first of all.
const INIT_NAME: &[u8] = b"captive-init\n";

impl Namespace {
    /// Makes one. `gracefully`: the launcher's end is not its own; until the guard knows it, the end of the pipe is.
    /// `make` makes a child.
    pub(super) fn start(
        user: bool,
        gracefully: bool,
        helper: &Helper,
        make: impl FnOnce(Request) -> Result<Made, (SpawnStep, Errno)>,
    ) -> Result<Self, Why> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |errno: Errno| (what, Some(errno))
        };
        let program = helper.program().map_err(failed("memfd_create"))?;
        let (pipe, read) = sys::message_sockets().map_err(failed("socketpair"))?;
        let null = nix::fcntl::open(
            "/dev/null",
            OFlag::O_RDWR | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .map_err(failed("/dev/null"))?;
        let give = |fd: &OwnedFd, target| Given {
            source: fd.as_raw_fd(),
            target,
        };
        let given = vec![give(&read, INIT_PIPE), give(&null, 1), give(&null, 2)];
        let argv = [b"captive-init", ROLE_INIT]
            .into_iter()
            .map(|arg| std::ffi::CString::new(arg).unwrap_or_default())
            .collect();
        let mut flags = libc::CLONE_NEWPID;
        if user {
            flags |= libc::CLONE_NEWUSER;
        }
        let signal = if gracefully { 0 } else { libc::SIGKILL };
        let request =
            Request::helper(program.as_raw_fd(), argv, given, signal).in_new_namespaces(flags);
        let what = if user {
            "clone with CLONE_NEWUSER and CLONE_NEWPID"
        } else {
            "clone with CLONE_NEWPID"
        };
        let child = make(request).map_err(|(step, errno)| match step {
            SpawnStep::Clone => (what.to_owned(), Some(errno)),
            step => (format!("its init: {step}"), Some(errno)),
        })?;
        let namespace = Self {
            init: Arc::new(Process::unguarded(child)),
            pipe,
            user,
        };
        if !sys::is_dumpable() {
            await_exec(&namespace.init);
        }
        if user {
            map_ourselves(&namespace.init).inspect_err(|_| namespace.end_now())?;
        }
        Ok(namespace)
    }

    pub(in super::super) fn init(&self) -> &Arc<Process> {
        &self.init
    }

    pub(in super::super) fn pipe(&self) -> &OwnedFd {
        &self.pipe
    }

    /// Whether a user namespace is to be entered with it.
    pub(in super::super) fn is_of_user(&self) -> bool {
        self.user
    }

    pub(super) fn say(&self, word: u8) {
        // An init that has ended needs no telling, and must not be our end by SIGPIPE.
        let _ = sys::send_with_fds(self.pipe.as_raw_fd(), &[word], &[]);
    }

    /// Of one in which nothing has been made: gone when this returns.
    pub(super) fn end_now(&self) {
        let _ = sys::pidfd_send_signal(self.init.as_fd(), libc::SIGKILL);
        sys::reap_pidfd(self.init.as_fd());
    }
}

/// We are woken in the middle of its exec, where it still is as little dumpable as we are: neither its files in /proc
/// nor its namespaces would be open to us. With its name it has ended that.
fn await_exec(init: &Process) {
    const LIMIT: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + LIMIT;
    let Some(directory) = proc::directory(init) else {
        return;
    };
    let name = directory.join("comm");
    while fs::read(&name).is_ok_and(|name| name != INIT_NAME) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// In the user namespace of `init` our user and group are themselves, and there are no others; user_namespaces(7): a
/// map of one's own user needs no privilege, one of the group that setgroups(2) has been given up.
fn map_ourselves(init: &Process) -> Result<(), Why> {
    // It lives as long as its pipe, so the number stays its own.
    let directory = proc::directory(init)
        .ok_or_else(|| ("/proc does not show the namespace's init".to_owned(), None))?;
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let files = [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{gid} {gid} 1\n")),
        ("uid_map", format!("{uid} {uid} 1\n")),
    ];
    for (name, text) in files {
        let path = directory.join(name);
        // In one write, as the kernel wants it.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            let path = path.display().to_string();
            return Err((path, error.raw_os_error().map(Errno::from_raw)));
        }
    }
    Ok(())
}
