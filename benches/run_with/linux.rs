//! The bench itself.

use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(20);

const RUN_WITH: &str = env!("CARGO_BIN_EXE_run-with");

pub fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().is_some_and(|first| first == "--launcher") {
        launcher(args.next().unwrap().parse().unwrap(), args.collect());
    }
    let number =
        |name, default| std::env::var(name).map_or(default, |text| text.parse::<usize>().unwrap());
    let rounds = number("CAPTIVE_BENCH_ROUNDS", 300);
    starts(rounds);
    kills(rounds / 10, 0);
    let gib = number("CAPTIVE_BENCH_GIB", 0);
    if gib > 0 {
        kills((rounds / 30).max(5), gib);
    }
    memory();
}

/// From spawn to the end of a command that ends at once.
fn starts(rounds: usize) {
    let exec = [RUN_WITH, "--exec", "exit-with-parent=on", "--", "true"];
    let setpriv = ["setpriv", "--pdeathsig", "TERM", "true"];
    let supervise = [RUN_WITH, "exit-with-parent=on", "--", "true"];
    let tini = ["tini", "-s", "--", "true"];
    let unguarded = [
        RUN_WITH,
        "--pidfile",
        "/dev/shm/captive-bench.pid",
        "--",
        "true",
    ];
    let plain = ["true"];
    let commands: [&[&str]; 6] = [&exec, &setpriv, &supervise, &tini, &unguarded, &plain];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); commands.len()];
    for round in 0..rounds + 10 {
        for index in 0..commands.len() {
            let at = (index + round) % commands.len();
            let command = commands[at];
            let start = Instant::now();
            let mut child = Command::new(command[0])
                .args(&command[1..])
                .spawn()
                .unwrap();
            assert!(child.wait().unwrap().success(), "{command:?}");
            // The first rounds read programs from the disk.
            if round >= 10 {
                times[at].push(start.elapsed());
            }
        }
    }
    let [exec, setpriv, supervise, tini, unguarded, plain] = times.each_median();
    println!("start to end of `true`, {rounds} interleaved rounds, ratios of medians");
    ratio(
        "run-with --exec exit-with-parent=on : setpriv --pdeathsig TERM",
        exec,
        setpriv,
    );
    ratio(
        "run-with exit-with-parent=on        : tini -s",
        supervise,
        tini,
    );
    ratio(
        "run-with without a guard            : tini -s",
        unguarded,
        tini,
    );
    ratio(
        "tini -s                             : true alone",
        tini,
        plain,
    );
}

/// From SIGKILL of a launcher with `gib` GiB of touched memory to the command's end.
fn kills(rounds: usize, gib: usize) {
    let ours = [RUN_WITH, "exit-with-parent=on", "--", "sleep", "1000"];
    let ours_kill = [
        RUN_WITH,
        "-s",
        "KILL",
        "exit-with-parent=on",
        "--",
        "sleep",
        "1000",
    ];
    let setpriv = ["setpriv", "--pdeathsig", "KILL", "sleep", "1000"];
    let tini = ["tini", "-p", "SIGTERM", "-s", "--", "sleep", "1000"];
    let commands: [&[&str]; 4] = [&ours, &ours_kill, &setpriv, &tini];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); commands.len()];
    for round in 0..rounds.max(5) {
        for index in 0..commands.len() {
            let at = (index + round) % commands.len();
            times[at].push(kill(commands[at], gib));
        }
    }
    let [ours, ours_kill, setpriv, tini] = times.each_median();
    println!("SIGKILL of a launcher with {gib} GiB to the command's end, ratios of medians");
    ratio(
        "run-with                : setpriv --pdeathsig KILL",
        ours,
        setpriv,
    );
    ratio(
        "run-with -s KILL        : setpriv --pdeathsig KILL",
        ours_kill,
        setpriv,
    );
    ratio(
        "tini -p SIGTERM -s         : setpriv --pdeathsig KILL",
        tini,
        setpriv,
    );
}

fn kill(command: &[&str], gib: usize) -> Duration {
    let mut launcher = Command::new(std::env::current_exe().unwrap())
        .args(["--launcher", &gib.to_string()])
        .args(command)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(launcher.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let sleeper = pidfd(descendant(launcher.id(), "sleep"));
    // Everybody at rest: what is measured is the end, not the start.
    std::thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    launcher.kill().unwrap();
    wait_for(&sleeper);
    let time = start.elapsed();
    launcher.wait().unwrap();
    time
}

/// A launcher: touches memory, starts the command, waits to be killed.
fn launcher(gib: usize, command: Vec<String>) -> ! {
    let mut memory = vec![0_u8; gib << 30];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    let mut child: Child = Command::new(&command[0])
        .args(&command[1..])
        .spawn()
        .unwrap();
    println!("started");
    child.wait().unwrap();
    black_box(&memory);
    std::process::exit(0)
}

/// Private memory of the processes that stay while the command runs.
fn memory() {
    let private = |pid: u32| -> [u64; 2] {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let field = |name: &str| -> u64 {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let dirty = field("Private_Dirty:");
        [field("Private_Clean:") + dirty, dirty]
    };
    let start = |command: &[&str]| {
        let child = Command::new(command[0])
            .args(&command[1..])
            .spawn()
            .unwrap();
        descendant(child.id(), "sleep");
        child
    };
    let mut tini = start(&["tini", "-s", "--", "sleep", "1000"]);
    let mut ours = start(&[RUN_WITH, "exit-with-parent=on", "--", "sleep", "1000"]);
    let guard = descendant(ours.id(), "run-with-guard");
    std::thread::sleep(Duration::from_millis(20));
    let (of_tini, of_ours, of_guard) = (private(tini.id()), private(ours.id()), private(guard));
    let ratios = |ours: [u64; 2]| [0, 1].map(|at| ours[at] as f64 / of_tini[at] as f64);
    println!("private memory (Private_Clean + Private_Dirty; the dirty alone) to tini's");
    for (who, of) in [("supervisor", of_ours), ("guard", of_guard)] {
        let [all, dirty] = ratios(of);
        println!("  {who:<10} {all:.2}; {dirty:.2}");
    }
    for (child, sleep) in [(&mut tini, "sleep"), (&mut ours, "sleep")] {
        let sleeper = pidfd(descendant(child.id(), sleep));
        signal(&sleeper, libc::SIGTERM);
        wait_for(&sleeper);
        child.wait().unwrap();
    }
}

fn ratio(what: &str, ours: Duration, peer: Duration) {
    println!("  {what}  {:.2}", ours.as_secs_f64() / peer.as_secs_f64());
}

trait Medians {
    fn each_median<const N: usize>(self) -> [Duration; N];
}

impl Medians for Vec<Vec<Duration>> {
    fn each_median<const N: usize>(self) -> [Duration; N] {
        let medians: Vec<Duration> = self
            .into_iter()
            .map(|mut times| {
                times.sort_unstable();
                times[times.len() / 2]
            })
            .collect();
        medians.try_into().unwrap()
    }
}

/// The process of this name among the descendants; it appears soon.
fn descendant(pid: u32, name: &str) -> u32 {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = find(pid, name) {
            return found;
        }
        assert!(Instant::now() < deadline, "no {name} below {pid}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn find(pid: u32, name: &str) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .find_map(|child| {
            let comm = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            if comm.trim_end() == name {
                Some(child)
            } else {
                find(child, name)
            }
        })
}

fn pidfd(pid: u32) -> OwnedFd {
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open {pid}");
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn signal(pidfd: &OwnedFd, signal: i32) {
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
}

fn wait_for(pidfd: &OwnedFd) {
    let mut poll = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let ready = unsafe { libc::poll(&mut poll, 1, LIMIT.as_millis() as i32) };
    assert_eq!(ready, 1, "the command outlived its launcher");
}
