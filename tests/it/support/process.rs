//! Processes as the tests see them: by pidfd, and by a tag in their environment.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Fallible, HANG, Outcome};

/// A pidfd: says when the process is gone, and signals no other.
#[derive(Debug)]
pub struct Witness {
    /// The pid it had when the witness was made.
    pub pid: i32,
    fd: OwnedFd,
}

impl Witness {
    /// A witness of `pid`, which must be known to be the right process now.
    pub fn of(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) };
        Ok(Self { pid, fd })
    }

    /// Whether the process has ended (as a zombie or altogether) within `limit`.
    pub fn gone_within(&self, limit: Duration) -> bool {
        readable_within(self.fd.as_fd(), limit)
    }

    /// Whether the process has ended within the time in which anything must.
    pub fn gone(&self) -> bool {
        self.gone_within(HANG)
    }

    /// Whether the process has not ended yet.
    pub fn alive(&self) -> bool {
        !self.gone_within(Duration::ZERO)
    }

    /// Sends a signal; a process that is gone is fine.
    pub fn signal(&self, signal: i32) {
        let _ = self.try_signal(signal, 0);
    }

    /// pidfd_send_signal(2), with flags.
    pub fn try_signal(&self, signal: i32, flags: u32) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: no pointers but the null siginfo.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, 0, flags) };
        if sent == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Whether `fd` becomes readable (or hung up) within `limit`.
pub fn readable_within(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).expect("a limit");
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(n) if n > 0 => return true,
            Ok(_) if Instant::now() >= deadline => return false,
            _ => {}
        }
    }
}

/// Marks everything a test starts (an environment variable, inherited by all descendants whatever
/// they do to their session or user) and kills what is left of it on drop.
#[derive(Debug)]
pub struct Tag(String);

const VARIABLE: &str = "CAPTIVE_TEST_TAG";

impl Tag {
    /// A tag no other test has.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(format!(
            "t{}.{}.",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    /// Its value in the environment, for what is not a command of std's.
    pub fn value(&self) -> &str {
        &self.0
    }

    /// A command that carries the tag.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env(VARIABLE, &self.0);
        command
    }

    /// This test binary in a role, carrying the tag.
    pub fn role(&self, name: &str) -> Command {
        let mut command = self.command(std::env::current_exe().unwrap().to_str().unwrap());
        command.arg("--role").arg(name);
        command
    }

    /// The program run-with, carrying the tag.
    pub fn run_with(&self) -> Command {
        self.command(run_with_path())
    }

    /// Every process that carries the tag and is no zombie, with the name exec gave it.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<i32>().ok())
            else {
                continue;
            };
            if self.is_on(pid) {
                let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.push((pid, comm.trim_end().to_owned()));
            }
        }
        found
    }

    /// Whether this process carries the tag. A zombie's environ reads as empty: its memory is gone.
    fn is_on(&self, pid: i32) -> bool {
        let needle = format!("{VARIABLE}={}", self.0);
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|v| v == needle.as_bytes())
    }

    /// A witness of a process found by its tag. The tag is looked at again behind the pidfd: since it
    /// was found, the process may have ended and its pid become somebody else's.
    fn witness(&self, pid: i32) -> Option<Witness> {
        let witness = Witness::of(pid).ok()?;
        self.is_on(pid).then_some(witness)
    }

    /// Waits until a tagged process has this name, and witnesses it.
    pub fn await_process(&self, comm: &str) -> io::Result<Witness> {
        let deadline = Instant::now() + HANG;
        while Instant::now() < deadline {
            for (pid, name) in self.processes() {
                if name == comm {
                    if let Some(witness) = self.witness(pid) {
                        return Ok(witness);
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(io::Error::other(format!(
            "no {comm} appeared; there were {:?}",
            self.processes()
        )))
    }

    /// Waits until nothing that carries the tag is left; what is left at the limit is the answer.
    pub fn survivors(&self, limit: Duration) -> Vec<(i32, String)> {
        let deadline = Instant::now() + limit;
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        // A process may fork while the list is read: again until there is nothing.
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for (pid, _) in left {
                if let Some(witness) = self.witness(pid) {
                    witness.signal(libc::SIGKILL);
                    witness.gone_within(Duration::from_secs(2));
                }
            }
        }
    }
}

/// The program under test: the one that was built beside the tests, or another (`.ci/stand-in`).
pub fn run_with_path() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        std::env::var("RUN_WITH").unwrap_or_else(|_| env!("CARGO_BIN_EXE_run-with").to_owned())
    })
}

/// A child that is killed and reaped when the test is done with it, however the test ends.
#[derive(Debug)]
pub struct Reaped(pub Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child of ours that traces a process: as long as it does, the kernel keeps from everybody else how that one ended. A
/// thread of ours might be of its own parent's.
#[derive(Debug)]
pub struct Tracer(Option<i32>);

impl Tracer {
    pub fn of(pid: i32) -> Fallible<Self> {
        let child = unsafe { libc::fork() };
        if child == 0 {
            unsafe {
                if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) != 0 {
                    libc::_exit(1);
                }
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
        }
        ensure!(child > 0, "fork");
        let itself = Self(Some(child));
        let mut status = 0;
        let changed = unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) };
        ensure!(
            changed == child && libc::WIFSTOPPED(status),
            "process {pid} cannot be traced"
        );
        Ok(itself)
    }

    /// Lets it go.
    pub fn release(mut self) -> Outcome {
        let child = self.0.take().ok_or("no tracer")?;
        let mut status = 0;
        unsafe { libc::kill(child, libc::SIGCONT) };
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        ensure!(status == 0, "the tracer: {status:#x}");
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Some(child) = self.0 {
            unsafe { libc::kill(child, libc::SIGKILL) };
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
    }
}

/// Waits for what no descriptor tells.
pub fn await_that(what: &str, mut is_so: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + HANG;
    while !is_so() {
        ensure!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The letter of a process's state in /proc/PID/stat, if there is such a process.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&stat).into_owned();
    text.rsplit_once(") ")?.1.chars().next()
}

/// One field of /proc/PID/status, trimmed.
pub fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let text = String::from_utf8_lossy(&status).into_owned();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// An argument or path with any bytes.
pub fn bytes(raw: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(raw)
}

/// Closes this descriptor and all above; close_range(2), which not every C library has.
///
/// # Safety
///
/// Nobody in this process uses one of them.
pub unsafe fn close_from(first: libc::c_uint) -> libc::c_long {
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) }
}

/// The type of a ptrace(2) request.
#[cfg(target_env = "musl")]
pub type PtraceRequest = libc::c_int;
#[cfg(not(target_env = "musl"))]
pub type PtraceRequest = libc::c_uint;
