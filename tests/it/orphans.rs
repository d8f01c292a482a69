//! The launcher dies; the command must not be left behind. On real programs, each also without
//! `exit-with-parent=on`, to show that it is the option that does it.
//!
//! ```text
//! test ── launcher ── run-with ──┬── command
//!                                └── run-with-guard
//! ```

use std::fs;
use std::io::{BufRead, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use libtest_mimic::Trial;

use crate::launchers::orders;
use crate::stand_in;
use crate::support::process::{Reaped, await_that, run_with_path, state, status_field};
use crate::support::{Need, Outcome, SURVIVES, Tag, Witness, test};

/// A command, and what is to be known about it.
#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    needs: &'static [Need],
    argv: &'static [&'static str],
    comm: &'static str,
    /// The user it becomes by itself.
    becomes: Option<&'static str>,
    /// In a chroot it is busybox's, copied there; else the chroot is the whole root under another name.
    copied: bool,
    /// Ends with its direct parent by itself.
    arms_itself: bool,
}

const SLEEP: Program = Program {
    name: "sleep",
    needs: &[Need::Root],
    argv: &["sleep", "1000"],
    comm: "sleep",
    becomes: None,
    copied: false,
    arms_itself: false,
};

const BUSYBOX: Program = Program {
    name: "busybox",
    needs: &[Need::Root, Need::Program("busybox")],
    argv: &["/bin/busybox", "sleep", "1000"],
    comm: "busybox",
    becomes: None,
    copied: true,
    arms_itself: false,
};

/// nbdkit 1.32 arms the parent-death signal unasked (`-u` clears it): bound to run-with, whatever the
/// options.
const NBDKIT: Program = Program {
    name: "nbdkit",
    needs: &[Need::Root, Need::Program("nbdkit")],
    argv: &["nbdkit", "-f", "-U", "SOCKET", "null"],
    comm: "nbdkit",
    becomes: None,
    copied: false,
    arms_itself: true,
};

const QEMU: Program = Program {
    name: "qemu",
    needs: &[Need::Root, Need::Program("qemu-system-x86_64")],
    argv: &[
        "qemu-system-x86_64",
        "-S",
        "-display",
        "none",
        "-M",
        "none",
        "-nodefaults",
    ],
    comm: "qemu-system-x86",
    becomes: None,
    copied: false,
    arms_itself: false,
};

const NBDKIT_NOBODY: Program = Program {
    name: "nbdkit-u-nobody",
    argv: &["nbdkit", "-f", "-u", "nobody", "-U", "SOCKET", "null"],
    becomes: Some("65534"),
    arms_itself: false,
    ..NBDKIT
};

const QEMU_NOBODY: Program = Program {
    name: "qemu-runas-nobody",
    argv: &[
        "qemu-system-x86_64",
        "-S",
        "-display",
        "none",
        "-M",
        "none",
        "-nodefaults",
        "-runas",
        "nobody",
    ],
    becomes: Some("65534"),
    ..QEMU
};

/// Changes its user by itself, after its exec.
const BECOMES_NOBODY: Program = Program {
    name: "becomes-nobody",
    needs: &[Need::Root, Need::Program("setpriv")],
    argv: &[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "sleep",
        "1000",
    ],
    becomes: Some("65534"),
    ..SLEEP
};

/// How often what is a race is tried.
const REPEATED: usize = 25;

/// Ignores SIGTERM, as does what it execs.
const DEAF: Program = Program {
    name: "deaf",
    argv: &["sh", "-c", "trap '' TERM; exec sleep 1000"],
    ..SLEEP
};

/// Ignores SIGHUP too, which the kernel sends to an orphaned group with a stopped member.
const DEAFER: Program = Program {
    argv: &["sh", "-c", "trap '' TERM HUP; exec sleep 1000"],
    ..DEAF
};

/// Options besides exit-with-parent; `ROOT` is the new root.
const IDENTITIES: [(&str, &str); 5] = [
    ("as-is", ""),
    ("user", "user=nobody"),
    ("uid", "user=65534:65534"),
    ("chroot", "chroot=ROOT"),
    ("both", "chroot=ROOT,user=nobody"),
];

/// A command under run-with under a launcher.
struct Scene {
    launcher: Reaped,
    run_with: Witness,
    guard: Option<Witness>,
    command: Witness,
    pidfile: PathBuf,
    tag: Tag,
    _dir: tempfile::TempDir,
}

struct Setting<'a> {
    program: Program,
    bound: bool,
    /// Further options.
    options: &'a str,
    flags: &'a [&'a str],
    launcher: &'a [&'a str],
}

impl Setting<'_> {
    fn of(program: Program) -> Self {
        Self {
            program,
            bound: true,
            options: "",
            flags: &[],
            launcher: &[],
        }
    }

    fn unbound(program: Program) -> Self {
        Self {
            bound: false,
            ..Self::of(program)
        }
    }

    fn stage(&self) -> Result<Scene, Box<dyn std::error::Error>> {
        let Program {
            argv,
            comm,
            becomes,
            copied,
            ..
        } = self.program;
        let tag = Tag::new();
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777))?;
        let root = dir.path().join("root");
        fs::create_dir(&root)?;
        let pidfile = dir.path().join("pidfile");
        let mut launcher = tag.role("launch");
        launcher.args(self.launcher);
        let moves = self.options.contains("chroot=");
        if moves && copied {
            fs::create_dir(root.join("bin"))?;
            fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        } else if moves {
            launcher.arg("--bind-root").arg(&root);
        }
        launcher
            .args(["--", run_with_path(), "--pidfile"])
            .arg(&pidfile)
            .args(self.flags);
        if self.bound {
            launcher.arg("exit-with-parent=on");
        }
        if !self.options.is_empty() {
            launcher.arg(self.options.replace("ROOT", root.to_str().unwrap()));
        }
        launcher
            .arg("--")
            .args(argv.iter().map(|arg| match *arg {
                "SOCKET" => dir.path().join("socket").into_os_string(),
                other => other.into(),
            }))
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let launcher = Reaped(launcher.spawn()?);
        let command = tag.await_process(comm)?;
        await_that("the pidfile", || pidfile.exists())?;
        let user = match becomes {
            None if self.options.contains("user=") => "65534",
            None => "0",
            Some(user) => user,
        };
        await_that("the user", || {
            status_field(command.pid, "Uid")
                .is_some_and(|uids| uids.split_whitespace().all(|uid| uid == user))
        })?;
        ensure!(
            fs::read_to_string(&pidfile)? == format!("{}\n", command.pid),
            "the pidfile names another process"
        );
        if moves && copied {
            let there = fs::read_dir(format!("/proc/{}/root", command.pid))?.count();
            ensure!(there == 1, "the command is not in the new root");
        }
        let run_with = tag.await_process("run-with")?;
        let guard = if self.bound {
            Some(tag.await_process("run-with-guard")?)
        } else {
            None
        };
        Ok(Scene {
            launcher,
            run_with,
            guard,
            command,
            pidfile,
            tag,
            _dir: dir,
        })
    }
}

impl Scene {
    fn guard(&self) -> &Witness {
        self.guard.as_ref().unwrap()
    }

    fn kill_launcher(&mut self) -> Outcome {
        self.launcher.0.kill()?;
        self.launcher.0.wait()?;
        Ok(())
    }

    fn order(&mut self, order: u8) -> Outcome {
        use std::io::Write;
        self.launcher
            .0
            .stdin
            .as_mut()
            .unwrap()
            .write_all(&[order])?;
        Ok(())
    }

    /// The command ends, and everything else with it.
    fn all_end(&self) -> Outcome {
        ensure!(self.command.gone(), "the command lives on");
        ensure!(self.run_with.gone(), "run-with lives on");
        if let Some(guard) = &self.guard {
            ensure!(guard.gone(), "the guard lives on");
        }
        let launcher = i32::try_from(self.launcher.0.id())?;
        await_that("the end of everything", || {
            let left = self.tag.processes();
            left.iter().all(|(pid, _)| *pid == launcher)
        })?;
        Ok(())
    }

    /// As [`all_end`](Self::all_end), where run-with came to tidy up.
    fn all_end_in_order(&self) -> Outcome {
        self.all_end()?;
        ensure!(!self.pidfile.exists(), "the pidfile is left over");
        Ok(())
    }

    fn command_lives(&self) -> Outcome {
        ensure!(
            !self.command.gone_within(SURVIVES),
            "the command ended without the option"
        );
        Ok(())
    }
}

/// Stops a process and waits until it is.
fn stop(witness: &Witness) -> Outcome {
    witness.signal(libc::SIGSTOP);
    await_that("the stop", || state(witness.pid) == Some('T'))
}

fn kill(witness: &Witness) -> Outcome {
    witness.signal(libc::SIGKILL);
    ensure!(witness.gone(), "it outlives SIGKILL");
    Ok(())
}

type Body = fn() -> Outcome;
type BodyWith = fn(Program) -> Outcome;

/// All tests of this module.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for program in [SLEEP, BUSYBOX, NBDKIT, QEMU] {
        for (identity, options) in IDENTITIES {
            let case = format!("{}::{identity}", program.name);
            trials.push(test(
                &format!("orphans::launcher_killed::{case}"),
                program.needs,
                move || launcher_killed(program, options),
            ));
            trials.push(test(
                &format!("orphans::run_with_killed::{case}"),
                program.needs,
                move || run_with_killed(program, options),
            ));
            trials.push(test(
                &format!("orphans::without_the_option::{case}"),
                program.needs,
                move || without_the_option(program, options),
            ));
        }
    }
    for program in [NBDKIT_NOBODY, QEMU_NOBODY] {
        changes_user_itself(program, &mut trials);
    }
    let named: [(&str, Body); 9] = [
        ("deaf", deaf),
        ("command_stopped", command_stopped),
        ("launcher_exits", || launcher_ends_by(orders::EXIT)),
        ("launcher_aborts", || launcher_ends_by(orders::ABORT)),
        ("run_with_stopped", || run_with_stopped(SLEEP)),
        ("guard_killed", || guard_killed(SLEEP)),
        ("guard_stopped", || guard_stopped(SLEEP)),
        ("both_killed", both_killed),
        ("both_killed_with_user", both_killed_with_user),
    ];
    for (name, body) in named.into_iter().chain(signal_tests()) {
        trials.push(test(&format!("orphans::{name}"), &[Need::Root], body));
    }
    trials.push(test(
        "orphans::group_of_the_command_by_the_guard",
        &[Need::Root, Need::GroupSignal],
        group_by_the_guard,
    ));
    if stand_in::is_kqueue_alone() {
        trials.push(test("orphans::nobody_is_left", &[Need::Root], || {
            survives_both(SLEEP)
        }));
    }
    trials.push(test(
        "orphans::killed_while_a_guard_starts",
        BECOMES_NOBODY.needs,
        killed_while_a_guard_starts,
    ));
    trials
}

fn signal_tests() -> [(&'static str, Body); 7] {
    [
        ("signal_once", || signal_once(Interference::None)),
        ("signal_once_by_the_guard", || {
            signal_once(Interference::RunWithStopped)
        }),
        ("signal_once_by_both", || {
            signal_once(Interference::RunWithResumed)
        }),
        ("group_of_the_command", group_of_the_command),
        ("group_of_the_launcher", group_of_the_launcher),
        ("exec_mode", exec_mode),
        ("command_ends_first", command_ends_first),
    ]
}

fn changes_user_itself(program: Program, trials: &mut Vec<Trial>) {
    let bodies: [(&str, BodyWith); 7] = [
        ("launcher_killed", |program| launcher_killed(program, "")),
        ("run_with_killed", |program| run_with_killed(program, "")),
        ("without_the_option", |program| {
            without_the_option(program, "")
        }),
        ("run_with_stopped", run_with_stopped),
        ("guard_killed", guard_killed),
        ("guard_stopped", guard_stopped),
        ("both_killed", survives_both),
    ];
    for (name, body) in bodies {
        trials.push(test(
            &format!("orphans::{name}::{}", program.name),
            program.needs,
            move || body(program),
        ));
    }
}

fn launcher_killed(program: Program, options: &str) -> Outcome {
    let mut scene = Setting {
        options,
        ..Setting::of(program)
    }
    .stage()?;
    ensure!(scene.command.alive(), "the command ended by itself");
    scene.kill_launcher()?;
    scene.all_end_in_order()
}

/// The guard's first duty.
fn run_with_killed(program: Program, options: &str) -> Outcome {
    let scene = Setting {
        options,
        ..Setting::of(program)
    }
    .stage()?;
    scene.run_with.signal(libc::SIGKILL);
    scene.all_end()
}

/// Neither the launcher's end nor run-with's is the command's.
fn without_the_option(program: Program, options: &str) -> Outcome {
    let mut scene = Setting {
        options,
        ..Setting::unbound(program)
    }
    .stage()?;
    ensure!(
        scene
            .tag
            .processes()
            .iter()
            .all(|(_, comm)| comm != "run-with-guard"),
        "a guard that nobody asked for"
    );
    scene.kill_launcher()?;
    scene.command_lives()?;
    kill(&scene.run_with)?;
    if program.arms_itself {
        return Ok(());
    }
    scene.command_lives()
}

fn launcher_ends_by(order: u8) -> Outcome {
    let mut scene = Setting::of(SLEEP).stage()?;
    scene.order(order)?;
    scene.launcher.0.wait()?;
    scene.all_end_in_order()?;

    let mut scene = Setting::unbound(SLEEP).stage()?;
    scene.order(order)?;
    scene.launcher.0.wait()?;
    scene.command_lives()
}

/// SIGTERM does nothing; SIGKILL follows, unless it was to follow never.
fn deaf() -> Outcome {
    let flags = &["-k", "0.3"];
    let mut scene = Setting {
        flags,
        ..Setting::of(DEAF)
    }
    .stage()?;
    scene.kill_launcher()?;
    scene.all_end_in_order()?;

    let flags = &["-k", "0"];
    let mut scene = Setting {
        flags,
        ..Setting::of(DEAF)
    }
    .stage()?;
    scene.kill_launcher()?;
    scene.command_lives()
}

/// A stopped process acts on SIGTERM when it is resumed, and it is.
fn command_stopped() -> Outcome {
    let flags = &["-k", "0"];
    let mut scene = Setting {
        flags,
        ..Setting::of(SLEEP)
    }
    .stage()?;
    stop(&scene.command)?;
    scene.kill_launcher()?;
    scene.all_end_in_order()?;

    let mut scene = Setting::unbound(SLEEP).stage()?;
    stop(&scene.command)?;
    scene.kill_launcher()?;
    scene.command_lives()?;
    ensure!(state(scene.command.pid) == Some('T'), "it was resumed");
    Ok(())
}

/// The guard acts in the place of a stopped run-with, resumes it, and it tidies up.
fn run_with_stopped(program: Program) -> Outcome {
    let mut scene = Setting::of(program).stage()?;
    stop(&scene.run_with)?;
    scene.kill_launcher()?;
    scene.all_end_in_order()
}

/// run-with starts another guard, which is as good.
fn guard_killed(program: Program) -> Outcome {
    let mut scene = Setting::of(program).stage()?;
    let first = scene.guard().pid;
    kill(scene.guard())?;
    await_that("the first guard's reaping", || state(first).is_none())?;
    let second = scene.tag.await_process("run-with-guard")?;
    ensure!(second.pid != first, "the same guard");
    ensure!(scene.command.alive(), "the command went with the guard");
    scene.guard = Some(second);
    scene.run_with.signal(libc::SIGKILL);
    scene.all_end()
}

/// A stopped guard is resumed by the kernel when run-with dies, and then does its duty.
/// The second guard has begun, and perhaps not said so yet. Without the kernel's second line, which a change of user by
/// the command itself clears.
fn killed_while_a_guard_starts() -> Outcome {
    for _ in 0..REPEATED {
        let scene = Setting::of(BECOMES_NOBODY).stage()?;
        kill(scene.guard())?;
        let second = scene.tag.await_process("run-with-guard")?;
        scene.run_with.signal(libc::SIGKILL);
        scene.all_end()?;
        ensure!(second.gone(), "the second guard lives on");
    }
    Ok(())
}

fn guard_stopped(program: Program) -> Outcome {
    let scene = Setting::of(program).stage()?;
    stop(scene.guard())?;
    scene.run_with.signal(libc::SIGKILL);
    scene.all_end()
}

/// Kills guard and run-with so that neither can act for the other.
fn kill_both(scene: &Scene) -> Outcome {
    stop(scene.guard())?;
    stop(&scene.run_with)?;
    kill(scene.guard())?;
    kill(&scene.run_with)
}

/// The second line: the kernel's parent-death signal.
fn both_killed() -> Outcome {
    let scene = Setting::of(SLEEP).stage()?;
    kill_both(&scene)?;
    scene.all_end()?;

    // It is the option that arms it.
    let scene = Setting::unbound(SLEEP).stage()?;
    kill(&scene.run_with)?;
    scene.command_lives()
}

/// It is armed after `user=`, which would clear it.
fn both_killed_with_user() -> Outcome {
    let scene = Setting {
        options: "user=nobody",
        ..Setting::of(SLEEP)
    }
    .stage()?;
    kill_both(&scene)?;
    scene.all_end()
}

/// The stated limit: a command that has changed its user has no second line.
fn survives_both(program: Program) -> Outcome {
    let scene = Setting::of(program).stage()?;
    kill_both(&scene)?;
    scene.command_lives()
}

/// What is done to run-with while the signal is due.
#[derive(Clone, Copy, PartialEq)]
enum Interference {
    None,
    RunWithStopped,
    RunWithResumed,
}

/// SIGINT shows the order, and a real-time signal, which is queued as often as it is sent, the number.
fn signal_once(interference: Interference) -> Outcome {
    signal_is(libc::SIGINT, interference)?;
    signal_is(libc::SIGRTMIN() + 3, interference)
}

/// The command gets the signal, once, and SIGCONT after it; SIGKILL comes at the end.
fn signal_is(signal: i32, interference: Interference) -> Outcome {
    let tag = Tag::new();
    let counter = std::env::current_exe()?;
    let mut launcher = Reaped(
        tag.role("launch")
            .args([
                "--",
                run_with_path(),
                "-s",
                &signal.to_string(),
                "-k",
                "0.5",
            ])
            .args(["exit-with-parent=on", "--"])
            .arg(counter)
            .args(["--role", "counter"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut out = std::io::BufReader::new(launcher.0.stdout.take().unwrap());
    let command = tag.await_process("counter")?;
    let run_with = tag.await_process("run-with")?;
    let guard = tag.await_process("run-with-guard")?;
    if interference != Interference::None {
        stop(&run_with)?;
    }
    launcher.0.kill()?;
    launcher.0.wait()?;
    let mut told = String::new();
    out.read_line(&mut told)?;
    if interference == Interference::RunWithResumed {
        run_with.signal(libc::SIGCONT);
    }
    // Its end of file is the command's end: run-with and the guard do not hold the other end.
    out.read_to_string(&mut told)?;
    ensure!(command.gone(), "the command closed its output and lives");
    ensure!(
        run_with.gone() && guard.gone(),
        "run-with or its guard lives on"
    );
    let mut lines: Vec<i32> = told.lines().map(str::parse).collect::<Result<_, _>>()?;
    if signal > libc::SIGCONT {
        // sigwait takes the lower number first where both are there.
        lines.sort_unstable();
        lines.reverse();
    }
    ensure!(
        lines == [signal, libc::SIGCONT],
        "the command got {lines:?}"
    );
    Ok(())
}

/// Leads a session, and has a child in its group.
const LEADER: Program = Program {
    name: "leader",
    needs: &[Need::Root, Need::Program("setsid")],
    argv: &[
        "setsid",
        "sh",
        "-c",
        "trap '' TERM; (exec tail -f /dev/null) & exec sleep 1000",
    ],
    ..SLEEP
};

fn group_of_the_command() -> Outcome {
    let flags = &["-k", "0.3"];
    let mut scene = Setting {
        flags,
        ..Setting::of(LEADER)
    }
    .stage()?;
    let member = scene.tag.await_process("tail")?;
    scene.kill_launcher()?;
    scene.all_end_in_order()?;
    ensure!(member.gone(), "the group lives on");
    Ok(())
}

fn group_by_the_guard() -> Outcome {
    let scene = Setting::of(LEADER).stage()?;
    let member = scene.tag.await_process("tail")?;
    scene.run_with.signal(libc::SIGKILL);
    scene.all_end()?;
    ensure!(member.gone(), "the group lives on");
    Ok(())
}

/// A command in the launcher's group is killed alone, by run-with and by the guard.
fn group_of_the_launcher() -> Outcome {
    for stopped in [false, true] {
        let mut scene = Setting {
            flags: &["-k", "0.3"],
            launcher: &["--own-group"],
            ..Setting::of(DEAFER)
        }
        .stage()?;
        let bystander = scene.tag.await_process("bystander")?;
        let group = |pid| nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid)));
        ensure!(
            group(bystander.pid)? == group(scene.command.pid)?,
            "the bystander is in another group"
        );
        if stopped {
            stop(&scene.run_with)?;
        }
        scene.kill_launcher()?;
        ensure!(scene.command.gone(), "the command lives on");
        ensure!(scene.run_with.gone(), "run-with lives on");
        ensure!(scene.guard().gone(), "the guard lives on");
        ensure!(
            !bystander.gone_within(SURVIVES),
            "the launcher's group was killed"
        );
    }
    Ok(())
}

/// `--exec`: nobody stays, and the kernel's signal does it; without the option nothing does.
fn exec_mode() -> Outcome {
    for (options, ends) in [
        ("exit-with-parent=on", true),
        ("exit-with-parent=on,user=nobody", true),
        ("user=nobody", false),
    ] {
        let tag = Tag::new();
        let mut launcher = Reaped(
            tag.role("launch")
                .args(["--", run_with_path(), "--exec", options, "sleep", "1000"])
                .stdin(Stdio::piped())
                .spawn()?,
        );
        let command = tag.await_process("sleep")?;
        ensure!(
            tag.processes().len() == 2,
            "somebody stays: {:?}",
            tag.processes()
        );
        launcher.0.kill()?;
        launcher.0.wait()?;
        if ends {
            ensure!(command.gone(), "{options}: the command lives on");
        } else {
            ensure!(!command.gone_within(SURVIVES), "{options}: it ended");
        }
    }
    Ok(())
}

/// A command that ends by itself leaves no guard and no pidfile; the launcher lives.
fn command_ends_first() -> Outcome {
    let scene = Setting::of(SLEEP).stage()?;
    let (command, guard) = (scene.command.pid, scene.guard().pid);
    scene.command.signal(libc::SIGUSR1);
    scene.all_end_in_order()?;
    ensure!(state(guard).is_none(), "run-with did not reap its guard");
    ensure!(
        state(command).is_none(),
        "run-with did not reap the command"
    );
    Ok(())
}
