//! The table of docs/peers.md, which the README quotes: every cell is an experiment, and a cell that
//! is not what happens fails its row's test.
//!
//! ```text
//! test ── launcher (role, killed) ── wrapper ── command ── setsid'ed grandchild
//!      └─ adopter (role: a subreaper, or init of a PID namespace) ── launcher (exits first) ── wrapper
//! ```
//!
//! Gone is a pidfd's word, waited for as long as anything may take. Survival is having been alive
//! [`SURVIVES`] after the cause was witnessed.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::support::{HANG, Need, Outcome, Witness, test};

mod scene;
mod table;
mod wrappers;

use scene::Scene;
use table::{Answer, Table};
use wrappers::{NONE, NONE_ANSWERS, Task, WRAPPERS, Wrapper};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// How long what survives is watched. What the wrappers do to a command they do within milliseconds.
const SURVIVES: Duration = Duration::from_secs(1);

/// How many cells of one row are tried at a time.
const AT_A_TIME: usize = 4;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = vec![
        test("peers::table", &[], the_table),
        test("peers::table_is_read_strictly", &[], strictly),
        test("peers::readme_quotes_the_table", &[], || {
            table::same_in_readme()
        }),
        test(NONE.name, NONE.needs, || row(&NONE, &NONE_ANSWERS)),
        test(
            "peers::a_stale_cell_is_found",
            &[Need::Root, Need::Program("setpriv")],
            stale,
        ),
    ];
    for wrapper in WRAPPERS {
        trials.push(test(wrapper.name, wrapper.needs, || {
            println!("{}: {}", wrapper.name, wrapper.version()?);
            row(wrapper, Table::read()?.row(wrapper.row)?)
        }));
    }
    trials
}

/// A question: its words in the table's header, and how it is answered. The claim only says how long
/// to wait.
struct Column {
    header: &'static str,
    ask: fn(&Wrapper, Answer) -> Fallible<Answer>,
}

const COLUMNS: [Column; 8] = [
    Column {
        header: "launcher SIGKILLed: command gone",
        ask: |wrapper, claim| launcher_killed(wrapper, Task::Idle, claim),
    },
    Column {
        header: "the same, the command had changed its user",
        ask: |wrapper, claim| launcher_killed(wrapper, Task::ChangesUser, claim),
    },
    Column {
        header: "launcher's thread ends, launcher lives: command lives on",
        ask: thread_ends,
    },
    Column {
        header: "wrapper SIGKILLed: command gone",
        ask: wrapper_killed,
    },
    Column {
        header: "launcher died first, init adopted: noticed",
        ask: |wrapper, claim| orphan(wrapper, Adopter::Init, false, claim),
    },
    Column {
        header: "a subreaper adopted: noticed",
        ask: |wrapper, claim| orphan(wrapper, Adopter::Subreaper, false, claim),
    },
    Column {
        header: "the same, the launcher's pid was given: noticed",
        ask: |wrapper, claim| orphan(wrapper, Adopter::Subreaper, true, claim),
    },
    Column {
        header: "setsid'ed grandchild gone as well",
        ask: |wrapper, claim| launcher_killed(wrapper, Task::Tree, claim),
    },
];

/// Every cell of a row; all that are wrong are named.
fn row(wrapper: &Wrapper, claims: &[Answer]) -> Outcome {
    ensure!(claims.len() == COLUMNS.len(), "{} cells", claims.len());
    let cells: Vec<_> = COLUMNS.iter().zip(claims).collect();
    let mut wrong = Vec::new();
    for some in cells.chunks(AT_A_TIME) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = some
                .iter()
                .map(|(column, claim)| scope.spawn(|| check(wrapper, column, **claim)))
                .collect();
            for answer in asked {
                match answer.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(message)) => wrong.push(message),
                    Err(_) => wrong.push("an experiment panicked".into()),
                }
            }
        });
    }
    ensure!(wrong.is_empty(), "{}: {}", wrapper.row, wrong.join("; "));
    Ok(())
}

fn check(wrapper: &Wrapper, column: &Column, claim: Answer) -> Result<(), String> {
    match (column.ask)(wrapper, claim) {
        Ok(answer) if answer == claim => Ok(()),
        Ok(answer) => Err(format!(
            "{:?}: the table says {claim:?}, the experiment {answer:?}",
            column.header
        )),
        Err(error) => Err(format!("{:?}: {error}", column.header)),
    }
}

fn yes_if(fact: bool) -> Answer {
    if fact { Answer::Yes } else { Answer::No }
}

/// Whether the process ends, waited for according to what is claimed.
fn ends(process: &Witness, claimed: bool) -> bool {
    process.gone_within(if claimed { HANG } else { SURVIVES })
}

/// A launcher that starts the wrapper from this thread of its own, and the wrapper's pid.
fn launch(wrapper: &Wrapper, task: Task, thread: &str) -> Fallible<(Scene, i32)> {
    let scene = Scene::new(|tag, socket| {
        let mut role = tag.role("peers-launcher");
        role.arg(thread).args(wrapper.argv(task, &socket));
        role
    })?;
    let pid = scene.number("wrapper")?;
    Ok((scene, pid))
}

/// The launcher is SIGKILLed: is the command gone, or with [`Task::Tree`] what it had started?
fn launcher_killed(wrapper: &Wrapper, task: Task, claim: Answer) -> Fallible<Answer> {
    let (scene, _) = launch(wrapper, task, "main")?;
    let mut process = scene.command(wrapper, task)?;
    if task == Task::Tree {
        process = scene.grandchild()?;
    }
    let launcher = scene.launcher()?;
    launcher.signal(libc::SIGKILL);
    ensure!(launcher.gone(), "the launcher was killed and is not gone");
    Ok(yes_if(ends(&process, claim == Answer::Yes)))
}

/// The thread of the launcher that started the wrapper ends: does the command live on?
fn thread_ends(wrapper: &Wrapper, claim: Answer) -> Fallible<Answer> {
    let (mut scene, pid) = launch(wrapper, Task::Idle, "thread")?;
    let command = scene.command(wrapper, Task::Idle)?;
    scene.go_on()?;
    let said = scene.line(HANG)?;
    ensure!(
        said.as_deref() == Some("ended"),
        "the launcher said {said:?}"
    );
    let ended = ends(&command, claim == Answer::No);
    ensure!(scene.launcher()?.alive(), "the launcher has ended as well");
    if ended && claim == Answer::Yes {
        // Who ended it: the last number is how the wrapper, unreaped, did.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        return Err(format!("the command ended; its wrapper: {stat:?} {}", scene.said()).into());
    }
    Ok(yes_if(!ended))
}

/// The wrapper is SIGKILLed, the launcher lives: is the command gone? Absent where both are one
/// process.
fn wrapper_killed(wrapper: &Wrapper, claim: Answer) -> Fallible<Answer> {
    let (scene, pid) = launch(wrapper, Task::Idle, "main")?;
    let command = scene.command(wrapper, Task::Idle)?;
    if command.pid == pid {
        return Ok(Answer::Absent);
    }
    // The launcher does not reap: the pid is the wrapper's still.
    let itself = Witness::of(pid)?;
    itself.signal(libc::SIGKILL);
    ensure!(itself.gone(), "the wrapper was killed and is not gone");
    Ok(yes_if(ends(&command, claim == Answer::Yes)))
}

/// Who adopts the wrapper of a dead launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adopter {
    Init,
    Subreaper,
}

/// The launcher has died before the wrapper's first instruction: does the wrapper end by itself
/// instead of running the command on? `told`: it is given the launcher's pid, if it takes one.
fn orphan(wrapper: &Wrapper, adopter: Adopter, told: bool, claim: Answer) -> Fallible<Answer> {
    if told && wrapper.argv_told(Task::Idle, "/socket".as_ref()).is_none() {
        return Ok(Answer::Absent);
    }
    let scene = Scene::new(|tag, socket| {
        let argv = if told {
            wrapper.argv_told(Task::Idle, &socket).unwrap_or_default()
        } else {
            wrapper.argv(Task::Idle, &socket)
        };
        let mut role = tag.role("peers-adopter");
        if adopter == Adopter::Init {
            let inner = role;
            role = tag.command("unshare");
            role.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"])
                .arg(inner.get_program())
                .args(inner.get_args());
            role.arg("init").args(argv);
        } else {
            role.arg("subreaper").args(argv);
        }
        role
    })?;
    let comm = wrapper.comm(Task::Idle);
    let runs = || scene.tag.processes().iter().any(|(_, name)| name == comm);
    let deadline = Instant::now() + HANG;
    let mut pid = None;
    while Instant::now() < deadline {
        // The launcher's own end is reported too, before or after the wrapper's word.
        if let Some(line) = scene.line(Duration::from_millis(20))? {
            if let Some(said) = line.strip_prefix("wrapper ") {
                pid = Some(said.to_owned());
            }
            let mut words = line.split(' ').skip(1);
            if line.starts_with("ended") && words.next() == pid.as_deref() {
                ensure!(words.next() != Some("0"), "it ended as if all were well");
                return Ok(yes_if(!runs()));
            }
            continue;
        }
        if runs() {
            let command = scene.command(wrapper, Task::Idle)?;
            return Ok(yes_if(ends(&command, claim == Answer::Yes)));
        }
    }
    Err(format!("neither wrapper nor command: {}", scene.said()).into())
}

/// The table's header and rows are those that the experiments are about.
fn the_table() -> Outcome {
    let table = Table::read()?;
    let headers: Vec<&str> = COLUMNS.iter().map(|column| column.header).collect();
    ensure!(table.header[1..] == headers, "header {:?}", table.header);
    let rows: Vec<&str> = table.rows.iter().map(|(name, _)| name.as_str()).collect();
    let wrappers: Vec<&str> = WRAPPERS.iter().map(|wrapper| wrapper.row).collect();
    ensure!(rows == wrappers, "rows {rows:?}");
    Ok(())
}

/// What is no table, or says something else than yes, no or -, is not passed over.
fn strictly() -> Outcome {
    let good = ["| | a | b |", "|---|---|---|", "| x | yes | - |"];
    let parse = |lines: [&str; 3]| Table::parse(&lines.map(str::to_owned));
    let read = parse(good)?;
    ensure!(read.row("x")? == [Answer::Yes, Answer::Absent], "{read:?}");
    ensure!(read.row("y").is_err(), "a row that is not there");
    for (line, bad) in [
        (1, "| x | yes | - |"),
        (2, "| x | yes |"),
        (2, "| x | yes | |"),
        (2, "| x | Yes | - |"),
        (2, "| x | yes (mostly) | - |"),
        (2, "x | yes | -"),
    ] {
        let mut lines = good;
        lines[line] = bad;
        ensure!(parse(lines).is_err(), "{bad:?} is taken");
    }
    for text in ["", "<!-- table -->", "<!-- /table --> <!-- table -->"] {
        ensure!(table::between(text, "table").is_err(), "{text:?} is taken");
    }
    Ok(())
}

/// A wrong cell fails: setpriv does end its command.
fn stale() -> Outcome {
    let setpriv = WRAPPERS
        .iter()
        .find(|wrapper| wrapper.name == "peers::setpriv")
        .ok_or("no setpriv")?;
    let Err(message) = check(setpriv, &COLUMNS[0], Answer::No) else {
        return Err("a no that is a yes was taken".into());
    };
    ensure!(
        message.ends_with("the table says No, the experiment Yes"),
        "{message}"
    );
    check(setpriv, &COLUMNS[0], Answer::Yes)?;
    Ok(())
}
