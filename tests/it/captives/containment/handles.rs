//! Handles of captives with trees: what is left after them, and launchers of an odd kind.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use captive::exit_with_parent::Signal;
use captive::launcher::{CaptiveError, SpawnStep};

use super::*;
use crate::support::SURVIVES;

const CGROUP: &[Need] = &[Need::Root, Need::Cgroups];

pub const CASES: &[Case] = &[
    ("drop", CGROUP, drop_leaves_nothing),
    ("drop-does-not-wait", CGROUP, drop_does_not_wait),
    ("hundred-dropped", CGROUP, hundred),
    ("sigchld-ignored", CGROUP, sigchld_ignored),
    ("foreign-waiter", CGROUP, foreign_waiter),
    ("forked-launcher", CGROUP, forked_launcher),
    ("eight-threads", CGROUP, eight_threads),
    ("nobody-waits", CGROUP, nobody_waits),
    ("failures-leave-nothing", CGROUP, failures),
    ("detached", CGROUP, detached),
    ("detached-after-its-end", CGROUP, detached_after_its_end),
    ("detached-and-left-at-once", CGROUP, detached_and_left),
];

fn all_and_none() -> impl Iterator<Item = Containment> {
    MECHANISMS.into_iter().chain([Containment::Process])
}

/// What there is when all is quiet. The guard, the threads and the helper's file are there to stay; each mechanism once,
/// in case it has such.
fn warm_up() -> Fallible<Vec<(i32, PathBuf)>> {
    for containment in all_and_none() {
        chosen(&mut contained(Command::new("true"), containment))?;
    }
    nothing_left()?;
    // What has been reaped is closed a moment later.
    let mut before = open_descriptors();
    await_that("a rest", || {
        std::thread::sleep(Duration::from_millis(20));
        let last = std::mem::replace(&mut before, open_descriptors());
        last == before
    })?;
    Ok(before)
}

fn as_before(before: &[(i32, PathBuf)]) -> Outcome {
    nothing_left()?;
    descriptors_as_before(before)
}

fn drop_leaves_nothing() -> Outcome {
    let before = warm_up()?;
    for containment in MECHANISMS {
        let script = "setsid sleep 1000 & echo ready; wait";
        let (captive, _) = says_first(&mut contained(shell(script), containment), 1)?;
        let tree = descendants(captive.id() as i32);
        ensure!(tree.len() == 2, "{tree:?}");
        drop(captive);
        for process in &tree {
            ensure!(process.gone(), "{containment}: {process:?} lives on");
        }
        drop(tree);
        as_before(&before).map_err(|error| format!("{containment}: {error}"))?;
        // One that has ended, with nobody looking.
        let captive = contained(Command::new("true"), containment).spawn()?;
        ensure!(
            crate::support::process::readable_within(captive.pidfd(), HANG),
            "no end"
        );
        drop(captive);
        as_before(&before).map_err(|error| format!("{containment}: {error}"))?;
    }
    Ok(())
}

/// A stopped one, with many that have left it.
fn drop_does_not_wait() -> Outcome {
    for containment in MECHANISMS {
        let script = "for i in 1 2 3 4 5 6 7 8; do setsid sleep 1000 & done; echo ready; wait";
        let (captive, _) = says_first(&mut contained(shell(script), containment), 1)?;
        let tree = descendants(captive.id() as i32);
        captive.signal(Signal::try_from(libc::SIGSTOP)?)?;
        let (sender, dropped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(captive);
            let _ = sender.send(());
        });
        dropped.recv_timeout(HANG)?;
        for process in &tree {
            ensure!(process.gone(), "{process:?} lives on");
        }
        nothing_left()?;
    }
    Ok(())
}

fn hundred() -> Outcome {
    let before = warm_up()?;
    for number in 0..100 {
        let containment = MECHANISMS[number % MECHANISMS.len()];
        let captive = sleeper(containment).spawn()?;
        ensure!(captive.containment() == containment, "{captive:?}");
    }
    as_before(&before)?;
    // All at once.
    let held: Vec<_> = (0..40)
        .map(|number| sleeper(MECHANISMS[number % MECHANISMS.len()]).spawn())
        .collect::<Result<_, _>>()?;
    drop(held);
    as_before(&before)?;
    // Ended by others, and waited for.
    for number in 0..20 {
        let captive = sleeper(MECHANISMS[number % MECHANISMS.len()]).spawn()?;
        Witness::of(captive.id() as i32)?.signal(libc::SIGKILL);
        tree_ended(&captive)?;
    }
    as_before(&before)
}

/// Every mechanism in a launcher that does not reap what it starts.
fn statuses_are_there() -> Outcome {
    for containment in MECHANISMS {
        for code in [0, 7] {
            let script = format!("setsid sleep 1000 & exit {code}");
            let captive = contained(shell(&script), containment).spawn()?;
            let report = ended(&captive)?;
            // Linux before 6.15 does not keep it.
            ensure!(
                [ExitStatus::Exited(code), ExitStatus::Unknown].contains(&report.status()),
                "{containment}: {report:?}"
            );
            tree_ended(&captive)?;
        }
        let captive = sleeper(containment).spawn()?;
        let witness = Witness::of(captive.id() as i32)?;
        drop(captive);
        ensure!(witness.gone(), "{containment}: it lives on");
        let error = refused(&mut contained(Command::new("/nonexistent"), containment))?;
        ensure!(error.step() == Some(&SpawnStep::Exec), "{error:?}");
        nothing_left().map_err(|error| format!("{containment}: {error}"))?;
    }
    Ok(())
}

fn sigchld_ignored() -> Outcome {
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    statuses_are_there()
}

fn foreign_waiter() -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } < 0 {
                std::thread::yield_now();
            }
        }
    });
    let outcome = (0..3).try_for_each(|_| statuses_are_there());
    stop.store(true, Ordering::Relaxed);
    outcome
}

fn forked_launcher() -> Outcome {
    for containment in MECHANISMS {
        let captive = sleeper(containment).spawn()?;
        let launcher = std::process::id();
        let child = unsafe { libc::fork() };
        ensure!(child >= 0, "fork");
        if child == 0 {
            let forked = |answer: Result<(), CaptiveError>| matches!(answer, Err(CaptiveError::Forked { launcher: found }) if found == launcher);
            let inert = forked(captive.kill())
                && forked(captive.wait_tree(Duration::ZERO).map(drop))
                && forked(captive.terminate(Duration::ZERO).map(drop))
                && captive.containment() == containment;
            drop(captive);
            let own = || -> Outcome {
                ensure!(inert, "it is not inert");
                for own in MECHANISMS {
                    let (captive, _) = says_first(
                        &mut contained(shell("setsid sleep 1000 & echo ready; wait"), own),
                        1,
                    )?;
                    let tree = descendants(captive.id() as i32);
                    ensure!(tree.len() == 2, "{tree:?}");
                    drop(captive);
                    for process in tree {
                        ensure!(process.gone(), "{own}: {process:?} lives on");
                    }
                }
                nothing_left()
            };
            unsafe { libc::_exit(verdict(own())) }
        }
        let mut status = 0;
        ensure!(
            unsafe { libc::waitpid(child, &raw mut status, 0) } == child,
            "waitpid"
        );
        ensure!(status == 0, "{containment}: the child: {status:#x}");
        ensure!(
            captive.wait_timeout(SURVIVES / 8)?.is_none(),
            "it has ended"
        );
        captive.kill()?;
        tree_ended(&captive)?;
        nothing_left()?;
    }
    Ok(())
}

fn eight_threads() -> Outcome {
    let before = warm_up()?;
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            std::thread::spawn(move || -> Result<(), String> {
                for number in 0..10 {
                    let all: Vec<_> = all_and_none().collect();
                    let containment = all[(thread + number) % all.len()];
                    let of_this = || -> Outcome {
                        let mut command = contained(
                            shell("setsid sleep 1000 & echo ready; read line; exit 5"),
                            containment,
                        );
                        let command = command.stdin(Stdio::piped());
                        let (mut captive, _) = says_first(command, 1)?;
                        let tree = descendants(captive.id() as i32);
                        match number % 3 {
                            0 => drop(captive),
                            1 => {
                                captive.kill()?;
                                tree_ended(&captive)?;
                            }
                            _ => {
                                drop(captive.stdin.take());
                                let status = ended(&captive)?.status();
                                ensure!(status == ExitStatus::Exited(5), "{status}");
                                tree_ended(&captive)?;
                            }
                        }
                        for process in tree {
                            if containment == Containment::Process {
                                process.signal(libc::SIGKILL);
                            }
                            ensure!(process.gone(), "{process:?} lives on");
                        }
                        Ok(())
                    };
                    of_this().map_err(|error| format!("{containment}: {error}"))?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a panic")??;
    }
    as_before(&before)
}

/// The guard sees the main process end, and ends the rest, though nobody waits for either.
fn nobody_waits() -> Outcome {
    for containment in MECHANISMS {
        let script = "setsid sh -c 'setsid sleep 1000 & echo $!; wait' & read line";
        let mut command = contained(shell(script), containment);
        let (mut captive, _) = says_first(command.stdin(Stdio::piped()), 1)?;
        let tree = descendants(captive.id() as i32);
        ensure!(tree.len() == 3, "{tree:?}");
        drop(captive.stdin.take());
        for process in &tree {
            ensure!(process.gone(), "{containment}: {process:?} lives on");
        }
        ensure!(captive.wait_tree(Duration::MAX)?, "it is not over");
        ensure!(
            captive.wait()?.status() == ExitStatus::Exited(1),
            "{captive:?}"
        );
    }
    Ok(())
}

fn failures() -> Outcome {
    let before = warm_up()?;
    for containment in MECHANISMS.into_iter().chain([Containment::Tree]) {
        let mut users = vec![None];
        if containment != Containment::UserNamespace {
            users.push(Some(as_nobody()?));
        }
        for user in users {
            let fails = |mut command: Command, step: &SpawnStep, number: i32| -> Outcome {
                command
                    .containment(containment)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped());
                if let Some(user) = &user {
                    command.run_with(user.clone());
                }
                let error = refused(&mut command)?;
                ensure!(error.step() == Some(step), "{containment}: {error:?}");
                let SpawnError::Step { errno, .. } = &error else {
                    return Err(format!("{error:?}").into());
                };
                ensure!(errno.raw_os_error() == Some(number), "{error:?}");
                nothing_left()
            };
            let exec = SpawnStep::Exec;
            fails(Command::new("/nonexistent"), &exec, libc::ENOENT)?;
            fails(Command::new("/etc/passwd"), &exec, libc::EACCES)?;
            let mut command = Command::new("true");
            command.current_dir("/nonexistent");
            let step = SpawnStep::ChangeDirectory("/nonexistent".into());
            fails(command, &step, libc::ENOENT)?;
            let limit = captive::launcher::Resource::NPROC;
            let mut command = Command::new("true");
            command.resource_limit(limit, 2, 1);
            fails(command, &SpawnStep::ResourceLimit(limit), libc::EINVAL)?;
        }
    }
    as_before(&before)
}

/// What has been let go lives on with its descendants, when the handle is gone and the launcher still lives; its cgroup
/// and its init end with the last of it.
fn detached() -> Outcome {
    let before = warm_up()?;
    for containment in MECHANISMS {
        // What is in the background has no input but what it is given.
        let script = "exec 3<&0; setsid sh -c 'echo ready; read line' <&3 & wait";
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let mut command = contained(shell(script), containment);
        let (captive, _) = says_first(command.stdin(reader).detachable(true), 1)?;
        let tree = descendants(captive.id() as i32);
        ensure!(tree.len() == 2, "{tree:?}");
        captive.detach().map_err(|(_, error)| error)?;
        for process in &tree {
            ensure!(
                !process.gone_within(SURVIVES / 8),
                "{containment}: {process:?} has ended"
            );
        }
        drop((writer, command));
        for process in &tree {
            ensure!(process.gone(), "{containment}: {process:?} does not end");
        }
        drop(tree);
        as_before(&before).map_err(|error| format!("{containment}: {error}"))?;
    }
    Ok(())
}

/// Nobody hears the word that it has been let go: no reason for SIGPIPE.
fn detached_after_its_end() -> Outcome {
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    for containment in MECHANISMS {
        for _ in 0..5 {
            let mut command = contained(Command::new("true"), containment);
            let captive = command.detachable(true).spawn()?;
            tree_ended(&captive)?;
            captive.detach().map_err(|(_, error)| error)?;
        }
    }
    nothing_left()
}

/// A launcher that lets a captive go and ends in the same moment: it lives on all the same.
fn detached_and_left() -> Outcome {
    for containment in MECHANISMS {
        for _ in 0..5 {
            let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            let (says, said) = std::os::unix::net::UnixStream::pair()?;
            super::groups::in_a_fork(|| {
                let mut command = contained(shell("read line; exit 0"), containment);
                let captive = command.stdin(reader).detachable(true).spawn()?;
                let pid = captive.id();
                captive.detach().map_err(|(_, error)| error)?;
                (&says).write_all(&pid.to_ne_bytes())?;
                // At once: no destructor, no last word.
                unsafe { libc::_exit(0) }
            })?;
            let mut pid = [0; 4];
            (&said).read_exact(&mut pid)?;
            let captive = Witness::of(i32::from_ne_bytes(pid))?;
            ensure!(
                !captive.gone_within(SURVIVES / 8),
                "{containment}: it has ended with its launcher"
            );
            drop(writer);
            ensure!(captive.gone(), "{containment}: it does not end");
        }
    }
    Ok(())
}
