//! `apply()` in daemons with many threads: every one of them has the new credentials, or the call
//! fails and says which has not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use libtest_mimic::Trial;

use crate::support::process::{Reaped, status_field};
use crate::support::{Fallible, Launched, Need, Outcome, Session, Tag, Witness, test};

pub fn tests() -> Vec<Trial> {
    const ROOT: &[Need] = &[Need::Root];
    const ROOT_GLIBC: &[Need] = &[Need::Root, Need::Glibc];
    let mut tests = vec![
        test("privileges::every_thread", ROOT, every_thread),
        test("privileges::threads_come_and_go", ROOT, || {
            threads_come_and_go(20)
        }),
        test(
            "privileges::threads_come_and_go_1000",
            &[Need::Root, Need::Long],
            || threads_come_and_go(1000),
        ),
        test(
            "privileges::group_list",
            &[Need::Root, Need::Program("id")],
            group_list,
        ),
        test("privileges::ids_have_one_group", ROOT, ids_have_one_group),
        test("privileges::thread_of_nobody", ROOT_GLIBC, thread_of_nobody),
        test("privileges::thread_that_ends", ROOT_GLIBC, thread_that_ends),
        test(
            "privileges::thread_that_refuses",
            ROOT_GLIBC,
            thread_that_refuses,
        ),
        test("privileges::kept_capabilities", ROOT, kept_capabilities),
        test("privileges::root_regained", ROOT, root_regained),
        test("privileges::one_capability_only", ROOT, one_capability_only),
        test(
            "privileges::teardown_has_the_user",
            ROOT,
            teardown_has_the_user,
        ),
        test("privileges::signal_again", ROOT, signal_again),
        test("privileges::watched_from_prepare", ROOT, || {
            watched_from_prepare("exit-with-parent=on")
        }),
        test("privileges::not_watched_unless_on", ROOT, not_watched),
        test("privileges::parent_died_between", ROOT, parent_died_between),
        test("privileges::watched_after_apply", ROOT, watched_after_apply),
    ];
    for (call, field) in [
        (libc::SYS_setgroups, "Groups"),
        (libc::SYS_setresgid, "Gid"),
        // Still root, and so is setuid(0).
        (libc::SYS_setresuid, "RootRegained"),
    ] {
        let name = format!("privileges::change_that_did_nothing_{field}");
        tests.push(test(&name.to_lowercase(), ROOT, move || {
            did_nothing(call, field)
        }));
    }
    tests
}

/// A captive that is this test's own child.
struct Captive {
    session: Session,
    child: Reaped,
}

impl Captive {
    fn new(tag: &Tag) -> Fallible<Self> {
        let (session, child) = Session::spawn(&mut tag.role("captive"))?;
        Ok(Self {
            session,
            child: Reaped(child),
        })
    }

    fn prepared(tag: &Tag, options: &str) -> Fallible<Self> {
        let mut it = Self::new(tag)?;
        it.session
            .expect(&format!("prepare {options}"), "prepared")?;
        Ok(it)
    }

    fn pid(&self) -> i32 {
        self.child.0.id() as i32
    }
}

const NOBODY: &str = "65534\t65534\t65534\t65534";
const NONE: &str = "0000000000000000";

/// How many threads there are; each is nobody, in every respect.
fn all_nobody(pid: i32) -> Fallible<usize> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        // It may have ended.
        let Ok(status) = fs::read_to_string(entry?.path().join("status")) else {
            continue;
        };
        count += 1;
        for (field, expected) in [
            ("Uid", NOBODY),
            ("Gid", NOBODY),
            ("Groups", "65534"),
            ("CapInh", NONE),
            ("CapPrm", NONE),
            ("CapEff", NONE),
            ("CapAmb", NONE),
        ] {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            let value = line.unwrap_or_default().trim();
            ensure!(value == expected, "{field}: {value} in {status}");
        }
    }
    Ok(count)
}

fn every_thread() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    let pid: i32 = it.session.ask("pid")?.parse()?;
    it.session.expect("crowd", "gathered")?;
    it.session
        .expect("prepare user=nobody,exit-with-parent=on", "prepared")?;
    ensure!(all_nobody(pid).is_err(), "nobody already");
    it.session.expect("apply", "applied")?;
    // The one that answers, the watcher, twenty that stay and two that make others.
    let count = all_nobody(pid)?;
    ensure!(count >= 24, "{count} threads");
    it.kill_launcher()?;
    it.session.ended()
}

fn threads_come_and_go(times: usize) -> Outcome {
    for _ in 0..times {
        let tag = Tag::new();
        let mut it = Captive::prepared(&tag, "user=nobody")?;
        it.session.expect("crowd", "gathered")?;
        it.session.expect("apply", "applied")?;
        all_nobody(it.pid())?;
    }
    Ok(())
}

fn numbers(text: &str) -> BTreeSet<u32> {
    text.split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Of a user with more than one group, if there is one here, and of others.
fn group_list() -> Outcome {
    let groups = fs::read_to_string("/etc/group")?;
    let members = groups.lines().filter_map(|line| line.rsplit(':').next());
    let member = members
        .flat_map(|members| members.split(','))
        .find(|user| !user.is_empty() && *user != "root");
    for user in member.into_iter().chain(["nobody", "games", "www-data"]) {
        let answer = Command::new("id").args(["-G", user]).output()?;
        let expected = numbers(&String::from_utf8(answer.stdout)?);
        ensure!(!expected.is_empty(), "no user {user}");
        let tag = Tag::new();
        let mut it = Captive::prepared(&tag, &format!("user={user}"))?;
        it.session.expect("apply", "applied")?;
        let found = numbers(&status_field(it.pid(), "Groups").unwrap_or_default());
        ensure!(found == expected, "{user}: {found:?}, not {expected:?}");
    }
    Ok(())
}

fn ids_have_one_group() -> Outcome {
    let tag = Tag::new();
    let mut it = Captive::prepared(&tag, "user=4321:1234")?;
    it.session.expect("apply", "applied")?;
    it.session.expect_parts(
        "state",
        &[
            "real: Uid(4321), effective: Uid(4321), saved: Uid(4321)",
            "real: Gid(1234), effective: Gid(1234), saved: Gid(1234)",
            "groups [Gid(1234)]",
        ],
    )
}

/// A thread that the C library does not know keeps root.
fn thread_of_nobody() -> Outcome {
    let tag = Tag::new();
    let mut it = Captive::prepared(&tag, "user=nobody")?;
    let tid = it.session.ask("raw-thread 3600000")?;
    it.session.expect_parts(
        "apply",
        &[
            "step ProveDropped done [SetGroups([65534]), SetGid(65534), SetUid(65534)] must_end true",
            &format!("NotDropped(Thread {{ tid: {tid}, field: \"Uid\", found: \"0\\t0\\t0\\t0\" }})"),
            &format!(
                "the proof that privileges are gone failed; done before: setgroups to 65534, \
                 setgid to 65534, setuid to 65534; the process must end: thread {tid} has Uid: 0"
            ),
        ],
    )
}

/// One that is about to end, which the C library leaves alone, is no failure.
fn thread_that_ends() -> Outcome {
    let tag = Tag::new();
    let mut it = Captive::prepared(&tag, "user=nobody")?;
    it.session.ask("raw-thread 100")?;
    it.session.expect("apply", "applied")?;
    ensure!(all_nobody(it.pid())? == 1, "other threads");
    Ok(())
}

/// A thread in which the change fails: the C library ends the process, as it must not go on.
fn thread_that_refuses() -> Outcome {
    let tag = Tag::new();
    let mut it = Captive::prepared(&tag, "user=nobody")?;
    let deny = format!("{} {}", libc::SYS_setresuid, libc::EPERM);
    it.session.ask(&format!("denying-thread {deny}"))?;
    let witness = Witness::of(it.pid())?;
    it.session.tell("apply")?;
    ensure!(witness.gone(), "it lives");
    let status = it.child.0.wait()?;
    ensure!(status.signal() == Some(libc::SIGABRT), "{status}");
    Ok(())
}

/// A system call that says yes and does nothing (seccomp profiles may).
fn did_nothing(call: libc::c_long, field: &str) -> Outcome {
    let tag = Tag::new();
    let mut it = Captive::prepared(&tag, "user=nobody")?;
    it.session.expect(&format!("deny {call} 0"), "denied")?;
    it.session
        .expect_parts("apply", &["step ProveDropped", "must_end true", field])
}

fn kept_capabilities() -> Outcome {
    const SECBIT_KEEP_CAPS: i32 = 1 << 4;
    let tag = Tag::new();
    let mut it = Captive::prepared(&tag, "user=nobody")?;
    it.session
        .expect(&format!("secure-bits {SECBIT_KEEP_CAPS}"), "0")?;
    it.session
        .expect_parts("apply", &["step ProveDropped", "must_end true", "CapPrm"])
}

fn root_regained() -> Outcome {
    const SECBIT_NO_SETUID_FIXUP: i32 = 1 << 2;
    let tag = Tag::new();
    let mut it = Captive::prepared(&tag, "user=nobody")?;
    it.session
        .expect(&format!("secure-bits {SECBIT_NO_SETUID_FIXUP}"), "0")?;
    it.session.expect_parts(
        "apply",
        &[
            "must_end true",
            "NotDropped(RootRegained)",
            "setuid(0) succeeded",
        ],
    )
}

const CAP_SETGID: i32 = 6;
const CAP_SETUID: i32 = 7;
const CAP_SYS_CHROOT: i32 = 18;

/// A caller who is not root, but has one of the rights.
fn one_capability_only() -> Outcome {
    for (capability, options, step, done) in [
        (
            CAP_SETUID,
            "user=nobody",
            "SetGroups([65534])",
            "done [] must_end false",
        ),
        (
            CAP_SYS_CHROOT,
            "user=nobody",
            "SetGroups([65534])",
            "done [] must_end false",
        ),
        (CAP_SETGID, "user=nobody", "SetUid(65534)", "must_end true"),
        (
            CAP_SETGID,
            "chroot=/tmp",
            "Chroot(\"/tmp\")",
            "done [] must_end false",
        ),
    ] {
        let tag = Tag::new();
        let mut it = Captive::new(&tag)?;
        it.session
            .expect(&format!("become-but-keep {capability}"), "changed")?;
        let before = it.session.ask("state")?;
        it.session
            .expect(&format!("prepare {options}"), "prepared")?;
        it.session.expect_parts(
            "apply",
            &[&format!("step {step} "), done, "Operation not permitted"],
        )?;
        if done.contains("false") {
            it.session.expect("state", &before)?;
        }
    }
    // A capability that a change of user from another user leaves.
    let tag = Tag::new();
    let mut it = Captive::new(&tag)?;
    it.session
        .expect(&format!("become-but-keep {CAP_SYS_CHROOT}"), "changed")?;
    it.session.expect("prepare chroot=/tmp", "prepared")?;
    it.session.expect("apply", "applied")
}

/// The order is a promise: the helper is started by the new user.
fn teardown_has_the_user() -> Outcome {
    let tag = Tag::new();
    let mut it = Captive::prepared(&tag, "async-teardown=on,user=nobody")?;
    it.session.expect("apply", "applied")?;
    let helper: i32 = it.session.ask("teardown")?.parse()?;
    ensure!(all_nobody(helper)? == 1, "threads in the helper");
    let witness = Witness::of(helper)?;
    it.session.tell("exit 0")?;
    ensure!(witness.gone(), "the helper stays");
    Ok(())
}

/// By name, the parent-death signal is set again after the change that cleared it.
fn signal_again() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session.expect(
        "prepare user=nobody,exit-with-parent=on mechanism=signal signal=INT",
        "prepared",
    )?;
    it.session.expect("pdeathsig", "2")?;
    it.session.expect("apply", "applied")?;
    it.session.expect("pdeathsig", "2")?;
    it.session
        .expect_parts("applied-report", &["parent-death signal", ": INT"])?;
    it.kill_launcher()?;
    it.session.ended()
}

fn watched_from_prepare(options: &str) -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session
        .expect(&format!("prepare {options}"), "prepared")?;
    it.kill_launcher()?;
    it.session.ended()
}

fn not_watched() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session.expect("prepare user=nobody", "prepared")?;
    it.kill_launcher()?;
    it.session.expect("apply", "applied")
}

/// A program that is only told, and has not looked: apply says so, before or after a change.
fn parent_died_between() -> Outcome {
    for (options, done) in [
        ("exit-with-parent=on", "done [] must_end false"),
        ("exit-with-parent=on,user=nobody", "must_end true"),
    ] {
        for how in ["", "fd=10"] {
            let tag = Tag::new();
            let mut it = Launched::captive(&tag)?;
            it.session
                .expect(&format!("prepare {options} form=channel {how}"), "prepared")?;
            it.kill_launcher()?;
            it.session
                .expect_parts("apply", &[done, "ParentGone", "is gone"])?;
        }
    }
    Ok(())
}

fn watched_after_apply() -> Outcome {
    for options in [
        "user=nobody",
        "chroot=/tmp,user=nobody",
        "async-teardown=on",
    ] {
        let tag = Tag::new();
        let mut it = Launched::captive(&tag)?;
        it.session.expect(
            &format!("prepare {options},exit-with-parent=on"),
            "prepared",
        )?;
        it.session.expect("apply", "applied")?;
        it.kill_launcher()?;
        it.session.ended()?;
    }
    Ok(())
}
