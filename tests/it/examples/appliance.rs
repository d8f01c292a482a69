//! The appliance boots and answers; QEMU's end is an error of the launcher at once; the launcher's end is QEMU's.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::adopted::{Adopted, LIMIT, Random};
use super::{Fallible, Launched};
use crate::support::appliance::appliance;
use crate::support::needs::example;
use crate::support::process::Reaped;
use crate::support::{HANG, Need, Outcome, Tag, Witness, test};

const NAME: &str = "appliance";
const QEMU: &str = "qemu-system-x86_64";
/// What the kernel keeps of it.
const QEMU_COMM: &str = "qemu-system-x86";

const NEEDS: &[Need] = &[Need::Example(NAME), Need::Program(QEMU), Need::Appliance];
const NEEDS_LONG: &[Need] = &[
    Need::Example(NAME),
    Need::Program(QEMU),
    Need::Appliance,
    Need::Long,
];

/// Within this a launcher has noticed that QEMU is gone: not a time-out of its own.
const AT_ONCE: Duration = Duration::from_secs(10);

pub fn tests() -> Vec<Trial> {
    vec![
        test("examples::appliance_answers", NEEDS, answers),
        test("examples::appliance_does_not_boot", NEEDS, does_not_boot),
        test("examples::appliance_qemu_killed", NEEDS, qemu_killed),
        test("examples::appliance_launcher_killed", NEEDS, || rounds(10)),
        test(
            "examples::appliance_launcher_killed_long",
            NEEDS_LONG,
            || rounds(100),
        ),
    ]
}

fn program(commands: &[&str]) -> Vec<OsString> {
    let appliance = appliance();
    let mut program = vec![
        example(NAME).into(),
        appliance.join("kernel").into(),
        appliance.join("initrd").into(),
    ];
    program.extend(commands.iter().map(OsString::from));
    program
}

fn answers() -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let program = program(&[
        "uname -r",
        "echo out; echo error >&2",
        "seq 10000",
        "test -e /tmp/none",
        "echo never",
    ]);
    let mut command = tag.command(program[0].to_str().ok_or("not UTF-8")?);
    command.args(&program[1..]);
    command.current_dir(dir.path()).env("TMPDIR", dir.path());
    let (code, stdout, stderr) = ended(&mut command)?;
    ensure!(code == Some(1), "{code:?}: {stderr}");
    ensure!(
        stderr == "appliance: test -e /tmp/none: exit status 1\n",
        "{stderr:?}"
    );
    // The folder is named after the kernel's package: linux-image-RELEASE-...
    let (release, rest) = stdout.split_once('\n').ok_or("no line")?;
    let folder = fs::canonicalize(appliance())?;
    let folder = folder.to_str().ok_or("not UTF-8")?;
    ensure!(
        !release.is_empty() && folder.contains(&format!("linux-image-{release}-")),
        "{release} of {folder}"
    );
    let numbers = (1..=10_000).map(|number| format!("{number}\n"));
    let expected = format!("out\nerror\n{}", numbers.collect::<String>());
    ensure!(rest == expected, "{} bytes of output", rest.len());
    left_nothing(&tag, dir.path())
}

/// What a command exits with and says, which must be less than a pipe holds.
fn ended(command: &mut Command) -> Fallible<(Option<i32>, String, String)> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn()?);
    let witness = Witness::of(i32::try_from(child.0.id())?)?;
    ensure!(witness.gone_within(LIMIT), "{command:?} does not end");
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let pipes = (child.0.stdout.take(), child.0.stderr.take());
    pipes.0.ok_or("no pipe")?.read_to_string(&mut stdout)?;
    pipes.1.ok_or("no pipe")?.read_to_string(&mut stderr)?;
    Ok((child.0.wait()?.code(), stdout, stderr))
}

fn left_nothing(tag: &Tag, dir: &Path) -> Outcome {
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "left over: {left:?}");
    empty(dir)
}

fn empty(dir: &Path) -> Outcome {
    let files: Vec<_> = fs::read_dir(dir)?.flatten().collect();
    ensure!(files.is_empty(), "left over: {files:?}");
    Ok(())
}

/// No kernel, and a kernel that finds no init: QEMU ends, and the launcher knows long before the time for a boot is over.
fn does_not_boot() -> Outcome {
    let kernel = appliance().join("kernel");
    let kernel = kernel.to_str().ok_or("not UTF-8")?;
    let (dir, files) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let initrd = files.path().join("initrd");
    fs::write(&initrd, [0; 512])?;
    let initrd = initrd.to_str().ok_or("not UTF-8")?;
    for (kernel, status) in [
        ("/nonexistent/kernel", "exit status 1"),
        // A panic ends QEMU in order.
        (kernel, "exit status 0"),
    ] {
        let tag = Tag::new();
        let mut command = tag.command(example(NAME).to_str().ok_or("not UTF-8")?);
        command.args([kernel, initrd, "true"]);
        command.current_dir(dir.path()).env("TMPDIR", dir.path());
        let (code, _, said) = ended(&mut command)?;
        let expected = format!("appliance: QEMU ended during the boot: {status}\n");
        ensure!(code == Some(1), "{code:?}: {said}");
        ensure!(said.ends_with(&expected), "{said:?}, not {expected:?}");
        left_nothing(&tag, dir.path())?;
    }
    Ok(())
}

/// While it boots, and while a command runs.
fn qemu_killed() -> Outcome {
    for (during, commands) in [
        ("the boot", &["true"][..]),
        ("sleep 1000", &["echo up", "sleep 1000"][..]),
    ] {
        let tag = Tag::new();
        let program = program(commands);
        let args: Vec<&str> = program[1..].iter().filter_map(|a| a.to_str()).collect();
        let mut it = Launched::new(&tag, NAME, &args)?;
        let qemu = tag.await_process(QEMU_COMM)?;
        if commands.len() > 1 {
            let mut line = String::new();
            it.stdout.read_line(&mut line)?;
            ensure!(line == "up\n", "{line:?}");
        }
        ensure!(it.example.alive(), "{during}: it has ended");
        qemu.signal(libc::SIGKILL);
        ensure!(qemu.gone(), "QEMU outlives SIGKILL");
        let told = it.example.gone_within(AT_ONCE);
        ensure!(told, "{during}: the launcher does not notice");
        let mut said = String::new();
        it.stderr.read_to_string(&mut said)?;
        let expected = format!("appliance: QEMU ended during {during}: killed by KILL\n");
        ensure!(said == expected, "{said:?}, not {expected:?}");
        let status = it.launcher.0.wait()?;
        ensure!(status.code() == Some(1), "{during}: {status}");
        let left = tag.survivors(HANG);
        ensure!(left.is_empty(), "{during}: left over: {left:?}");
    }
    Ok(())
}

/// The launcher gets SIGKILL: in its first moments, while the appliance boots, while it runs a command.
fn rounds(count: u32) -> Outcome {
    let mut random = Random::new();
    let seed = random.0;
    let boot = booted(&["echo up", "sleep 1000"], &mut random)
        .map_err(|error| format!("seed {seed}: the first: {error}"))?;
    for round in 0..count {
        let outcome = match round % 4 {
            0 => killed_within(Duration::from_millis(100), &mut random),
            1 => killed_within(boot, &mut random),
            // The guest idles, and it works.
            2 => booted(&["echo up", "sleep 1000"], &mut random).map(drop),
            _ => booted(&["echo up", "yes >/dev/null"], &mut random).map(drop),
        };
        outcome.map_err(|error| format!("seed {seed}, round {round}, boot {boot:?}: {error}"))?;
    }
    Ok(())
}

fn killed_within(limit: Duration, random: &mut Random) -> Outcome {
    let dir = tempfile::tempdir()?;
    let it = Adopted::start(dir.path(), &program(&["sleep 1000"]))?;
    std::thread::sleep(random.below(limit));
    let remains = it.kill()?;
    ensure!(remains.killed, "it had ended");
    empty(dir.path())
}

/// Killed in the second command; the answer is how long it took until that began.
fn booted(commands: &[&str], random: &mut Random) -> Fallible<Duration> {
    let dir = tempfile::tempdir()?;
    let started = Instant::now();
    let mut it = Adopted::start(dir.path(), &program(commands))?;
    let line = it.line()?;
    ensure!(line == "up", "{line:?}");
    let boot = started.elapsed();
    let qemu = it.tag().await_process(QEMU_COMM)?;
    std::thread::sleep(random.below(Duration::from_millis(300)));
    ensure!(qemu.alive(), "QEMU has ended");
    let remains = it.kill()?;
    ensure!(qemu.gone_within(Duration::ZERO), "QEMU lives on");
    // The guard and the tree's init, at the least.
    ensure!(remains.killed && remains.adopted >= 2, "{remains:?}");
    empty(dir.path())?;
    Ok(boot)
}
