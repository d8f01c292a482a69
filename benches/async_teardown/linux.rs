//! The bench itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes longer, unless it never happens.
const NEVER: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    Plain,
    Ours,
    QemuPlain,
    Qemu,
    /// The same with `-runas nobody`: its helper stays.
    QemuRunas,
    /// Ours, started after setuid, as run_with does it.
    OursUser,
}

struct Times {
    waitable: Duration,
    /// None: not within [`NEVER`].
    memory: Option<Duration>,
}

pub(crate) fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().is_some_and(|first| first == "--child") {
        let how = args.next().unwrap();
        return child(&how, args.next().unwrap().parse().unwrap());
    }
    let number =
        |name, default| std::env::var(name).map_or(default, |text| text.parse::<usize>().unwrap());
    let mib = number("CAPTIVE_BENCH_MIB", 512);
    let rounds = number("CAPTIVE_BENCH_ROUNDS", 5);
    assert!(
        available_mib() > 2 * mib,
        "{mib} MiB twice is more than the {} MiB available",
        available_mib()
    );
    // Inherited by all that is started, over exec.
    assert_eq!(
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) },
        0
    );
    let root = nix::unistd::geteuid().is_root();
    let qemu = Command::new("qemu-system-x86_64")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    let variants: Vec<Variant> = [
        (Variant::Plain, true),
        (Variant::Ours, true),
        (Variant::OursUser, root),
        (Variant::QemuPlain, qemu),
        (Variant::Qemu, qemu),
        (Variant::QemuRunas, qemu && root),
    ]
    .into_iter()
    .filter_map(|(variant, possible)| possible.then_some(variant))
    .collect();
    let mut times: BTreeMap<Variant, Vec<Times>> = BTreeMap::new();
    for _ in 0..rounds {
        for &variant in &variants {
            times.entry(variant).or_default().push(run(variant, mib));
        }
    }
    println!("{mib} MiB in small pages, {rounds} interleaved rounds, ratios of medians");
    println!("(in brackets: smallest and largest ratio of a round)");
    for (what, time) in [
        ("waitable", waitable as fn(&Times) -> Option<Duration>),
        ("memory back", |times: &Times| times.memory),
    ] {
        for (a, b) in [
            (Variant::Ours, Variant::Plain),
            (Variant::OursUser, Variant::Plain),
            (Variant::Qemu, Variant::QemuPlain),
            (Variant::Ours, Variant::Qemu),
            (Variant::QemuRunas, Variant::QemuPlain),
        ] {
            if let (Some(of_a), Some(of_b)) = (times.get(&a), times.get(&b)) {
                println!("{what:12} {a:?} : {b:?} = {}", ratio(of_a, of_b, time));
            }
        }
    }
}

fn waitable(times: &Times) -> Option<Duration> {
    Some(times.waitable)
}

fn ratio(a: &[Times], b: &[Times], time: fn(&Times) -> Option<Duration>) -> String {
    let seconds = |times: &[Times]| -> Option<Vec<f64>> {
        times.iter().map(|t| Some(time(t)?.as_secs_f64())).collect()
    };
    let (Some(a), Some(b)) = (seconds(a), seconds(b)) else {
        return format!("never (not within {NEVER:?})");
    };
    let mut each: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
    each.sort_by(f64::total_cmp);
    format!(
        "{:.4} ({:.4} to {:.4})",
        median(a) / median(b),
        each[0],
        each[each.len() - 1]
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What is killed: touches its memory, says so, and waits.
fn child(how: &str, mib: usize) {
    let memory = vec![1_u8; mib << 20];
    if how == "user" {
        nix::unistd::setgroups(&[]).unwrap();
        nix::unistd::setgid(65534.into()).unwrap();
        nix::unistd::setuid(65534.into()).unwrap();
    }
    let _teardown = (how != "off").then(|| captive::async_teardown::start().unwrap());
    println!("ready");
    std::io::stdout().flush().unwrap();
    // Until the bench is gone, should it not kill us.
    let _ = std::io::stdin().read_line(&mut String::new());
    std::hint::black_box(memory);
}

fn command(variant: Variant, mib: usize) -> Command {
    let ours = |how: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--child", how, &mib.to_string()]);
        command
    };
    let qemu = |options: &[&str]| {
        let mut command = Command::new("qemu-system-x86_64");
        // The greeting of QMP says that the memory is there.
        command
            .args("-M none -accel tcg -nodefaults -display none -S -qmp stdio".split(' '))
            .args([
                "-object",
                &format!("memory-backend-ram,id=m,size={mib}M,prealloc=on"),
            ])
            .args(options);
        command
    };
    match variant {
        Variant::Plain => ours("off"),
        Variant::Ours => ours("on"),
        Variant::OursUser => ours("user"),
        Variant::QemuPlain => qemu(&[]),
        Variant::Qemu => qemu(&["-async-teardown"]),
        Variant::QemuRunas => qemu(&["-async-teardown", "-runas", "nobody"]),
    }
}

/// Kills and reaps the process however this ends.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(variant: Variant, mib: usize) -> Times {
    let child = command(variant, mib)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id() as i32;
    let mut child = Reaped(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(!line.is_empty(), "{variant:?} did not start");
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    assert_eq!(kib(&rollup, "AnonHugePages:"), 0, "{variant:?}: huge pages");
    assert!(
        kib(&rollup, "Rss:") >= mib << 10,
        "{variant:?}: not touched"
    );
    let helper = helper(pid);
    let wanted = !matches!(variant, Variant::Plain | Variant::QemuPlain);
    assert_eq!(helper.is_some(), wanted, "{variant:?}: its helper");
    let helper = helper.map(pidfd);
    let process = pidfd(pid);

    let killed = Instant::now();
    signal(&process, libc::SIGKILL);
    assert!(gone(&process, NEVER * 6), "{variant:?} does not die");
    let waitable = killed.elapsed();
    // As any parent does.
    child.0.wait().unwrap();
    let mut memory = Some(waitable);
    if let Some(helper) = helper {
        memory = gone(&helper, NEVER).then(|| killed.elapsed());
        if memory.is_none() {
            signal(&helper, libc::SIGKILL);
            assert!(gone(&helper, NEVER * 6), "{variant:?}: helper unkillable");
        }
    }
    Times { waitable, memory }
}

/// The one child that shares the memory.
fn helper(pid: i32) -> Option<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .find_map(|children| children.split_whitespace().next()?.parse().ok())
}

fn kib(text: &str, field: &str) -> usize {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

fn available_mib() -> usize {
    kib(
        &fs::read_to_string("/proc/meminfo").unwrap(),
        "MemAvailable:",
    ) >> 10
}

fn pidfd(pid: i32) -> OwnedFd {
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn signal(pidfd: &OwnedFd, signal: i32) {
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
}

fn gone(pidfd: &OwnedFd, limit: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    unsafe { libc::poll(&raw mut poll, 1, limit.as_millis() as i32) == 1 }
}
