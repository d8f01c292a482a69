//! Cgroups that are given, and cgroups that belong to others.

use std::os::fd::AsRawFd;

use super::*;

const CGROUP: &[Need] = &[Need::Root, Need::Cgroups];

pub const CASES: &[Case] = &[
    ("cgroup-given", CGROUP, given),
    ("cgroup-given-is-none", CGROUP, given_is_none),
    ("cgroup-given-to-a-process", CGROUP, given_to_a_process),
    ("cgroup-delegated", CGROUP, delegated),
    ("cgroup-delegated-above", CGROUP, delegated_above),
    ("cgroup-delegated-without-namespaces", CGROUP, || {
        delegated_and_no_namespaces()
    }),
    ("cgroup-not-delegated", CGROUP, not_delegated),
    ("cgroup-beyond-another's", CGROUP, beyond_anothers),
    ("cgroup-without-its-processes", CGROUP, without_processes),
    ("cgroup-threaded", CGROUP, threaded),
    ("cgroup-killed-before", CGROUP, killed_before),
    ("cgroups-of-the-captive's", CGROUP, of_the_captives),
    ("cgroup-of-somebody-else's-name", CGROUP, other_names),
    ("cgroup-left-over", CGROUP, left_over),
    ("cgroup-let-go", CGROUP, let_go),
];

fn given() -> Outcome {
    let group = Group::new()?;
    let path = group.path.strip_prefix(mount()?)?.display().to_string();
    let own = std::process::id();
    for containment in MECHANISMS {
        let mut command = contained(
            shell("grep ^0: /proc/self/cgroup; setsid sleep 1000 & echo ready; wait"),
            containment,
        );
        for user in [false, true] {
            if user && containment != Containment::UserNamespace {
                command.run_with(as_nobody()?);
            }
            let (captive, said) = says_first(command.cgroup(&group.path), 2)?;
            ensure!(captive.containment() == containment, "{captive:?}");
            let prefix = format!("0::/{path}/captive-{own}-");
            ensure!(said[0].starts_with(&prefix), "{said:?}, not {prefix}");
            ensure!(below(&group.path).len() == 1, "{:?}", below(&group.path));
            // The descendants too.
            let tree = descendants(captive.id() as i32);
            ensure!(tree.len() == 2, "{tree:?}");
            for process in &tree {
                let found = cgroup_of(&process.pid.to_string())?;
                ensure!(said[0] == format!("0::/{found}"), "{found}");
            }
            captive.kill()?;
            tree_ended(&captive)?;
            ensure!(!tree.iter().any(Witness::alive), "{tree:?}");
            group.is_empty()?;
        }
    }
    // `Tree` does the same.
    let found = chosen(contained(Command::new("true"), Containment::Tree).cgroup(&group.path))?;
    ensure!(found == Containment::PidNamespace, "{found}");
    // And where there is no namespace, it is this cgroup that counts.
    deny_namespaces(false, libc::EPERM);
    let mut command = contained(Command::new("true"), Containment::Tree);
    command.run_with(as_nobody()?).cgroup(&group.path);
    ensure!(chosen(&mut command)? == Containment::Cgroup, "{command:?}");
    group.delegate()?;
    let error = uncontained(&mut command)?;
    let missing = lacking(&error, Containment::Cgroup)?;
    ensure!(
        missing.what.contains("user 65534 could leave it")
            && missing.what.contains(&group.path.display().to_string()),
        "{missing}"
    );
    group.is_empty()?;
    ensure!(group.path.is_dir(), "the caller's own was removed");
    Ok(())
}

fn given_is_none() -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    fs::write(&file, "")?;
    let mut wrong = vec![
        (dir.path().to_owned(), libc::ENOENT),
        (dir.path().join("missing"), libc::ENOENT),
        (file, libc::ENOTDIR),
    ];
    // Of version 1, where there is one: it has processes, and no way to end them.
    if let Some(first) = cgroups::version_1("pids") {
        wrong.push((first, libc::ENOENT));
    }
    for (path, number) in wrong {
        for containment in MECHANISMS {
            let mut command = contained(Command::new("true"), containment);
            let error = uncontained(command.cgroup(&path))?;
            let missing = lacking(&error, containment)?;
            let name = path.display().to_string();
            ensure!(missing.what.contains(&name), "{missing}, not {name}");
            ensure!(errno(missing) == Some(number), "{missing:?}");
            ensure!(error.to_string().contains(&name), "{error}");
            // Every containment with it would fail alike.
            ensure!(error.available.is_empty(), "{error}");
            ensure!(
                error.to_string().ends_with("; nothing else is available"),
                "{error}"
            );
        }
        let mut command = contained(Command::new("true"), Containment::Tree);
        let error = uncontained(command.cgroup(&path))?;
        ensure!(
            errno(lacking(&error, Containment::PidNamespace)?) == Some(number),
            "{error:?}"
        );
    }
    // Nothing was made there.
    ensure!(below(dir.path()).is_empty(), "{:?}", below(dir.path()));
    if let Some(first) = cgroups::version_1("pids") {
        let own = format!("captive-{}-", std::process::id());
        let left = below(&first);
        ensure!(
            !left
                .iter()
                .any(|path| path.display().to_string().contains(&own)),
            "{left:?}"
        );
    }
    Ok(())
}

fn given_to_a_process() -> Outcome {
    let group = Group::new()?;
    for containment in [Containment::Process, Containment::PidfdAutokill] {
        let mut command = contained(Command::new("true"), containment);
        let error = refused(command.cgroup(&group.path))?;
        ensure!(
            matches!(&error, SpawnError::Invalid { what, .. }
                if what.contains("cgroup()") && what.contains(&containment.to_string())),
            "{error:?}"
        );
        nothing_left()?;
    }
    group.is_empty()
}

/// The launcher's own user could leave it.
fn delegated() -> Outcome {
    let group = Group::new()?;
    group.delegate()?;
    forked_in(&group, || {
        become_nobody(true)?;
        let prefix = format!("captive-{}-", std::process::id());
        let mut command = contained(
            shell("grep ^0: /proc/self/cgroup; setsid sleep 1000 & echo ready; wait"),
            Containment::Cgroup,
        );
        let (captive, said) = says_first(&mut command, 2)?;
        let name = said[0].rsplit('/').next().unwrap_or_default();
        ensure!(name.starts_with(&prefix), "{said:?}");
        let tree = descendants(captive.id() as i32);
        captive.kill()?;
        tree_ended(&captive)?;
        ensure!(
            tree.len() == 2 && !tree.iter().any(Witness::alive),
            "{tree:?}"
        );
        let found = chosen(&mut contained(Command::new("true"), Containment::Tree))?;
        ensure!(found == Containment::UserNamespace, "{found}");
        nothing_left()
    })
}

/// A cgroup of root's in one that is delegated: the way out is one level higher, whatever the path says.
fn delegated_above() -> Outcome {
    let group = Group::new()?;
    group.delegate()?;
    let inner = group.path.join("inner");
    fs::create_dir(&inner)?;
    let dir = tempfile::tempdir()?;
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&inner, &link)?;
    deny_namespaces(false, libc::EPERM);
    std::env::set_current_dir(&inner)?;
    let paths = [inner.as_path(), link.as_path(), Path::new(".")];
    let outcome = paths.into_iter().try_for_each(|path| -> Outcome {
        let mut command = contained(Command::new("true"), Containment::Tree);
        command.run_with(as_nobody()?).cgroup(path);
        let error = uncontained(&mut command)?;
        let missing = lacking(&error, Containment::Cgroup)?;
        ensure!(missing.what.contains("could leave it"), "{missing}");
        ensure!(error.available.contains(&Containment::Cgroup), "{error}");
        Ok(())
    });
    std::env::set_current_dir("/")?;
    fs::remove_dir(&inner)?;
    outcome
}

fn delegated_and_no_namespaces() -> Outcome {
    let group = Group::new()?;
    group.delegate()?;
    forked_in(&group, || {
        become_nobody(true)?;
        deny_namespaces(true, libc::EPERM);
        let error = uncontained(&mut contained(Command::new("true"), Containment::Tree))?;
        let missing = lacking(&error, Containment::Cgroup)?;
        let own = own_cgroup()?.display().to_string();
        ensure!(
            missing.what.contains("user 65534 could leave it") && missing.what.contains(&own),
            "{missing}"
        );
        let user = lacking(&error, Containment::UserNamespace)?;
        ensure!(errno(user) == Some(libc::EPERM), "{user:?}");
        ensure!(
            error.available == [Containment::Cgroup, Containment::TreeBestEffort],
            "{:?}",
            error.available
        );
        let found = chosen(&mut contained(Command::new("true"), Containment::Cgroup))?;
        ensure!(found == Containment::Cgroup, "{found}");
        nothing_left()
    })
}

fn not_delegated() -> Outcome {
    let group = Group::new()?;
    forked_in(&group, || {
        become_nobody(true)?;
        let error = uncontained(&mut contained(Command::new("true"), Containment::Cgroup))?;
        let missing = lacking(&error, Containment::Cgroup)?;
        let own = own_cgroup()?.display().to_string();
        ensure!(missing.what.contains(&own), "{missing}, not {own}");
        ensure!(errno(missing) == Some(libc::EACCES), "{missing:?}");
        let by_name = [Containment::UserNamespace, Containment::TreeBestEffort];
        ensure!(error.available == by_name, "{:?}", error.available);
        let found = chosen(&mut contained(Command::new("true"), Containment::Tree))?;
        ensure!(found == Containment::UserNamespace, "{found}");
        nothing_left()
    })
}

/// A cgroup of the launcher's own, in which one can be made: the way there is by a cgroup of somebody else's.
fn beyond_anothers() -> Outcome {
    let group = Group::new()?;
    group.delegate()?;
    let root = mount()?.join("cgroup.procs").display().to_string();
    forked(|| {
        become_nobody(true)?;
        for containment in [Containment::Cgroup, Containment::UserNamespace] {
            let mut command = contained(Command::new("true"), containment);
            let error = uncontained(command.cgroup(&group.path))?;
            let missing = lacking(&error, containment)?;
            ensure!(missing.what.contains(&root), "{missing}, not {root}");
            ensure!(errno(missing) == Some(libc::EACCES), "{missing:?}");
            ensure!(error.available.is_empty(), "{error}");
        }
        nothing_left()
    })?;
    group.is_empty()
}

/// Its directory is the launcher's, and its list of processes is not: `Tree` goes on to what can be had.
fn without_processes() -> Outcome {
    let group = Group::new()?;
    std::os::unix::fs::chown(&group.path, Some(NOBODY), None)?;
    forked_in(&group, || {
        become_nobody(true)?;
        let error = uncontained(&mut contained(Command::new("true"), Containment::Cgroup))?;
        let missing = lacking(&error, Containment::Cgroup)?;
        let procs = group.path.join("cgroup.procs").display().to_string();
        ensure!(missing.what.contains(&procs), "{missing}, not {procs}");
        ensure!(errno(missing) == Some(libc::EACCES), "{missing:?}");
        let found = chosen(&mut contained(Command::new("true"), Containment::Tree))?;
        ensure!(found == Containment::UserNamespace, "{found}");
        nothing_left()
    })
}

/// Below the root of threaded cgroups there are those alone; cgroups(7), cgroup.type.
fn threaded() -> Outcome {
    let group = Group::new()?;
    let inner = group.path.join("inner");
    fs::create_dir(&inner)?;
    fs::write(inner.join("cgroup.type"), "threaded")?;
    forked_in(&group, || {
        let error = uncontained(&mut contained(Command::new("true"), Containment::Cgroup))?;
        let missing = lacking(&error, Containment::Cgroup)?;
        let says = "cgroup.type is \"domain invalid\"";
        ensure!(missing.what.contains(says), "{missing}, not {says}");
        let found = chosen(&mut contained(Command::new("true"), Containment::Tree))?;
        ensure!(found == Containment::PidNamespace, "{found}");
        fs::remove_dir(&inner)?;
        nothing_left()
    })
}

/// cgroup.kill has been written in the launcher's cgroup before it came: some kernels kill what is born from there into another.
fn killed_before() -> Outcome {
    let group = Group::new()?;
    fs::write(group.path.join("cgroup.kill"), "1")?;
    forked_in(&group, || {
        for containment in [Containment::Cgroup, Containment::PidNamespace] {
            let mut command = contained(Command::new("true"), containment);
            let found = chosen(command.cgroup(&group.path))?;
            ensure!(found == containment, "{found}");
        }
        nothing_left()
    })
}

/// In a forked child of this cgroup, of which nothing is left there.
fn forked_in(group: &Group, body: impl FnOnce() -> Outcome) -> Outcome {
    group.enter()?;
    let done = forked(body);
    leave()?;
    done?;
    group.is_empty()
}

/// In a forked child, which has gone when this returns.
fn forked(body: impl FnOnce() -> Outcome) -> Outcome {
    let child = in_a_fork(body)?;
    // Whatever its guard has still to do.
    await_that("an end of its cgroups", || {
        directories_of(child as u32).is_empty()
    })
}

/// In a forked child, which ends by itself; its pid.
pub fn in_a_fork(body: impl FnOnce() -> Outcome) -> Fallible<i32> {
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork");
    if child == 0 {
        let status = verdict(body());
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    ensure!(
        unsafe { libc::waitpid(child, &raw mut status, 0) } == child,
        "waitpid"
    );
    ensure!(status == 0, "the child: {status:#x}");
    Ok(child)
}

/// Back to the root, so that the cgroup can be removed.
fn leave() -> Outcome {
    fs::write(mount()?.join("cgroup.procs"), "0")?;
    Ok(())
}

/// A root captive may make cgroups in its own.
fn of_the_captives() -> Outcome {
    let script = "
        own=$MOUNT/$(sed -n 's,^0::/,,p' /proc/self/cgroup)
        deep=$own
        for name in a b c d; do
            deep=$deep/$name
            mkdir $deep $deep-empty
            sleep 1000 &
            echo $! >$deep/cgroup.procs
        done
        echo ready; wait";
    for containment in [Containment::Cgroup, Containment::PidNamespace] {
        let group = Group::new()?;
        let mut command = contained(shell(script), containment);
        command.env("MOUNT", mount()?).cgroup(&group.path);
        let (captive, _) = says_first(&mut command, 1)?;
        let tree = descendants(captive.id() as i32);
        ensure!(tree.len() == 5, "{tree:?}");
        let found = directories_of(std::process::id());
        ensure!(found.len() == 1, "{found:?}");
        ensure!(found[0].join("a/b/c/d").is_dir(), "{found:?}");
        captive.kill()?;
        tree_ended(&captive)?;
        ensure!(!tree.iter().any(Witness::alive), "{tree:?}");
        group.is_empty()?;
    }
    Ok(())
}

/// Cgroups whose names only begin as ours do are their owners', with all that is in them.
fn other_names() -> Outcome {
    let group = Group::new()?;
    let names = [
        "captive-",
        "captive-vms",
        "captive-1",
        "captive-1-2-3",
        "captive-1-x",
        "captive--",
    ];
    let mut there = Vec::new();
    for name in names {
        let path = group.path.join(name);
        fs::create_dir(&path)?;
        let child = std::process::Command::new("sleep").arg("1000").spawn()?;
        let child = Reaped(child);
        fs::write(path.join("cgroup.procs"), child.0.id().to_string())?;
        there.push((Witness::of(child.0.id() as i32)?, child, path));
    }
    // As the launcher's own, and as one that is given.
    group.enter()?;
    let done = forked(|| {
        for base in [None, Some(&group.path)] {
            let mut command = contained(Command::new("true"), Containment::Cgroup);
            if let Some(base) = base {
                command.cgroup(base);
            }
            ensure!(chosen(&mut command)? == Containment::Cgroup, "{command:?}");
        }
        nothing_left()
    });
    leave()?;
    let ended: Vec<_> = there
        .iter()
        .filter(|(witness, ..)| !witness.alive())
        .map(|(_, _, path)| path)
        .collect();
    let verdict = if ended.is_empty() {
        done
    } else {
        Err(format!("ended: {ended:?}").into())
    };
    for (witness, child, path) in there {
        drop(child);
        ensure!(witness.gone(), "it lives on");
        fs::remove_dir(path)?;
    }
    verdict?;
    group.is_empty()
}

/// What a launcher has left that died with its guard is ended by the next one there.
fn left_over() -> Outcome {
    let group = Group::new()?;
    // Of a launcher that nobody is any more: the greatest pid is below that.
    let path = group.path.join("captive-4194304-0");
    fs::create_dir(&path)?;
    fs::create_dir(path.join("below"))?;
    let mut child = Reaped(std::process::Command::new("sleep").arg("1000").spawn()?);
    fs::write(path.join("below/cgroup.procs"), child.0.id().to_string())?;
    let mut command = contained(Command::new("true"), Containment::Cgroup);
    chosen(command.cgroup(&group.path))?;
    ensure!(
        Witness::of(child.0.id() as i32)?.gone(),
        "what was left lives on"
    );
    child.0.wait()?;
    group.is_empty()
}

/// One that has been let go is nobody's to end, nor are the cgroups that it has made, until it is empty.
fn let_go() -> Outcome {
    let group = Group::new()?;
    let script = "
        own=$MOUNT/$(sed -n 's,^0::/,,p' /proc/self/cgroup)
        mkdir $own/prepared; echo ready; read line";
    let (reader, writer) = std::io::pipe()?;
    let path = group.path.clone();
    let mount = mount()?;
    let mut found = PathBuf::new();
    in_a_fork(|| {
        let mut command = contained(shell(script), Containment::Cgroup);
        command
            .env("MOUNT", &mount)
            .cgroup(&path)
            .detachable(true)
            .stdin(std::os::fd::OwnedFd::from(reader.try_clone()?));
        let (captive, _) = says_first(&mut command, 1)?;
        captive.detach().map_err(|(_, error)| error.into())
    })?;
    for entry in below(&group.path) {
        found = entry;
    }
    // Its guard ends after it, and has it locked until then: others would pass it by.
    await_that("an end of its guard", || is_unlocked(&found))?;
    let prepared = found.join("prepared");
    ensure!(prepared.is_dir(), "{found:?}");
    let processes = fs::read_to_string(found.join("cgroup.procs"))?;
    let captive = Witness::of(processes.trim().parse()?)?;
    // Each process looks once.
    let another = || {
        forked(|| {
            let mut command = contained(Command::new("true"), Containment::Cgroup);
            chosen(command.cgroup(&group.path)).map(drop)
        })
    };
    another()?;
    ensure!(captive.alive(), "it was ended");
    ensure!(prepared.is_dir(), "what it had prepared was removed");
    drop((reader, writer));
    ensure!(captive.gone(), "it does not end");
    // Whoever comes next removes it.
    await_that("an empty cgroup", || {
        fs::read_to_string(found.join("cgroup.events"))
            .is_ok_and(|text| text.contains("populated 0"))
    })?;
    another()?;
    group.is_empty()
}

fn is_unlocked(directory: &Path) -> bool {
    fs::File::open(directory).is_ok_and(|file| {
        let how = libc::LOCK_EX | libc::LOCK_NB;
        unsafe { libc::flock(file.as_raw_fd(), how) == 0 }
    })
}
