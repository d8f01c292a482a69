//! System calls that are filtered away, and processes of a spawn that others kill.

use captive::launcher::SpawnStep;

use super::groups::in_a_fork;
use super::*;
use crate::races::trace::{self, Event};

const ROOT: &[Need] = &[Need::Root];
const CGROUP: &[Need] = &[Need::Root, Need::Cgroups];

pub const CASES: &[Case] = &[
    ("clone3-enosys", CGROUP, || without_clone3(libc::ENOSYS)),
    ("clone3-eperm", CGROUP, || without_clone3(libc::EPERM)),
    ("setns-enosys", ROOT, || without_setns(libc::ENOSYS)),
    ("setns-eperm", ROOT, || without_setns(libc::EPERM)),
    ("pid-namespaces-enospc", ROOT, no_more_namespaces),
    ("memfd-denied", CGROUP, without_memfd),
    ("flock-denied", CGROUP, without_locks),
    ("init-killed", ROOT, init_killed),
    ("maker-killed-before-it-makes", ROOT, || {
        maker_killed(Moment::Setns)
    }),
    ("maker-killed-when-it-has-made", ROOT, || {
        maker_killed(Moment::Born)
    }),
    ("maker-killed-at-the-exec", ROOT, || {
        maker_killed(Moment::Exec)
    }),
    ("launcher-has-unshared", ROOT, has_unshared),
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

/// When a process is killed that makes the captive in its namespace.
#[derive(Clone, Copy, PartialEq)]
enum Moment {
    /// It is about to enter.
    Setns,
    /// The captive has been made, and has not begun.
    Born,
    /// The captive is about to execute its program.
    Exec,
}

/// Somebody kills who enters the namespace and makes the captive there, which nobody else knows: the spawn fails, and
/// nothing is left. A tracer knows the moment.
fn maker_killed(moment: Moment) -> Outcome {
    for containment in [Containment::PidNamespace, Containment::UserNamespace] {
        let mut command = sleeper(containment);
        // With this the thread that makes them is there, and has nothing to do.
        drop(command.spawn()?);
        nothing_left()?;
        let threads = threads_named("captive-spawner")?;
        let [spawner] = threads[..] else {
            return Err(format!("{threads:?}").into());
        };
        let (mut reader, writer) = std::io::pipe()?;
        let tracer = unsafe { libc::fork() };
        if tracer == 0 {
            let done = kill_the_maker(spawner, moment, &writer);
            // Whoever it traces goes on.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        drop(writer);
        let mut word = [0];
        reader.read_exact(&mut word)?;
        let error = refused(&mut command);
        let mut status = 0;
        unsafe { libc::waitpid(tracer, &raw mut status, 0) };
        ensure!(status == 0, "the tracer: {status:#x}, {error:?}");
        let error = error?;
        ensure!(
            error.step() == Some(&SpawnStep::EnterNamespace),
            "{error:?}"
        );
        nothing_left()?;
        let found = chosen(&mut contained(Command::new("true"), containment))?;
        ensure!(found == containment, "{found}");
    }
    Ok(())
}

/// In a process of its own. The maker is the second that the thread makes, after the init; it makes the captive, which
/// goes no further.
fn kill_the_maker(spawner: i32, moment: Moment, mut ready: &std::io::PipeWriter) -> Outcome {
    unsafe { libc::alarm(HANG.as_secs() as u32) };
    trace::seize(spawner)?;
    std::io::Write::write_all(&mut ready, b"1")?;
    // The init, the maker, the captive.
    let mut made = Vec::new();
    // Their first stops may be seen before their births are.
    let mut early = Vec::new();
    let mut left = None;
    while left != Some(0) {
        let (pid, event) = trace::next()?;
        let (maker, captive) = (made.get(1).copied(), made.get(2).copied());
        let mut now = false;
        let mut signal = 0;
        match event {
            Event::Made { child } => {
                made.push(child);
                now = moment == Moment::Born && Some(pid) == maker;
                if !now && early.contains(&child) {
                    trace::resume(child, 0)?;
                }
            }
            Event::Call(call) if call.entry => {
                now = match moment {
                    Moment::Setns => Some(pid) == maker && call.number == libc::SYS_setns,
                    Moment::Born => false,
                    Moment::Exec => Some(pid) == captive && call.number == libc::SYS_execve,
                };
            }
            Event::Signal(number) => signal = number,
            Event::Ended => {
                let counts = [maker, captive].contains(&Some(pid));
                left = left.map(|left: usize| left - usize::from(counts));
                continue;
            }
            _ => {}
        }
        if now {
            let maker = maker.ok_or("no maker")?;
            ensure!(unsafe { libc::kill(maker, libc::SIGKILL) } == 0, "kill");
            left = Some(made.len() - 1);
        }
        if pid != spawner && !made.contains(&pid) {
            early.push(pid);
        } else if left.is_none() || !made[1..].contains(&pid) {
            trace::resume(pid, signal)?;
        }
    }
    Ok(())
}

fn threads_named(name: &str) -> Fallible<Vec<i32>> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm"))?.trim_end() == name {
            let tid = path.file_name().and_then(|name| name.to_str());
            found.push(tid.ok_or("no number")?.parse()?);
        }
    }
    Ok(found)
}

/// The children of a launcher that has unshared its PID namespace are to be in another one, in which it can have no
/// threads; clone(2), EINVAL. Those that it had go on.
fn has_unshared() -> Outcome {
    let unshare = || -> Outcome {
        let done = unsafe { libc::unshare(libc::CLONE_NEWPID) };
        ensure!(done == 0, "unshare: {}", std::io::Error::last_os_error());
        Ok(())
    };
    in_a_fork(|| {
        unshare()?;
        for containment in [Containment::Process, Containment::PidNamespace] {
            let error = refused(&mut contained(Command::new("true"), containment))?;
            let SpawnError::Step { step, errno, .. } = &error else {
                return Err(format!("{error:?}").into());
            };
            ensure!(*step == SpawnStep::StartThread, "{error:?}");
            // musl has but one error for it.
            let expected = if cfg!(target_env = "musl") {
                libc::EAGAIN
            } else {
                libc::EINVAL
            };
            ensure!(errno.raw_os_error() == Some(expected), "{error:?}");
        }
        ensure!(children().is_empty(), "{:?}", children());
        Ok(())
    })?;
    chosen(&mut contained(
        Command::new("true"),
        Containment::PidNamespace,
    ))?;
    unshare()?;
    for containment in [Containment::Process, Containment::PidNamespace] {
        let found = chosen(&mut contained(Command::new("true"), containment))?;
        ensure!(found == containment, "{found}");
    }
    Ok(())
}
