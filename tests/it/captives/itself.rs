//! What a launcher does to itself after it has launched something.

use std::ffi::OsString;

use captive::Command;
use captive::launcher::SpawnError;
use libtest_mimic::Trial;

use crate::support::process::close_from;
use crate::support::{Outcome, Tag, output, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    vec![
        test(
            "captives: a launcher can drop its privileges",
            &[crate::support::Need::Root],
            || in_role("setuid", "uid 65534 gid 65534, captive Killed"),
        ),
        test(
            "captives: a daemon without descriptors can launch",
            &[],
            || in_role("closefrom", "exit status 0"),
        ),
        test(
            "captives: a stage that is killed is no captive",
            &[crate::support::Need::Root],
            || in_role("killed-stage", "an error"),
        ),
    ]
}

/// The role ends by itself, and says this.
fn in_role(name: &str, expected: &str) -> Outcome {
    let tag = Tag::new();
    let done = output(tag.role("captives").args(["itself", name]))?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(
        done.status.success() && said.contains(expected),
        "{said:?}, not {expected:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    // What hangs is ended by SIGALRM.
    unsafe { libc::alarm(15) };
    match args[0].to_str() {
        Some("setuid") => drop_privileges(),
        Some("closefrom") => daemonise(),
        Some("killed-stage") => killed_stage(),
        _ => return 2,
    }
    0
}

/// The C library asks every thread to take part: none of ours may block that signal.
fn drop_privileges() {
    // A thread of our own first: the crate's inherit what that makes of the library's signals.
    std::thread::spawn(|| {}).join().unwrap();
    let captive = Command::new("sleep").arg("600").spawn().unwrap();
    let group = nix::unistd::Gid::from_raw(65534);
    nix::unistd::setgroups(&[group]).unwrap();
    nix::unistd::setresgid(group, group, group).unwrap();
    let user = nix::unistd::Uid::from_raw(65534);
    nix::unistd::setresuid(user, user, user).unwrap();
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    // The captive is root's still; only its guard could end it now.
    let refused = captive.kill().is_err();
    assert!(refused);
    println!("uid {uid} gid {gid}, captive Killed by its guard when this ends");
}

/// A forked child that closes everything has a runtime of its own.
fn daemonise() {
    assert!(Command::new("true").status().unwrap().success());
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: whatever this child has inherited, it uses no more.
        unsafe { close_from(3) };
        let ended = Command::new("true").status();
        let ended = ended.map(|report| report.status().to_string());
        println!("{}", ended.unwrap_or_else(|error| format!("{error:?}")));
        unsafe { libc::_exit(0) };
    }
    let child = nix::unistd::Pid::from_raw(child);
    nix::sys::wait::waitpid(child, None).unwrap();
}

/// A limit on memory that the helper's first page exceeds: the kernel kills it in its exec.
fn killed_stage() {
    let launched = Command::new("sleep")
        .arg("600")
        .run_with("user=65534:65534".parse().unwrap())
        .resource_limit(captive::launcher::Resource::AS, 4096, 4096)
        .stdin(captive::launcher::Stdio::null())
        .spawn();
    match launched {
        Err(SpawnError::Step { step, errno, .. }) => println!("an error: {step}: {errno}"),
        other => println!("{other:?}"),
    }
}
