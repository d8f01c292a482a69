//! The parent is a process, not the thread that forked: what each mechanism makes of a launcher whose
//! threads come and go, and of one that becomes another program.
//!
//! | in the launcher | pidfd: run-with, `arm()` | parent-death signal: `--exec`, by name, second line |
//! |---|---|---|
//! | the thread that started it ends | lives on | ends |
//! | the main thread, which started it, ends | lives on | ends |
//! | the main thread calls exec | lives on | lives on |
//! | another thread calls exec | lives on | ends |
//!
//! Whatever lives on ends with the launcher in the end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use libtest_mimic::Trial;

use crate::launchers::orders;
use crate::support::process::{Reaped, await_that, run_with_path, state};
use crate::support::{Outcome, SURVIVES, Tag, Witness, test};

/// Something that is bound to the launcher.
#[derive(Clone, Copy)]
struct Bound {
    name: &'static str,
    by: By,
    args: &'static [&'static str],
    thread_scoped: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum By {
    RunWith,
    Library,
}

const BOUND: [Bound; 6] = [
    Bound {
        name: "run_with",
        by: By::RunWith,
        args: &["exit-with-parent=on", "sleep", "1000"],
        thread_scoped: false,
    },
    Bound {
        name: "exec_mode",
        by: By::RunWith,
        args: &["--exec", "exit-with-parent=on", "sleep", "1000"],
        thread_scoped: true,
    },
    Bound {
        name: "arm",
        by: By::Library,
        args: &[],
        thread_scoped: false,
    },
    Bound {
        name: "arm_pidfd_by_name",
        by: By::Library,
        args: &["--pidfd-mechanism"],
        thread_scoped: false,
    },
    Bound {
        name: "arm_signal_by_name",
        by: By::Library,
        args: &["--signal-mechanism"],
        thread_scoped: true,
    },
    Bound {
        name: "arm_second_line",
        by: By::Library,
        args: &["--second-line"],
        thread_scoped: true,
    },
];

/// What happens to the launcher.
#[derive(Clone, Copy)]
enum Event {
    ThreadEnds,
    MainThreadEnds,
    Exec,
    ExecFromThread,
}

const EVENTS: [(&str, Event); 4] = [
    ("thread_ends", Event::ThreadEnds),
    ("main_thread_ends", Event::MainThreadEnds),
    ("exec", Event::Exec),
    ("exec_from_thread", Event::ExecFromThread),
];

/// All tests of this module.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for bound in BOUND {
        for (name, event) in EVENTS {
            let name = format!("threads::{name}::{}", bound.name);
            trials.push(test(&name, &[], move || happens(bound, event)));
        }
    }
    trials.push(test("threads::report", &[], report));
    trials.push(test("threads::unarmed", &[], unarmed));
    trials.push(test(
        "threads::armed_from_a_thread",
        &[],
        armed_from_a_thread,
    ));
    trials.push(test(
        "threads::signal_from_a_thread",
        &[],
        signal_from_a_thread,
    ));
    trials
}

struct Scene {
    launcher: Reaped,
    captive: Witness,
    _tag: Tag,
}

fn stage(bound: Bound, from_thread: bool) -> Result<Scene, Box<dyn std::error::Error>> {
    let tag = Tag::new();
    let mut launcher = tag.role("launch");
    if from_thread {
        launcher.arg("--from-thread");
    }
    launcher.arg("--");
    let comm = match bound.by {
        By::RunWith => {
            launcher.arg(run_with_path());
            "sleep"
        }
        By::Library => {
            launcher
                .arg(std::env::current_exe()?)
                .args(["--role", "bound"]);
            "captive"
        }
    };
    launcher.args(bound.args);
    let launcher = launcher.stdin(Stdio::piped()).stdout(Stdio::piped());
    let launcher = Reaped(launcher.spawn()?);
    let captive = tag.await_process(comm)?;
    Ok(Scene {
        launcher,
        captive,
        _tag: tag,
    })
}

impl Scene {
    fn pid(&self) -> i32 {
        i32::try_from(self.launcher.0.id()).unwrap()
    }

    fn order(&mut self, order: u8) -> Outcome {
        self.launcher
            .0
            .stdin
            .as_mut()
            .unwrap()
            .write_all(&[order])?;
        Ok(())
    }

    fn await_launcher_named(&self, name: &str) -> Outcome {
        let pid = self.pid();
        await_that(name, || {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
    }
}

fn happens(bound: Bound, event: Event) -> Outcome {
    let mut scene = stage(bound, matches!(event, Event::ThreadEnds))?;
    match event {
        Event::ThreadEnds => {
            scene.order(orders::END_THREAD)?;
            scene.await_launcher_named("thread-ended")?;
        }
        Event::MainThreadEnds => {
            scene.order(orders::END_MAIN_THREAD)?;
            // A dead leader of a living thread group.
            let pid = scene.pid();
            await_that("the main thread's end", || state(pid) == Some('Z'))?;
        }
        Event::Exec => {
            scene.order(orders::EXEC)?;
            scene.await_launcher_named("another")?;
        }
        Event::ExecFromThread => {
            scene.order(orders::EXEC_FROM_THREAD)?;
            scene.await_launcher_named("another")?;
        }
    }
    ensure!(
        scene.launcher.0.try_wait()?.is_none(),
        "the launcher ended altogether"
    );
    if bound.thread_scoped && !matches!(event, Event::Exec) {
        ensure!(scene.captive.gone(), "it is not thread-scoped after all");
        return Ok(());
    }
    ensure!(
        !scene.captive.gone_within(SURVIVES),
        "it ended while the launcher lives"
    );
    scene.launcher.0.kill()?;
    scene.launcher.0.wait()?;
    ensure!(scene.captive.gone(), "it outlives the launcher");
    Ok(())
}

/// What is armed says whose end counts.
fn report() -> Outcome {
    for bound in BOUND.iter().filter(|bound| bound.by == By::Library) {
        let mut scene = stage(*bound, false)?;
        let mut line = String::new();
        BufReader::new(scene.launcher.0.stdout.take().unwrap()).read_line(&mut line)?;
        let scope = if bound.thread_scoped {
            "thread-scoped"
        } else {
            "process-scoped"
        };
        ensure!(line.contains(scope), "{}: {line}", bound.name);
    }
    Ok(())
}

fn unarmed() -> Outcome {
    let bound = Bound {
        name: "unarmed",
        by: By::Library,
        args: &["--unarmed"],
        thread_scoped: false,
    };
    let mut scene = stage(bound, false)?;
    scene.launcher.0.kill()?;
    scene.launcher.0.wait()?;
    ensure!(
        !scene.captive.gone_within(SURVIVES),
        "it ended without being armed"
    );
    Ok(())
}

/// The pidfd may be armed by a thread that ends at once.
fn armed_from_a_thread() -> Outcome {
    let bound = Bound {
        name: "armed_from_a_thread",
        by: By::Library,
        args: &["--from-thread"],
        thread_scoped: false,
    };
    let mut scene = stage(bound, false)?;
    scene.launcher.0.kill()?;
    scene.launcher.0.wait()?;
    ensure!(scene.captive.gone(), "it outlives the launcher");
    Ok(())
}

/// The parent-death signal may not: that of a thread which ends is gone.
fn signal_from_a_thread() -> Outcome {
    for mechanism in ["--signal-mechanism", "--second-line"] {
        let tag = Tag::new();
        let output = tag
            .role("bound")
            .args(["--from-thread", mechanism])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(3), "{:?}", output.status);
        ensure!(said.starts_with("NotMainThread"), "{mechanism}: {said}");
    }
    Ok(())
}
