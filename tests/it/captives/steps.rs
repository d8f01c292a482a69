//! A captive that does what its arguments say, one after the other: `STEP OPERAND...`.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;

use captive::Command;
use captive::launcher::{Containment, Stdio};

use crate::support::{Fallible, HANG, Need, Outcome, Tag};

/// Every containment that this machine can have.
pub const CONTAINMENTS: [Containment; 6] = [
    Containment::Process,
    Containment::Tree,
    Containment::PidNamespace,
    Containment::UserNamespace,
    Containment::Cgroup,
    Containment::TreeBestEffort,
];

/// What a test with this one needs.
pub fn needs_of(containment: Containment) -> &'static [Need] {
    match containment {
        Containment::Process | Containment::TreeBestEffort => &[],
        Containment::Cgroup => &[Need::Root, Need::Cgroups],
        _ => &[Need::Root],
    }
}

/// The same for a test that is root's with any.
pub fn needs_as_root(containment: Containment) -> &'static [Need] {
    match needs_of(containment) {
        [] => &[Need::Root],
        needs => needs,
    }
}

/// This binary, doing these steps. What it starts is ended with the tag.
pub fn doing(tag: &Tag, steps: &[&str]) -> Fallible<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    prepare(&mut command, tag, steps);
    Ok(command)
}

/// The same for a user who may not look into the directory that it is in.
pub fn doing_by_descriptor(tag: &Tag, steps: &[&str]) -> Fallible<Command> {
    let mut command = Command::new("/proc/self/fd/500");
    command.descriptor(fs::File::open(std::env::current_exe()?)?, 500);
    prepare(&mut command, tag, steps);
    Ok(command)
}

fn prepare(command: &mut Command, tag: &Tag, steps: &[&str]) {
    command
        .args(["--role", "captives", "steps"])
        .args(steps)
        .stdin(Stdio::Null);
    for (key, value) in tag.command("").get_envs() {
        command.env(key, value.unwrap_or_default());
    }
}

/// The processes these tests need.
pub fn role(args: &[OsString]) -> i32 {
    let mut steps = args.iter().map(|arg| arg.to_str().unwrap());
    loop {
        match run(&mut steps) {
            Ok(true) => {}
            Ok(false) => return 0,
            Err(error) => {
                eprintln!("steps {args:?}: {error}");
                return 1;
            }
        }
    }
}

/// The next one; whether there was one.
fn run<'a>(steps: &mut impl Iterator<Item = &'a str>) -> Fallible<bool> {
    let Some(step) = steps.next() else {
        return Ok(false);
    };
    let mut operand = || steps.next().ok_or("no operand");
    match step {
        "unix" => keep(UnixListener::bind(operand()?)?),
        "abstract" => {
            let address = SocketAddr::from_abstract_name(operand()?)?;
            keep(UnixListener::bind_addr(&address)?);
        }
        // Bound, and not listening.
        "bound" => {
            let path = operand()?;
            let listener = UnixListener::bind(path)?;
            let bound = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
            drop(listener);
            fs::remove_file(path)?;
            let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
            address.sun_family = libc::AF_UNIX as u16;
            for (place, byte) in address.sun_path.iter_mut().zip(path.bytes()) {
                *place = byte as libc::c_char;
            }
            let size = size_of::<libc::sockaddr_un>() as u32;
            check(unsafe { libc::bind(bound, (&raw const address).cast(), size) })?;
        }
        "datagram" => keep(UnixDatagram::bind(operand()?)?),
        "tcp" => keep(TcpListener::bind(operand()?)?),
        "remove" => fs::remove_file(operand()?)?,
        "write" => fs::write(operand()?, "written")?,
        "rename" => fs::rename(operand()?, operand()?)?,
        "directory" => fs::create_dir(operand()?)?,
        "chdir" => std::env::set_current_dir(operand()?)?,
        "out" => say(1, operand()?)?,
        "err" => say(2, operand()?)?,
        "close" => {
            check(unsafe { libc::close(operand()?.parse()?) })?;
        }
        // For ever, as fast as it can.
        "flood" => {
            let line = format!("{}\n", operand()?.repeat(100));
            while say(1, &line).is_ok() {}
        }
        "notify" => {
            let sent = notify(operand()?.as_bytes(), None)?;
            ensure!(sent > 0, "nothing sent");
        }
        "notify-with-descriptor" => {
            let message = operand()?.as_bytes();
            let file = fs::File::open(operand()?)?;
            notify(message, Some(&file.into()))?;
        }
        "notify-long" => {
            let (message, length) = (operand()?, operand()?.parse()?);
            let mut message = message.as_bytes().to_vec();
            message.resize(length, b'x');
            notify(&message, None)?;
        }
        // Whatever comes of it, in words.
        "notify-answer" => {
            let answer = match notify(operand()?.as_bytes(), None) {
                Ok(_) => "sent".to_owned(),
                Err(error) => error.to_string(),
            };
            say(1, &format!("{answer}\n"))?;
        }
        // The child goes on, and the parent waits for ever.
        "fork" => {
            if check(unsafe { libc::fork() })? > 0 {
                sleep_for_ever();
            }
        }
        // The same, and the child's next step is its last.
        "in-a-child" => {
            let child = check(unsafe { libc::fork() })?;
            if child == 0 {
                let done = run(steps).is_ok();
                unsafe { libc::_exit(i32::from(!done)) };
            }
            let mut status = 0;
            check(unsafe { libc::waitpid(child, &raw mut status, 0) })?;
            skip(steps);
        }
        // A grandchild in a session of its own goes on, its parent has ended, the main process waits for ever.
        "daemonise" => {
            let child = check(unsafe { libc::fork() })?;
            if child > 0 {
                check(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) })?;
                sleep_for_ever();
            }
            check(unsafe { libc::setsid() })?;
            if check(unsafe { libc::fork() })? > 0 {
                unsafe { libc::_exit(0) };
            }
        }
        // The main process ends, a child goes on.
        "leave" => {
            let status = operand()?.parse()?;
            if check(unsafe { libc::fork() })? > 0 {
                unsafe { libc::_exit(status) };
            }
        }
        "new-network" => {
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        }
        "not-dumpable" => {
            check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
        }
        // Until there is a line on its standard input.
        "await" => {
            ensure!(std::io::stdin().lock().lines().next().is_some(), "no line");
        }
        "await-file" => {
            let path = Path::new(operand()?);
            crate::support::process::await_that("the file", || path.exists())?;
        }
        "handed-over" => handed_over()?,
        "serve" => serve()?,
        "dispositions" => {
            let status = fs::read_to_string("/proc/self/status")?;
            for line in status.lines().filter(|line| line.starts_with("Sig")) {
                say(1, &format!("{line}\n"))?;
            }
        }
        "exit" => unsafe { libc::_exit(operand()?.parse()?) },
        "for-ever" => sleep_for_ever(),
        _ => return Err(format!("no step {step}").into()),
    }
    Ok(true)
}

/// The operands that the child has used are the parent's too.
fn skip<'a>(steps: &mut impl Iterator<Item = &'a str>) {
    steps.next();
    steps.next();
}

fn keep<T>(socket: T) {
    Box::leak(Box::new(socket));
}

fn check(answer: i32) -> std::io::Result<i32> {
    if answer < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(answer)
}

fn sleep_for_ever() -> ! {
    loop {
        unsafe { libc::pause() };
    }
}

/// In one write(2), if it is no longer than a pipe takes at once.
fn say(fd: i32, text: &str) -> std::io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) };
        let written = usize::try_from(written).map_err(|_| std::io::Error::last_os_error())?;
        rest = &rest[written..];
    }
    Ok(())
}

/// A datagram to NOTIFY_SOCKET, perhaps with a descriptor.
pub fn notify(message: &[u8], descriptor: Option<&OwnedFd>) -> Fallible<usize> {
    let name = std::env::var("NOTIFY_SOCKET")?;
    notify_at(&name, message, descriptor)
}

pub fn notify_at(name: &str, message: &[u8], descriptor: Option<&OwnedFd>) -> Fallible<usize> {
    let name = name.strip_prefix('@').ok_or("no abstract name")?;
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    let raw: Vec<i32> = descriptor.into_iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    let sent = nix::sys::socket::sendmsg::<()>(
        socket.as_raw_fd(),
        &[std::io::IoSlice::new(message)],
        control,
        nix::sys::socket::MsgFlags::empty(),
        None,
    )?;
    Ok(sent)
}

/// What sd_listen_fds_with_names(3) would find, a line each: `NAME ADDRESS`; and why it would find nothing.
fn handed_over() -> Outcome {
    let variable = |name: &str| std::env::var(name);
    let mut text = String::new();
    for name in [
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PIDFDID",
    ] {
        let value = variable(name).unwrap_or_else(|_| "not set".into());
        text += &format!("{name}={value}\n");
    }
    text += &format!("pid {}\n", std::process::id());
    let count = variable("LISTEN_FDS").map_or(0, |count| count.parse().unwrap_or(0));
    for fd in 3..3 + count {
        let mut listens = 0;
        let mut size = size_of::<i32>() as u32;
        let place = (&raw mut listens).cast();
        check(unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_ACCEPTCONN,
                place,
                &raw mut size,
            )
        })?;
        let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
        let link = fs::read_link(format!("/proc/self/fd/{fd}"))?;
        text += &format!("{fd} {} listens {listens} flags {flags}\n", link.display());
    }
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            if target.starts_with("/proc") {
                continue;
            }
            let name = entry.file_name().into_string().unwrap_or_default();
            text += &format!("fd {name} {}\n", target.display());
        }
    }
    say(1, &text)?;
    Ok(())
}

/// Says hello to whoever connects to the first socket handed over, for ever.
fn serve() -> Outcome {
    ensure!(
        std::env::var("LISTEN_PID")? == std::process::id().to_string(),
        "not for us"
    );
    loop {
        let null = std::ptr::null_mut();
        let client = check(unsafe { libc::accept(3, null, null.cast()) })?;
        let mut stream = unsafe { fs::File::from_raw_fd(client) };
        let _ = stream.write_all(b"hello\n");
    }
}

/// What is left of a test's processes ends, though nothing else would end them.
pub fn end(captive: &captive::Captive) -> Outcome {
    captive.kill()?;
    ensure!(captive.wait_timeout(HANG)?.is_some(), "it does not end");
    ensure!(captive.wait_tree(HANG)?, "its tree does not end");
    Ok(())
}
