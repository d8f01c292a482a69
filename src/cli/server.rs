//! Server mode, as nbdkit's `--run` for any server: what the command line says of the server.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// A server, started before the command and ended after it.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// For `/bin/sh -c`.
    pub(super) command: OsString,
    pub(super) ready: ReadyWhen,
    /// How long it may take to be ready.
    pub(super) ready_timeout: Duration,
    /// With `$unixsocket` and `$port`.
    pub(super) uri: Option<String>,
}

/// What tells that it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReadyWhen {
    /// A listener on `$unixsocket`.
    Unix,
    /// A listener on this TCP port; 0: on `$port`, a free one.
    Tcp(u16),
    File(PathBuf),
    /// A line on its standard output.
    Line(String),
    Notify,
}

impl ReadyWhen {
    /// What `--ready` takes.
    pub(super) fn parse(text: &OsStr) -> Option<Self> {
        let bytes = text.as_bytes();
        if let Some(path) = bytes.strip_prefix(b"file:").filter(|path| !path.is_empty()) {
            return Some(Self::File(OsStr::from_bytes(path).into()));
        }
        let text = text.to_str()?;
        if let Some(line) = text.strip_prefix("line:").filter(|line| !line.is_empty()) {
            return Some(Self::Line(line.to_owned()));
        }
        if let Some(port) = text.strip_prefix("tcp:") {
            let plain = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|port| plain && *port != 0)?;
            return Some(Self::Tcp(port));
        }
        match text {
            "unix" => Some(Self::Unix),
            "tcp" => Some(Self::Tcp(0)),
            "notify" => Some(Self::Notify),
            _ => None,
        }
    }
}

/// A template with its variables: `$name`, or `${name}` where more follows.
pub(super) fn expand(template: &str, variables: &[(&str, String)]) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let found = variables.iter().find_map(|(name, value)| {
            let braced = format!("{{{name}}}");
            let after = after
                .strip_prefix(&braced)
                .or_else(|| after.strip_prefix(name))?;
            Some((value, after))
        });
        // Where it is not one of ours, nothing is replaced.
        let (value, after) = found.map_or(("$", after), |(value, after)| (value.as_str(), after));
        text.push_str(value);
        rest = after;
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when() {
        let parse = |text: &str| ReadyWhen::parse(text.as_ref());
        assert_eq!(parse("unix"), Some(ReadyWhen::Unix));
        assert_eq!(parse("tcp"), Some(ReadyWhen::Tcp(0)));
        assert_eq!(parse("tcp:80"), Some(ReadyWhen::Tcp(80)));
        assert_eq!(parse("file:/a:b"), Some(ReadyWhen::File("/a:b".into())));
        assert_eq!(parse("line:up: 1"), Some(ReadyWhen::Line("up: 1".into())));
        assert_eq!(parse("notify"), Some(ReadyWhen::Notify));
        for bad in [
            "",
            "tcp:",
            "tcp:0",
            "tcp:+1",
            "tcp:65536",
            "file:",
            "line:",
            "Unix",
            "udp",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn expansion() {
        let variables = [("unixsocket", "/s".to_owned()), ("port", "7".to_owned())];
        let expand = |text| expand(text, &variables);
        assert_eq!(
            expand("nbd+unix:///?socket=$unixsocket"),
            "nbd+unix:///?socket=/s"
        );
        assert_eq!(
            expand("nbd://localhost:${port}0/$$other"),
            "nbd://localhost:70/$$other"
        );
        assert_eq!(expand("$"), "$");
        assert_eq!(expand(""), "");
    }
}
