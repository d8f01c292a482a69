//! Captives that are launchers with trees themselves.

use super::*;

const CGROUP: &[Need] = &[Need::Root, Need::Cgroups];

pub const CASES: &[Case] = &[
    ("nested", CGROUP, nested),
    ("nested-user-in-a-pid-namespace", CGROUP, nested_users),
    ("nested-tree", CGROUP, nested_trees),
];

/// The inner launcher: holds a captive of every mechanism that there is for it, or of this one.
pub fn role(name: &str) -> Option<i32> {
    let mechanisms = match name {
        "nested-inner" => MECHANISMS.to_vec(),
        "nested-inner-user" => vec![Containment::UserNamespace],
        "nested-inner-tree" => vec![Containment::Tree],
        _ => return None,
    };
    Some(verdict(inner(&mechanisms)))
}

fn inner(mechanisms: &[Containment]) -> Outcome {
    let mut held = Vec::new();
    for containment in mechanisms {
        // The output of the outermost test, whose end it sees.
        let mut command = contained(shell("setsid sleep 1000 & echo up >&2; wait"), *containment);
        let mut captive = command.stderr(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let errors = captive.stderr.take().ok_or("no pipe")?;
        BufReader::new(errors).read_line(&mut line)?;
        ensure!(line == "up\n", "{line:?}");
        println!("{}", captive.containment());
        held.push(captive);
    }
    println!("ready");
    loop {
        unsafe { libc::pause() };
    }
}

/// What is held by the captive of this command, which is then dropped: all goes.
fn all_goes(command: &mut Command, expected: &[Containment]) -> Outcome {
    let mut captive = command.stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(captive.stdout.take().ok_or("no pipe")?);
    let mut said = Vec::new();
    while said.last().is_none_or(|line| line != "ready") {
        let mut line = String::new();
        ensure!(out.read_line(&mut line)? > 0, "it has ended: {said:?}");
        said.push(line.trim_end().to_owned());
    }
    said.pop();
    let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
    ensure!(said == expected, "{said:?}, not {expected:?}");
    // The launcher, its guard, and a shell and its child for each, with an init for some.
    let tree = descendants(captive.id() as i32);
    ensure!(tree.len() >= 2 + 2 * expected.len(), "{tree:?}");
    drop(captive);
    for process in &tree {
        ensure!(process.gone(), "{process:?} lives on");
    }
    // Its output has nobody who could write there, so that nobody has escaped.
    let mut rest = String::new();
    out.read_to_string(&mut rest)?;
    ensure!(rest.is_empty(), "{rest:?}");
    nothing_left()?;
    // Those of the inner one have another pid in their names.
    await_that("an end of the inner one's cgroups", || {
        tree.iter()
            .all(|process| directories_of(process.pid as u32).is_empty())
    })
}

fn nested() -> Outcome {
    for containment in MECHANISMS {
        let mut command = ourselves(&["containment", "nested-inner"])?;
        command.containment(containment);
        all_goes(&mut command, &MECHANISMS).map_err(|error| format!("{containment}: {error}"))?;
    }
    // In both, so that the inner ones' cgroups are below the outer one's.
    let group = Group::new()?;
    let mut command = ourselves(&["containment", "nested-inner"])?;
    command
        .containment(Containment::PidNamespace)
        .cgroup(&group.path);
    all_goes(&mut command, &MECHANISMS)?;
    group.is_empty()
}

/// Its pids are not those of /proc there.
fn nested_users() -> Outcome {
    let user = [Containment::UserNamespace];
    for containment in [Containment::PidNamespace, Containment::Cgroup] {
        let mut command = ourselves(&["containment", "nested-inner-user"])?;
        command.containment(containment).run_with(as_nobody()?);
        all_goes(&mut command, &user).map_err(|error| format!("{containment}: {error}"))?;
    }
    let mut command = ourselves(&["containment", "nested-inner-user"])?;
    become_nobody(true)?;
    all_goes(command.containment(Containment::UserNamespace), &user)
}

fn nested_trees() -> Outcome {
    // Root has what it needs everywhere.
    for containment in MECHANISMS {
        let mut command = ourselves(&["containment", "nested-inner-tree"])?;
        command.containment(containment);
        all_goes(&mut command, &[Containment::PidNamespace])
            .map_err(|error| format!("{containment}: {error}"))?;
    }
    let mut command = ourselves(&["containment", "nested-inner-tree"])?;
    command
        .containment(Containment::Tree)
        .run_with(as_nobody()?);
    all_goes(&mut command, &[Containment::UserNamespace])
}
