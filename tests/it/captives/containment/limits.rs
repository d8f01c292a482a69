//! Cgroups of version 2 with controllers: limits of the caller's for a captive's tree, limits of the launcher's own, and
//! cgroups that take no process. A cgroup that is given is at the root, which has to hand these controllers on: so it is
//! where version 2 is the only one.

use captive::launcher::SpawnStep;

use super::*;

const PIDS: &[Need] = &[Need::Root, Need::Cgroups, Need::Controller2("pids")];
const MEMORY: &[Need] = &[Need::Root, Need::Cgroups, Need::Controller2("memory")];

pub const CASES: &[Case] = &[
    ("limits-pids-of-a-tree", PIDS, pids_of_a_tree),
    ("limits-pids-leave-no-room", PIDS, no_room),
    ("limits-pids-of-the-launcher", PIDS, pids_of_the_launcher),
    ("limits-memory-of-a-child", MEMORY, || memory(false)),
    ("limits-memory-of-a-group", MEMORY, || memory(true)),
    ("limits-handed-on", PIDS, handed_on),
    ("limits-handed-on-by-the-root", PIDS, handed_on_by_the_root),
    (
        "cgroup-with-processes-hands-on",
        PIDS,
        with_processes_hands_on,
    ),
    ("cgroup-threaded-by-controllers", PIDS, threaded),
    (
        "cgroup-threaded-in-the-captive's",
        PIDS,
        threaded_in_the_captives,
    ),
];

impl Group {
    fn set(&self, file: &str, value: &str) -> Outcome {
        let file = self.path.join(file);
        fs::write(&file, value).map_err(|error| format!("{}: {error}", file.display()).into())
    }

    fn get(&self, file: &str) -> Fallible<String> {
        Ok(fs::read_to_string(self.path.join(file))?
            .trim_end()
            .to_owned())
    }

    /// How often something came to pass, by a file of `NAME COUNT` lines.
    fn events(&self, file: &str, name: &str) -> Fallible<u64> {
        let text = self.get(file)?;
        let count = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(count.ok_or("no such line")?.trim().parse()?)
    }

    /// Does this with the launcher, and then its guard, in here.
    fn within(&self, body: impl FnOnce() -> Outcome) -> Outcome {
        self.enter()?;
        let outcome = body();
        for pid in self.get("cgroup.procs")?.lines() {
            // One that is ending cannot be moved, and need not.
            let _ = fs::write(mount()?.join("cgroup.procs"), pid);
        }
        outcome
    }

    fn below(&self, name: &str) -> Fallible<Self> {
        let path = self.path.join(name);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }
}

/// Forks until there is no more room, and goes on trying.
fn pids_of_a_tree() -> Outcome {
    for containment in MECHANISMS {
        let group = Group::new()?;
        group.set("pids.max", "20")?;
        let mut bomb = contained(
            shell("while :; do { sleep 1000 & } 2>/dev/null; done"),
            containment,
        );
        bomb.cgroup(&group.path).stderr(Stdio::null());
        let captive = bomb.spawn()?;
        await_that("the limit", || {
            group
                .events("pids.events", "max")
                .is_ok_and(|count| count > 0)
        })?;
        ensure!(captive.containment() == containment, "{captive:?}");
        captive.kill()?;
        ended(&captive)?;
        tree_ended(&captive)?;
        group.is_empty()?;
    }
    Ok(())
}

/// The error says so, and nothing is left; with room again all is well.
fn no_room() -> Outcome {
    let group = Group::new()?;
    for containment in MECHANISMS {
        group.set("pids.max", "0")?;
        let mut command = contained(Command::new("true"), containment);
        command.cgroup(&group.path);
        for user in [false, true] {
            if user && containment != Containment::UserNamespace {
                command.run_with(as_nobody()?);
            }
            let error = refused(&mut command)?;
            nothing_left()?;
            ensure!(
                matches!(&error, SpawnError::Step { step: SpawnStep::Clone | SpawnStep::EnterNamespace, errno, .. }
                    if errno.raw_os_error() == Some(libc::EAGAIN)),
                "{containment}: {error:?}"
            );
            group.is_empty()?;
        }
        group.set("pids.max", "max")?;
        ensure!(chosen(&mut command)? == containment, "{command:?}");
    }
    group.is_empty()
}

/// As a mechanism says it that makes a process of its own first.
fn is_lacking_room(error: &SpawnError) -> bool {
    let SpawnError::Containment(error) = error else {
        return false;
    };
    error
        .missing
        .iter()
        .all(|missing| errno(missing) == Some(libc::EAGAIN))
}

/// Of launcher, guard and captives together.
fn pids_of_the_launcher() -> Outcome {
    let group = Group::new()?;
    group.within(|| {
        // Its threads and its guard are there.
        chosen(&mut contained(
            Command::new("true"),
            Containment::PidNamespace,
        ))?;
        let threads = fs::read_dir("/proc/self/task")?.count();
        let before = (threads + 1).to_string();
        await_that("the end of all", || {
            group.get("pids.current").is_ok_and(|now| now == before)
        })?;
        for containment in [
            Containment::Process,
            Containment::PidNamespace,
            Containment::Cgroup,
        ] {
            group.set("pids.max", &before)?;
            let mut command = contained(Command::new("true"), containment);
            let error = refused(&mut command)?;
            nothing_left()?;
            ensure!(
                matches!(&error, SpawnError::Step { step: SpawnStep::Clone, errno, .. }
                    if errno.raw_os_error() == Some(libc::EAGAIN))
                    || is_lacking_room(&error),
                "{containment}: {error:?}"
            );
            group.set("pids.max", "max")?;
            ensure!(chosen(&mut command)? == containment, "{command:?}");
            await_that("the end of all", || {
                group.get("pids.current").is_ok_and(|now| now == before)
            })?;
        }
        Ok(())
    })?;
    group.is_empty()
}

/// A child of the captive's takes more than there is: it alone is killed, or with `memory.oom.group` all that is there.
fn memory(whole_group: bool) -> Outcome {
    for containment in MECHANISMS {
        let group = Group::new()?;
        group.set("memory.max", "33554432")?;
        if whole_group {
            group.set("memory.oom.group", "1")?;
        }
        let mut command = contained(
            // tail keeps a line that has no end.
            shell("setsid sleep 1000 & tail /dev/zero; echo lives; wait"),
            containment,
        );
        command
            .cgroup(&group.path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut captive = command.spawn()?;
        let out = captive.stdout.take().ok_or("no pipe")?;
        let mut said = String::new();
        BufReader::new(out).read_line(&mut said)?;
        ensure!(
            group.events("memory.events", "oom_kill ")? > 0,
            "{containment}: nobody was killed: {said:?}"
        );
        if whole_group {
            let report = ended(&captive)?;
            ensure!(killed_by_kill(&report), "{containment}: {report:?}");
            ensure!(said.is_empty(), "{containment}: {said:?}");
        } else {
            ensure!(said == "lives\n", "{containment}: {said:?}");
            ensure!(captive.try_wait()?.is_none(), "{containment}: it has ended");
            captive.kill()?;
            ended(&captive)?;
        }
        tree_ended(&captive)?;
        group.is_empty()?;
    }
    Ok(())
}

/// A cgroup that has no processes and hands controllers on: each captive's has limits of its own.
fn handed_on() -> Outcome {
    let group = Group::new()?;
    group.set("cgroup.subtree_control", "+pids +memory")?;
    for containment in MECHANISMS {
        let mut command = contained(shell("echo ready; sleep 1000"), containment);
        let (captive, _) = says_first(command.cgroup(&group.path), 1)?;
        let own = below(&group.path);
        ensure!(own.len() == 1, "{own:?}");
        fs::write(own[0].join("pids.max"), "50")?;
        fs::write(own[0].join("memory.max"), "100000000")?;
        captive.kill()?;
        ended(&captive)?;
        tree_ended(&captive)?;
        group.is_empty()?;
    }
    Ok(())
}

/// The root alone may have processes as well.
fn handed_on_by_the_root() -> Outcome {
    let own = cgroup_of("self")?;
    fs::write(mount()?.join("cgroup.procs"), "0")?;
    let mut command = contained(
        shell("grep ^0: /proc/self/cgroup; read line"),
        Containment::Cgroup,
    );
    let (captive, said) = says_first(command.stdin(Stdio::piped()), 1)?;
    let prefix = format!("0::/captive-{}-", std::process::id());
    ensure!(said[0].starts_with(&prefix), "{said:?}");
    let directory = mount()?.join(cgroup_of(&captive.id().to_string())?);
    ensure!(
        directory.join("pids.max").exists(),
        "{}: no limit",
        directory.display()
    );
    captive.kill()?;
    ended(&captive)?;
    tree_ended(&captive)?;
    fs::write(mount()?.join(own).join("cgroup.procs"), "0")?;
    Ok(())
}

/// No cgroup below ours takes a process: an error that says why, and only where that is what was asked for. `others`: how
/// many there are below it.
fn cannot_be_had(base: &Path, others: usize) -> Outcome {
    let mut command = contained(Command::new("true"), Containment::Cgroup);
    for user in [false, true] {
        if user {
            command.run_with(as_nobody()?);
        }
        let error = uncontained(&mut command)?;
        let missing = lacking(&error, Containment::Cgroup)?;
        ensure!(errno(missing) == Some(libc::EOPNOTSUPP), "{missing:?}");
        for part in ["cgroup.type", &format!("below {} ", base.display())] {
            ensure!(missing.what.contains(part), "{missing}, not {part:?}");
        }
        ensure!(
            error.available.contains(&Containment::PidNamespace),
            "{error}"
        );
    }
    ensure!(below(base).len() == others, "{:?}", below(base));
    let found = chosen(&mut contained(Command::new("true"), Containment::Tree))?;
    ensure!(found == Containment::PidNamespace, "{found}");
    // Somewhere else it can.
    let group = Group::new()?;
    let mut command = contained(Command::new("true"), Containment::Cgroup);
    chosen(command.cgroup(&group.path))?;
    group.is_empty()
}

/// Processes and controllers for the cgroups below: only threaded controllers (`pids`) let it have both, and make those
/// below threaded ones.
fn with_processes_hands_on() -> Outcome {
    let group = Group::new()?;
    group.within(|| {
        let refused = group.set("cgroup.subtree_control", "+memory");
        ensure!(refused.is_err(), "no internal processes, says cgroups(7)");
        chosen(&mut contained(Command::new("true"), Containment::Cgroup))?;
        group.set("cgroup.subtree_control", "+pids")?;
        cannot_be_had(&group.path, 0)?;
        group.set("cgroup.subtree_control", "-pids")?;
        chosen(&mut contained(Command::new("true"), Containment::Cgroup))?;
        Ok(())
    })?;
    group.is_empty()
}

/// A launcher whose threads are in a threaded cgroup, and one beside such.
fn threaded() -> Outcome {
    let group = Group::new()?;
    let threads = group.below("threads")?;
    threads.set("cgroup.type", "threaded")?;
    group.within(|| {
        cannot_be_had(&group.path, 1)?;
        for thread in fs::read_dir("/proc/self/task")? {
            threads.set("cgroup.threads", &thread?.file_name().to_string_lossy())?;
        }
        let own = own_cgroup()?;
        ensure!(own == threads.path, "{}", own.display());
        cannot_be_had(&threads.path, 0)
    })?;
    drop(threads);
    group.is_empty()
}

/// `cgroup.kill` reaches them, and they are removed.
fn threaded_in_the_captives() -> Outcome {
    let group = Group::new()?;
    let script = "own=$MOUNT$(grep ^0: /proc/self/cgroup | cut -d: -f3); mkdir $own/threads $own/threads/below
        echo threaded >$own/threads/cgroup.type; echo threaded >$own/threads/below/cgroup.type
        setsid sleep 1000 & echo $! >$own/threads/below/cgroup.threads && echo $$ >$own/threads/cgroup.threads && echo ready
        wait";
    let mut command = contained(shell(script), Containment::Cgroup);
    command.cgroup(&group.path).env("MOUNT", mount()?);
    let (captive, said) = says_first(&mut command, 1)?;
    ensure!(said[0] == "ready", "{said:?}");
    let tree = descendants(captive.id() as i32);
    ensure!(tree.len() == 2, "{tree:?}");
    captive.kill()?;
    ended(&captive)?;
    tree_ended(&captive)?;
    ensure!(!tree.iter().any(Witness::alive), "{tree:?}");
    group.is_empty()
}
