//! The bench itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use captive::launcher::Containment;

mod trees;

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// Spawns of each variant in one turn of a launcher: the caches are its own again after the first.
const TURN: usize = 5;

pub fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--launcher", bytes] => return launcher(bytes.parse().unwrap()),
        ["--first", bytes, variant] => return first(bytes.parse().unwrap(), variant),
        ["--memory", bytes] => return hold_memory(bytes.parse().unwrap()),
        ["--many", count, variant] => return many(count.parse().unwrap(), variant),
        ["--tree", count] => return trees::tree(count.parse().unwrap(), None),
        ["--tree", count, cgroup] => return trees::tree(count.parse().unwrap(), Some(cgroup)),
        ["--tree-launcher", count, containment, cgroup] => {
            return trees::launcher(count, containment, cgroup);
        }
        ["--warden", prefix] => return trees::warden(prefix),
        // cargo's own.
        _ => {}
    }
    if !captive::launcher::is_supported() {
        println!("captives need Linux 5.4");
        return;
    }
    let number =
        |name, default| std::env::var(name).map_or(default, |text| text.parse::<usize>().unwrap());
    let rounds = number("CAPTIVE_BENCH_ROUNDS", 300);
    let available = available() >> 30;
    let mut gib = number("CAPTIVE_BENCH_GIB", 4);
    if available < 3 * gib {
        let fits = available / 3;
        println!("{available} GiB available: {fits} GiB instead of {gib}");
        gib = fits;
    }
    println!(
        "ratios of medians, interleaved rounds (in brackets: the quartiles of a round's ratio)"
    );
    spawns(rounds, gib);
    first_spawns((rounds / 4).max(5), (rounds / 30).max(3), gib);
    drops((rounds / 50).max(3), 2 * gib);
    manies(
        (rounds / 60).max(2),
        number("CAPTIVE_BENCH_MANY", 1000).max(200),
    );
    trees::trees(
        (rounds / 25).max(3),
        number("CAPTIVE_BENCH_TREE", 1000).max(1),
    );
}

/// One line of the table.
fn line(what: &str, ratio: &str, aim: &str) {
    println!("  {what:<56} {ratio:<22} aim: {aim}");
}

/// The ratio of the medians, and the quartiles of the ratios of those that were measured together.
fn ratio(a: &[f64], b: &[f64]) -> String {
    let mut each: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
    each.sort_by(f64::total_cmp);
    let ratio = median(a) / median(b);
    if ratio < 0.01 {
        return format!("{ratio:.6}");
    }
    format!(
        "{ratio:.3} ({:.2} to {:.2})",
        each[each.len() / 4],
        each[each.len() * 3 / 4],
    )
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

fn tenth(values: &[f64]) -> f64 {
    quantile(values, 0.1)
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[(values.len() as f64 * part) as usize]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    Std,
    /// What a program does that wants a parent-death signal: std forks then.
    StdPreExec,
    Captive,
    /// Root only: by way of the helper.
    CaptiveUser,
    /// With a tree.
    CaptivePidNamespace,
    CaptiveCgroup,
    CaptiveUserNamespace,
}

impl Variant {
    const ALL: [Self; 7] = [
        Self::Std,
        Self::StdPreExec,
        Self::Captive,
        Self::CaptiveUser,
        Self::CaptivePidNamespace,
        Self::CaptiveCgroup,
        Self::CaptiveUserNamespace,
    ];

    /// A launcher and the bench come to the same answer.
    fn possible() -> Vec<Self> {
        let mut variants = Self::ALL.to_vec();
        if let Err(error) = Self::with_user("/bin/true").status() {
            eprintln!("captive with a user is left out: {error}");
            variants.retain(|variant| *variant != Self::CaptiveUser);
        }
        variants.retain(|variant| {
            let Some(containment) = variant.tree() else {
                return true;
            };
            let mut command = captive::Command::new("/bin/true");
            match command.containment(containment).status() {
                Ok(_) => true,
                Err(error) => {
                    eprintln!("captive in a {containment} is left out: {error}");
                    false
                }
            }
        });
        variants
    }

    fn tree(self) -> Option<Containment> {
        match self {
            Self::CaptivePidNamespace => Some(Containment::PidNamespace),
            Self::CaptiveCgroup => Some(Containment::Cgroup),
            Self::CaptiveUserNamespace => Some(Containment::UserNamespace),
            _ => None,
        }
    }

    fn with_user(program: &str) -> captive::Command {
        let mut command = captive::Command::new(program);
        let user = captive::RunWith::parse("user=65534:65534".as_ref()).unwrap();
        command.run_with(user);
        command
    }

    fn name(self) -> String {
        format!("{self:?}")
    }

    fn named(name: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|variant| variant.name() == name)
            .unwrap()
    }

    fn spawn(self, program: &[&str]) -> Spawned {
        match self {
            Self::Std | Self::StdPreExec => {
                let mut command = Command::new(program[0]);
                command
                    .args(&program[1..])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                if self == Self::StdPreExec {
                    unsafe {
                        command.pre_exec(|| {
                            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                                0 => Ok(()),
                                _ => Err(std::io::Error::last_os_error()),
                            }
                        })
                    };
                }
                Spawned::Std(command.spawn().unwrap())
            }
            _ => {
                let mut command = match self {
                    Self::CaptiveUser => Self::with_user(program[0]),
                    _ => captive::Command::new(program[0]),
                };
                command
                    .args(&program[1..])
                    .stdin(captive::launcher::Stdio::Null)
                    .stdout(captive::launcher::Stdio::Null)
                    .stderr(captive::launcher::Stdio::Null)
                    .containment(self.tree().unwrap_or_default());
                Spawned::Captive(command.spawn().unwrap())
            }
        }
    }
}

enum Spawned {
    Std(Child),
    Captive(captive::Captive),
}

impl Spawned {
    /// Waits for its end, which is a good one.
    fn finish(&mut self) {
        match self {
            Self::Std(child) => assert!(child.wait().unwrap().success()),
            Self::Captive(captive) => assert_eq!(
                captive.wait().unwrap().status(),
                captive::launcher::ExitStatus::Exited(0)
            ),
        }
    }

    fn id(&self) -> u32 {
        match self {
            Self::Std(child) => child.id(),
            Self::Captive(captive) => captive.id(),
        }
    }

    /// Ends it as its kind is ended: std's is not gone before it has been waited for.
    fn end(self) {
        match self {
            Self::Std(mut child) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Self::Captive(captive) => drop(captive),
        }
    }
}

/// Seconds until a spawn has returned, and until its `true` has been waited for.
fn spawn_and_wait(variant: Variant) -> [f64; 2] {
    let start = Instant::now();
    let mut spawned = variant.spawn(&["/bin/true"]);
    let spawn = start.elapsed();
    spawned.finish();
    let times = [spawn, start.elapsed()].map(|time| time.as_secs_f64());
    if let (Spawned::Captive(captive), Some(_)) = (&spawned, variant.tree()) {
        assert!(captive.wait_tree(LIMIT).unwrap(), "a tree does not end");
    }
    times
}

/// Memory of which every page is there, and a small one.
struct Touched {
    base: *mut libc::c_void,
    length: usize,
}

impl Touched {
    fn new(length: usize) -> Self {
        let mapped = length.max(4096);
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // EINVAL where the kernel has no huge pages.
        unsafe { libc::madvise(base, mapped, libc::MADV_NOHUGEPAGE) };
        for at in (0..length).step_by(4096) {
            unsafe { base.cast::<u8>().add(at).write_volatile(1) };
        }
        let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        assert!(kib(&text, "Rss:") << 10 >= length, "not touched");
        assert_eq!(kib(&text, "AnonHugePages:"), 0, "huge pages");
        Self {
            base,
            length: mapped,
        }
    }
}

impl Drop for Touched {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.base, self.length) };
    }
}

/// A process of the bench's own in another role, which ends when its input does.
struct Role {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Role {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    /// The numbers of its next line.
    fn numbers(&mut self) -> Vec<f64> {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "a role has failed");
        line.split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect()
    }

    fn go(&mut self) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn finish(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn say(numbers: &[f64]) {
    let text: Vec<String> = numbers.iter().map(|number| format!("{number:e}")).collect();
    println!("{}", text.join(" "));
    std::io::stdout().flush().unwrap();
}

/// Until the next word of the bench; false if there is none.
fn next() -> bool {
    std::io::stdin().read_line(&mut String::new()).unwrap() > 0
}

/// Spawns of `true` by launchers of three sizes, all of which are there at once.
fn spawns(rounds: usize, gib: usize) {
    let mut sizes = vec![0, gib << 28, gib << 30];
    sizes.dedup();
    let mut launchers: Vec<Role> = sizes
        .iter()
        .map(|bytes| Role::start(&["--launcher", &bytes.to_string()]))
        .collect();
    for launcher in &mut launchers {
        launcher.numbers();
    }
    let variants = Variant::possible();
    // Of a size and a variant: the spawns, the spawns with the wait.
    let mut times: BTreeMap<(usize, Variant), [Vec<f64>; 2]> = BTreeMap::new();
    for turn in 0..rounds.div_ceil(TURN) {
        for index in 0..sizes.len() {
            let at = (index + turn) % sizes.len();
            launchers[at].go();
            for _ in 0..TURN {
                let numbers = launchers[at].numbers();
                for (variant, pair) in variants.iter().zip(numbers.chunks(2)) {
                    let [spawn, status] = times.entry((at, *variant)).or_default();
                    spawn.push(pair[0]);
                    status.push(pair[1]);
                }
            }
        }
    }
    for launcher in launchers {
        launcher.finish();
    }
    let rounds = rounds.div_ceil(TURN) * TURN;
    println!("spawn of `true`, {rounds} rounds");
    for (index, bytes) in sizes.iter().enumerate() {
        let of = |size: usize, variant, which: usize| &times[&(size, variant)][which];
        let gib = *bytes as f64 / f64::from(1 << 30);
        let row = |what: &str, which, a: (usize, Variant), b: (usize, Variant), aim: &str| {
            if let (Some(_), Some(_)) = (times.get(&a), times.get(&b)) {
                let ratio = ratio(of(a.0, a.1, which), of(b.0, b.1, which));
                line(&format!("{gib} GiB: {what}"), &ratio, aim);
            }
        };
        let (std, ours) = ((index, Variant::Std), (index, Variant::Captive));
        let pre_exec = (index, Variant::StdPreExec);
        let user = (index, Variant::CaptiveUser);
        row("captive : std", 0, ours, std, "1.0, flat");
        // What both take if nobody else wants the processors.
        let decile = |variant| tenth(of(index, variant, 0));
        let deciles = decile(Variant::Captive) / decile(Variant::Std);
        line(
            &format!("{gib} GiB: captive : std, lower deciles"),
            &format!("{deciles:.3}"),
            "1.0, flat",
        );
        row("captive : std, with the wait", 1, ours, std, "1.0, flat");
        row("std with pre_exec : std", 0, pre_exec, std, "-");
        row("captive with a user : captive", 0, user, ours, "flat");
        for variant in Variant::ALL {
            if let Some(containment) = variant.tree() {
                let tree = (index, variant);
                let what = format!("captive in a {containment}");
                row(&format!("{what} : captive"), 0, tree, ours, "flat");
                row(&format!("{what} : std"), 0, tree, std, "flat");
            }
        }
        if index > 0 {
            let none = (0, Variant::Captive);
            row("captive : captive at 0 GiB", 0, ours, none, "1.0, flat");
            let none = (0, Variant::Std);
            row("std : std at 0 GiB", 0, std, none, "-");
        }
    }
}

fn launcher(bytes: usize) {
    let _touched = Touched::new(bytes);
    let variants = Variant::possible();
    // The first reads programs from the disk, and starts what a launcher has.
    for variant in &variants {
        spawn_and_wait(*variant);
    }
    say(&[]);
    while next() {
        for round in 0..TURN {
            let mut numbers = vec![[0.0; 2]; variants.len()];
            for index in 0..variants.len() {
                let at = (index + round) % variants.len();
                numbers[at] = spawn_and_wait(variants[at]);
                if variants[at] == Variant::StdPreExec || variants[at].tree().is_some() {
                    // After a fork every page is copied at its first change, and what held a tree is taken away
                    // in the background: not at the next one's cost.
                    spawn_and_wait(Variant::Std);
                    spawn_and_wait(Variant::Captive);
                }
            }
            say(&numbers.concat());
        }
    }
}

/// The first spawn of a process: ours starts a guard and two threads.
fn first_spawns(rounds: usize, large_rounds: usize, gib: usize) {
    println!("first spawn of a fresh process, {rounds} rounds ({large_rounds} with memory)");
    let variants = [Variant::Std, Variant::Captive];
    for (gib, rounds) in [(0, rounds), (gib, large_rounds)] {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for index in 0..variants.len() {
                let at = (index + round) % variants.len();
                let (bytes, variant) = ((gib << 30).to_string(), variants[at].name());
                let mut role = Role::start(&["--first", &bytes, &variant]);
                role.numbers();
                // It has come to rest: what is measured is its spawn, not its start.
                role.go();
                times[at].push(role.numbers()[0]);
                role.finish();
            }
        }
        let ratio = ratio(&times[1], &times[0]);
        line(&format!("{gib} GiB: captive : std"), &ratio, "flat");
    }
}

fn first(bytes: usize, variant: &str) {
    let variant = Variant::named(variant);
    let _touched = Touched::new(bytes);
    say(&[]);
    next();
    let [spawn, _] = spawn_and_wait(variant);
    say(&[spawn]);
    next();
}

/// The end of a process with much memory.
fn drops(rounds: usize, gib: usize) {
    let bytes = (gib << 30).to_string();
    let exe = std::env::current_exe().unwrap();
    let mut times = [Vec::new(), Vec::new()];
    let mut until_gone = Vec::new();
    for round in 0..rounds {
        for index in 0..2 {
            let args = ["--memory", &bytes];
            if (index + round) % 2 == 0 {
                let mut child = Command::new(&exe)
                    .args(args)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                expect_line(child.stdout.take().unwrap());
                let start = Instant::now();
                child.kill().unwrap();
                child.wait().unwrap();
                times[0].push(start.elapsed().as_secs_f64());
            } else {
                let mut captive = captive::Command::new(&exe)
                    .args(args)
                    .stdin(captive::launcher::Stdio::Null)
                    .stdout(captive::launcher::Stdio::Piped)
                    .spawn()
                    .unwrap();
                expect_line(captive.stdout.take().unwrap());
                let pidfd = captive.pidfd().try_clone_to_owned().unwrap();
                let start = Instant::now();
                drop(captive);
                times[1].push(start.elapsed().as_secs_f64());
                wait_for(&pidfd);
                until_gone.push(start.elapsed().as_secs_f64());
            }
        }
    }
    println!("end of a process with {gib} GiB, {rounds} rounds");
    line(
        "drop of a captive : std's kill and wait",
        &ratio(&times[1], &times[0]),
        "near 0",
    );
    line(
        "drop until it has ended, in the background : the same",
        &ratio(&until_gone, &times[0]),
        "1.0",
    );
}

fn hold_memory(bytes: usize) {
    let _touched = Touched::new(bytes);
    say(&[]);
    // To be killed; an hour is for a bench that was.
    std::thread::sleep(Duration::from_secs(3600));
}

fn expect_line(output: ChildStdout) {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).unwrap();
    assert_eq!(line, "\n");
}

/// Many at once, each by a launcher of its own.
fn manies(rounds: usize, count: usize) {
    let variants = [Variant::Std, Variant::Captive];
    let mut found = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for index in 0..variants.len() {
            let at = (index + round) % variants.len();
            let mut role = Role::start(&["--many", &count.to_string(), &variants[at].name()]);
            found[at].push(role.numbers());
            role.finish();
        }
    }
    let column = |at: usize, field: usize| -> Vec<f64> {
        found[at].iter().map(|numbers| numbers[field]).collect()
    };
    println!("{count} alive at once, {rounds} rounds");
    for (at, who) in [(1, "captive"), (0, "std")] {
        line(
            &format!("{who}: last 100 spawns : first 100"),
            &format!("{:.3}", median(&column(at, 0)) / median(&column(at, 1))),
            if at == 1 { "1.0, flat" } else { "-" },
        );
    }
    line(
        "spawns per second, captive : std",
        &ratio(&column(0, 2), &column(1, 2)),
        "1.0",
    );
    line(
        "ending all until none is left, captive : std",
        &ratio(&column(1, 3), &column(0, 3)),
        "1.0",
    );
    line(
        "threads in the launcher: with captives, with std's",
        &format!("{:.0}, {:.0}", median(&column(1, 4)), median(&column(0, 4))),
        "a few, flat",
    );
    for (what, at, field) in [
        ("private memory of the launcher, a captive", 1, 5),
        ("private memory of the guard, a captive", 1, 6),
        ("private memory of the launcher, a child of std's", 0, 5),
    ] {
        let each = median(&column(at, field));
        line(what, &format!("{each:.2} KiB"), "-");
    }
    line(
        "private memory of the guard, with none",
        &format!("{:.0} KiB", median(&column(1, 7))),
        "-",
    );
    line(
        "descriptors of the launcher that are left",
        &format!("{:.0}", median(&column(1, 8))),
        "0",
    );
}

fn many(count: usize, variant: &str) {
    let variant = Variant::named(variant);
    raise_descriptor_limit();
    // What a launcher has from its first spawn on is not counted.
    for _ in 0..10 {
        variant.spawn(&["/bin/true"]).finish();
    }
    let guard = children()
        .into_iter()
        .find(|pid| comm(*pid) == "captive-guard");
    assert_eq!(guard.is_some(), variant == Variant::Captive, "the guard");
    let own = std::process::id();
    // A guard that has just been started reads what it was sent.
    std::thread::sleep(Duration::from_millis(20));
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut times = Vec::with_capacity(count);
    let mut all = Vec::with_capacity(count);
    let before = private(own);
    let guard_before = guard.map(private);
    let descriptors_before = descriptors();
    let start = Instant::now();
    for _ in 0..count {
        let start = Instant::now();
        all.push(variant.spawn(&["/bin/sleep", "600"]));
        times.push(start.elapsed().as_secs_f64());
    }
    let spawned = start.elapsed();
    let each = |after: usize, before: usize| (after as f64 - before as f64) / count as f64;
    std::thread::sleep(Duration::from_millis(20));
    let launcher = each(private(own), before);
    let of_guard = guard.map_or(0.0, |guard| each(private(guard), guard_before.unwrap()));
    let threads = fs::read_dir("/proc/self/task").unwrap().count();
    let ids: Vec<u32> = all.iter().map(Spawned::id).collect();
    let alive = children();
    assert!(
        ids.iter().all(|id| alive.contains(id)),
        "one has ended early"
    );
    let start = Instant::now();
    for spawned in all {
        spawned.end();
    }
    let left = || {
        let left = children();
        left.iter().filter(|pid| Some(**pid) != guard).count()
    };
    while left() > 0 {
        assert!(start.elapsed() < LIMIT, "{} are left", left());
        std::thread::sleep(Duration::from_micros(200));
    }
    let ended = start.elapsed();
    if let Some(guard) = guard {
        assert_eq!(comm(guard), "captive-guard", "it was replaced");
    }
    // The reaper closes the last one after it has reaped it.
    let start = Instant::now();
    while descriptors() > descriptors_before && start.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(1));
    }
    say(&[
        median(&times[count - 100..]),
        median(&times[..100]),
        spawned.as_secs_f64(),
        ended.as_secs_f64(),
        threads as f64,
        launcher,
        of_guard,
        guard_before.unwrap_or(0) as f64,
        descriptors() as f64 - descriptors_before as f64,
    ]);
    next();
}

fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// The children of every thread of ours.
fn children() -> Vec<u32> {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|children| {
            children
                .split_whitespace()
                .map(|pid| pid.parse().unwrap())
                .collect::<Vec<u32>>()
        })
        .collect()
}

fn comm(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    text.trim_end().to_owned()
}

/// In KiB.
fn private(pid: u32) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    kib(&text, "Private_Dirty:")
}

fn kib(text: &str, field: &str) -> usize {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

/// In bytes.
fn available() -> usize {
    kib(
        &fs::read_to_string("/proc/meminfo").unwrap(),
        "MemAvailable:",
    ) << 10
}

fn wait_for(pidfd: &OwnedFd) {
    let mut poll = libc::pollfd {
        fd: pidfd.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let ready = unsafe { libc::poll(&raw mut poll, 1, LIMIT.as_millis() as i32) };
    assert_eq!(ready, 1, "it does not end");
}
