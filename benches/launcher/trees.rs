//! Trees: how long they take to end, beside one that is held and ended by hand.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use captive::launcher::Containment;

use super::{LIMIT, Role, children, expect_line, line, next, ratio, say};

const MECHANISMS: [Containment; 3] = [
    Containment::Cgroup,
    Containment::PidNamespace,
    Containment::TreeBestEffort,
];

/// Between a tree's last word, that it is whole, and its end.
const REST: Duration = Duration::from_millis(20);

pub(super) fn trees(rounds: usize, count: usize) {
    let base = match own_cgroup() {
        Ok(base) => base,
        Err(error) => return eprintln!("ends of trees are left out: {error}"),
    };
    let prefix = base.join(format!("bench-captive-{}-", std::process::id()));
    let prefix = prefix.to_str().unwrap();
    // The first thing: whatever becomes of the bench, nothing made by hand is left.
    let warden = Role::start(&["--warden", prefix]);
    if let Err(error) = HandMade::new(prefix) {
        eprintln!("ends of trees are left out: {prefix}0: {error}");
        return warden.finish();
    }
    // Who loses its parent is ours, and reaped between the rounds: not by others while the next is measured.
    set_subreaper(true);
    let possible = possible();
    // Our own guard is there now.
    let known = children();
    for (what, aim, end) in [
        ("kill until empty", "1.3", kill as fn(_, _, &_) -> _),
        ("kill of the launcher until empty", "-", kill_launcher),
    ] {
        // The tree of the first is held by hand.
        let ways: Vec<Option<Containment>> = [None]
            .into_iter()
            .chain(possible.iter().copied().map(Some))
            .collect();
        let mut times = vec![Vec::new(); ways.len()];
        for round in 0..rounds {
            for index in 0..ways.len() {
                let at = (index + round) % ways.len();
                times[at].push(end(ways[at], count, prefix));
                reap_all_but(&known);
            }
        }
        println!("tree of {count} processes, {what}, {rounds} rounds");
        for (way, of_it) in ways.iter().zip(&times).skip(1) {
            let aim = match way {
                Some(Containment::TreeBestEffort) => "-",
                _ => aim,
            };
            let what = format!("{} : cgroup.kill by hand", way.unwrap());
            line(&what, &ratio(of_it, &times[0]), aim);
        }
    }
    set_subreaper(false);
    warden.finish();
}

fn possible() -> Vec<Containment> {
    let mut mechanisms = MECHANISMS.to_vec();
    mechanisms.retain(|containment| {
        let mut command = captive::Command::new("/bin/true");
        match command.containment(*containment).status() {
            Ok(_) => true,
            Err(error) => {
                eprintln!("{containment} is left out: {error}");
                false
            }
        }
    });
    mechanisms
}

fn exe() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Seconds from the first call that is to end a tree until its main process has been reaped and nothing is left of it.
///
/// By hand: one write to `cgroup.kill`, which sends SIGKILL to main process and children alike; a wait for the main
/// process; a poll for the cgroup's being empty. The captive: `kill` is for the main process alone, and the rest
/// is sent SIGKILL when that one has ended, by the waiting thread, and by the guard if it comes first. So there is one
/// process's end more in it, and where there is no cgroup other means of knowing that all is over: the end of the
/// namespace's init, which has reaped all by then, or a walk over `/proc` that finds none. Neither has the removal of
/// the cgroup in it, which is after the measurement by hand, and in the background for the captive.
fn kill(way: Option<Containment>, count: usize, prefix: &str) -> f64 {
    let count = count.to_string();
    let Some(containment) = way else {
        let mut cgroup = HandMade::new(prefix).unwrap();
        let mut main = Command::new(exe())
            .args(["--tree", &count, cgroup.path.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        expect_line(main.stdout.take().unwrap());
        std::thread::sleep(REST);
        let start = Instant::now();
        cgroup.kill().unwrap();
        main.wait().unwrap();
        cgroup.wait_empty();
        return start.elapsed().as_secs_f64();
    };
    let mut captive = captive::Command::new(exe())
        .args(["--tree", &count])
        .stdin(captive::launcher::Stdio::Null)
        .stdout(captive::launcher::Stdio::Piped)
        .containment(containment)
        .spawn()
        .unwrap();
    expect_line(captive.stdout.take().unwrap());
    std::thread::sleep(REST);
    let start = Instant::now();
    captive.kill().unwrap();
    assert!(captive.wait_tree(LIMIT).unwrap(), "a tree does not end");
    start.elapsed().as_secs_f64()
}

/// The same from SIGKILL of the launcher of the captive. All that it has started, its guard too, is in a cgroup made by
/// hand, and the measurement ends when that is empty: when the guard has ended the tree and itself. The main process
/// becomes a child of ours, and a namespace's init does not end before it has been reaped. By hand it is as above.
fn kill_launcher(way: Option<Containment>, count: usize, prefix: &str) -> f64 {
    let Some(containment) = way else {
        return kill(None, count, prefix);
    };
    let mut cgroup = HandMade::new(prefix).unwrap();
    let path = cgroup.path.to_str().unwrap().to_owned();
    let containment = containment.to_string();
    let mut launcher = Role::start(&["--tree-launcher", &count.to_string(), &containment, &path]);
    let main = launcher.numbers()[0] as libc::pid_t;
    std::thread::sleep(REST);
    let start = Instant::now();
    launcher.child.kill().unwrap();
    launcher.child.wait().unwrap();
    let reaped = unsafe { libc::waitpid(main, std::ptr::null_mut(), 0) };
    assert_eq!(reaped, main);
    cgroup.wait_empty();
    start.elapsed().as_secs_f64()
}

/// The launcher that is killed.
pub(super) fn launcher(count: &str, containment: &str, cgroup: &str) {
    enter(cgroup);
    let containment = MECHANISMS
        .into_iter()
        .find(|known| known.to_string() == containment)
        .unwrap();
    let mut captive = captive::Command::new(exe())
        .args(["--tree", count])
        .stdin(captive::launcher::Stdio::Null)
        .stdout(captive::launcher::Stdio::Piped)
        .containment(containment)
        .spawn()
        .unwrap();
    expect_line(captive.stdout.take().unwrap());
    say(&[f64::from(captive.id())]);
    next();
}

/// The main process of a tree, which says when all are there. It and they live until they are killed.
pub(super) fn tree(count: usize, cgroup: Option<&str>) {
    if let Some(cgroup) = cgroup {
        enter(cgroup);
    }
    let (read, write) = nix::unistd::pipe().unwrap();
    let (mut read, mut write) = (File::from(read), File::from(write));
    for _ in 0..count {
        match unsafe { libc::fork() } {
            0 => {
                write.write_all(b"!").unwrap();
                loop {
                    unsafe { libc::pause() };
                }
            }
            -1 => panic!("fork: {}", io::Error::last_os_error()),
            _ => {}
        }
    }
    read.read_exact(&mut vec![0; count]).unwrap();
    say(&[]);
    loop {
        unsafe { libc::pause() };
    }
}

fn enter(cgroup: &str) {
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").unwrap();
}

/// A cgroup; what is in it is killed when it is dropped, and it is removed.
struct HandMade {
    path: PathBuf,
    kill: File,
    events: File,
}

impl HandMade {
    /// There is one at a time.
    fn new(prefix: &str) -> io::Result<Self> {
        let path = PathBuf::from(format!("{prefix}0"));
        fs::create_dir(&path)?;
        let files = || {
            Ok(Self {
                path: path.clone(),
                // Not before Linux 5.14.
                kill: File::options().write(true).open(path.join("cgroup.kill"))?,
                events: File::open(path.join("cgroup.events"))?,
            })
        };
        files().inspect_err(|_| drop(fs::remove_dir(&path)))
    }

    fn kill(&mut self) -> io::Result<()> {
        self.kill.write_all(b"1")
    }

    fn wait_empty(&mut self) {
        while !self.is_empty() {
            let mut poll = libc::pollfd {
                fd: self.events.as_raw_fd(),
                events: libc::POLLPRI,
                revents: 0,
            };
            let ready = unsafe { libc::poll(&raw mut poll, 1, LIMIT.as_millis() as i32) };
            assert_eq!(ready, 1, "a tree does not end");
        }
    }

    fn is_empty(&mut self) -> bool {
        let mut text = String::new();
        self.events.rewind().unwrap();
        self.events.read_to_string(&mut text).unwrap();
        text.lines().any(|line| line == "populated 0")
    }
}

impl Drop for HandMade {
    fn drop(&mut self) {
        end_cgroup(&self.path);
    }
}

/// Kills all in a cgroup, and removes it and what is below; tries for a while, for somebody may just enter it.
fn end_cgroup(path: &Path) {
    let start = Instant::now();
    while path.exists() && start.elapsed() < LIMIT {
        let _ = fs::write(path.join("cgroup.kill"), "1");
        for below in fs::read_dir(path).into_iter().flatten().flatten() {
            // Files are not removed from there.
            let _ = fs::remove_dir(below.path());
        }
        if fs::remove_dir(path).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Ends what the bench has made by hand, when the bench has ended: also if it was killed.
pub(super) fn warden(prefix: &str) {
    // What interrupts the bench is not for us.
    unsafe { libc::setsid() };
    next();
    end_cgroup(Path::new(&format!("{prefix}0")));
}

fn set_subreaper(on: bool) {
    let on = libc::c_ulong::from(on);
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, on) }, 0);
}

/// Waits until we have only these children, and reaps the others.
fn reap_all_but(known: &[u32]) {
    let start = Instant::now();
    loop {
        let mut others = children();
        others.retain(|pid| !known.contains(pid));
        if others.is_empty() {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{others:?} are left");
        for pid in others {
            unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), libc::WNOHANG) };
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The directory of our own cgroup of version 2: proc_pid_mountinfo(5), cgroups(7).
fn own_cgroup() -> Result<PathBuf, String> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let group = group.ok_or("no cgroup of version 2")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .find_map(|line| {
            let mut fields = line.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            let path = Path::new(point).join(Path::new(group).strip_prefix(root).ok()?);
            path.join("cgroup.procs").exists().then_some(path)
        })
        .ok_or_else(|| format!("cgroup2 is mounted nowhere with {group}"))
}
