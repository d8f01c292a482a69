//! The command line, read without any effect: what was asked for, or what is wrong with it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;

use super::flags::{FLAGS, Flag, Id};
use super::server::{ReadyWhen, Server};
use crate::RunWith;
use crate::exit_with_parent::Signal;

/// What was asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// Run a command.
    Run(Box<Invocation>),
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// `help` or `?` among the options: the table of keys.
    Keys(String),
    /// `--mechanisms`, perhaps as JSON.
    Mechanisms { json: bool },
    /// `--generate KIND`.
    Generate(Generated),
}

/// What `--generate` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generated {
    Man,
    Bash,
    Zsh,
    Fish,
}

/// Whether run-with stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Supervise,
    Exec,
}

/// A command to run, and how.
#[derive(Debug)]
pub(super) struct Invocation {
    pub(super) options: RunWith,
    pub(super) command: Vec<OsString>,
    pub(super) mode: Mode,
    pub(super) signal: Signal,
    /// `None`: never.
    pub(super) kill_after: Option<Duration>,
    pub(super) parent: ParentFlag,
    pub(super) forward: bool,
    /// What is to end with the command.
    pub(super) tree: Option<TreeBy>,
    /// What is to run while it does.
    pub(super) server: Option<Server>,
    pub(super) pidfile: Option<PathBuf>,
    pub(super) status_fd: Option<i32>,
}

/// What holds the command's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TreeBy {
    /// What can be had that cannot be left.
    Any,
    PidNamespace,
    UserNamespace,
    Cgroup,
}

/// How the command line says who the parent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ParentFlag {
    #[default]
    Unsaid,
    Pid(u32),
    Fd(i32),
}

/// What is wrong with the command line, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

fn usage(message: impl Into<String>) -> UsageError {
    UsageError(message.into())
}

/// The default of `--ready-timeout`.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The default of `--kill-after`.
const KILL_AFTER: Duration = Duration::from_secs(10);

/// Reads the arguments that follow the program's name.
pub(super) fn parse(args: Vec<OsString>) -> Result<Request, UsageError> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut seen = Seen::default();
    loop {
        // lexopt swallows a `--`, which decides whether `a=b` is options or the command.
        if let Some(mut raw) = parser.try_raw_args() {
            if raw.peek() == Some(OsStr::new("--")) {
                raw.next();
                seen.command = raw.collect();
                break;
            }
        }
        let Some(arg) = parser.next()? else { break };
        let flag = match arg {
            Arg::Value(operand) if operand.as_bytes().contains(&b'=') => {
                match RunWith::parse(&operand) {
                    Ok(options) => seen.options.merge(options),
                    Err(error) if error.is_help() => return Ok(Request::Keys(error.to_string())),
                    Err(error) => {
                        return Err(usage(format!("{}: {error}", operand.to_string_lossy())));
                    }
                }
                continue;
            }
            Arg::Value(command) => {
                seen.command = std::iter::once(command).chain(parser.raw_args()?).collect();
                break;
            }
            Arg::Short(letter) => FLAGS.iter().find(|flag| flag.short == Some(letter)),
            Arg::Long(name) => FLAGS.iter().find(|flag| flag.long == name),
        };
        let Some(flag) = flag else {
            return Err(arg.unexpected().into());
        };
        let value = if flag.value.is_some() {
            Some(parser.value()?)
        } else {
            None
        };
        if let Some(request) = seen.take(flag, value)? {
            return Ok(request);
        }
    }
    seen.finish()
}

/// What has been read so far.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
struct Seen {
    options: RunWith,
    command: Vec<OsString>,
    exec: bool,
    /// The flags given that `--exec` refuses.
    supervising: Vec<&'static str>,
    signal: Option<Signal>,
    kill_after: Option<Duration>,
    tree: Option<TreeBy>,
    server: Option<OsString>,
    run: Option<OsString>,
    ready: Option<ReadyWhen>,
    ready_timeout: Option<Duration>,
    uri: Option<String>,
    parent: ParentFlag,
    no_forward: bool,
    pidfile: Option<PathBuf>,
    status_fd: Option<i32>,
    mechanisms: bool,
    json: bool,
}

impl Seen {
    fn take(
        &mut self,
        flag: &Flag,
        value: Option<OsString>,
    ) -> Result<Option<Request>, UsageError> {
        if flag.supervises {
            self.supervising.push(flag.long);
        }
        let value = value.unwrap_or_default();
        let bad = |expected: &str| {
            usage(format!(
                "--{}: {:?} is not {expected}",
                flag.long,
                value.to_string_lossy()
            ))
        };
        let text = value.to_str().unwrap_or_default();
        match flag.id {
            Id::Help => return Ok(Some(Request::Help)),
            Id::Version => return Ok(Some(Request::Version)),
            Id::Generate => {
                let kind = match text {
                    "man" => Generated::Man,
                    "bash" => Generated::Bash,
                    "zsh" => Generated::Zsh,
                    "fish" => Generated::Fish,
                    _ => return Err(bad("man, bash, zsh or fish")),
                };
                return Ok(Some(Request::Generate(kind)));
            }
            Id::Signal => {
                let signal = text.parse().map_err(|_| bad("a signal's name or number"))?;
                self.signal = Some(signal);
            }
            Id::KillAfter => {
                let after = duration(text);
                self.kill_after =
                    Some(after.ok_or_else(|| bad("a duration such as 10, 1.5s, 2m"))?);
            }
            Id::ExpectParent => {
                let pid = number(text)
                    .and_then(|n| u32::try_from(n).ok())
                    .filter(|pid| *pid > 0);
                self.set_parent(ParentFlag::Pid(pid.ok_or_else(|| bad("a pid"))?))?;
            }
            Id::ParentFd => {
                let fd = number(text).ok_or_else(|| bad("a descriptor's number"))?;
                self.set_parent(ParentFlag::Fd(fd))?;
            }
            Id::Tree => self.tree = self.tree.or(Some(TreeBy::Any)),
            Id::TreeBy => {
                self.tree = Some(match text {
                    "pid-namespace" => TreeBy::PidNamespace,
                    "user-namespace" => TreeBy::UserNamespace,
                    "cgroup" => TreeBy::Cgroup,
                    _ => return Err(bad("pid-namespace, user-namespace or cgroup")),
                });
            }
            Id::Server | Id::Run if value.is_empty() => {
                return Err(bad("a command for the shell"));
            }
            Id::Server => self.server = Some(value),
            Id::Run => self.run = Some(value),
            Id::Ready => {
                let ready = ReadyWhen::parse(&value);
                self.ready =
                    Some(ready.ok_or_else(|| {
                        bad("unix, tcp, tcp:PORT, file:PATH, line:TEXT or notify")
                    })?);
            }
            Id::ReadyTimeout => {
                let limit = duration(text);
                self.ready_timeout =
                    Some(limit.ok_or_else(|| bad("a duration such as 10, 1.5s, 2m"))?);
            }
            Id::Uri => {
                let template = value.to_str().ok_or_else(|| bad("UTF-8"))?;
                self.uri = Some(template.to_owned());
            }
            Id::Exec => self.exec = true,
            Id::NoForward => self.no_forward = true,
            Id::Pidfile if value.is_empty() => return Err(bad("a file")),
            Id::Pidfile => self.pidfile = Some(value.into()),
            Id::StatusFd => {
                self.status_fd = Some(number(text).ok_or_else(|| bad("a descriptor's number"))?);
            }
            Id::Mechanisms => self.mechanisms = true,
            Id::Json => self.json = true,
        }
        Ok(None)
    }

    fn set_parent(&mut self, parent: ParentFlag) -> Result<(), UsageError> {
        let same_kind = std::mem::discriminant(&self.parent) == std::mem::discriminant(&parent);
        if self.parent != ParentFlag::Unsaid && !same_kind {
            return Err(usage(
                "--expect-parent and --parent-fd both say who the parent is",
            ));
        }
        self.parent = parent;
        Ok(())
    }

    /// What the command line says of a server.
    fn take_server(&mut self) -> Result<Option<Server>, UsageError> {
        let Some(command) = self.server.take() else {
            if self.ready.is_some() || self.uri.is_some() || self.ready_timeout.is_some() {
                return Err(usage("--ready, --ready-timeout and --uri go with --server"));
            }
            return Ok(None);
        };
        let mentions_socket = contains(command.as_bytes(), b"unixsocket");
        let ready = match self.ready.take() {
            Some(ready) => ready,
            None if mentions_socket => ReadyWhen::Unix,
            None => {
                return Err(usage(
                    "--server: say with --ready when it is ready, or have it listen on \"$unixsocket\"",
                ));
            }
        };
        Ok(Some(Server {
            command,
            ready,
            ready_timeout: self.ready_timeout.unwrap_or(READY_TIMEOUT),
            uri: self.uri.take(),
        }))
    }

    fn finish(mut self) -> Result<Request, UsageError> {
        if self.mechanisms {
            return Ok(Request::Mechanisms { json: self.json });
        }
        if self.json {
            return Err(usage("--json goes with --mechanisms"));
        }
        let bound = self.options.get_exit_with_parent() == Some(true);
        let nothing = self.options.is_noop()
            && self.pidfile.is_none()
            && self.status_fd.is_none()
            && self.tree.is_none()
            && self.server.is_none();
        if nothing {
            return Err(usage(format!(
                "nothing to do: give an option, such as {}",
                keys()
            )));
        }
        if let Some(run) = self.run.take() {
            if !self.command.is_empty() {
                return Err(usage("--run and a command: which?"));
            }
            self.command = vec!["/bin/sh".into(), "-c".into(), run];
        }
        if self.command.is_empty() {
            return Err(usage("no command"));
        }
        if self.options.get_async_teardown() == Some(true) {
            return Err(usage(
                "async-teardown=on: a program's memory cannot be shared from outside once it has \
                 been exec'ed; the program itself must call captive::async_teardown::start() (or \
                 captive::RunWith)",
            ));
        }
        if !bound && self.parent != ParentFlag::Unsaid {
            return Err(usage(
                "--expect-parent and --parent-fd go with exit-with-parent=on",
            ));
        }
        if let (ParentFlag::Fd(parent), Some(status)) = (self.parent, self.status_fd) {
            if parent == status {
                return Err(usage("--parent-fd and --status-fd are the same descriptor"));
            }
        }
        if !bound && self.signal.is_some() {
            return Err(usage("--signal goes with exit-with-parent=on"));
        }
        if !bound && self.kill_after.is_some() && self.server.is_none() {
            return Err(usage(
                "--kill-after goes with exit-with-parent=on, or with --server",
            ));
        }
        if let (true, Some(flag)) = (self.exec, self.supervising.first()) {
            return Err(usage(format!(
                "--{flag} needs the supervisor that --exec does without"
            )));
        }
        let server = self.take_server()?;
        Ok(Request::Run(Box::new(Invocation {
            options: self.options,
            command: self.command,
            mode: if self.exec {
                Mode::Exec
            } else {
                Mode::Supervise
            },
            signal: self.signal.unwrap_or(Signal::TERM),
            kill_after: Some(self.kill_after.unwrap_or(KILL_AFTER)).filter(|d| !d.is_zero()),
            parent: self.parent,
            forward: !self.no_forward,
            tree: self.tree,
            server,
            pidfile: self.pidfile,
            status_fd: self.status_fd,
        })))
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part == word)
}

/// The keys, for a message.
fn keys() -> String {
    let keys = crate::run_with::KEYS
        .iter()
        .map(|key| format!("{}={}", key.name, key.takes));
    keys.collect::<Vec<_>>().join(", ")
}

/// A plain decimal number.
fn number(text: &str) -> Option<i32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// A duration as timeout(1) takes it: a decimal number, perhaps with a fraction, and s, m, h or d.
fn duration(text: &str) -> Option<Duration> {
    let (digits, unit) = match text.char_indices().next_back()? {
        (at, 's') => (&text[..at], 1.0),
        (at, 'm') => (&text[..at], 60.0),
        (at, 'h') => (&text[..at], 3600.0),
        (at, 'd') => (&text[..at], 86400.0),
        _ => (text, 1.0),
    };
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && digits.bytes().any(|b| b.is_ascii_digit());
    if !plain {
        return None;
    }
    let seconds: f64 = digits.parse().ok()?;
    Duration::try_from_secs_f64(seconds * unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Request, UsageError> {
        parse(args.iter().map(OsString::from).collect())
    }

    fn run(args: &[&str]) -> Invocation {
        match read(args) {
            Ok(Request::Run(invocation)) => *invocation,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn refused(args: &[&str]) -> String {
        match read(args) {
            Err(error) => error.to_string(),
            Ok(other) => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn options_then_the_command() {
        let it = run(&["exit-with-parent=on", "user=nobody", "sleep", "a=b", "-k"]);
        assert_eq!(it.command, ["sleep", "a=b", "-k"]);
        assert_eq!(it.options.to_string(), "exit-with-parent=on,user=nobody");
        assert_eq!(it.kill_after, Some(KILL_AFTER));
        let it = run(&["-k0", "exit-with-parent=on", "--", "a=b", "--", "c"]);
        assert_eq!(it.command, ["a=b", "--", "c"]);
        assert_eq!(it.kill_after, None);
    }

    #[test]
    fn later_options_win() {
        let it = run(&["exit-with-parent=off", "exit-with-parent=on,", "true"]);
        assert_eq!(it.options.get_exit_with_parent(), Some(true));
        assert!(
            refused(&["exit-with-parent=on", "exit-with-parent=off", "true"]).contains("nothing")
        );
    }

    #[test]
    fn what_is_refused() {
        for (args, says) in [
            (&["--", "true"][..], "exit-with-parent=on|off"),
            (&["true"], "nothing to do"),
            (&[], "nothing to do"),
            (&["exit-with-parent=on"], "no command"),
            (&["exit-with-parent=on", "--"], "no command"),
            (&["no-such-key=1", "true"], "no-such-key"),
            (&["./a=b", "true"], "unknown key"),
            (&["async-teardown=on", "true"], "captive::async_teardown"),
            (
                &["--exec", "-k1", "exit-with-parent=on", "true"],
                "--kill-after needs",
            ),
            (
                &["--exec", "--parent-fd=3", "exit-with-parent=on", "true"],
                "--parent-fd needs",
            ),
            (&["--expect-parent=1", "user=x", "true"], "go with"),
            (
                &["--expect-parent=0", "exit-with-parent=on", "true"],
                "not a pid",
            ),
            (
                &[
                    "--expect-parent=2",
                    "--parent-fd=3",
                    "exit-with-parent=on",
                    "true",
                ],
                "both",
            ),
            (&["-s", "NOPE", "exit-with-parent=on", "true"], "NOPE"),
            (
                &["-k", "-1", "exit-with-parent=on", "true"],
                "not a duration",
            ),
            (
                &["-k", "1e3", "exit-with-parent=on", "true"],
                "not a duration",
            ),
            (&["--json", "exit-with-parent=on", "true"], "--mechanisms"),
            (&["--nonsense", "exit-with-parent=on", "true"], "--nonsense"),
        ] {
            assert!(refused(args).contains(says), "{args:?}: {}", refused(args));
        }
    }

    #[test]
    fn durations_are_those_of_timeout() {
        for (text, millis) in [
            ("10", 10_000),
            ("1.5s", 1500),
            ("2m", 120_000),
            (".5", 500),
            ("1h", 3_600_000),
            ("0", 0),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            ".",
            "1.2.3",
            "inf",
            "nan",
            "-1",
            "+1",
            "1w",
            "99999999999999999999999d",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
