//! The bench itself.
//!
//! ```text
//! bench (a subreaper) ── launcher (SIGKILL) ─┬─ QEMU
//!                                            └─ captive-guard, captive-init | libguestfs's recovery process
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

#[path = "../../tests/it/support/appliance.rs"]
mod appliance;

/// A boot on a machine that has other work; guestfish may have to make its appliance first.
const BOOT: Duration = Duration::from_secs(300);
/// Whoever is to end something has done so within this, or never will.
const NEVER: Duration = Duration::from_secs(30);
/// What the kernel keeps of QEMU's name.
const QEMU: &str = "qemu-system-x86";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Launcher {
    Ours,
    Guestfish,
}

impl Launcher {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "captive's example",
            Self::Guestfish => "guestfish",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Booting,
    Idle,
    Busy,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Booting => "while it boots",
            Self::Idle => "idle",
            Self::Busy => "in a command",
        }
    }
}

#[derive(Debug, Default)]
struct Measured {
    /// From SIGKILL to QEMU's end; none: not within [`NEVER`].
    times: Vec<Option<Duration>>,
    left: Left,
}

#[derive(Debug, Default)]
struct Left {
    processes: usize,
    directories: usize,
    files: usize,
    sockets: usize,
}

pub(crate) fn main() {
    let rounds = std::env::var("CAPTIVE_BENCH_ROUNDS").map_or(7, |text| text.parse().unwrap());
    let Some(bench) = Bench::new() else { return };
    let mut launchers = vec![Launcher::Ours];
    let mut states = vec![State::Idle, State::Busy];
    if on_path("guestfish") {
        launchers.push(Launcher::Guestfish);
        println!("guestfish boots once, and makes its appliance if it has to");
        if !bench.boots(Launcher::Guestfish) {
            println!(
                "NOT COMPARABLE IN FULL: guestfish's appliance does not come up here (see the page of"
            );
            println!("this bench for the kernel it needs): both are killed while their QEMU boots");
            states = vec![State::Booting];
        }
    } else {
        println!(
            "guestfish is not installed (apt-get install guestfish): only the example is measured"
        );
    }

    println!("load before: {}", load());
    let mut random = Random::new();
    let mut measured: BTreeMap<(State, Launcher), Measured> = BTreeMap::new();
    for round in 0..rounds {
        for &state in &states {
            // The one first in one round, the other in the next.
            for turn in 0..launchers.len() {
                let launcher = launchers[(turn + round) % launchers.len()];
                let entry = measured.entry((state, launcher)).or_default();
                bench.kill(launcher, state, &mut random, entry);
            }
        }
    }
    println!("load after: {}", load());
    report(&measured, &states, rounds);
}

fn report(measured: &BTreeMap<(State, Launcher), Measured>, states: &[State], rounds: usize) {
    println!(
        "{rounds} interleaved rounds; from SIGKILL for the launcher to QEMU's end, ratios of medians"
    );
    for &state in states {
        let of = |launcher| measured.get(&(state, launcher));
        if let (Some(ours), Some(theirs)) = (of(Launcher::Ours), of(Launcher::Guestfish)) {
            let ratio = match (median(ours), median(theirs)) {
                (Some(ours), Some(theirs)) => {
                    format!("{:.0}", theirs.as_secs_f64() / ours.as_secs_f64())
                }
                (Some(_), None) => "never".to_owned(),
                (None, _) => "the example's QEMU LIVES ON".to_owned(),
            };
            println!("  {}: guestfish : captive = {ratio}", state.name());
        }
    }
    for ((state, launcher), it) in measured {
        println!(
            "  {}, {}: {} (here; the times are the machine's)",
            launcher.name(),
            state.name(),
            range(it)
        );
    }
    println!(
        "left behind after {rounds} kills, {NEVER:?} or more later if it has not gone before:"
    );
    for ((state, launcher), it) in measured {
        let Left {
            processes,
            directories,
            files,
            sockets,
        } = it.left;
        println!(
            "  {}, {}: {processes} processes, {directories} directories, {files} files, {sockets} sockets",
            launcher.name(),
            state.name()
        );
    }
}

/// None is the largest.
fn sorted(measured: &Measured) -> Vec<Option<Duration>> {
    let mut times = measured.times.clone();
    times.sort_by_key(|time| time.unwrap_or(Duration::MAX));
    times
}

fn median(measured: &Measured) -> Option<Duration> {
    let times = sorted(measured);
    times[times.len() / 2]
}

fn range(measured: &Measured) -> String {
    let text = |time: Option<Duration>| {
        time.map_or("never".to_owned(), |time| {
            format!("{:.1} ms", time.as_secs_f64() * 1e3)
        })
    };
    let times = sorted(measured);
    let (first, last) = (times[0], times[times.len() - 1]);
    format!(
        "median {}, {} to {}",
        text(median(measured)),
        text(first),
        text(last)
    )
}

struct Bench {
    example: PathBuf,
    appliance: PathBuf,
}

impl Bench {
    /// None, and what is missing on standard output.
    fn new() -> Option<Self> {
        assert_eq!(
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) },
            0
        );
        let own = std::env::current_exe().unwrap();
        let example = own.ancestors().nth(2)?.join("examples/appliance");
        let appliance = appliance::appliance();
        let needed = [
            (
                example.is_file(),
                "cargo build --release --example appliance",
            ),
            (appliance.join("initrd").is_file(), "tests/appliance/build"),
            (
                on_path("qemu-system-x86_64"),
                "apt-get install qemu-system-x86",
            ),
        ];
        for (_, remedy) in needed.iter().filter(|(there, _)| !there) {
            println!("nothing is measured without: {remedy}");
        }
        let all = needed.iter().all(|(there, _)| *there);
        all.then_some(Self { example, appliance })
    }

    fn start(&self, launcher: Launcher) -> Running {
        let files = tempfile::tempdir().unwrap();
        let mut command = match launcher {
            Launcher::Ours => {
                let mut command = Command::new(&self.example);
                command.arg(self.appliance.join("kernel"));
                command.arg(self.appliance.join("initrd"));
                command
            }
            Launcher::Guestfish => {
                let mut command = Command::new("guestfish");
                command
                    .args(["-a", "/dev/null"])
                    .env("LIBGUESTFS_BACKEND", "direct")
                    .env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
                command
            }
        };
        // All that either makes is below; what guestfish keeps for the next time is not (LIBGUESTFS_CACHEDIR).
        let mut child = command
            .current_dir(files.path())
            .env("TMPDIR", files.path())
            .env("XDG_RUNTIME_DIR", files.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        stdin
            .write_all(match launcher {
                Launcher::Ours => b"echo up\n",
                Launcher::Guestfish => b"run\necho up\n",
            })
            .unwrap();
        Running {
            child: Reaped(child),
            stdin,
            stdout,
            files,
        }
    }

    fn boots(&self, launcher: Launcher) -> bool {
        self.start(launcher).is_up()
    }

    fn kill(&self, launcher: Launcher, state: State, random: &mut Random, into: &mut Measured) {
        let mut it = self.start(launcher);
        let pid = it.child.0.id() as i32;
        if state != State::Booting {
            assert!(it.is_up(), "{launcher:?} does not boot");
        }
        if state == State::Busy {
            let command: &[u8] = match launcher {
                Launcher::Ours => b"sleep 1000\n",
                Launcher::Guestfish => b"debug sh \"sleep 1000\"\n",
            };
            it.stdin.write_all(command).unwrap();
        }
        let qemu = await_qemu(pid);
        // Whoever looks every two seconds is to be met at any moment of these.
        std::thread::sleep(Duration::from_millis(300) + random.below(Duration::from_secs(2)));
        assert!(!has_ended(&qemu), "QEMU has ended before");
        let others: Vec<OwnedFd> = descendants(pid).into_iter().filter_map(pidfd).collect();

        let killed = Instant::now();
        it.child.0.kill().unwrap();
        // As a shell does: to those who ask for its pid it is gone.
        it.child.0.wait().unwrap();
        let gone = readable(&qemu, NEVER);
        into.times.push(gone.then(|| killed.elapsed()));

        into.left.processes += await_ends(&others);
        others.iter().for_each(signal_kill);
        assert_eq!(await_ends(&others), 0, "unkillable");
        count(it.files.path(), &mut into.left);
    }
}

/// A launcher whose appliance is on its way up.
struct Running {
    child: Reaped,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    files: tempfile::TempDir,
}

impl Running {
    fn is_up(&mut self) -> bool {
        let mut line = String::new();
        let there =
            !self.stdout.buffer().is_empty() || readable(&self.stdout.get_ref().as_raw_fd(), BOOT);
        there && self.stdout.read_line(&mut line).is_ok() && line == "up\n"
    }
}

/// Ends what is left of a launcher, however the bench ends.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let all = descendants(self.0.id() as i32);
            let all: Vec<OwnedFd> = all.into_iter().filter_map(pidfd).collect();
            let _ = self.0.kill();
            let _ = self.0.wait();
            all.iter().for_each(signal_kill);
            await_ends(&all);
        }
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// All that this process has started and that has not been given to others.
fn descendants(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let mut all = Vec::new();
    for thread in threads.into_iter().flatten().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let child = child.parse().unwrap();
            all.push(child);
            all.extend(descendants(child));
        }
    }
    all
}

fn await_qemu(launcher: i32) -> OwnedFd {
    let deadline = Instant::now() + BOOT;
    loop {
        for pid in descendants(launcher) {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if comm.trim_end() == QEMU {
                if let Some(qemu) = pidfd(pid) {
                    return qemu;
                }
            }
        }
        assert!(Instant::now() < deadline, "no QEMU");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn signal_kill(pidfd: &OwnedFd) {
    let fd = pidfd.as_raw_fd();
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, 0, 0) };
}

fn readable(fd: &impl AsRawFd, limit: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    unsafe { libc::poll(&raw mut poll, 1, limit.as_millis() as i32) == 1 }
}

fn has_ended(process: &OwnedFd) -> bool {
    readable(process, Duration::ZERO)
}

/// How many have not ended within [`NEVER`]. Those that became our children are reaped meanwhile, as an init does: the
/// init of a PID namespace waits for that.
fn await_ends(processes: &[OwnedFd]) -> usize {
    let deadline = Instant::now() + NEVER;
    loop {
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        let left = processes.iter().filter(|it| !has_ended(it)).count();
        if left == 0 || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What is in the folder that was the launcher's alone.
fn count(folder: &Path, left: &mut Left) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            left.directories += 1;
            count(&entry.path(), left);
        } else if kind.is_socket() {
            left.sockets += 1;
        } else {
            left.files += 1;
        }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self(now.unwrap().as_nanos() as u64)
    }

    fn below(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_nanos((value ^ (value >> 31)) % limit.as_nanos() as u64)
    }
}
