//! Launchers, captives and those around them: the roles of the lifecycle tests.
//!
//! Each is a process of its own that starts with one thread. Those a test waits for give themselves a
//! name (`comm`) once they are ready, and end only when they are told to or killed.

#![allow(
    clippy::zombie_processes,
    reason = "launchers leave children behind: that is what is tested"
)]

use std::ffi::{CStr, CString, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use captive::exit_with_parent::{ExitWithParent, Mechanism, Signal};

/// What a launcher is told over its standard input, a byte each.
pub mod orders {
    /// Exit with status 0.
    pub const EXIT: u8 = b'x';
    /// Abort.
    pub const ABORT: u8 = b'a';
    /// Let the thread that started the child end; the name is `thread-ended` then.
    pub const END_THREAD: u8 = b't';
    /// Let the main thread end while another stays.
    pub const END_MAIN_THREAD: u8 = b'p';
    /// exec another program, named `another`.
    pub const EXEC: u8 = b'e';
    /// The same from a thread that is not the main one.
    pub const EXEC_FROM_THREAD: u8 = b'E';
}

/// The name this process is found by.
fn set_name(name: &str) {
    std::fs::write("/proc/self/comm", name).unwrap();
}

fn pause() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// This binary in a role.
fn role(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--role").arg(name);
    command
}

/// How a child ended, in words: a shell's 128+n says less.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited {code}"),
        (_, signal) => format!("killed {}", signal.unwrap_or(0)),
    }
}

#[derive(Default)]
struct Launch {
    from_thread: bool,
    new_pid_namespace: bool,
    holder: bool,
    own_group: bool,
    wait: bool,
    tell: bool,
    fill: bool,
    fd: Option<String>,
    bind_root: Option<PathBuf>,
    command: Vec<String>,
}

impl Launch {
    fn read(args: Vec<OsString>) -> Self {
        let mut it = Self::default();
        let mut args = args.into_iter().map(|arg| arg.into_string().unwrap());
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--from-thread" => it.from_thread = true,
                "--new-pid-namespace" => it.new_pid_namespace = true,
                "--holder" => it.holder = true,
                "--own-group" => it.own_group = true,
                "--wait" => it.wait = true,
                "--tell" => it.tell = true,
                "--fill" => it.fill = true,
                "--fd" => it.fd = args.next(),
                "--bind-root" => it.bind_root = args.next().map(PathBuf::from),
                "--" => it.command = args.by_ref().collect(),
                other => panic!("launch: {other}"),
            }
        }
        it
    }

    /// The command, with `{pid}` and `{fd}` filled in if that was asked for.
    fn command(&self, fd: Option<i32>) -> Command {
        let filled = self.command.iter().map(|arg| {
            if self.fill {
                arg.replace("{pid}", &std::process::id().to_string())
                    .replace("{fd}", &fd.unwrap_or(-1).to_string())
            } else {
                arg.clone()
            }
        });
        let filled: Vec<String> = filled.collect();
        let mut command = Command::new(&filled[0]);
        command.args(&filled[1..]).stdin(Stdio::null());
        command
    }
}

/// `launch [OPTIONS] -- COMMAND...`: starts the command, is called `launcher` from then on, and does
/// as it is told ([`orders`]).
///
/// | option | |
/// |---|---|
/// | `--from-thread` | starts the command from another thread |
/// | `--new-pid-namespace` | the command is born into a new PID namespace, as its pid 1 |
/// | `--holder` | and something else is pid 1 there |
/// | `--own-group` | leads a process group, in which there is also a `bystander` |
/// | `--wait` | waits for the command, says how it ended, and exits |
/// | `--tell` | says the command's pid |
/// | `--fill` | replaces `{pid}` by the launcher's pid and `{fd}` by the descriptor's number |
/// | `--fd pidfd`, `--fd pipe` | gives the command a pidfd of the launcher, or a pipe that ends with it |
/// | `--bind-root DIR` | in a mount namespace where DIR is another name of the root |
pub fn launch(args: Vec<OsString>) -> i32 {
    let launch = Launch::read(args);
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
    let given = launch.fd.as_deref().map(descriptor);
    if let Some(dir) = &launch.bind_root {
        bind_root(dir);
    }
    if launch.own_group {
        nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0)).unwrap();
        // The kernel sends SIGHUP to a group that is orphaned with a stopped process in it.
        // SAFETY: no handler.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        role("idle").arg("bystander").spawn().unwrap();
        // SAFETY: no handler.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
    }
    if launch.new_pid_namespace {
        unshare(libc::CLONE_NEWPID);
        if launch.holder {
            // Without our output: whoever reads that to its end does not wait for the holder.
            role("idle")
                .arg("holder")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
        }
    }
    let mut command = launch.command(given.as_ref().map(|(fd, _)| fd.as_raw_fd()));
    let (end_thread, thread_may_end) = mpsc::channel::<()>();
    let (child, thread) = if launch.from_thread {
        let (send, receive) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            send.send(command.spawn().unwrap()).unwrap();
            // Stays until told, or for ever.
            if thread_may_end.recv().is_err() {
                pause();
            }
        });
        (receive.recv().unwrap(), Some(thread))
    } else {
        (command.spawn().unwrap(), None)
    };
    if launch.tell {
        println!("{}", child.id());
    }
    set_name("launcher");
    if launch.wait {
        return wait(child);
    }
    obey(end_thread, thread)
}

fn wait(mut child: Child) -> i32 {
    println!("{}", describe(child.wait().unwrap()));
    0
}

fn obey(end_thread: mpsc::Sender<()>, mut thread: Option<std::thread::JoinHandle<()>>) -> i32 {
    let mut order = [0];
    loop {
        let Ok(1) = std::io::stdin().read(&mut order) else {
            return 0;
        };
        match order[0] {
            orders::EXIT => return 0,
            orders::ABORT => std::process::abort(),
            orders::END_THREAD => {
                end_thread.send(()).unwrap();
                thread.take().unwrap().join().unwrap();
                set_name("thread-ended");
            }
            orders::END_MAIN_THREAD => {
                std::thread::spawn(|| pause());
                // As pthread_exit in C: no unwinding through Rust's frames.
                // SAFETY: ends this thread; nothing of it is used by others.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            }
            orders::EXEC => become_another(),
            orders::EXEC_FROM_THREAD => {
                std::thread::spawn(become_another).join().unwrap();
            }
            other => panic!("order {other}"),
        }
    }
}

fn become_another() {
    let error = role("idle").arg("another").exec();
    panic!("exec: {error}");
}

/// A descriptor that says when this process is gone, inheritable, and what must stay open for it.
fn descriptor(kind: &str) -> (OwnedFd, Option<OwnedFd>) {
    match kind {
        "pidfd" => {
            // SAFETY: no pointers.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
            // SAFETY: just made.
            let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
            (inheritable(fd), None)
        }
        "pipe" => {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            close_on_exec(&writer);
            (reader, Some(writer))
        }
        other => panic!("--fd {other}"),
    }
}

fn inheritable(fd: OwnedFd) -> OwnedFd {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fd
}

fn close_on_exec(fd: &OwnedFd) {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
}

fn bind_root(dir: &Path) {
    unshare(libc::CLONE_NEWNS);
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE);
    let dir = CString::new(dir.as_os_str().as_bytes()).unwrap();
    mount(c"/", &dir, libc::MS_BIND | libc::MS_REC);
}

fn mount(source: &CStr, target: &CStr, flags: libc::c_ulong) {
    let (source, target) = (source.as_ptr(), target.as_ptr());
    // SAFETY: two strings that live; neither type nor data are used with these flags.
    let done = unsafe { libc::mount(source, target, std::ptr::null(), flags, std::ptr::null()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn unshare(what: libc::c_int) {
    // SAFETY: no pointers.
    let done = unsafe { libc::unshare(what) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// `idle NAME`: is there.
pub fn idle(args: Vec<OsString>) -> i32 {
    set_name(args[0].to_str().unwrap());
    pause()
}

/// `bound [OPTIONS]`: binds itself with the library and is called `captive` then; status 3 with the
/// error if that fails.
pub fn captive(args: Vec<OsString>) -> i32 {
    let mut binding = ExitWithParent::new();
    let (mut armed, mut from_thread, mut note) = (true, false, None);
    let mut args = args.into_iter().map(|arg| arg.into_string().unwrap());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--unarmed" => armed = false,
            "--from-thread" => from_thread = true,
            "--signal-mechanism" => binding = binding.mechanism(Mechanism::ParentDeathSignal),
            "--pidfd-mechanism" => binding = binding.mechanism(Mechanism::Pidfd),
            "--second-line" => binding = binding.second_line(),
            "--signal" => {
                let signal: Signal = args.next().unwrap().parse().unwrap();
                binding = binding.signal(signal);
            }
            "--expect-parent" => {
                binding = binding.expect_parent(args.next().unwrap().parse().unwrap());
            }
            "--parent-fd" => {
                let fd = args.next().unwrap().parse().unwrap();
                // SAFETY: the caller passed it to us, and only to us.
                binding = binding.parent_fd(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            "--note" => note = args.next(),
            other => panic!("captive: {other}"),
        }
    }
    let arm = move || binding.arm().map_err(|error| format!("{error:?}: {error}"));
    let result = match (armed, from_thread) {
        (false, _) => Ok(None),
        (true, false) => arm().map(Some),
        (true, true) => std::thread::spawn(arm).join().unwrap().map(Some),
    };
    match result {
        Err(error) => {
            eprintln!("{error}");
            3
        }
        Ok(armed) => {
            if let Some(armed) = &armed {
                println!("{}", armed.report());
            }
            if let Some(note) = note {
                std::fs::write(note, "").unwrap();
            }
            set_name("captive");
            pause()
        }
    }
}

/// `gate FILE -- COMMAND...`: a process between fork and exec. Becomes the command once the file is
/// there.
pub fn gate(args: Vec<OsString>) -> i32 {
    set_name("gate");
    while !Path::new(&args[0]).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("exec: {}", Command::new(&args[2]).args(&args[3..]).exec());
}

/// `subreaper COMMAND...`: starts it, adopts what it leaves behind, and reaps that.
pub fn subreaper(args: Vec<OsString>) -> i32 {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    Command::new(&args[0]).args(&args[1..]).spawn().unwrap();
    set_name("subreaper");
    while nix::sys::wait::wait().is_ok() {}
    pause()
}

/// `recycle GATE COMMAND...`, as pid 1 of a PID namespace: the command's launcher dies, another
/// process gets its pid, and only then does the command run. Says what became of it.
pub fn recycle(args: Vec<OsString>) -> i32 {
    let mut launcher = role("launch")
        .args(["--tell", "--fill", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--role", "gate"])
        .arg(&args[0])
        .arg("--")
        .args(&args[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = launcher.id();
    let mut told = String::new();
    let mut out = launcher.stdout.take().unwrap();
    while !told.ends_with('\n') {
        let mut byte = [0];
        out.read_exact(&mut byte).unwrap();
        told.push(char::from(byte[0]));
    }
    let child = nix::unistd::Pid::from_raw(told.trim().parse().unwrap());
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
    let mut another = role("idle").arg("another").spawn().unwrap();
    println!("recycled {}", another.id() == pid);
    std::fs::write(&args[0], "").unwrap();
    println!("{:?}", nix::sys::wait::waitpid(child, None).unwrap());
    println!("another lives {}", another.try_wait().unwrap().is_none());
    std::io::stdout().flush().unwrap();
    another.kill().unwrap();
    another.wait().unwrap();
    0
}

/// `counter`: is called that, and takes every signal but SIGKILL and SIGSTOP as a number on a line of standard
/// output; ends by SIGKILL only.
pub fn counter(_args: Vec<OsString>) -> i32 {
    let all = nix::sys::signal::SigSet::all();
    all.thread_block().unwrap();
    set_name("counter");
    loop {
        let mut signal = 0;
        // SAFETY: two live objects; the set is initialised. A raw number, as nix knows no real-time
        // signals.
        let failed = unsafe { libc::sigwait(all.as_ref(), &raw mut signal) } != 0;
        assert!(!failed);
        println!("{signal}");
        std::io::stdout().flush().unwrap();
    }
}
