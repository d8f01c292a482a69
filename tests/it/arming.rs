//! `exit_with_parent`, from inside: what each call arms, and what then takes it away.
//!
//! The captive of each test talks to the test, so that surviving is an answer and the end is the end
//! of the conversation.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use std::{fs, thread};

use libtest_mimic::Trial;

use crate::roles::launcher::LIFELINE;
use crate::support::process::{await_that, state, status_field};
use crate::support::{Fallible, HANG, Launched, Need, Outcome, Session, Tag, Witness, test};

/// Of the watcher thread, as the kernel keeps it: 15 bytes.
const WATCHER: &str = "exit-with-paren";

const NAMESPACES: &[Need] = &[Need::Root, Need::Program("unshare")];

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (name, how) in [
        ("default", ""),
        ("pidfd", "mechanism=pidfd"),
        ("parent_death_signal", "mechanism=signal"),
        ("second_line", "second"),
    ] {
        tests.push(test(&format!("arming::ends_by_{name}"), &[], move || {
            ends(&format!("arm {how}"))
        }));
    }
    tests.extend([
        test("arming::unarmed_survives", &[], unarmed_survives),
        test("arming::lifeline", &[], || {
            ends(&format!("arm fd={LIFELINE}"))
        }),
        test("arming::parent_pidfd", &[], parent_pidfd),
        test("arming::parent_gone_already", &[], parent_gone_already),
        test("arming::signal_choice", &[], signal_choice),
        test("arming::kill_after", &[], kill_after),
        test("arming::no_kill_without_a_grace", &[], no_kill),
        test("arming::channel", &[], || told("channel")),
        test("arming::callback", &[], || told("callback")),
        test("arming::disarm", &[], disarm),
        test("arming::drop", &[], dropped),
        test("arming::fork", &[], fork),
        test("arming::fork_rearmed", &[], fork_rearmed),
        test("arming::fork_closefrom", &[], fork_closefrom),
        test("arming::fork_by_signal_only", &[], fork_by_signal_only),
        test("arming::fork_same_pid", NAMESPACES, fork_same_pid),
        test("arming::fork_same_tid", NAMESPACES, fork_same_tid),
        test("arming::closefrom", &[], closefrom),
        test("arming::descriptors_reused", &[], descriptors_reused),
        test("arming::holds_no_descriptors", &[], holds_no_descriptors),
        test("arming::without_close_range", &[], without_close_range),
        test("arming::descriptor_limit", &[], descriptor_limit),
        test(
            "arming::descriptor_limit_grace",
            &[],
            descriptor_limit_grace,
        ),
        test(
            "arming::watcher_blocks_signals",
            &[],
            watcher_blocks_signals,
        ),
        test(
            "arming::pid_1",
            &[Need::Root, Need::Program("unshare")],
            pid_1,
        ),
        test("arming::reports", &[], reports),
        test("arming::wrong_parent", &[], wrong_parent),
        test("arming::writer_held_here", &[], writer_held_here),
        test("arming::not_a_parent_fd", &[], not_a_parent_fd),
        test("arming::twice", &[], twice),
        test("arming::from_a_thread", &[], from_a_thread),
        test(
            "arming::change_of_user_pidfd",
            &[Need::Root],
            change_of_user_pidfd,
        ),
        test(
            "arming::change_of_user_signal",
            &[Need::Root],
            change_of_user_signal,
        ),
        test("arming::no_pidfd", &[], no_pidfd),
        test("arming::no_pidfd_no_watcher", &[], no_pidfd_no_watcher),
        test("arming::step_errors", &[], step_errors),
    ]);
    tests
}

impl Launched {
    fn pid(&mut self) -> Fallible<i32> {
        Ok(self.session.ask("pid")?.parse()?)
    }

    fn launcher_pid(&self) -> u32 {
        self.launcher.0.id()
    }

    fn armed(&mut self, command: &str) -> Outcome {
        let answer = self.session.ask(command)?;
        ensure!(answer.starts_with("armed: "), "{command}: {answer}");
        Ok(())
    }

    /// The launcher's end is the captive's.
    fn ends_with_launcher(&mut self) -> Outcome {
        self.session.ask("pid")?;
        self.kill_launcher()?;
        self.session.ended()
    }

    /// The launcher's end is not the captive's: whoever watched has ended, and it still answers.
    fn survives_launcher(&mut self) -> Outcome {
        let pid = self.pid()?;
        self.kill_launcher()?;
        watchers_leave(pid)?;
        self.session.ask("pid")?;
        Ok(())
    }
}

fn watchers(pid: i32) -> Fallible<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // A thread may end while it is looked at.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.trim_end() == WATCHER {
            let tid = path.file_name().and_then(|tid| tid.to_str());
            found.push(tid.ok_or("a tid")?.parse()?);
        }
    }
    Ok(found)
}

fn watchers_leave(pid: i32) -> Outcome {
    let deadline = Instant::now() + HANG;
    while !watchers(pid)?.is_empty() {
        ensure!(Instant::now() < deadline, "the watcher stays");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn ends(arm: &str) -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.armed(arm)?;
    it.session.expect("alive", "true")?;
    it.ends_with_launcher()
}

fn unarmed_survives() -> Outcome {
    let tag = Tag::new();
    Launched::captive(&tag)?.survives_launcher()
}

fn parent_pidfd() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    // Any process, parent or not.
    let mut other = Launched::captive(&tag)?;
    let arm = format!("arm pidfd={}", other.launcher_pid());
    it.armed(&arm)?;
    it.kill_launcher()?;
    it.session.expect("alive", "true")?;
    other.kill_launcher()?;
    it.session.ended()
}

fn parent_gone_already() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    let launcher = it.launcher_pid();
    it.pid()?;
    it.kill_launcher()?;
    for arm in [
        format!("arm expect={launcher}"),
        format!("arm fd={LIFELINE}"),
    ] {
        it.session
            .expect_parts(&arm, &["error ParentGone", "is gone"])?;
    }
    it.session.expect("pdeathsig", "0")?;
    let pid = it.pid()?;
    ensure!(watchers(pid)?.is_empty(), "a watcher");
    Ok(())
}

fn signal_choice() -> Outcome {
    for (name, number) in [("USR1", libc::SIGUSR1), ("RTMIN+3", libc::SIGRTMIN() + 3)] {
        for mechanism in ["pidfd", "signal"] {
            let tag = Tag::new();
            let mut it = Launched::captive(&tag)?;
            it.session.expect(&format!("handle {number}"), "handled")?;
            it.armed(&format!("arm signal={name} mechanism={mechanism}"))?;
            it.survives_launcher()?;
            let deadline = Instant::now() + HANG;
            let caught = loop {
                let caught = it.session.ask("caught")?;
                if !caught.starts_with("0 ") || Instant::now() >= deadline {
                    break caught;
                }
            };
            ensure!(caught == format!("{number} on the main thread"), "{caught}");
        }
    }
    Ok(())
}

const NOT_ENDING: [&str; 2] = ["ignore 15", "block 15"];

fn kill_after() -> Outcome {
    for deaf in NOT_ENDING {
        let tag = Tag::new();
        let mut it = Launched::captive(&tag)?;
        it.session.ask(deaf)?;
        it.armed("arm grace=100")?;
        it.ends_with_launcher()?;
    }
    Ok(())
}

fn no_kill() -> Outcome {
    for deaf in NOT_ENDING {
        let tag = Tag::new();
        let mut it = Launched::captive(&tag)?;
        it.session.ask(deaf)?;
        it.armed("arm")?;
        it.survives_launcher()?;
    }
    Ok(())
}

fn told(form: &str) -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.armed(&format!("arm form={form}"))?;
    it.session.expect("event-now", "None")?;
    let launcher = it.launcher_pid();
    it.survives_launcher()?;
    it.session.expect(
        "event",
        &format!("Some(ParentExited {{ pid: Some({launcher}) }})"),
    )?;
    // The watcher has ended: there is no second.
    it.session.expect("event-now", "None")?;
    it.session.expect("alive", "false")
}

fn disarm() -> Outcome {
    for how in [
        "",
        "mechanism=signal",
        "second",
        "grace=100",
        "form=channel",
    ] {
        let tag = Tag::new();
        let mut it = Launched::captive(&tag)?;
        it.armed(&format!("arm {how}"))?;
        it.session.expect("disarm", "done")?;
        it.session.expect("pdeathsig", "0")?;
        let pid = it.pid()?;
        watchers_leave(pid)?;
        it.survives_launcher()?;
    }
    Ok(())
}

fn dropped() -> Outcome {
    for how in ["", "mechanism=signal", "grace=100"] {
        let tag = Tag::new();
        let mut it = Launched::captive(&tag)?;
        it.armed(&format!("arm {how}"))?;
        it.session.expect("drop", "dropped")?;
        it.ends_with_launcher()?;
    }
    Ok(())
}

/// A captive that is armed, and a child it has forked.
fn forked(tag: &Tag, arm: &str) -> Fallible<(Launched, Session)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    let mut it = Launched::captive(tag)?;
    it.armed(arm)?;
    let told = it.session.ask(&format!("fork {}", path.display()))?;
    let mut child = Session::accept(&listener)?;
    let itself = child.answer()?;
    ensure!(told == itself, "{told} and {itself}");
    Ok((it, child))
}

fn fork() -> Outcome {
    let tag = Tag::new();
    let (mut it, mut child) = forked(&tag, "arm")?;
    child.expect("alive", "true")?;
    it.ends_with_launcher()?;
    child.expect("alive", "false")?;
    // The handle is inert in the child, whatever is done with it.
    let tag = Tag::new();
    let (mut it, mut child) = forked(&tag, "arm")?;
    child.expect("disarm", "done")?;
    it.session.expect("alive", "true")?;
    it.ends_with_launcher()?;
    child.ask("pid")?;
    Ok(())
}

fn fork_rearmed() -> Outcome {
    let tag = Tag::new();
    let (mut it, mut child) = forked(&tag, "arm")?;
    child.expect("rearm", "done")?;
    // Its own parent's end is nothing to it, the original's is.
    it.session.tell("exit 0")?;
    it.session.ended()?;
    child.expect("alive", "true")?;
    drop(it);
    child.ended()?;
    // Each ends its own binding.
    let tag = Tag::new();
    let (mut it, mut child) = forked(&tag, "arm")?;
    child.expect("rearm", "done")?;
    it.session.expect("disarm", "done")?;
    it.survives_launcher()?;
    child.ended()?;
    let tag = Tag::new();
    let (mut it, mut child) = forked(&tag, "arm")?;
    child.expect("rearm", "done")?;
    child.expect("disarm", "done")?;
    it.ends_with_launcher()?;
    child.ask("pid")?;
    // A rearm that comes too late says so.
    let tag = Tag::new();
    let (mut it, mut child) = forked(&tag, "arm")?;
    it.ends_with_launcher()?;
    child.expect_parts("rearm", &["error ParentGone"])
}

/// Before or after the fork: what was the parent's descriptor is not taken for it.
fn fork_closefrom() -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let reuse = format!("reuse {}", file.path().display());
    for reused in [false, true] {
        let tag = Tag::new();
        let (_it, mut child) = forked(&tag, "arm")?;
        child.expect("closefrom", "0")?;
        if reused {
            child.expect(&reuse, "reused")?;
        }
        child.expect_parts("rearm", &["error Os", "Bad file descriptor"])?;
        child.ask("pid")?;
    }
    Ok(())
}

/// A captive that is pid 1 of its namespace and armed, and children that it forks.
struct Namespaced {
    it: Launched,
    listener: UnixListener,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Namespaced {
    fn armed(tag: &Tag) -> Fallible<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path)?;
        let mut it = Launched::through(tag, &["unshare", "--pid", "--fork", "--mount-proc"])?;
        it.armed(&format!("arm fd={LIFELINE}"))?;
        it.session.expect("pid", "1")?;
        it.session.expect("new-pid-namespace", "0")?;
        Ok(Self {
            it,
            listener,
            path,
            _dir: dir,
        })
    }

    /// A child of the captive's with this pid in the children's own namespace.
    fn child(&mut self, pid: i32) -> Fallible<Session> {
        let fork = format!("fork {}", self.path.display());
        self.it.session.ask(&fork)?;
        let mut child = Session::accept(&self.listener)?;
        let answer = child.answer()?;
        ensure!(answer == pid.to_string(), "the child is {answer}");
        Ok(child)
    }
}

/// The number of the process that armed says nothing in another namespace.
fn fork_same_pid() -> Outcome {
    let tag = Tag::new();
    let mut scene = Namespaced::armed(&tag)?;
    let mut child = scene.child(1)?;
    child.expect("disarm", "done")?;
    scene.it.ends_with_launcher()?;
    let tag = Tag::new();
    let mut scene = Namespaced::armed(&tag)?;
    let mut child = scene.child(1)?;
    // A binding of its own: the captive's own end is not the child's.
    child.expect("rearm", "done")?;
    scene.it.session.expect("disarm", "done")?;
    scene.it.session.ask("pid")?;
    scene.it.kill_launcher()?;
    child.ended()?;
    scene.it.session.ask("pid")?;
    Ok(())
}

/// Nor does the number of the watcher: in the other namespace it is somebody else's, who has closed
/// what the child has not.
fn fork_same_tid() -> Outcome {
    let tag = Tag::new();
    let mut scene = Namespaced::armed(&tag)?;
    let mut child = scene.child(1)?;
    let mut others = Vec::new();
    for pid in 2..=4 {
        let mut other = scene.child(pid)?;
        other.expect("closefrom", "0")?;
        others.push(other);
    }
    child.expect("rearm", "done")?;
    scene.it.kill_launcher()?;
    child.ended()
}

fn fork_by_signal_only() -> Outcome {
    let tag = Tag::new();
    let (_it, mut child) = forked(&tag, "arm mechanism=signal")?;
    child.expect("pdeathsig", "0")?;
    child.expect_parts("rearm", &["error NeedsWatcher(ParentDeathSignal)"])
}

fn closefrom() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.armed("arm")?;
    it.session.expect("closefrom", "0")?;
    it.ends_with_launcher()
}

/// After closefrom() the handle's numbers may mean anything: nothing is written to or closed, and the
/// parent is not taken for gone.
fn descriptors_reused() -> Outcome {
    for how in ["", "form=channel", "fd=10"] {
        let file = tempfile::NamedTempFile::new()?;
        let reuse = format!("reuse {}", file.path().display());
        let tag = Tag::new();
        let mut it = Launched::captive(&tag)?;
        it.armed(&format!("arm {how}"))?;
        it.session.expect("closefrom", "0")?;
        it.session.expect("alive", "true")?;
        it.session.expect(&reuse, "reused")?;
        it.session.expect("alive", "true")?;
        it.session.expect("rearm", "done")?;
        it.session
            .expect_parts("disarm", &["error Os", "Bad file descriptor"])?;
        // Every number still means the file, and nobody has written to it.
        it.session.expect("file-size", "Ok(Some(0))")?;
        if how != "form=channel" {
            it.ends_with_launcher()?;
        }
    }
    Ok(())
}

fn holds_no_descriptors() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session.expect("pipe", "made")?;
    it.armed("arm")?;
    it.session.expect("pipe-ends", "true")
}

fn without_close_range() -> Outcome {
    for errno in [libc::ENOSYS, libc::EPERM] {
        let deny = format!("deny {} {errno}", libc::SYS_close_range);
        let launched = |tag: &Tag| -> Fallible<Launched> {
            let mut it = Launched::captive(tag)?;
            it.session.expect(&deny, "denied")?;
            it.armed("arm")?;
            Ok(it)
        };
        let tag = Tag::new();
        launched(&tag)?.ends_with_launcher()?;
        let mut it = launched(&tag)?;
        it.session.expect("pipe", "made")?;
        it.session.expect("pipe-ends", "true")?;
        it.session.expect("disarm", "done")?;
        it.survives_launcher()?;
    }
    Ok(())
}

/// A captive that may open no more descriptors, and whose system calls were begun again since:
/// poll(2) refuses more descriptors than RLIMIT_NOFILE.
fn limited(tag: &Tag, limit: u32, arm: &str) -> Fallible<Launched> {
    let mut it = Launched::captive(tag)?;
    it.armed(arm)?;
    it.session
        .expect(&format!("limit-descriptors {limit}"), "limited")?;
    let pid = it.pid()?;
    let witness = Witness::of(pid)?;
    witness.signal(libc::SIGSTOP);
    await_that("the stop", || state(pid) == Some('T'))?;
    witness.signal(libc::SIGCONT);
    Ok(it)
}

fn descriptor_limit() -> Outcome {
    for limit in [0, 1] {
        for how in ["", &format!("fd={LIFELINE}")] {
            let tag = Tag::new();
            let mut it = limited(&tag, limit, &format!("arm {how}"))?;
            it.session.expect("alive", "true")?;
            it.ends_with_launcher()?;
            let tag = Tag::new();
            let mut it = limited(&tag, limit, &format!("arm form=channel {how}"))?;
            it.survives_launcher()?;
            it.session.expect("alive", "false")?;
            let tag = Tag::new();
            let mut it = limited(&tag, limit, &format!("arm {how}"))?;
            it.session.expect("disarm", "done")?;
            it.survives_launcher()?;
        }
    }
    Ok(())
}

/// The watcher sleeps through its grace, however often the parent is gone.
fn descriptor_limit_grace() -> Outcome {
    let tag = Tag::new();
    let mut it = limited(&tag, 0, "arm form=signal grace=600000")?;
    it.session.expect("ignore 15", "ignored")?;
    let pid = it.pid()?;
    let [watcher] = watchers(pid)?[..] else {
        return Err("not one watcher".into());
    };
    it.kill_launcher()?;
    // The grace has begun once the watcher has slept, and been woken, and sleeps again.
    await_that("the parent's end", || {
        it.session.ask("alive").is_ok_and(|alive| alive == "false")
    })?;
    await_that("the watcher's sleep", || state(watcher) == Some('S'))?;
    let ran = || status_field(watcher, "voluntary_ctxt_switches");
    let before = ran();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(5));
        ensure!(state(watcher) == Some('S'), "the watcher runs");
    }
    ensure!(before.is_some() && before == ran(), "the watcher woke up");
    it.session.expect("disarm", "done")?;
    watchers_leave(pid)
}

fn watcher_blocks_signals() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session.expect("handle 10", "handled")?;
    it.armed("arm")?;
    let pid = it.pid()?;
    let [watcher] = watchers(pid)?[..] else {
        return Err("not one watcher".into());
    };
    let blocked = status_field(watcher, "SigBlk").unwrap_or_default();
    // All but SIGKILL, SIGSTOP, and 32 and 33 (musl: 34 too), by which the C library changes ids in all threads.
    let expected = if cfg!(target_env = "musl") {
        "fffffffc7ffbfeff"
    } else {
        "fffffffe7ffbfeff"
    };
    ensure!(blocked == expected, "{blocked}");
    let main = status_field(pid, "SigBlk").unwrap_or_default();
    ensure!(main == "0000000000000000", "the program's mask: {main}");
    // No thread but the main one, which blocks it, could run the handler.
    it.session.expect("block 10", "0")?;
    it.session.expect("raise 10", "raised")?;
    let pending = status_field(pid, "ShdPnd").unwrap_or_default();
    ensure!(pending == "0000000000000200", "{pending}");
    it.session.expect("caught", "0 on the no thread")?;
    it.session.expect("unblock 10", "0")?;
    it.session.expect("caught", "10 on the main thread")
}

fn pid_1() -> Outcome {
    let between = ["unshare", "--pid", "--fork", "--mount-proc"];
    let tag = Tag::new();
    let mut it = Launched::through(&tag, &between)?;
    it.session.expect("pid", "1")?;
    // Its parent has no pid here.
    it.session.expect_parts("arm", &["error ParentOutside"])?;
    // A signal at its default disposition is dropped.
    it.session.expect("raise 15", "raised")?;
    it.session.expect("raise 9", "raised")?;
    it.armed(&format!("arm fd={LIFELINE}"))?;
    it.ends_with_launcher()?;
    // A handler is run as in any process.
    let tag = Tag::new();
    let mut it = Launched::through(&tag, &between)?;
    it.session.expect("handle 15", "handled")?;
    it.armed(&format!("arm fd={LIFELINE} grace=100"))?;
    it.ends_with_launcher()
}

fn reports() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    let launcher = it.launcher_pid();
    let mut report = |how: &str, text: &str, limits: &str| -> Outcome {
        it.session
            .expect(&format!("arm {how}"), &format!("armed: {text}"))?;
        it.session.expect("limits", limits)?;
        it.session.expect("disarm", "done")
    };
    report(
        "",
        &format!("pidfd on the parent {launcher}, process-scoped: TERM"),
        "[Stopped, ParentsMemory, Fork, ParentsExec, Exec, AdoptedBefore]",
    )?;
    report(
        &format!("expect={launcher} signal=INT grace=1500"),
        &format!("pidfd on the expected parent {launcher}, process-scoped: INT, KILL after 1.5s"),
        "[Stopped, ParentsMemory, Fork, ParentsExec, Exec]",
    )?;
    report(
        &format!("expect={launcher} form=channel"),
        &format!("pidfd on the expected parent {launcher}, process-scoped"),
        "[Stopped, ParentsMemory, Fork, ParentsExec, Exec]",
    )?;
    report(
        "second",
        &format!("pidfd and parent-death signal on the parent {launcher}, thread-scoped: TERM"),
        "[Stopped, ParentsMemory, Fork, ParentsExec, Exec, AdoptedBefore, ThreadScope, \
         Credentials, SendersPermission]",
    )?;
    report(
        "mechanism=signal",
        &format!("parent-death signal on the parent {launcher}, thread-scoped: TERM"),
        "[Stopped, ParentsMemory, Fork, AdoptedBefore, ThreadScope, Credentials, \
         SendersPermission]",
    )?;
    report(
        &format!("pidfd={launcher}"),
        "pidfd on the parent's descriptor, process-scoped: TERM",
        "[Stopped, ParentsMemory, Fork, ParentsExec, Exec]",
    )?;
    report(
        &format!("fd={LIFELINE}"),
        "pidfd on the parent's descriptor, process-scoped: TERM",
        "[Stopped, ParentsMemory, Fork, ParentsExec, Exec, OtherWriters]",
    )
}

fn wrong_parent() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    let (launcher, pid) = (it.launcher_pid(), it.pid()?);
    for wrong in [
        "1".to_owned(),
        pid.to_string(),
        std::process::id().to_string(),
    ] {
        for mechanism in ["", "mechanism=signal", "second"] {
            it.session.expect_parts(
                &format!("arm expect={wrong} {mechanism}"),
                &[
                    &format!(
                        "error ParentGone {{ expected: Some({wrong}), found: Some({launcher})"
                    ),
                    &format!("the parent process {wrong} is gone (the parent is {launcher} now)"),
                ],
            )?;
        }
    }
    // Nothing is armed.
    it.session.expect("pdeathsig", "0")?;
    ensure!(watchers(pid)?.is_empty(), "a watcher");
    it.survives_launcher()
}

fn writer_held_here() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session.expect("pipe", "made")?;
    it.session.expect_parts(
        "arm own-pipe",
        &["error WriterHeldHere", "is a write end of the pipe"],
    )
}

fn not_a_parent_fd() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    // The conversation's own socket would be closed with the error: a copy of it.
    it.session.expect("pipe", "made")?;
    let answer = it.session.ask("arm fd=2")?;
    ensure!(answer.starts_with("error NotAParentFd"), "{answer}");
    it.session.expect_parts(
        "arm mechanism=signal pidfd=1",
        &["error NeedsWatcher(ParentDeathSignal)"],
    )?;
    it.session
        .expect_parts("arm mechanism=kqueue", &["error Unsupported(Some(Kqueue))"])
}

fn twice() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.armed("arm")?;
    it.armed("arm")?;
    it.ends_with_launcher()?;
    // The second's end is not the first's.
    let mut it = Launched::captive(&tag)?;
    it.armed("arm")?;
    it.armed("arm")?;
    it.session.expect("disarm", "done")?;
    it.ends_with_launcher()
}

/// A thread that has ended since.
fn from_a_thread() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    for how in ["mechanism=signal", "second"] {
        it.session
            .expect_parts(&format!("arm-in-thread {how}"), &["error NotMainThread"])?;
    }
    let pid = it.pid()?;
    watchers_leave(pid)?;
    it.armed("arm-in-thread")?;
    it.ends_with_launcher()
}

fn change_of_user_pidfd() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.armed("arm")?;
    it.session.expect("become 65534", "changed")?;
    it.session.expect("rearm", "done")?;
    it.ends_with_launcher()
}

fn change_of_user_signal() -> Outcome {
    let changed = |tag: &Tag| -> Fallible<Launched> {
        let mut it = Launched::captive(tag)?;
        it.armed("arm mechanism=signal")?;
        it.session.expect("pdeathsig", "15")?;
        it.session.expect("become 65534", "changed")?;
        it.session.expect("pdeathsig", "0")?;
        Ok(it)
    };
    let tag = Tag::new();
    changed(&tag)?.survives_launcher()?;
    let mut it = changed(&tag)?;
    it.session.expect("rearm", "done")?;
    it.session.expect("pdeathsig", "15")?;
    it.ends_with_launcher()
}

/// As before Linux 5.3, and under seccomp profiles older than the system call.
fn without_pidfd(tag: &Tag, errno: i32) -> Fallible<Launched> {
    let mut it = Launched::captive(tag)?;
    let deny = format!("deny {} {errno}", libc::SYS_pidfd_open);
    it.session.expect(&deny, "denied")?;
    Ok(it)
}

fn no_pidfd() -> Outcome {
    for errno in [libc::ENOSYS, libc::EPERM] {
        let tag = Tag::new();
        let mut it = without_pidfd(&tag, errno)?;
        let launcher = it.launcher_pid();
        it.session.expect(
            "arm",
            &format!("armed: parent-death signal on the parent {launcher}, thread-scoped: TERM"),
        )?;
        it.session.expect_parts("limits", &["AdoptedBefore"])?;
        it.session.expect("disarm", "done")?;
        it.session.expect(
            &format!("arm expect={launcher}"),
            &format!(
                "armed: parent-death signal on the expected parent {launcher}, thread-scoped: TERM"
            ),
        )?;
        it.ends_with_launcher()?;
    }
    Ok(())
}

fn no_pidfd_no_watcher() -> Outcome {
    let tag = Tag::new();
    let mut it = without_pidfd(&tag, libc::ENOSYS)?;
    for how in ["grace=100", "form=channel", "form=callback"] {
        it.session.expect_parts(
            &format!("arm {how}"),
            &["error NeedsWatcher(ParentDeathSignal)"],
        )?;
    }
    it.session.expect_parts(
        "arm mechanism=pidfd",
        &[
            "error Os",
            "opening a pidfd on the parent",
            "Function not implemented",
        ],
    )?;
    it.session.expect("pdeathsig", "0")?;
    // A descriptor that is there needs no opening.
    it.armed(&format!("arm fd={LIFELINE} grace=100"))?;
    it.ends_with_launcher()
}

fn step_errors() -> Outcome {
    for (call, how, message) in [
        (
            libc::SYS_eventfd2,
            "",
            "making the watcher's wake-up descriptor failed: ",
        ),
        (
            libc::SYS_epoll_create1,
            "",
            "making the watcher's wake-up descriptor failed: ",
        ),
        (libc::SYS_clone3, "", "starting the watcher thread failed: "),
        (
            libc::SYS_prctl,
            "second",
            "setting the parent-death signal TERM failed: ",
        ),
    ] {
        let tag = Tag::new();
        let mut it = Launched::captive(&tag)?;
        let errno = libc::EAGAIN;
        let only = if call == libc::SYS_prctl {
            format!("0 {}", libc::PR_SET_PDEATHSIG)
        } else {
            String::new()
        };
        it.session
            .expect(&format!("deny {call} {errno} {only}"), "denied")?;
        if call == libc::SYS_clone3 {
            // By which a C library makes threads on other processors.
            it.session
                .expect(&format!("deny {} {errno} ", libc::SYS_clone), "denied")?;
        }
        it.session.expect_parts(
            &format!("arm {how}"),
            &["error Os", message, "Resource temporarily unavailable"],
        )?;
        it.session.expect("pdeathsig", "0")?;
        let pid = it.pid()?;
        watchers_leave(pid)?;
        let blocked = status_field(pid, "SigBlk").unwrap_or_default();
        ensure!(blocked == "0000000000000000", "left blocked: {blocked}");
        it.survives_launcher()?;
    }
    Ok(())
}
