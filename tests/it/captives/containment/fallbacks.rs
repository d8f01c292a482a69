//! System calls that are filtered away.

use captive::launcher::SpawnStep;

use super::*;

const ROOT: &[Need] = &[Need::Root];
const CGROUP: &[Need] = &[Need::Root, Need::Cgroups];

pub const CASES: &[Case] = &[
    ("clone3-enosys", CGROUP, || without_clone3(libc::ENOSYS)),
    ("clone3-eperm", CGROUP, || without_clone3(libc::EPERM)),
    ("setns-enosys", ROOT, || without_setns(libc::ENOSYS)),
    ("setns-eperm", ROOT, || without_setns(libc::EPERM)),
    ("pid-namespaces-enospc", ROOT, no_more_namespaces),
    ("memfd-denied", ROOT, without_memfd),
    ("flock-denied", CGROUP, without_locks),
    ("init-killed", ROOT, init_killed),
];

/// The captive moves there itself.
fn without_clone3(errno: i32) -> Outcome {
    // A C library makes its threads by the same call, and knows one errno only.
    chosen(&mut contained(Command::new("true"), Containment::Cgroup))?;
    seccomp::deny_in_all_threads(libc::SYS_clone3 as u32, None, errno as u32);
    let own = std::process::id();
    for user in [false, true] {
        let mut command = contained(
            shell("cat /proc/self/cgroup | grep ^0:; sleep 1000 & echo ok; wait"),
            Containment::Cgroup,
        );
        if user {
            command.run_with(as_nobody()?);
        }
        let (captive, said) = says_first(&mut command, 2)?;
        ensure!(captive.containment() == Containment::Cgroup, "{captive:?}");
        ensure!(
            said[0].contains(&format!("/captive-{own}-")),
            "{said:?}: not in it"
        );
        captive.kill()?;
        tree_ended(&captive)?;
    }
    // In both.
    let group = Group::new()?;
    let mut command = contained(
        shell("grep ^0: /proc/self/cgroup; read line"),
        Containment::PidNamespace,
    );
    let (captive, said) = says_first(command.stdin(Stdio::piped()).cgroup(&group.path), 1)?;
    ensure!(said[0].contains(&format!("/captive-{own}-")), "{said:?}");
    captive.kill()?;
    tree_ended(&captive)?;
    group.is_empty()
}

fn without_setns(errno: i32) -> Outcome {
    seccomp::deny(libc::SYS_setns as u32, None, errno as u32);
    for containment in [Containment::PidNamespace, Containment::UserNamespace] {
        for staged in [false, true] {
            let mut command = contained(Command::new("true"), containment);
            if staged && containment == Containment::PidNamespace {
                command.run_with(as_nobody()?);
            }
            let error = refused(&mut command)?;
            nothing_left()?;
            let SpawnError::Step { step, errno: e, .. } = &error else {
                return Err(format!("{error:?}").into());
            };
            ensure!(*step == SpawnStep::EnterNamespace, "{error:?}");
            ensure!(e.raw_os_error() == Some(errno), "{error:?}");
            ensure!(error.to_string().contains("the PID namespace"), "{error}");
        }
    }
    // Nothing else is worse for it.
    let found = chosen(&mut contained(
        Command::new("true"),
        Containment::TreeBestEffort,
    ))?;
    ensure!(found == Containment::TreeBestEffort, "{found}");
    Ok(())
}

/// As where a limit of user.max_pid_namespaces is reached.
fn no_more_namespaces() -> Outcome {
    deny_namespaces(false, libc::ENOSPC);
    let error = uncontained(&mut contained(
        Command::new("true"),
        Containment::PidNamespace,
    ))?;
    let missing = lacking(&error, Containment::PidNamespace)?;
    ensure!(errno(missing) == Some(libc::ENOSPC), "{missing:?}");
    ensure!(
        !error.available.contains(&Containment::PidNamespace)
            && error.available.contains(&Containment::UserNamespace),
        "{error}"
    );
    Ok(())
}

/// Without a file in memory there is neither a guard nor an init.
fn without_memfd() -> Outcome {
    seccomp::deny(libc::SYS_memfd_create as u32, None, libc::EPERM as u32);
    let error = uncontained(&mut contained(
        Command::new("true"),
        Containment::PidNamespace,
    ))?;
    let missing = lacking(&error, Containment::PidNamespace)?;
    ensure!(
        missing.what.contains("memfd_create") && errno(missing) == Some(libc::EPERM),
        "{missing:?}"
    );
    for containment in [Containment::Cgroup, Containment::TreeBestEffort] {
        if containment == Containment::Cgroup && own_cgroup().is_err() {
            continue;
        }
        let error = refused(&mut contained(Command::new("true"), containment))?;
        ensure!(error.step() == Some(&SpawnStep::HelperProgram), "{error:?}");
        nothing_left()?;
    }
    Ok(())
}

/// A cgroup that cannot be locked is not left there. In one of our own: others sweep the root.
fn without_locks() -> Outcome {
    let group = Group::new()?;
    seccomp::deny(libc::SYS_flock as u32, None, libc::ENOLCK as u32);
    let mut command = contained(Command::new("true"), Containment::Cgroup);
    let error = uncontained(command.cgroup(&group.path))?;
    let missing = lacking(&error, Containment::Cgroup)?;
    ensure!(
        missing.what.contains("flock") && errno(missing) == Some(libc::ENOLCK),
        "{missing:?}"
    );
    group.is_empty()
}

/// Somebody ends the init: that is the end of all that is there.
fn init_killed() -> Outcome {
    for containment in [Containment::PidNamespace, Containment::UserNamespace] {
        let mut command = contained(shell("setsid sleep 1000 & echo ready; wait"), containment);
        let (captive, _) = says_first(&mut command, 1)?;
        let tree = descendants(captive.id() as i32);
        ensure!(tree.len() == 2, "{tree:?}");
        let inits: Vec<_> = captives()
            .into_iter()
            .filter(|(_, comm)| comm == "captive-init")
            .collect();
        let [(init, _)] = inits[..] else {
            return Err(format!("{inits:?}").into());
        };
        Witness::of(init)?.signal(libc::SIGKILL);
        let report = ended(&captive)?;
        ensure!(killed_by_kill(&report), "{report:?}");
        ensure!(
            report.ended_by() == captive::launcher::EndedBy::Itself,
            "{report:?}"
        );
        ensure!(report.usage().is_some(), "{report:?}");
        tree_ended(&captive)?;
        for process in tree {
            ensure!(process.gone(), "{process:?} lives on");
        }
        nothing_left()?;
    }
    Ok(())
}
