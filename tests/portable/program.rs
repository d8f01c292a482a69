//! The program run-with.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::ensure;
use crate::scene::{Outcome, Scene, root_test, test};

/// Where `--tree` can be had.
const TREE: bool = cfg!(any(target_os = "linux", target_os = "freebsd"));

/// Where the tree is held by more than run-with itself; elsewhere, if that is killed, what is left of it goes to the next reaper.
const HELD: bool = cfg!(target_os = "linux");

pub fn tests() -> Vec<Trial> {
    let mut tests = vec![
        test("program::exit_status", || {
            let status = run_with(&["exit-with-parent=on", "--", "sh", "-c", "exit 7"]).status()?;
            ensure!(status.code() == Some(7), "{status}");
            Ok(())
        }),
        test("program::dies_of_the_commands_signal", || {
            let status =
                run_with(&["exit-with-parent=on", "--", "sh", "-c", "kill -INT $$"]).status()?;
            ensure!(status.signal() == Some(Signal::SIGINT as i32), "{status}");
            Ok(())
        }),
        test("program::own_failures", own_failures),
        test("program::parent_killed", parent_killed),
        test("program::itself_killed", itself_killed),
        test("program::passes_a_signal_on", passes_on),
        test("program::passes_on_a_broken_pipe", broken_pipe),
        test("program::keeps_what_its_writing_raises", own_writing),
        test("program::exec", exec),
        test("program::mechanisms", || {
            let output = run_with(&["--mechanisms", "--json"]).output()?;
            ensure!(output.status.success(), "{output:?}");
            ensure!(output.stdout.starts_with(b"{"), "{output:?}");
            Ok(())
        }),
        root_test("program::user", user),
        root_test("program::tree", || {
            tree_ends(|scene| scene.signal(Signal::SIGTERM))
        }),
    ];
    if HELD {
        tests.push(root_test("program::tree_itself_killed", || {
            tree_ends(Scene::kill)
        }));
    }
    tests
}

fn path() -> String {
    std::env::var("RUN_WITH").unwrap_or_else(|_| env!("CARGO_BIN_EXE_run-with").to_owned())
}

fn run_with(args: &[&str]) -> Command {
    let mut command = Command::new(path());
    command.args(args);
    command
}

/// run-with with this binary in a role as its command.
fn scene(args: &[&str], role: &[&str]) -> Result<Scene, libtest_mimic::Failed> {
    let this = std::env::current_exe()?;
    let this = this.to_str().ok_or("a path")?;
    Scene::start(&mut run_with(
        &[args, &["--", this, "--role"], role].concat(),
    ))
}

fn own_failures() -> Outcome {
    for (args, wanted) in [
        (&["nosuchkey=on", "--", "true"][..], 125),
        (&["--", "true"], 125),
        (&["exit-with-parent=on", "--", "/"], 126),
        (&["exit-with-parent=on", "--", "/nonexistent/command"], 127),
    ] {
        let output = run_with(args).output()?;
        ensure!(output.status.code() == Some(wanted), "{args:?}: {output:?}");
        ensure!(!output.stderr.is_empty(), "{args:?}: nothing was said");
    }
    Ok(())
}

/// A shell that has run-with as its child, and lives: it is killed.
fn parent_killed() -> Outcome {
    let this = std::env::current_exe()?;
    let script = "\"$0\" exit-with-parent=on -- \"$1\" --role idle & echo started; wait";
    let mut shell = Command::new("sh");
    // In the background a shell's command reads from /dev/null: the descriptor is kept beside.
    let script = script.replace(" & ", " <&3 & ");
    shell
        .args(["-c", &format!("exec 3<&0; {script}"), &path()])
        .arg(this);
    let mut scene = Scene::start(&mut shell)?;
    scene.expect("started")?;
    scene.ping()?;
    scene.lives_on()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn itself_killed() -> Outcome {
    let mut scene = scene(&["exit-with-parent=on"], &["idle"])?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn passes_on() -> Outcome {
    let mut scene = scene(&["exit-with-parent=on"], &["idle"])?;
    scene.ping()?;
    scene.signal(Signal::SIGTERM)?;
    let status = scene.wait()?;
    ensure!(status.signal() == Some(Signal::SIGTERM as i32), "{status}");
    scene.all_gone().map(drop)
}

/// SIGPIPE from outside is a signal as any other, also after one of run-with's own.
fn broken_pipe() -> Outcome {
    let (reader, writer) = nix::unistd::pipe()?;
    drop(reader);
    let script = "echo started; read word";
    let mut command = run_with(&[
        "--status-fd=2",
        "exit-with-parent=on",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let mut scene = Scene::start(command.stderr(writer))?;
    scene.expect("started")?;
    scene.lives_on()?;
    scene.signal(Signal::SIGPIPE)?;
    let status = scene.wait()?;
    ensure!(status.signal() == Some(Signal::SIGPIPE as i32), "{status}");
    scene.all_gone().map(drop)
}

/// What run-with's own writing raises, to a pipe that nobody reads or beyond the limit of a file's size, does not reach
/// the command.
fn own_writing() -> Outcome {
    let (reader, writer) = nix::unistd::pipe()?;
    drop(reader);
    let name = format!("captive-portable.{}", std::process::id());
    let place = std::env::temp_dir().join(name);
    let file = File::create(&place)?;
    std::fs::remove_file(&place)?;
    let outputs = [
        ("SIGPIPE", Stdio::from(writer)),
        ("SIGXFSZ", Stdio::from(file)),
    ];
    for (signal, output) in outputs {
        let script = "ulimit -f 0; exec \"$0\" --status-fd=2 exit-with-parent=on -- sh -c 'read word; exit 6'";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, &path()]).stderr(output);
        let mut scene = Scene::start(&mut shell)?;
        scene.lives_on()?;
        scene.say("go")?;
        let status = scene.wait()?;
        ensure!(status.code() == Some(6), "{signal}: {status}");
    }
    Ok(())
}

/// Where the kernel sends a parent-death signal it is kept across exec; else it is refused.
fn exec() -> Outcome {
    let kept = cfg!(any(target_os = "linux", target_os = "freebsd"));
    if !kept {
        let output = run_with(&["--exec", "exit-with-parent=on", "--", "true"]).output()?;
        ensure!(output.status.code() == Some(125), "{output:?}");
        return Ok(());
    }
    let this = std::env::current_exe()?;
    let mut shell = Command::new("sh");
    let script = "exec 3<&0; \"$0\" --exec exit-with-parent=on -- \"$1\" --role idle <&3 & echo started; wait";
    shell.args(["-c", script, &path()]).arg(this);
    let mut scene = Scene::start(&mut shell)?;
    scene.expect("started")?;
    scene.ping()?;
    scene.kill()?;
    scene.all_gone().map(drop)
}

fn user() -> Outcome {
    let output = run_with(&["user=nobody", "--", "id", "-un"]).output()?;
    ensure!(output.stdout == b"nobody\n", "{output:?}");
    Ok(())
}

/// A command with a daemon, which ends with run-with, ended in a way.
fn tree_ends(end: fn(&mut Scene) -> Outcome) -> Outcome {
    let args = ["--tree", "exit-with-parent=on"];
    if !TREE {
        let output = run_with(&[&args[..], &["--", "true"]].concat()).output()?;
        ensure!(output.status.code() == Some(125), "{output:?}");
        return Ok(());
    }
    let mut scene = scene(&args, &["captives", "daemons"])?;
    scene.expect("daemon")?;
    scene.ping()?;
    end(&mut scene)?;
    scene.all_gone().map(drop)
}
