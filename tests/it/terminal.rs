//! run-with between a shell and a terminal: job control works as if it were not there.
//!
//! ```text
//! test ── pty or tmux ── outer bash ── run-with ── the counting role, cat, or an inner bash
//! ```
//!
//! The terminal is a pty of the test's own, and for the nested shell tmux as well.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::transparency::eventually;
use crate::support::process::{Reaped, readable_within, run_with_path, state};
use crate::support::{HANG, Need, Outcome, Tag, Witness, test};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const BASH: &[Need] = &[Need::Program("bash")];
const BASH_ROOT: &[Need] = &[Need::Root, Need::Program("bash")];
const BASH_CGROUPS: &[Need] = &[Need::Root, Need::Cgroups, Need::Program("bash")];
const TMUX: &[Need] = &[Need::Program("bash"), Need::Program("tmux")];

pub fn tests() -> Vec<Trial> {
    vec![
        test("terminal::interrupt_once", BASH, || on_pty(interrupt_once)),
        test("terminal::resize_once", BASH, || on_pty(resize_once)),
        test("terminal::stop_and_resume", BASH, || {
            on_pty(stop_and_resume)
        }),
        test("terminal::stopped_by_kill", BASH, || {
            on_pty(stopped_by_kill)
        }),
        test("terminal::filter", BASH, || on_pty(filter)),
        test("terminal::background", BASH, || on_pty(background)),
        test("terminal::nested_shell", BASH, || on_pty(nested_shell)),
        test("terminal::nested_shell_in_tmux", TMUX, || {
            in_tmux(nested_shell)
        }),
        test("terminal::suspend", BASH, || on_pty(suspend)),
        test("terminal::suspend_in_tmux", TMUX, || in_tmux(suspend)),
        test("terminal::hang_up", &[], hang_up),
        // The command's process group and session have numbers in another namespace.
        test("terminal::filter_tree", BASH_ROOT, || {
            on_pty_with("--tree", filter)
        }),
        test("terminal::background_tree", BASH_ROOT, || {
            on_pty_with("--tree", background)
        }),
        test("terminal::suspend_tree", BASH_ROOT, || {
            on_pty_with("--tree", suspend)
        }),
        test("terminal::suspend_tree_cgroup", BASH_CGROUPS, || {
            on_pty_with("--tree-by=cgroup", suspend)
        }),
    ]
}

const ENTER: &str = "\n";
pub const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
pub const CTRL_Z: &str = "\x1a";
const CTRL_BACKSLASH: &str = "\x1c";

/// A terminal with an interactive bash, whose prompt is `outer> `.
pub struct Terminal {
    pub tag: Tag,
    screen: Box<dyn Screen>,
    /// All that has been written to it, and how much of that has been looked at.
    text: String,
    seen: usize,
}

/// What the keys go to, and the writing comes from.
trait Screen {
    fn keys(&mut self, keys: &str) -> Outcome;
    /// Adds what has been written to the end of `text`; waits a little for it.
    fn read(&mut self, text: &mut String) -> Outcome;
    fn resize(&mut self, rows: u16, columns: u16) -> Outcome;
}

impl Terminal {
    pub fn keys(&mut self, keys: &str) -> Outcome {
        self.screen.keys(keys)
    }

    /// A line for whoever reads.
    pub fn line(&mut self, line: &str) -> Outcome {
        self.keys(&format!("{line}{ENTER}"))
    }

    /// Waits until this has been written, after all that was waited for before; the answer is what
    /// came in between.
    pub fn expect(&mut self, what: &str) -> Fallible<String> {
        let deadline = Instant::now() + HANG;
        loop {
            if let Some(at) = self.text[self.seen..].find(what) {
                let before = self.text[self.seen..self.seen + at].to_owned();
                self.seen += at + what.len();
                return Ok(before);
            }
            ensure!(
                Instant::now() < deadline,
                "no {what:?}; all there is: {:?}",
                self.text
            );
            self.screen.read(&mut self.text)?;
        }
    }

    /// Waits for a line that begins like this; the answer is its rest.
    fn expect_line(&mut self, start: &str) -> Fallible<String> {
        self.expect(&format!("\n{start}"))?;
        let rest = self.expect("\r")?;
        Ok(rest)
    }

    /// What a command of the shell writes, at its prompt.
    fn ask(&mut self, prompt: &str, command: &str) -> Fallible<String> {
        self.line(&format!("echo \"<$({command})>\""))?;
        self.expect("\n<")?;
        let answer = self.expect(">")?;
        self.expect(prompt)?;
        Ok(answer)
    }

    /// Starts the counting role under run-with from the outer shell.
    pub fn count(&mut self, how: &str) -> Fallible<(Witness, Witness)> {
        self.line(&format!(
            "$run_with exit-with-parent=on {} --role count {how}",
            std::env::current_exe()?.display()
        ))?;
        let pid = self.expect_line("ready ")?;
        Ok((
            self.tag.await_process("run-with")?,
            Witness::of(pid.parse()?)?,
        ))
    }

    /// What the counting role has got since it was last asked: all before the highest signal, sent to
    /// run-with, which reads lower ones first.
    fn counted(&mut self, run_with: &Witness) -> Fallible<Vec<i32>> {
        let last = libc::SIGRTMAX();
        run_with.signal(last);
        self.up_to(last)
    }

    pub fn up_to(&mut self, last: i32) -> Fallible<Vec<i32>> {
        let mut all = Vec::new();
        loop {
            self.expect("got ")?;
            let signal = self.expect("\r")?.parse()?;
            if signal == last {
                return Ok(all);
            }
            all.push(signal);
        }
    }
}

/// The outer shell.
fn shell(command: &mut Command) -> &mut Command {
    command
        .args(["bash", "--norc", "--noprofile", "--noediting", "-i"])
        .env("PS1", "outer> ")
        .env("TERM", "dumb")
        .env("HISTFILE", "/dev/null")
        .env("LC_ALL", "C")
        .env_remove("PROMPT_COMMAND")
}

const INNER: &str = "env PS1='inner> ' bash --norc --noprofile --noediting -i";

// A pty of our own.

struct Pty {
    master: File,
    _shell: Option<Reaped>,
}

/// The master, and the path of the other end.
fn pty() -> Fallible<(File, String)> {
    let master = nix::pty::posix_openpt(
        nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_CLOEXEC,
    )?;
    nix::pty::grantpt(&master)?;
    nix::pty::unlockpt(&master)?;
    let path = nix::pty::ptsname_r(&master)?;
    let master = master.as_fd().try_clone_to_owned()?;
    Ok((File::from(master), path))
}

pub fn on_pty(body: fn(&mut Terminal) -> Outcome) -> Outcome {
    on_pty_with("", body)
}

/// With these flags for run-with.
fn on_pty_with(flags: &str, body: fn(&mut Terminal) -> Outcome) -> Outcome {
    let tag = Tag::new();
    let (master, path) = pty()?;
    let mut command = tag.role("odd");
    command.args(["session", &format!("tty={path}"), "--", "/usr/bin/env"]);
    let child = shell(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let screen = Pty {
        master,
        _shell: Some(Reaped(child)),
    };
    run(tag, Box::new(screen), flags, body)
}

fn run(
    tag: Tag,
    screen: Box<dyn Screen>,
    flags: &str,
    body: fn(&mut Terminal) -> Outcome,
) -> Outcome {
    let mut terminal = Terminal {
        tag,
        screen,
        text: String::new(),
        seen: 0,
    };
    // What is written while a key interrupts is not to be thrown away.
    let run_with = format!("run_with='{} {flags}'", run_with_path());
    terminal.line(&format!("{run_with}; stty noflsh; echo go$((1+1))"))?;
    terminal.expect("go2")?;
    terminal.expect("outer> ")?;
    body(&mut terminal)
        .map_err(|error| format!("{error}; on the terminal: {:?}", terminal.text).into())
}

impl Screen for Pty {
    fn keys(&mut self, keys: &str) -> Outcome {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    fn read(&mut self, text: &mut String) -> Outcome {
        if readable_within(self.master.as_fd(), Duration::from_millis(100)) {
            let mut some = [0; 4096];
            let count = self.master.read(&mut some)?;
            text.push_str(&String::from_utf8_lossy(&some[..count]));
        }
        Ok(())
    }

    fn resize(&mut self, rows: u16, columns: u16) -> Outcome {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let fd = self.master.as_raw_fd();
        // SAFETY: the kernel reads the structure.
        let answer = unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) };
        ensure!(answer == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }
}

// tmux, with a server of the test's own.

struct Tmux {
    dir: tempfile::TempDir,
    written: PathBuf,
}

impl Tmux {
    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        command
            .args(["-L", "captive", "-f", "/dev/null"])
            .env("TMUX_TMPDIR", self.dir.path())
            .env_remove("TMUX")
            .stdin(Stdio::null());
        command
    }

    fn tell(&self, args: &[&str]) -> Outcome {
        let out = self.command().args(args).output()?;
        ensure!(out.status.success(), "tmux {args:?}: {out:?}");
        Ok(())
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = self.command().arg("kill-server").output();
    }
}

fn in_tmux(body: fn(&mut Terminal) -> Outcome) -> Outcome {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let written = dir.path().join("written");
    let tmux = Tmux { dir, written };
    let mut start = tmux.command();
    for (key, value) in tag.command("true").get_envs() {
        start.env(key, value.unwrap_or_default());
    }
    start.args(["new-session", "-d", "-x", "80", "-y", "24", "--"]);
    let out = shell(&mut start).output()?;
    ensure!(out.status.success(), "tmux: {out:?}");
    let pipe = format!("exec cat > '{}'", tmux.written.display());
    tmux.tell(&["pipe-pane", "-O", &pipe])?;
    eventually("tmux writes down what is written", || tmux.written.exists())?;
    run(tag, Box::new(tmux), "", body)
}

impl Screen for Tmux {
    fn keys(&mut self, keys: &str) -> Outcome {
        for key in keys.chars() {
            let name = match key {
                '\n' => "Enter".to_owned(),
                '\x1c' => "C-\\".to_owned(),
                control if control < ' ' => {
                    format!("C-{}", char::from(b'a' - 1 + control as u8))
                }
                _ => continue,
            };
            let text: String = keys.chars().filter(|key| *key >= ' ').collect();
            if !text.is_empty() {
                self.tell(&["send-keys", "-l", "--", &text])?;
            }
            return self.tell(&["send-keys", &name]);
        }
        self.tell(&["send-keys", "-l", "--", keys])
    }

    fn read(&mut self, text: &mut String) -> Outcome {
        let all = fs::read(&self.written)?;
        let all = String::from_utf8_lossy(&all).into_owned();
        if all.len() > text.len() {
            *text = all;
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn resize(&mut self, rows: u16, columns: u16) -> Outcome {
        let (rows, columns) = (rows.to_string(), columns.to_string());
        self.tell(&["resize-window", "-x", &columns, "-y", &rows])
    }
}

// The tests.

/// In run-with's group; in a group of its own, in the background; in one with the terminal.
const PLACES: [&str; 3] = ["", "group", "foreground"];

fn interrupt_once(it: &mut Terminal) -> Outcome {
    for place in PLACES {
        let (run_with, command) = it.count(place)?;
        for (key, signal) in [(CTRL_C, libc::SIGINT), (CTRL_BACKSLASH, libc::SIGQUIT)].repeat(5) {
            it.keys(key)?;
            let got = it.up_to(signal)?;
            ensure!(got.is_empty(), "{place}: {got:?} before {signal}");
            let more = it.counted(&run_with)?;
            ensure!(more.is_empty(), "{place}: {more:?} after {signal}");
        }
        command.signal(libc::SIGKILL);
        it.expect("Killed")?;
        it.expect("outer> ")?;
    }
    Ok(())
}

fn resize_once(it: &mut Terminal) -> Outcome {
    for place in PLACES {
        let (run_with, command) = it.count(place)?;
        for rows in 31..36 {
            it.screen.resize(rows, 99)?;
            let got = it.up_to(libc::SIGWINCH)?;
            ensure!(got.is_empty(), "{place}: {got:?}");
            let more = it.counted(&run_with)?;
            ensure!(more.is_empty(), "{place}: {more:?} after SIGWINCH");
        }
        command.signal(libc::SIGKILL);
        it.expect("Killed")?;
        it.expect("outer> ")?;
        let size = it.ask("outer> ", "stty size")?;
        ensure!(size == "35 99", "{size}");
    }
    Ok(())
}

pub fn both_stop(run_with: &Witness, command: &Witness) -> Outcome {
    for it in [run_with, command] {
        eventually("both stop", || state(it.pid) == Some('T'))?;
    }
    Ok(())
}

fn stop_and_resume(it: &mut Terminal) -> Outcome {
    for place in PLACES {
        let (run_with, command) = it.count(place)?;
        for _ in 0..3 {
            it.keys(CTRL_Z)?;
            it.expect("Stopped")?;
            it.expect("outer> ")?;
            both_stop(&run_with, &command)?;
            it.line("fg")?;
            // Continued, once; and in the foreground, where the terminal's keys reach it.
            let got = it.up_to(libc::SIGCONT)?;
            ensure!(got.is_empty(), "{place}: {got:?}");
            it.keys(CTRL_C)?;
            let got = it.up_to(libc::SIGINT)?;
            ensure!(got.is_empty(), "{place}: {got:?} before the interrupt");
            let more = it.counted(&run_with)?;
            ensure!(more.is_empty(), "{place}: {more:?} after the interrupt");
        }
        // Into the background, where they do not.
        it.keys(CTRL_Z)?;
        it.expect("Stopped")?;
        it.expect("outer> ")?;
        it.line("bg")?;
        let got = it.up_to(libc::SIGCONT)?;
        ensure!(got.is_empty(), "{place}: {got:?}");
        it.line("echo still here$((1+1))")?;
        it.expect("still here2")?;
        it.expect("outer> ")?;
        it.keys(CTRL_C)?;
        it.expect("outer> ")?;
        let got = it.counted(&run_with)?;
        ensure!(got.is_empty(), "{place}, in the background: {got:?}");
        command.signal(libc::SIGKILL);
        ensure!(run_with.gone(), "run-with stays");
        it.line("echo next$((1+1))")?;
        it.expect("next2")?;
        it.expect("outer> ")?;
    }
    Ok(())
}

/// In the foreground the shell waits for the job: without run-with it would see it stopped.
fn stopped_by_kill(it: &mut Terminal) -> Outcome {
    let (run_with, command) = it.count("")?;
    command.signal(libc::SIGSTOP);
    it.expect("Stopped")?;
    it.expect("outer> ")?;
    both_stop(&run_with, &command)?;
    // Somebody else's in the background is not the shell's business.
    it.line("bg")?;
    it.up_to(libc::SIGCONT)?;
    command.signal(libc::SIGSTOP);
    eventually("the command stops", || state(command.pid) == Some('T'))?;
    command.signal(libc::SIGCONT);
    let got = it.counted(&run_with)?;
    ensure!(got == [libc::SIGCONT], "{got:?}");
    ensure!(state(run_with.pid) != Some('T'), "run-with is stopped");
    Ok(())
}

fn filter(it: &mut Terminal) -> Outcome {
    it.line("$run_with exit-with-parent=on cat")?;
    it.line("one")?;
    it.expect("one\r\none")?;
    it.keys(CTRL_Z)?;
    it.expect("Stopped")?;
    it.expect("outer> ")?;
    it.line("fg")?;
    it.expect("cat\r\n")?;
    it.line("two")?;
    it.expect("two\r\ntwo")?;
    it.keys(CTRL_D)?;
    it.expect("outer> ")?;
    let status = it.ask("outer> ", "echo $?")?;
    ensure!(status == "0", "{status}");
    // Interrupted, it is as the shell expects it: 130.
    it.line("$run_with exit-with-parent=on sleep 1000")?;
    it.tag.await_process("sleep")?;
    it.keys(CTRL_C)?;
    it.expect("outer> ")?;
    it.line("echo status=$?")?;
    it.expect("status=130")?;
    Ok(())
}

fn background(it: &mut Terminal) -> Outcome {
    it.line("$run_with exit-with-parent=on sh -c 'echo back$((1+1))' & wait")?;
    it.expect("back2")?;
    it.expect("outer> ")?;
    // Reading from the background stops it; the shell sees that.
    it.line("$run_with exit-with-parent=on cat &")?;
    let run_with = it.tag.await_process("run-with")?;
    let cat = it.tag.await_process("cat")?;
    both_stop(&run_with, &cat)?;
    it.line("jobs")?;
    it.expect("Stopped")?;
    it.expect("outer> ")?;
    it.line("fg")?;
    it.expect("exit-with-parent=on cat\r\n")?;
    it.line("read it")?;
    it.expect("read it\r\nread it")?;
    it.keys(CTRL_D)?;
    it.expect("outer> ")?;
    // And so does writing, where the terminal says so.
    it.line("stty tostop")?;
    it.line("$run_with exit-with-parent=on sh -c 'echo late$((1+1)); exec sleep 1000' &")?;
    let run_with = it.tag.await_process("run-with")?;
    let shell = it.tag.await_process("sh")?;
    both_stop(&run_with, &shell)?;
    it.line("fg")?;
    it.expect("late2")?;
    it.keys(CTRL_C)?;
    it.expect("outer> ")?;
    it.line("stty -tostop; echo status=$?")?;
    it.expect("status=0")?;
    Ok(())
}

fn inner(it: &mut Terminal) -> Fallible<(Witness, String)> {
    it.line("echo \"<$(stty -g)>\"")?;
    it.expect("\n<")?;
    let settings = it.expect(">")?;
    it.expect("outer> ")?;
    it.line(&format!("$run_with exit-with-parent=on -- {INNER}"))?;
    it.expect("\ninner> ")?;
    Ok((it.tag.await_process("run-with")?, settings))
}

/// Back in the outer shell, with the terminal as it was.
fn outer(it: &mut Terminal, status: i32, settings: &str) -> Outcome {
    it.expect("outer> ")?;
    it.line("echo status=$?")?;
    it.expect(&format!("status={status}"))?;
    it.expect("outer> ")?;
    it.line("echo \"<$(stty -g)>\"")?;
    it.expect("\n<")?;
    let after = it.expect(">")?;
    ensure!(after == settings, "the terminal was {settings}, is {after}");
    it.expect("outer> ")?;
    it.line("sleep 1001")?;
    it.tag.await_process("sleep")?;
    it.keys(CTRL_C)?;
    it.expect("outer> ")?;
    it.line("echo status=$?")?;
    it.expect("status=130")?;
    it.expect("outer> ")?;
    Ok(())
}

fn nested_shell(it: &mut Terminal) -> Outcome {
    let (run_with, settings) = inner(it)?;
    // A command of the inner shell's, with the keys that go to it alone.
    it.line(&format!(
        "{} --role count",
        std::env::current_exe()?.display()
    ))?;
    let command = Witness::of(it.expect_line("ready ")?.parse()?)?;
    for key in [(CTRL_C, libc::SIGINT), (CTRL_BACKSLASH, libc::SIGQUIT)] {
        it.keys(key.0)?;
        let got = it.up_to(key.1)?;
        ensure!(got.is_empty(), "{got:?}");
        command.signal(libc::SIGRTMAX());
        let more = it.up_to(libc::SIGRTMAX())?;
        ensure!(more.is_empty(), "{more:?} after {}", key.1);
    }
    it.screen.resize(33, 101)?;
    it.up_to(libc::SIGWINCH)?;
    it.keys(CTRL_Z)?;
    it.expect("Stopped")?;
    it.expect("inner> ")?;
    ensure!(state(run_with.pid) == Some('S'), "run-with has stopped too");
    it.line("jobs")?;
    it.expect("Stopped")?;
    it.expect("inner> ")?;
    it.line("fg")?;
    it.up_to(libc::SIGCONT)?;
    it.keys(CTRL_C)?;
    let got = it.up_to(libc::SIGINT)?;
    ensure!(got.is_empty(), "{got:?}");
    command.signal(libc::SIGKILL);
    it.expect("Killed")?;
    it.expect("inner> ")?;
    let size = it.ask("inner> ", "stty size")?;
    ensure!(size == "33 101", "{size}");
    // At the prompt an interrupt gives another prompt.
    it.keys(CTRL_C)?;
    it.expect("inner> ")?;
    it.line("exit 5")?;
    outer(it, 5, &settings)?;
    // The end of its input ends it as well.
    inner(it)?;
    it.keys(CTRL_D)?;
    outer(it, 0, &settings)
}

fn suspend(it: &mut Terminal) -> Outcome {
    let (run_with, settings) = inner(it)?;
    for round in 0..3 {
        it.line("suspend")?;
        it.expect("Stopped")?;
        it.expect("outer> ")?;
        eventually("run-with stops", || state(run_with.pid) == Some('T'))?;
        it.line("fg")?;
        it.line(&format!("echo back{round}$((40+2))"))?;
        it.expect(&format!("back{round}42"))?;
        it.expect("inner> ")?;
        // It has the terminal: its own job control works.
        it.line("sleep 1000")?;
        let sleep = it.tag.await_process("sleep")?;
        it.keys(CTRL_Z)?;
        it.expect("Stopped")?;
        it.expect("inner> ")?;
        it.line("kill -9 %1; wait %1")?;
        ensure!(sleep.gone(), "sleep goes on");
        it.line("echo done$((1+1))")?;
        it.expect("done2")?;
        it.expect("inner> ")?;
    }
    it.line("exit 6")?;
    outer(it, 6, &settings)
}

/// run-with leads the session: when the terminal goes, the kernel tells it alone.
fn hang_up() -> Outcome {
    let tag = Tag::new();
    let (master, path) = pty()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("counted");
    let mut command = tag.role("odd");
    command.args(["session", &format!("tty={path}"), "--", "/bin/sh", "-c"]);
    command
        .arg("exec \"$@\" >\"$0\"")
        .arg(&file)
        .args([run_with_path(), "exit-with-parent=on"]);
    command
        .arg(std::env::current_exe()?)
        .args(["--role", "count"]);
    let child = Reaped(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let run_with = Witness::of(i32::try_from(child.0.id())?)?;
    let has = |what: &str| fs::read_to_string(&file).unwrap_or_default().contains(what);
    eventually("the command counts", || has("ready"))?;
    drop(master);
    eventually("the hang-up arrives", || has("got 1\n"))?;
    run_with.signal(libc::SIGRTMAX());
    eventually("the last signal arrives", || has("got 64\n"))?;
    let text = fs::read_to_string(&file)?;
    ensure!(text.matches("got 1\n").count() == 1, "{text}");
    Ok(())
}
