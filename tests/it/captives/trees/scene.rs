//! A captive with its tree, with a witness of each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::captives::death::scene::{Scene, ends};
use crate::support::cgroups::{Group, version_2};
use crate::support::process::{PtraceRequest, await_that, state};
use crate::support::{Fallible, HANG, Need, Outcome, Witness};

/// What holds a tree, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Whatever root gets.
    Tree,
    PidNamespace,
    /// As root, who gets it by name only.
    UserNamespace,
    Cgroup,
    Marks,
    /// Whatever a launcher gets that is not root.
    TreeOfNobody,
    UserNamespaceOfNobody,
    /// A PID namespace and a cgroup.
    Both,
}

/// With the names that tests have.
pub const ALL: [(&str, By); 8] = [
    ("tree", By::Tree),
    ("pid_namespace", By::PidNamespace),
    ("user_namespace", By::UserNamespace),
    ("cgroup", By::Cgroup),
    ("marks", By::Marks),
    ("tree_of_nobody", By::TreeOfNobody),
    ("user_namespace_of_nobody", By::UserNamespaceOfNobody),
    ("pid_namespace_and_cgroup", By::Both),
];

/// One of each kind.
pub const KINDS: [(&str, By); 4] = [
    ("pid_namespace", By::PidNamespace),
    ("user_namespace", By::UserNamespaceOfNobody),
    ("cgroup", By::Cgroup),
    ("marks", By::Marks),
];

impl By {
    pub fn word(self) -> String {
        match self {
            Self::Tree | Self::TreeOfNobody => "tree=Tree".into(),
            Self::PidNamespace => "tree=PidNamespace".into(),
            Self::UserNamespace | Self::UserNamespaceOfNobody => "tree=UserNamespace".into(),
            Self::Cgroup => "tree=Cgroup".into(),
            Self::Marks => "tree=TreeBestEffort".into(),
            Self::Both => {
                let own = version_2().unwrap_or_default();
                format!("tree=PidNamespace cgroup={}", own.display())
            }
        }
    }

    /// What a test with this one needs.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::Cgroup | Self::Both => &[Need::Root, Need::Cgroups, Need::UserNamespaces],
            _ => &[Need::Root, Need::UserNamespaces],
        }
    }

    /// What the handle says.
    pub fn mechanism(self) -> &'static str {
        match self {
            Self::Tree | Self::PidNamespace | Self::Both => "PidNamespace",
            Self::UserNamespace | Self::UserNamespaceOfNobody | Self::TreeOfNobody => {
                "UserNamespace"
            }
            Self::Cgroup => "Cgroup",
            Self::Marks => "TreeBestEffort",
        }
    }

    pub fn is_namespace(self) -> bool {
        self.mechanism().ends_with("Namespace")
    }

    pub fn is_of_nobody(self) -> bool {
        matches!(self, Self::TreeOfNobody | Self::UserNamespaceOfNobody)
    }

    /// All that a descendant can do, and must not be helped by.
    pub fn parts(self) -> String {
        let mut parts = "child session daemon deaf stopped deep sibling".to_owned();
        // One that clears its environment is not found by it.
        if self != Self::Marks {
            parts += " bare";
        }
        // Only the launcher's user is known there.
        if self.mechanism() != "UserNamespace" {
            parts += " user";
        }
        if !self.is_of_nobody() {
            parts += " nested";
        }
        parts
    }
}

/// A main process, and its descendants by their names.
#[derive(Debug)]
pub struct Tree {
    pub main: Witness,
    pub parts: Vec<(String, Witness)>,
}

impl Tree {
    /// The main process and all of its descendants.
    pub fn end(&self) -> Outcome {
        ends("the main process", &self.main)?;
        self.descendants_end()
    }

    pub fn descendants_end(&self) -> Outcome {
        for (name, witness) in &self.parts {
            ends(name, witness)?;
        }
        Ok(())
    }

    pub fn part(&self, name: &str) -> &Witness {
        let found = self.parts.iter().find(|(other, _)| other == name);
        &found.expect(name).1
    }

    pub fn all_alive(&self) -> Outcome {
        ensure!(self.main.alive(), "the main process has ended");
        self.descendants_alive()
    }

    pub fn descendants_alive(&self) -> Outcome {
        for (name, witness) in &self.parts {
            ensure!(witness.alive(), "{name} has ended");
        }
        Ok(())
    }

    /// For those that the test has shown to live on.
    pub fn kill(&self) -> Outcome {
        self.main.signal(libc::SIGKILL);
        for (_, witness) in &self.parts {
            witness.signal(libc::SIGKILL);
        }
        self.end()
    }
}

impl Scene {
    /// With a launcher of the user that the mechanism is for.
    pub fn by(by: By) -> Fallible<Self> {
        let mut scene = Self::new()?;
        if by.is_of_nobody() {
            scene.session.expect("become 65534", "become")?;
        }
        Ok(scene)
    }

    /// With a launcher in this cgroup.
    pub fn within(by: By, group: &Group) -> Fallible<Self> {
        let mut scene = Self::new()?;
        let enter = format!("enter {}", group.0.display());
        scene.session.expect(&enter, "entered")?;
        if by.is_of_nobody() {
            scene.session.expect("become 65534", "become")?;
        }
        Ok(scene)
    }

    /// A captive with all that it is to make, ready.
    pub fn tree(&mut self, what: &str) -> Fallible<Tree> {
        let answer = self.session.ask(&format!("spawn {what}"))?;
        let mut words = answer.split(' ');
        let main = words.next().and_then(|pid| pid.parse().ok());
        let main = Witness::of(main.ok_or_else(|| format!("{what}: {answer}"))?)?;
        let mut parts = Vec::new();
        for word in words {
            let (name, pid) = word.split_once('=').ok_or(answer.clone())?;
            let witness = Witness::of(pid.parse()?)?;
            if name == "stopped" {
                await_that("the stop", || state(witness.pid) == Some('T'))?;
            }
            parts.push((name.to_owned(), witness));
        }
        let tree = Tree { main, parts };
        tree.all_alive()?;
        Ok(tree)
    }

    /// One with everything, and a look at what holds it.
    pub fn whole_tree(&mut self, by: By) -> Fallible<Tree> {
        let tree = self.tree(&format!("tree {} {}", by.parts(), by.word()))?;
        self.session.expect("containment 0", by.mechanism())?;
        Ok(tree)
    }
}

/// A cgroup of version 2 for one test, so that no other test's launcher removes what is in it. Gone in the end: so
/// is all below it.
pub fn own_cgroup() -> Fallible<Group> {
    Group::new(version_2(), &[])
}

/// The directories of a launcher's trees.
pub fn directories_of(launcher: i32, base: &Path) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("captive-{launcher}-");
    let mut found = Vec::new();
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

pub fn await_no_directories(launcher: i32, base: &Path) -> Outcome {
    await_that("the end of the cgroup's directory", || {
        directories_of(launcher, base).is_ok_and(|found| found.is_empty())
    })
}

/// A process that can be killed, and does not end before it may: it stops at the begin of its exit, with all that it
/// has, for this thread, which traces it; ptrace(2), PTRACE_O_TRACEEXIT.
#[derive(Debug)]
pub struct Held {
    pid: i32,
    released: bool,
}

impl Held {
    pub fn new(witness: &Witness) -> Fallible<Self> {
        let pid = witness.pid;
        request(libc::PTRACE_SEIZE, pid, libc::PTRACE_O_TRACEEXIT)?;
        let released = false;
        Ok(Self { pid, released })
    }

    /// Waits until it has been killed.
    pub fn is_killed(&self) -> Outcome {
        let mut status = 0;
        let stopped = libc::SIGSTOP | libc::PTRACE_EVENT_STOP << 8;
        await_that("the kill", || {
            wait(self.pid, &mut status) == self.pid && status >> 8 != stopped
        })?;
        ensure!(
            status >> 8 == libc::SIGTRAP | libc::PTRACE_EVENT_EXIT << 8,
            "{status:#x}, not at its exit"
        );
        Ok(())
    }

    /// Lets it end.
    pub fn release(mut self) -> Outcome {
        self.released = true;
        request(libc::PTRACE_CONT, self.pid, 0)?;
        let mut status = 0;
        // A zombie for as long as we have not seen it.
        await_that("its end", || wait(self.pid, &mut status) == self.pid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let deadline = Instant::now() + HANG;
        let mut status = 0;
        while !self.released && Instant::now() < deadline {
            let _ = request(libc::PTRACE_DETACH, self.pid, 0);
            match wait(self.pid, &mut status) {
                0 => std::thread::sleep(Duration::from_millis(2)),
                pid if pid == self.pid && status & 0x7f == 0x7f => {}
                _ => break,
            }
            // One that has not been killed is let go when this thread ends.
            self.released = state(self.pid) != Some('t');
        }
    }
}

fn request(request: PtraceRequest, pid: i32, data: i32) -> io::Result<()> {
    // SAFETY: none of these requests has an address.
    match unsafe { libc::ptrace(request, pid, 0, i64::from(data)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn wait(pid: i32, status: &mut i32) -> i32 {
    unsafe { libc::waitpid(pid, status, libc::__WALL | libc::WNOHANG) }
}
