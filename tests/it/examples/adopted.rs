//! A program that the test kills, below a process that adopts all it leaves behind: that this has no children left proves
//! that nothing lives on, tag or no tag, and that no zombie is left to an init.
//!
//! ```text
//! test ── adopter (a subreaper) ── program (its standard output is the test's) ── ...
//! ```

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::process::{Reaped, readable_within};
use crate::support::{Fallible, HANG, Tag};

/// For a boot on a machine that has other work; never a measure of speed.
pub const LIMIT: Duration = Duration::from_secs(90);

pub struct Adopted {
    tag: Tag,
    adopter: Reaped,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// What was left when the program had been killed.
#[derive(Debug)]
pub struct Remains {
    /// The program was killed, and had not ended before.
    pub killed: bool,
    /// How many processes were adopted, and have ended since.
    pub adopted: u32,
}

impl Adopted {
    /// The program has been started. Temporary files go to `dir`, which is its working directory, too.
    pub fn start(dir: &std::path::Path, program: &[OsString]) -> Fallible<Self> {
        let tag = Tag::new();
        let mut adopter = tag
            .role("examples-adopter")
            .args(program)
            .current_dir(dir)
            .env("TMPDIR", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The program's complaints about its servers' end.
            .stderr(Stdio::null())
            .spawn()?;
        let stdin = adopter.stdin.take().ok_or("no stdin")?;
        let stdout = BufReader::new(adopter.stdout.take().ok_or("no stdout")?);
        let adopter = Reaped(adopter);
        let mut it = Self {
            tag,
            adopter,
            stdin,
            stdout,
        };
        let line = it.line()?;
        ensure!(line == "started", "{line:?}");
        Ok(it)
    }

    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    /// The next line of the program, or of the adopter after it. Both write whole lines.
    pub fn line(&mut self) -> Fallible<String> {
        let mut line = String::new();
        let stdout = self.stdout.get_ref().as_fd();
        ensure!(
            !self.stdout.buffer().is_empty() || readable_within(stdout, LIMIT),
            "no line within {LIMIT:?}"
        );
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// SIGKILL for the program; the answer comes when nothing is left, or is an error.
    pub fn kill(mut self) -> Fallible<Remains> {
        self.stdin.write_all(b"kill\n")?;
        let mut line = self.line()?;
        // What the program had said before.
        while !line.is_empty() && !line.starts_with("killed") {
            line = self.line()?;
        }
        ensure!(self.adopter.0.wait()?.success(), "{line}");
        let words: Vec<&str> = line.split(' ').collect();
        let ["killed", killed, adopted] = words[..] else {
            return Err(format!("{line:?}").into());
        };
        let left = self.tag.processes();
        ensure!(left.is_empty(), "left over: {left:?}");
        Ok(Remains {
            killed: killed.parse()?,
            adopted: adopted.parse()?,
        })
    }
}

/// The adopter.
pub fn role(program: &[OsString]) -> i32 {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut child = Command::new(&program[0])
        .args(&program[1..])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    println!("started");
    // Or the test is gone.
    let _ = std::io::stdin().read_line(&mut String::new());
    child.kill().unwrap();
    let killed = child.wait().unwrap().signal() == Some(libc::SIGKILL);
    let deadline = Instant::now() + HANG;
    let mut adopted = 0;
    loop {
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            // No children.
            -1 => break,
            0 if Instant::now() > deadline => {
                println!("killed {killed}, left over: {}", children());
                return 1;
            }
            0 => std::thread::sleep(Duration::from_micros(500)),
            _ => adopted += 1,
        }
    }
    println!("killed {killed} {adopted}");
    0
}

fn children() -> String {
    let own = std::process::id();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
    let mut text = String::new();
    for pid in children.unwrap_or_default().split_whitespace() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        text += &format!("[{}]", stat.chars().take(40).collect::<String>());
    }
    text
}

/// Whole numbers below a limit, from a seed; splitmix64.
pub struct Random(pub u64);

impl Random {
    /// With a seed of its own, for the message of a failure.
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(now.map_or(0, |now| now.as_nanos() as u64))
    }

    /// Anything below this.
    pub fn below(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_nanos((value ^ (value >> 31)) % limit.as_nanos().max(1) as u64)
    }
}
