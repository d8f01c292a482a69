//! What is tried on such a system: each part of the crate, by name, in a process of its own.

use std::any::Any;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use captive::exit_with_parent::{ExitWithParent, Mechanism};
use captive::launcher::{CommandExt, Containment, Event, ExitStatus, Ready, Stdio, Stream, events};
use captive::{Command, RunWith};

use crate::support::Fallible;

/// What a part says of itself, and what must live on as long as it is to hold.
type Held = (String, Box<dyn Any>);

/// How long a part may take for what takes no time.
const HANG: Duration = Duration::from_secs(8);

fn held(text: impl ToString, what: impl Any) -> Fallible<Held> {
    Ok((text.to_string(), Box::new(what)))
}

/// Does it. The error is the one that the caller of the crate would get, with its causes.
pub fn run(part: &str) -> Fallible<Held> {
    let (part, how) = part.split_once(' ').unwrap_or((part, ""));
    match part {
        "arm" => arm(how),
        "apply" => apply(how),
        "teardown" => {
            let teardown = captive::async_teardown::start().map_err(told)?;
            if !teardown.is_running() {
                return Err("the helper does not run".into());
            }
            held(teardown.report(), teardown)
        }
        "tree" => tree(how),
        "stage" => {
            let mut command = sleeper();
            command.run_with(RunWith::parse("user=65534:65534".as_ref())?);
            let captive = command.spawn().map_err(told)?;
            held("staged", captive)
        }
        "terminate" => terminate(),
        "output" => {
            let done = Command::new("echo").arg("said").output().map_err(told)?;
            ensure!(done.stdout == b"said\n", "{done:?}");
            held("said", ())
        }
        "events" => hears(),
        "detach" => detach(),
        "std" => {
            let mut command = std::process::Command::new("sleep");
            let child = command.arg("1000").spawn_captive().map_err(told)?;
            held("std", child)
        }
        "ready" => ready(how),
        #[cfg(feature = "tokio")]
        "tokio" => tokio_spawn(),
        _ => Err(format!("no part {part}").into()),
    }
}

/// An error and its causes in one line.
fn told<E: std::error::Error>(error: E) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}

fn arm(how: &str) -> Fallible<Held> {
    let builder = ExitWithParent::new();
    if how == "channel" {
        let (armed, receiver) = builder.channel().map_err(told)?;
        std::thread::spawn(move || {
            let _ = receiver.recv();
            std::process::exit(0);
        });
        return held(armed.report(), armed);
    }
    let builder = match how {
        "" => builder,
        "second" => builder.second_line(),
        "pidfd" => builder.mechanism(Mechanism::Pidfd),
        "signal" => builder.mechanism(Mechanism::ParentDeathSignal),
        "grace" => builder.kill_after(Duration::from_millis(50)),
        _ => return Err("how?".into()),
    };
    let armed = builder.arm().map_err(told)?;
    held(armed.report(), armed)
}

/// As a daemon does it: everything.
fn apply(options: &str) -> Fallible<Held> {
    let options: RunWith = options.parse()?;
    let prepared = options.prepare().map_err(told)?;
    let applied = prepared.apply().map_err(told)?;
    let report = applied
        .armed()
        .map_or_else(String::new, |armed| armed.report().to_string());
    held(format!("applied {report}"), applied)
}

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000");
    command
}

fn tree(how: &str) -> Fallible<Held> {
    let mut command = Command::new("sh");
    command.args(["-c", "setsid sleep 1000 & exec sleep 1000"]);
    let containment = match how {
        "process" => Containment::Process,
        "pid" => Containment::PidNamespace,
        "user" => Containment::UserNamespace,
        "cgroup" => Containment::Cgroup,
        "marks" => Containment::TreeBestEffort,
        _ => Containment::Tree,
    };
    if containment == Containment::Process {
        command = sleeper();
    }
    if how == "of-another-user" {
        command.run_with(RunWith::parse("user=65534:65534".as_ref())?);
    }
    let captive = command.containment(containment).spawn().map_err(told)?;
    held(captive.containment(), captive)
}

fn terminate() -> Fallible<Held> {
    let captive = sleeper().spawn().map_err(told)?;
    let report = captive.terminate(HANG).map_err(told)?;
    match report.status() {
        ExitStatus::Killed { signal, .. } if signal.number() == libc::SIGTERM => {
            held(report.status(), captive)
        }
        status => Err(format!("it ended by {status}").into()),
    }
}

fn hears() -> Fallible<Held> {
    let mut events = events().map_err(told)?;
    events
        .signal(libc::SIGUSR1.try_into().expect("a signal"))
        .map_err(told)?;
    let captive = sleeper().spawn().map_err(told)?;
    events.watch(&captive).map_err(told)?;
    captive.kill().map_err(told)?;
    match events.receiver().recv_timeout(HANG) {
        Ok(Event::Exited { report, .. }) => held(report.status(), (events, captive)),
        other => Err(format!("heard {other:?}").into()),
    }
}

/// It is let go of, and then ended by its number: nobody else does.
fn detach() -> Fallible<Held> {
    let mut command = sleeper();
    let captive = command.detachable(true).spawn().map_err(told)?;
    let pid = captive.id() as i32;
    let detached = captive.detach().map_err(|(_, error)| told(error));
    if detached.is_ok() {
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    detached?;
    held("detached", ())
}

fn ready(how: &str) -> Fallible<Held> {
    let place = tempfile::tempdir()?;
    let path = place.path().join("place");
    let mut command = match super::places::ITSELF.get() {
        Some(itself) => {
            let mut command = Command::new("/proc/self/fd/500");
            command.descriptor(itself.try_clone()?, 500);
            command
        }
        // Its path, which /proc need not say.
        None => Command::new(std::env::args_os().next().ok_or("no name")?),
    };
    let port = 40_000 + std::process::id() % 20_000;
    let ready = match how {
        "unix" => Ready::UnixListener(path.clone()),
        "tcp" => Ready::TcpListener(port as u16),
        "file" => Ready::File(path.clone()),
        "line" => {
            command.stdout(Stdio::Piped);
            Ready::Line(Stream::Stdout, "ready".into())
        }
        "notify" => Ready::Notify,
        _ => return Err("how?".into()),
    };
    command.args(["--role", "degraded", "server", how]);
    command.arg(&path).arg(port.to_string());
    let captive = command.ready(ready).spawn().map_err(told)?;
    captive.wait_ready(HANG).map_err(told)?;
    held("ready", (captive, place))
}

/// What is waited for.
pub fn server(args: &[String]) -> i32 {
    let kept: Box<dyn Any> = match args[0].as_str() {
        "unix" => Box::new(UnixListener::bind(&args[1]).unwrap()),
        "tcp" => {
            let port: u16 = args[2].parse().unwrap();
            Box::new(std::net::TcpListener::bind(("127.0.0.1", port)).unwrap())
        }
        "file" => Box::new(std::fs::File::create(&args[1]).unwrap()),
        "line" => {
            println!("ready");
            Box::new(())
        }
        _ => {
            use std::os::linux::net::SocketAddrExt;
            use std::os::unix::net::{SocketAddr, UnixDatagram};
            let name = std::env::var("NOTIFY_SOCKET").unwrap();
            let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
            let socket = UnixDatagram::unbound().unwrap();
            socket.send_to_addr(b"READY=1", &address).unwrap();
            Box::new(socket)
        }
    };
    loop {
        unsafe { libc::pause() };
        let _ = &kept;
    }
}

#[cfg(feature = "tokio")]
fn tokio_spawn() -> Fallible<Held> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let captive = runtime.block_on(captive::launcher::tokio::spawn(sleeper()));
    held("tokio", (captive.map_err(told)?, runtime))
}
