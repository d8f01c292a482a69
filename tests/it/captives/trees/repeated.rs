//! Many trees, one after another: nothing remains of them in a launcher that goes on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use captive::Captive;
use libtest_mimic::Trial;

use super::scene::own_cgroup;
use crate::captives::death::launcher::command;
use crate::captives::death::scene::find_guard;
use crate::captives::{children, verdict};
use crate::support::process::await_that;
use crate::support::{Fallible, HANG, Need, Outcome, Tag, Witness, output, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let name = "captives::trees::repeated";
    let long = "captives::trees::repeated_long";
    vec![
        test(name, &[Need::Root, Need::Cgroups], || launchers(1, 1)),
        test(long, &[Need::Root, Need::Cgroups, Need::Long], || {
            launchers(20, 3)
        }),
    ]
}

/// So many launchers, one after another.
fn launchers(count: u32, rounds: u32) -> Outcome {
    let group = own_cgroup()?;
    let tag = Tag::new();
    for _ in 0..count {
        let mut role = tag.role("captives");
        role.args(["trees", "repeated"]).arg(&group.0);
        let done = output(role.arg(rounds.to_string()))?;
        ensure!(
            done.status.success(),
            "{:?}: {}",
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
    }
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// The launcher.
pub fn role(group: &Path, rounds: u32) -> i32 {
    verdict(launcher(group, rounds))
}

fn launcher(group: &Path, rounds: u32) -> Outcome {
    fs::write(group.join("cgroup.procs"), "0")?;
    // What the first of them needs, the others use.
    one_of_each()?;
    let first = await_rest(group)?;
    for _ in 0..rounds {
        one_of_each()?;
        let now = await_rest(group)?;
        ensure!(
            now.descriptors <= first.descriptors && now.threads <= first.threads,
            "{now:?} after {first:?}"
        );
    }
    Ok(())
}

/// Each mechanism, with each way to be done with a captive.
fn one_of_each() -> Outcome {
    const MECHANISMS: [&str; 5] = [
        "tree=Tree",
        "tree=PidNamespace",
        "tree=UserNamespace",
        "tree=Cgroup",
        "tree=TreeBestEffort",
    ];
    for tree in MECHANISMS {
        drop(command(&["tree", "child", "daemon", tree]).spawn()?);
        drop(ready(&["tree", "child", "daemon", tree])?);
        let killed = ready(&["tree", "child", "daemon", tree])?;
        killed.kill()?;
        killed.wait()?;
        ensure!(killed.wait_tree(HANG)?, "{tree}: something is left");
        let ended = ready(&["tree", "child", "daemon", tree])?;
        ended.terminate(HANG)?;
        ensure!(ended.wait_tree(HANG)?, "{tree}: something is left");
        // Nobody would end its descendants.
        let free = ready(&["tree", "detachable=1", tree])?;
        let main = Witness::of(free.id().try_into()?)?;
        free.detach().map_err(|(_, error)| error)?;
        main.signal(libc::SIGKILL);
    }
    Ok(())
}

fn ready(words: &[&str]) -> Fallible<Captive> {
    let mut captive = command(words).spawn()?;
    let stdout = captive.stdout.take().ok_or("no output")?;
    BufReader::new(stdout).read_line(&mut String::new())?;
    Ok(captive)
}

/// Waits until there is nothing but the guard, and that has forgotten all.
fn await_rest(group: &Path) -> Fallible<Rest> {
    await_that("the end of all but the guard", || children().len() == 1)
        .map_err(|error| format!("{error}: {:?}", children()))?;
    await_that("the end of the directories", || {
        fs::read_dir(group).is_ok_and(|list| list.flatten().all(|entry| !entry.path().is_dir()))
    })?;
    let guard = find_guard(std::process::id() as i32, None).ok_or("no guard")?;
    let (own, guards) = ("/proc/self/fd", format!("/proc/{}/fd", guard.pid));
    // What has been reaped is closed a little later.
    let mut last = Rest::default();
    await_that("rest", || {
        std::thread::sleep(Duration::from_millis(50));
        let now = Rest {
            descriptors: count(own),
            of_guard: count(&guards),
            threads: count("/proc/self/task"),
        };
        let is_same = now == last;
        last = now;
        is_same && last.of_guard <= GUARDS_OWN
    })
    .map_err(|error| format!("{error}: {last:?}"))?;
    Ok(last)
}

/// As many as the guard has of its own: three of `/dev/null`, its socket, the launcher, a set.
const GUARDS_OWN: usize = 6;

#[derive(Debug, Default, PartialEq)]
struct Rest {
    descriptors: usize,
    of_guard: usize,
    threads: usize,
}

fn count(of: &str) -> usize {
    fs::read_dir(of).map_or(0, |list| list.count())
}
