//! `async_teardown`: the process is waitable before its memory is back, and nothing is left over.
//!
//! What shows the order is a stopped helper, never a time:
//!
//! ```text
//! test ── main (touches memory, starts the helper, obeys commands on stdin)
//!           └─ cleanup/MAIN (SIGSTOPped by the test; goes to init when main is reaped)
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use libtest_mimic::Trial;

use crate::support::process::{Reaped, await_that, readable_within, state, status_field};
use crate::support::{Fallible, HANG, Need, Outcome, Session, Tag, Witness, test};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("teardown::waitable_while_the_memory_is_held", &[], order),
        test("teardown::off_nothing_holds_the_memory", &[], order_off),
        test("teardown::helper_follows_at_once", &[], follows),
        test("teardown::process_group_killed", &[], group_killed),
        test("teardown::helper_killed", &[], helper_killed),
        test("teardown::credentials", &[Need::Root], credentials),
        test(
            "teardown::credentials_in_the_wrong_order",
            &[Need::Root],
            credentials_late,
        ),
        test("teardown::helper_has_nothing", &[], helper_has_nothing),
        test(
            "teardown::descriptors_without_close_range",
            &[],
            without_close_range,
        ),
        test("teardown::signals", &[], signals),
        test("teardown::wait_does_not_see_it", &[], wait_does_not_see_it),
        test("teardown::exec", &[], || exec("exec", false)),
        test("teardown::exec_from_thread", &[], || {
            exec("exec-from-thread", false)
        }),
        test("teardown::exec_with_a_forked_child", &[], || {
            exec("exec", true)
        }),
        test("teardown::exec_zombie", &[], exec_zombie),
        test("teardown::closefrom", &[], closefrom),
        test("teardown::descriptor_limit", &[], descriptor_limit),
        test("teardown::fork", &[], forked_handle),
        test(
            "teardown::fork_same_pid",
            &[Need::Root, Need::Program("unshare")],
            fork_same_pid,
        ),
        test("teardown::second_start", &[], second_start),
        test(
            "teardown::pid_1",
            &[Need::Root, Need::Program("unshare")],
            pid_1,
        ),
        test("teardown::each_step_fails", &[Need::Glibc], each_step_fails),
        test("teardown::errno", &[], errno),
        test("teardown::starts_and_ends", &[], || cycles(100)),
        test("teardown::starts_and_ends_1000", &[Need::Long], || {
            cycles(1000)
        }),
        test("teardown::processes", &[], || processes(50)),
        test("teardown::processes_1000", &[Need::Long], || {
            processes(1000)
        }),
    ]
}

/// A process in the role `teardown`, killed and reaped on drop.
struct Main {
    child: Reaped,
    session: Session,
}

impl std::ops::Deref for Main {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl std::ops::DerefMut for Main {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Main {
    fn new(tag: &Tag) -> Fallible<Self> {
        Self::spawn(&mut tag.role("teardown"))
    }

    fn spawn(command: &mut Command) -> Fallible<Self> {
        let (session, child) = Session::spawn(command)?;
        Ok(Self {
            child: Reaped(child),
            session,
        })
    }

    /// With `mib` MiB touched and a helper.
    fn started(tag: &Tag, mib: usize) -> Fallible<(Self, Witness)> {
        let mut main = Self::new(tag)?;
        main.ask(&format!("touch {mib}"))?;
        let helper = main.start()?;
        Ok((main, helper))
    }

    fn pid(&self) -> i32 {
        self.child.0.id() as i32
    }

    fn start(&mut self) -> Fallible<Witness> {
        let answer = self.ask("start")?;
        let pid = answer.parse().map_err(|_| answer)?;
        Ok(Witness::of(pid)?)
    }

    /// SIGKILL, and reaped.
    fn kill(&mut self) -> Outcome {
        Witness::of(self.pid())?.signal(libc::SIGKILL);
        let status = self.reap()?;
        ensure!(status.signal() == Some(libc::SIGKILL), "{status}");
        Ok(())
    }

    fn reap(&mut self) -> Fallible<std::process::ExitStatus> {
        ensure!(Witness::of(self.pid())?.gone(), "it does not end");
        Ok(self.child.0.wait()?)
    }
}

fn stop(helper: &Witness) -> Outcome {
    helper.signal(libc::SIGSTOP);
    await_that("the helper stops", || state(helper.pid) == Some('T'))
}

fn resident_mib(pid: i32) -> usize {
    status_field(pid, "VmRSS")
        .and_then(|text| text.strip_suffix(" kB")?.parse::<usize>().ok())
        .unwrap_or(0)
        >> 10
}

/// Ends and lets the memory go. Its zombie is init's, which reaps at a pace of its own; that it can
/// be reaped is what the tests named `processes` show.
fn leaves(helper: &Witness) -> Outcome {
    ensure!(helper.gone(), "the helper does not end");
    ensure!(resident_mib(helper.pid) == 0, "memory is still held");
    Ok(())
}

fn order() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 256)?;
    stop(&helper)?;
    main.kill()?;
    ensure!(helper.alive(), "the helper is gone");
    ensure!(
        resident_mib(helper.pid) >= 256,
        "{} MiB held",
        resident_mib(helper.pid)
    );
    // A socket that the process held has ended, memory or not.
    main.ended()?;
    helper.signal(libc::SIGCONT);
    leaves(&helper)
}

/// Without: once the process is waitable nobody has its memory.
fn order_off() -> Outcome {
    let tag = Tag::new();
    let mut main = Main::new(&tag)?;
    main.ask("touch 256")?;
    ensure!(resident_mib(main.pid()) >= 256, "not touched");
    main.kill()?;
    ensure!(tag.processes().is_empty(), "{:?}", tag.processes());
    Ok(())
}

fn follows() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 64)?;
    ensure!(helper.alive(), "the helper did not wait");
    main.kill()?;
    leaves(&helper)?;
    // And after an end that nobody brought about.
    let (mut main, helper) = Main::started(&tag, 64)?;
    main.tell("exit 7")?;
    ensure!(main.reap()?.code() == Some(7), "another status");
    leaves(&helper)
}

fn group_killed() -> Outcome {
    let tag = Tag::new();
    let mut main = Main::spawn(tag.role("teardown").process_group(0))?;
    main.ask("touch 64")?;
    let helper = main.start()?;
    stop(&helper)?;
    // SAFETY: no pointers; a group whose leader is our own unreaped child.
    unsafe { libc::kill(-main.pid(), libc::SIGKILL) };
    main.reap()?;
    ensure!(helper.alive() && resident_mib(helper.pid) >= 64, "killed");
    helper.signal(libc::SIGCONT);
    leaves(&helper)
}

fn helper_killed() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 16)?;
    main.expect("running", "true")?;
    helper.signal(libc::SIGKILL);
    ensure!(helper.gone(), "SIGKILL did not kill it");
    main.expect("running", "false")?;
    ensure!(
        main.ask("report")?.contains("is gone"),
        "the report does not say so"
    );
    ensure!(state(helper.pid) == Some('Z'), "{:?}", state(helper.pid));
    main.tell("exit 3")?;
    ensure!(main.reap()?.code() == Some(3), "main did not end as told");
    leaves(&helper)?;
    // The zombie goes with `end` as well, and another helper can be started.
    let (mut main, helper) = Main::started(&tag, 16)?;
    helper.signal(libc::SIGKILL);
    ensure!(helper.gone(), "SIGKILL did not kill it");
    main.expect("end", "ended")?;
    ensure!(state(helper.pid).is_none(), "{:?}", state(helper.pid));
    main.start()?;
    Ok(())
}

fn credentials() -> Outcome {
    let tag = Tag::new();
    let mut main = Main::new(&tag)?;
    main.expect("user 65534", "changed")?;
    main.ask("touch 16")?;
    let helper = main.start()?;
    for (field, expected) in [
        ("Uid", "65534\t65534\t65534\t65534"),
        ("Gid", "65534\t65534\t65534\t65534"),
        ("Groups", ""),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
    ] {
        let value = status_field(helper.pid, field).unwrap_or_default();
        ensure!(value == expected, "{field}: {value}");
    }
    main.kill()?;
    leaves(&helper)
}

/// Started before the change it keeps the old user (so it is the order that does it), but it ends.
fn credentials_late() -> Outcome {
    let tag = Tag::new();
    let mut main = Main::new(&tag)?;
    let helper = main.start()?;
    main.expect("user 65534", "changed")?;
    let uid = status_field(helper.pid, "Uid").unwrap_or_default();
    ensure!(uid == "0\t0\t0\t0", "{uid}");
    main.kill()?;
    leaves(&helper)?;
    // The process may no longer signal it, and still can end it.
    let mut main = Main::new(&tag)?;
    let helper = main.start()?;
    main.expect("user 65534", "changed")?;
    main.expect("end", "ended")?;
    ensure!(state(helper.pid).is_none(), "{:?}", state(helper.pid));
    Ok(())
}

/// What the helper's descriptors refer to.
fn descriptors(pid: i32) -> Fallible<BTreeSet<String>> {
    fs::read_dir(format!("/proc/{pid}/fd"))?
        .map(|entry| Ok(fs::read_link(entry?.path())?.to_string_lossy().into_owned()))
        .collect()
}

fn helper_has_nothing() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 1)?;
    let held = descriptors(helper.pid)?;
    let documented = ["/memfd:async-teardown (deleted)", "anon_inode:[pidfd]"];
    ensure!(held == documented.map(str::to_owned).into(), "{held:?}");
    ensure!(
        descriptors(main.pid())?.len() > held.len(),
        "the process has no more descriptors than the helper"
    );
    let pid = main.pid();
    let field = |name| status_field(helper.pid, name).unwrap_or_default();
    ensure!(
        field("Name") == format!("cleanup/{pid}"),
        "{}",
        field("Name")
    );
    ensure!(
        status_field(pid, "Name").is_some_and(|name| !name.starts_with("cleanup")),
        "the process was renamed"
    );
    ensure!(field("PPid") == pid.to_string(), "{}", field("PPid"));
    ensure!(
        field("NSsid") == helper.pid.to_string(),
        "{}",
        field("NSsid")
    );
    // Everything but SIGKILL (9) and SIGSTOP (19).
    ensure!(field("SigBlk") == "fffffffffffbfeff", "{}", field("SigBlk"));
    let mask = status_field(pid, "SigBlk").unwrap_or_default();
    ensure!(mask == "0000000000000000", "left blocked: {mask}");
    let directory = fs::read_link(format!("/proc/{}/cwd", helper.pid))?;
    ensure!(directory == std::path::Path::new("/"), "{directory:?}");
    main.kill()?;
    leaves(&helper)
}

/// An old seccomp profile, and a descriptor above the limit that came after it.
fn without_close_range() -> Outcome {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let tag = Tag::new();
        let mut main = Main::new(&tag)?;
        main.expect("high-descriptor 900", "900")?;
        main.ask(&format!("deny {} {errno}", libc::SYS_close_range))?;
        let helper = main.start()?;
        let held = descriptors(helper.pid)?;
        ensure!(held.len() == 2, "{held:?}");
        main.kill()?;
        leaves(&helper)?;
    }
    Ok(())
}

fn signals() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 1)?;
    for signal in (1..=64).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        helper.signal(signal);
    }
    // Stopped and continued it goes back to its wait.
    stop(&helper)?;
    helper.signal(libc::SIGCONT);
    await_that("the helper goes on", || state(helper.pid) == Some('S'))?;
    main.expect("running", "true")?;
    // The same signal to the process itself kills it, and the helper still does its work.
    Witness::of(main.pid())?.signal(libc::SIGTERM);
    ensure!(main.reap()?.signal() == Some(libc::SIGTERM), "another end");
    leaves(&helper)
}

fn wait_does_not_see_it() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 1)?;
    main.expect("wait", "Err(ECHILD)")?;
    helper.signal(libc::SIGKILL);
    ensure!(helper.gone(), "SIGKILL did not kill it");
    main.expect("wait", "Err(ECHILD)")?;
    Ok(())
}

fn exec(how: &str, with_child: bool) -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 64)?;
    if with_child {
        // It has copies of all descriptors, and does not exec.
        main.ask("fork-idle")?;
    }
    main.tell(how)?;
    ensure!(helper.gone(), "the helper keeps the old image");
    await_that("the new program runs", || {
        status_field(main.pid(), "Name").is_some_and(|name| name == "sleep")
    })?;
    ensure!(resident_mib(helper.pid) == 0, "memory is still held");
    let held = descriptors(main.pid())?;
    ensure!(
        !held.iter().any(|name| name.contains("async-teardown")),
        "{held:?}"
    );
    main.kill()?;
    leaves(&helper)
}

/// The zombie stays with the new program, unless that ignores SIGCHLD, until it starts its own.
fn exec_zombie() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 1)?;
    main.tell("exec-self")?;
    ensure!(helper.gone(), "the helper keeps the old image");
    main.expect("wait", "Err(ECHILD)")?;
    ensure!(state(helper.pid) == Some('Z'), "{:?}", state(helper.pid));
    let next = main.start()?;
    ensure!(state(helper.pid).is_none(), "{:?}", state(helper.pid));
    main.expect("ignore-children", "ignored")?;
    main.tell("exec-self")?;
    ensure!(next.gone(), "the helper keeps the old image");
    await_that("no zombie", || state(next.pid).is_none())
}

fn closefrom() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 1)?;
    main.expect("closefrom", "closed")?;
    ensure!(helper.gone(), "the helper did not end");
    main.tell("exit 4")?;
    ensure!(main.reap()?.code() == Some(4), "main did not end as told");
    leaves(&helper)
}

/// poll(2) looks at nothing then.
fn descriptor_limit() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 1)?;
    main.expect("limit-descriptors 0", "limited")?;
    main.expect("running", "true")?;
    helper.signal(libc::SIGKILL);
    ensure!(helper.gone(), "SIGKILL did not kill it");
    main.expect("running", "false")?;
    // Asking has not reaped it.
    ensure!(state(helper.pid) == Some('Z'), "{:?}", state(helper.pid));
    main.expect("end", "ended")?;
    let (mut main, helper) = Main::started(&tag, 1)?;
    main.expect("limit-descriptors 0", "limited")?;
    main.kill()?;
    leaves(&helper)
}

fn forked_handle() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 1)?;
    main.expect("fork-with-handle", "inert true own true running true")?;
    ensure!(helper.alive(), "the child ended its parent's helper");
    main.expect("end", "ended")?;
    ensure!(state(helper.pid).is_none(), "{:?}", state(helper.pid));
    Ok(())
}

/// The process and its child are both pid 2, each in its own namespace.
fn fork_same_pid() -> Outcome {
    let tag = Tag::new();
    let mut command = tag.command("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "sh", "-c"]);
    command.arg("\"$@\"; exit $?").arg("sh");
    command.arg(std::env::current_exe()?);
    let mut main = Main::spawn(command.args(["--role", "teardown"]))?;
    main.ask("start")?;
    main.ask("new-pid-namespace")?;
    main.expect("fork-with-handle", "inert true own true running true")?;
    main.expect("end", "ended")
}

fn second_start() -> Outcome {
    let tag = Tag::new();
    let (mut main, helper) = Main::started(&tag, 1)?;
    let again = main.ask("start")?;
    ensure!(again.starts_with("AlreadyRunning"), "{again}");
    // Dropping the handle changes nothing.
    main.expect("drop", "dropped")?;
    let again = main.ask("start")?;
    ensure!(again.starts_with("AlreadyRunning"), "{again}");
    ensure!(helper.alive(), "gone with its handle");
    main.kill()?;
    leaves(&helper)?;
    let (mut main, _) = Main::started(&tag, 1)?;
    main.expect("end", "ended")?;
    main.start()?;
    Ok(())
}

fn pid_1() -> Outcome {
    let tag = Tag::new();
    let role = tag.role("teardown");
    let mut unshare = tag.command("unshare");
    unshare
        .args(["--pid", "--fork", "--kill-child"])
        .arg(role.get_program())
        .args(role.get_args());
    let mut main = Main::spawn(&mut unshare)?;
    let answer = main.ask("start")?;
    ensure!(answer.starts_with("Init"), "{answer}");
    Ok(())
}

/// Each step made to fail: the error names it and the errno, and nothing is left behind.
fn each_step_fails() -> Outcome {
    let injected = [
        (libc::SYS_memfd_create, "CreateFile"),
        (libc::SYS_fcntl, "TakeLock"),
        (libc::SYS_pidfd_open, "OpenPidfd"),
        (libc::SYS_mmap, "MapStack"),
        (libc::SYS_mprotect, "GuardStack"),
        (libc::SYS_clone, "Clone"),
        (libc::SYS_prctl, "SetName"),
        (libc::SYS_setsid, "NewSession"),
    ];
    for (call, step) in injected {
        let tag = Tag::new();
        let mut main = Main::new(&tag)?;
        // An answer: the loader is done with its files.
        main.expect("touch 0", "touched")?;
        let before = descriptors(main.pid())?;
        // EDQUOT: an answer none of them gives by itself.
        main.ask(&format!("deny {call} {}", libc::EDQUOT))?;
        for _ in 0..2 {
            let answer = main.ask("start")?;
            ensure!(
                answer.starts_with(&format!("Step {{ step: {step},")),
                "{step}: {answer}"
            );
            let errno = format!("(os error {})", libc::EDQUOT);
            ensure!(
                answer
                    .split_once(" | ")
                    .is_some_and(|(_, text)| text.matches(&errno).count() == 1),
                "{step}: {answer}"
            );
        }
        let after = descriptors(main.pid())?;
        ensure!(after == before, "{step}: {after:?}");
        ensure!(tag.processes().len() == 1, "{step}: {:?}", tag.processes());
        main.expect("wait", "Err(ECHILD)")?;
    }
    // No descriptor for the helper's pidfd; and with room for it, none of that.
    let tag = Tag::new();
    let mut main = Main::new(&tag)?;
    main.expect("limit-descriptors 5", "limited")?;
    let answer = main.ask("start")?;
    ensure!(answer.starts_with("Step { step: Clone,"), "{answer}");
    main.expect("limit-descriptors 64", "limited")?;
    main.start()?;
    // Neither close_range nor /proc.
    let mut main = Main::new(&tag)?;
    main.ask(&format!("deny {} {}", libc::SYS_openat, libc::ENOENT))?;
    main.ask(&format!("deny {} {}", libc::SYS_close_range, libc::EPERM))?;
    let answer = main.ask("start")?;
    ensure!(
        answer.starts_with("Step { step: CloseDescriptors,"),
        "{answer}"
    );
    Ok(())
}

fn errno() -> Outcome {
    let tag = Tag::new();
    Main::new(&tag)?.expect("errno 200", "true")
}

fn cycles(count: usize) -> Outcome {
    let tag = Tag::new();
    let mut main = Main::new(&tag)?;
    main.expect(
        &format!("cycles {count}"),
        "descriptors 0 mappings 0 children Err(ECHILD)",
    )
}

fn processes(count: usize) -> Outcome {
    let tag = Tag::new();
    let mut many = tag
        .role("teardown-many")
        .arg(count.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = many.stdout.take().ok_or("no stdout")?;
    let _reaped = Reaped(many);
    ensure!(
        readable_within(out.as_fd(), HANG * 3),
        "hangs with {:?}",
        tag.processes()
    );
    let mut text = String::new();
    out.read_to_string(&mut text)?;
    ensure!(
        text.trim_end() == (2 * count).to_string(),
        "reaped {text} of {count} processes with helpers"
    );
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
