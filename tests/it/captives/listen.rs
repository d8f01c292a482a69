//! Sockets handed over: sd_listen_fds(3), as the captive sees it, and as its clients do.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use captive::launcher::{Containment, Ready, SpawnError, Stdio};
use captive::{Captive, Command};
use libtest_mimic::Trial;

use super::in_role;
use super::steps::{CONTAINMENTS, doing, doing_by_descriptor, end, needs_as_root, needs_of};
use crate::support::process::readable_within;
use crate::support::{Fallible, HANG, Need, Outcome, SURVIVES, Tag, test};

/// All of them.
pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for containment in CONTAINMENTS {
        let name = format!("captives::listen::as-it-knows-itself::{containment}");
        trials.push(test(&name, needs_of(containment), move || {
            as_it_knows_itself(containment)
        }));
        let name = format!("captives::listen::another-user::{containment}");
        trials.push(test(&name, needs_as_root(containment), move || {
            as_another_user(containment)
        }));
    }
    let mut add = |name: &str, needs: &'static [Need], body: fn() -> Outcome| {
        trials.push(test(&format!("captives::listen::{name}"), needs, body));
    };
    add("several-in-order", &[], several);
    add("as-many-as-can-be", &[], many);
    add("whatever-numbers-they-have-here", &[], || {
        in_role("listen", "numbers")
    });
    add("names", &[], names);
    add("beside-descriptors", &[], beside_descriptors);
    add("clash", &[], clash);
    add("again", &[], again);
    add("the-pid-is-not-the-last-one's", &[], each_its_own);
    add("variables-of-the-command", &[], variables_of_the_command);
    add("variables-of-the-launcher", &[], || {
        in_role("listen", "variables")
    });
    add("connected-before-the-spawn", &[], connected_before);
    add("command-dropped", &[], command_dropped);
    add("tcp", &[], tcp);
    add("ready-by-its-own", &[], ready_by_its_own);
    add("nothing-else-inherited", &[], nothing_else);
    add("nbdkit", &[Need::Program("nbdkit")], nbdkit);
    trials
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    let outcome = match args.first().and_then(|arg| arg.to_str()) {
        Some("numbers") => numbers(),
        Some("variables") => variables(),
        _ => return 2,
    };
    super::verdict(outcome)
}

/// A listener on a file of its own.
fn listener(directory: &Path, name: &str) -> Fallible<(UnixListener, PathBuf)> {
    let path = directory.join(name);
    Ok((UnixListener::bind(&path)?, path))
}

/// What `/proc` calls a descriptor.
fn link(fd: impl AsFd) -> Fallible<String> {
    let inode = File::from(fd.as_fd().try_clone_to_owned()?)
        .metadata()?
        .ino();
    Ok(format!("socket:[{inode}]"))
}

/// What it says of what it was handed.
fn says(mut command: Command) -> Fallible<String> {
    let captive = command.stdout(Stdio::Piped).stdin(Stdio::Null).spawn()?;
    says_of(captive)
}

fn says_of(captive: Captive) -> Fallible<String> {
    let pid = captive.id();
    let tree = captive.containment();
    let done = captive.wait_with_output()?;
    let text = String::from_utf8(done.stdout)?;
    ensure!(done.status.success(), "{:?}: {text}", done.status);
    // The pid it has for itself, and the one it has here.
    let own = fact(&text, "pid ")?;
    let inside = matches!(tree, Containment::PidNamespace | Containment::UserNamespace);
    ensure!(
        fact(&text, "LISTEN_PID=")? == own && (own == pid.to_string()) != inside,
        "{tree}, here {pid}: {text}"
    );
    Ok(text)
}

fn fact(text: &str, name: &str) -> Fallible<String> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(ToOwned::to_owned)
        .ok_or_else(|| format!("no {name} in {text}").into())
}

/// It has exactly these.
fn has(text: &str, names: &str, links: &[String]) -> Outcome {
    let count = links.len().to_string();
    ensure!(fact(text, "LISTEN_FDS=")? == count, "{count}: {text}");
    ensure!(fact(text, "LISTEN_FDNAMES=")? == names, "{names}: {text}");
    ensure!(fact(text, "LISTEN_PIDFDID=")? == "not set", "{text}");
    for (number, link) in (3..).zip(links) {
        // Nobody has closed it on exec, or will.
        ensure!(
            fact(text, &format!("{number} "))? == format!("{link} listens 1 flags 0"),
            "{link}: {text}"
        );
    }
    Ok(())
}

fn as_it_knows_itself(containment: Containment) -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (socket, _) = listener(place.path(), "socket")?;
    let link = link(&socket)?;
    let mut command = doing(&tag, &["handed-over"])?;
    command.containment(containment).listen(socket, "main");
    has(&says(command)?, "main", &[link])
}

/// Through the stage, which has descriptors of its own.
fn as_another_user(containment: Containment) -> Outcome {
    // There are no other users in that one.
    if containment == Containment::UserNamespace {
        return Ok(());
    }
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let mut links = Vec::new();
    let mut command = doing_by_descriptor(&tag, &["handed-over"])?;
    for name in ["a", "b", "c"] {
        let (socket, _) = listener(place.path(), name)?;
        links.push(link(&socket)?);
        command.listen(socket, name);
    }
    command
        .containment(containment)
        .run_with("user=65534:65534".parse()?);
    has(&says(command)?, "a:b:c", &links)
}

fn several() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    for order in [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]] {
        let mut command = doing(&tag, &["handed-over"])?;
        let mut links = Vec::new();
        // Made in one order, handed over in another.
        let mut made: Vec<_> = Vec::new();
        for name in ["a", "b", "c"] {
            let _ = fs::remove_file(place.path().join(name));
            made.push((name, listener(place.path(), name)?.0));
        }
        for name in order {
            let at = made
                .iter()
                .position(|(other, _)| *other == name)
                .ok_or("")?;
            let (_, socket) = made.remove(at);
            links.push(link(&socket)?);
            command.listen(socket, name);
        }
        has(&says(command)?, &order.join(":"), &links)?;
    }
    // The same name, and of different kinds.
    let mut command = doing(&tag, &["handed-over"])?;
    let (unix, _) = listener(place.path(), "same")?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let links = [link(&unix)?, link(&tcp)?];
    command.listen(unix, "same").listen(tcp, "same");
    has(&says(command)?, "same:same", &links)
}

fn many() -> Outcome {
    let tag = Tag::new();
    let mut command = doing(&tag, &["handed-over"])?;
    let (mut links, mut names) = (Vec::new(), Vec::new());
    for number in 0..300 {
        let socket = TcpListener::bind("127.0.0.1:0")?;
        links.push(link(&socket)?);
        names.push(format!("n{number}"));
        command.listen(socket, names[number].clone());
    }
    has(&says(command)?, &names.join(":"), &links)
}

/// Where the launcher's numbers are the captive's, one off: each is another's place.
fn numbers() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    // The crate's own first, so that those stay where they are.
    ensure!(Command::new("true").status()?.success(), "true");
    for first in [3, 4, 5, 8] {
        let mut command = doing(&tag, &["handed-over"])?;
        let mut sockets = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let _ = fs::remove_file(place.path().join(name));
            sockets.push(listener(place.path(), name)?.0);
        }
        sockets.sort_by_key(AsRawFd::as_raw_fd);
        sockets.rotate_left(first % 4);
        let mut links = Vec::new();
        for (socket, name) in sockets.into_iter().zip(["a", "b", "c", "d"]) {
            links.push(link(&socket)?);
            command.listen(socket, name);
        }
        has(&says(command)?, "a:b:c:d", &links)?;
    }
    Ok(())
}

fn names() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (socket, _) = listener(place.path(), "socket")?;
    let with = |name: &str| -> Fallible<Command> {
        let mut command = doing(&tag, &["handed-over"])?;
        command.listen(socket.try_clone()?, name);
        Ok(command)
    };
    let long = "x".repeat(255);
    let own = link(&socket)?;
    for fine in ["unknown", "a", "a.b-c_d/e=f", "", &long] {
        has(&says(with(fine)?)?, fine, std::slice::from_ref(&own))
            .map_err(|error| format!("{fine:?}: {error}"))?;
    }
    let too_long = "x".repeat(256);
    for wrong in [
        "a:b", ":", "a b", "a\tb", "a\nb", "\u{7f}", "ü", "a\0", &too_long,
    ] {
        match with(wrong)?.spawn() {
            Err(SpawnError::Invalid { what, .. }) if what.contains("name") => {}
            other => return Err(format!("{wrong:?}: {other:?}").into()),
        }
    }
    // The right ones beside it do not help.
    let mut command = with("right")?;
    let wrong = command.listen(socket.try_clone()?, "a:b").spawn();
    ensure!(
        matches!(wrong, Err(SpawnError::Invalid { .. })),
        "{wrong:?}"
    );
    Ok(())
}

fn beside_descriptors() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (one, _) = listener(place.path(), "one")?;
    let (two, _) = listener(place.path(), "two")?;
    let links = [link(&one)?, link(&two)?];
    let path = place.path().canonicalize()?.join("file");
    // The numbers that the launcher has are the captive's for something else.
    let mut command = doing(&tag, &["handed-over"])?;
    let target = one.as_raw_fd().max(5);
    command
        .descriptor(File::create(&path)?, target)
        .listen(one, "one")
        .listen(two, "two");
    let text = says(command)?;
    has(&text, "one:two", &links)?;
    let file = fact(&text, &format!("fd {target} "))?;
    ensure!(Path::new(&file) == path, "{text}");
    Ok(())
}

fn clash() -> Outcome {
    let place = tempfile::tempdir()?;
    let (socket, _) = listener(place.path(), "socket")?;
    let null = || File::open("/dev/null");
    for (listeners, number) in [(1, 3), (2, 4), (3, 3), (3, 5)] {
        for first in [false, true] {
            let mut command = Command::new("true");
            if first {
                command.descriptor(null()?, number);
            }
            for _ in 0..listeners {
                command.listen(socket.try_clone()?, "x");
            }
            if !first {
                command.descriptor(null()?, number);
            }
            match command.spawn() {
                Err(SpawnError::Invalid { what, .. })
                    if what.contains(&format!("descriptor {number}")) => {}
                other => return Err(format!("{listeners}, {number}: {other:?}").into()),
            }
        }
    }
    // Just above is free.
    let mut command = Command::new("true");
    command.listen(socket, "x").descriptor(null()?, 4);
    ensure!(command.status()?.success(), "{command:?}");
    Ok(())
}

/// A command can be spawned many times.
fn again() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (socket, path) = listener(place.path(), "socket")?;
    let mut command = doing(&tag, &["serve"])?;
    command.listen(socket, "main");
    for _ in 0..3 {
        let captive = command.spawn()?;
        greeted(&path)?;
        end(&captive)?;
    }
    Ok(())
}

/// Two at a time, of one command: the digits are written into memory that each has of its own.
fn each_its_own() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (socket, _) = listener(place.path(), "socket")?;
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let socket = socket.try_clone();
                let command = doing(&tag, &["handed-over"]).map_err(|error| error.to_string());
                scope.spawn(move || -> Result<(), String> {
                    let mut command = command?;
                    let socket = socket.map_err(|error| error.to_string())?;
                    command.stdout(Stdio::Piped).listen(socket, "main");
                    for _ in 0..15 {
                        let captive = command.spawn().map_err(|error| error.to_string())?;
                        says_of(captive).map_err(|error| error.to_string())?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect::<Vec<_>>()
    });
    for outcome in outcomes {
        outcome.map_err(|_| "a panic")??;
    }
    Ok(())
}

/// What the command says of the same variables does not count; others are as they are.
fn variables_of_the_command() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (socket, _) = listener(place.path(), "socket")?;
    let own = [link(&socket)?];
    let mut command = doing(&tag, &["handed-over"])?;
    command
        .listen(socket.try_clone()?, "main")
        .env("LISTEN_PID", "1")
        .env("LISTEN_FDS", "7")
        .env("LISTEN_FDNAMES", "x:y");
    has(&says(command)?, "main", &own)?;
    let mut command = doing(&tag, &["handed-over"])?;
    command
        .env_clear()
        .env_remove("LISTEN_FDS")
        .listen(socket, "main");
    has(&says(command)?, "main", &own)?;
    // Without a listener they are the command's.
    let mut command = doing(&tag, &["handed-over"])?;
    command.env("LISTEN_FDNAMES", "x:y").stdout(Stdio::Piped);
    let done = command.spawn()?.wait_with_output()?;
    let text = String::from_utf8(done.stdout)?;
    ensure!(fact(&text, "LISTEN_FDNAMES=")? == "x:y", "{text}");
    Ok(())
}

/// A launcher that was itself handed sockets: those are not the captive's.
fn variables() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (socket, _) = listener(place.path(), "socket")?;
    let own = [link(&socket)?];
    // In a namespace the captive is the second process.
    for pid in ["2".to_owned(), std::process::id().to_string()] {
        unsafe {
            std::env::set_var("LISTEN_PID", pid);
            std::env::set_var("LISTEN_FDS", "3");
            std::env::set_var("LISTEN_FDNAMES", "x:y:z");
            std::env::set_var("LISTEN_PIDFDID", "12345");
        }
        for containment in [Containment::Process, Containment::PidNamespace] {
            if !needs_of(containment).is_empty() && !nix::unistd::geteuid().is_root() {
                continue;
            }
            let mut command = doing(&tag, &["handed-over"])?;
            command
                .containment(containment)
                .listen(socket.try_clone()?, "main");
            has(&says(command)?, "main", &own)?;
            let mut command = doing(&tag, &["handed-over"])?;
            command.containment(containment).stdout(Stdio::Piped);
            let done = command.spawn()?.wait_with_output()?;
            let text = String::from_utf8(done.stdout)?;
            for name in ["PID", "FDS", "FDNAMES", "PIDFDID"] {
                ensure!(
                    fact(&text, &format!("LISTEN_{name}="))? == "not set",
                    "{text}"
                );
            }
        }
    }
    Ok(())
}

/// What it says to whoever connects.
fn greeted(path: &Path) -> Outcome {
    greeting(UnixStream::connect(path)?)
}

fn greeting(stream: UnixStream) -> Outcome {
    stream.set_read_timeout(Some(HANG))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    ensure!(line == "hello\n", "{line:?}");
    Ok(())
}

fn connected_before() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    for containment in [Containment::Process, Containment::TreeBestEffort] {
        let _ = fs::remove_file(place.path().join("socket"));
        let (socket, path) = listener(place.path(), "socket")?;
        let mut command = doing(&tag, &["serve"])?;
        command.containment(containment).listen(socket, "main");
        let early: Vec<_> = (0..5)
            .map(|_| UnixStream::connect(&path))
            .collect::<Result<_, _>>()?;
        ensure!(
            !readable_within(early[0].as_fd(), Duration::ZERO),
            "somebody has answered"
        );
        let captive = command.spawn()?;
        for client in early {
            greeting(client)?;
        }
        greeted(&path)?;
        end(&captive)?;
    }
    Ok(())
}

/// As long as the command exists, the launcher has the socket as well.
fn command_dropped() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (socket, path) = listener(place.path(), "socket")?;
    let mut command = doing(&tag, &["serve"])?;
    command.listen(socket, "main");
    let captive = command.spawn()?;
    greeted(&path)?;
    end(&captive)?;
    let unanswered = UnixStream::connect(&path)?;
    ensure!(
        !readable_within(unanswered.as_fd(), SURVIVES),
        "somebody has answered"
    );
    // The next one serves it.
    let captive = command.spawn()?;
    greeting(unanswered)?;
    drop(command);
    greeted(&path)?;
    end(&captive)?;
    let error = UnixStream::connect(&path).err().ok_or("it is served")?;
    ensure!(
        error.raw_os_error() == Some(libc::ECONNREFUSED),
        "{error:?}"
    );
    Ok(())
}

fn tcp() -> Outcome {
    let tag = Tag::new();
    let socket = TcpListener::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    let early = TcpStream::connect(address)?;
    let mut command = doing(&tag, &["serve"])?;
    // accept(2) does not ask what kind it is.
    let captive = command.listen(socket, "main").spawn()?;
    drop(command);
    for mut client in [early, TcpStream::connect(address)?] {
        client.set_read_timeout(Some(HANG))?;
        let mut said = [0; 6];
        client.read_exact(&mut said)?;
        ensure!(&said == b"hello\n", "{said:?}");
    }
    end(&captive)?;
    let error = TcpStream::connect(address).err().ok_or("it is served")?;
    ensure!(
        error.raw_os_error() == Some(libc::ECONNREFUSED),
        "{error:?}"
    );
    Ok(())
}

/// A captive that was handed its socket listens on it: at once, whoever bound it.
fn ready_by_its_own() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (unix, path) = listener(place.path(), "socket")?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let port = tcp.local_addr()?.port();
    let mut command = doing(&tag, &["serve"])?;
    command.listen(unix, "a").listen(tcp, "b");
    for ready in [Ready::UnixListener(path), Ready::TcpListener(port)] {
        let captive = command.ready(ready).spawn()?;
        captive.wait_ready(HANG)?;
        end(&captive)?;
    }
    Ok(())
}

fn nothing_else() -> Outcome {
    let (tag, place) = (Tag::new(), tempfile::tempdir()?);
    let (socket, _) = listener(place.path(), "socket")?;
    let _other = listener(place.path(), "other")?;
    let mut command = doing(&tag, &["handed-over"])?;
    command.listen(socket, "main");
    let text = says(command)?;
    let mut numbers: Vec<i32> = text
        .lines()
        .filter_map(|line| line.strip_prefix("fd ")?.split_once(' ')?.0.parse().ok())
        .collect();
    numbers.sort_unstable();
    ensure!(numbers == [0, 1, 2, 3], "{text}");
    Ok(())
}

/// One that knows the protocol.
fn nbdkit() -> Outcome {
    let place = tempfile::tempdir()?;
    for containment in [Containment::Process, Containment::Tree] {
        if containment == Containment::Tree && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let _ = fs::remove_file(place.path().join("socket"));
        let (socket, path) = listener(place.path(), "socket")?;
        let mut early = UnixStream::connect(&path)?;
        let mut command = Command::new("nbdkit");
        command
            .args(["-f", "memory", "1M"])
            .stdin(Stdio::Null)
            .stderr(Stdio::Null)
            .containment(containment)
            .listen(socket, "nbd");
        let captive = command.spawn()?;
        drop(command);
        early.set_read_timeout(Some(HANG))?;
        let mut magic = [0; 8];
        early.read_exact(&mut magic)?;
        ensure!(&magic == b"NBDMAGIC", "{magic:?}");
        end(&captive)?;
        ensure!(UnixStream::connect(&path).is_err(), "it is served");
    }
    Ok(())
}
