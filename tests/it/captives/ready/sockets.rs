//! `Ready::UnixListener`, `Ready::TcpListener`, and those that connect.

use super::*;

const NBDKIT: &[Need] = &[Need::Program("nbdkit")];
const QEMU: &[Need] = &[Need::Program("qemu-system-x86_64")];

pub const OF_TREES: &[Contained] = &[
    ("listener-of-a-child", of_a_child),
    ("listener-of-a-daemon", of_a_daemon),
];

pub const AS_ROOT: &[Contained] = &[
    ("listener-in-a-network-namespace", in_a_network),
    ("listener-of-another-user", of_another_user),
];

pub fn tests(add: &mut dyn FnMut(&str, &'static [Need], fn() -> Outcome)) {
    add("unix-of-another", &[], unix_of_another);
    add("tcp-of-another", &[], tcp_of_another);
    add("unix-stale-file", &[], stale_file);
    add("unix-not-a-listener", &[], not_a_listener);
    add("unix-abstract", &[], abstract_name);
    add("unix-relative-path", &[], || in_role("ready", "relative"));
    add(
        "unix-same-number-on-another-file-system",
        &[Need::Root],
        || in_role("ready", "two-file-systems"),
    );
    add("unix-through-a-link", &[], through_a_link);
    add("unix-in-a-chroot", &[Need::Root], in_a_chroot);
    add("unix-among-many", &[], among_many);
    add("tcp-any-address", &[], any_address);
    add("tcp-connected-is-no-listener", &[], connected);
    add(
        "listener-in-its-own-new-network",
        &[Need::Root],
        new_network,
    );
    add("listener-that-may-not-be-seen", &[Need::Root], || {
        in_role("ready", "not-seen")
    });
    add("listener-of-an-undumpable-launcher", &[Need::Root], || {
        in_role("ready", "seen-by-an-undumpable")
    });
    add("connect-with-a-full-queue", &[], full_queue);
    add("connect-tcp-nobody-answers", &[], nobody_answers);
    add("connect-of-another", &[], connects_to_another);
    add("qemu-keeps-its-client", QEMU, qemu);
    add("nbdkit", NBDKIT, nbdkit);
}

pub fn role(name: &str) -> Option<Outcome> {
    Some(match name {
        "relative" => relative(),
        "two-file-systems" => two_file_systems(),
        "not-seen" => not_seen(true),
        "seen-by-an-undumpable" => not_seen(false),
        _ => return None,
    })
}

fn unix_of_another() -> Outcome {
    let place = Place::new()?;
    let path = place.path("socket");
    let other = UnixListener::bind(&path)?;
    let name = place.text("socket");
    let steps = ["await", "remove", &name, "unix", &name, "for-ever"];
    let mut captive = place
        .command(Ready::UnixListener(path), &steps)?
        .stdin(Stdio::Piped)
        .spawn()?;
    another_is_there(&captive, "not of its tree")?;
    // The other goes on listening, on a file that is no more.
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    is_ready(&captive)?;
    drop(other);
    end(&captive)?;

    // And the other way round: the captive's is on a file that is no more.
    let place = Place::new()?;
    let name = place.text("socket");
    let done = place.text("done");
    let steps = ["unix", &name, "remove", &name, "write", &done, "for-ever"];
    let captive = place.spawn(Ready::UnixListener(place.path("socket")), &steps)?;
    await_that("the removal", || place.path("done").exists())?;
    none_is_there(&captive)?;
    let _other = UnixListener::bind(&name)?;
    another_is_there(&captive, "not of its tree")
}

fn tcp_of_another() -> Outcome {
    let place = Place::new()?;
    let other = TcpListener::bind("127.0.0.1:0")?;
    let port = other.local_addr()?.port();
    let captive = place.spawn(Ready::TcpListener(port), &["for-ever"])?;
    another_is_there(&captive, "not of its tree")?;
    // Both listen, on different addresses.
    let steps = ["tcp", &format!("127.0.0.2:{port}"), "for-ever"];
    is_ready(&place.spawn(Ready::TcpListener(port), &steps)?)?;
    // Another captive's.
    let captive = place.spawn(Ready::TcpListener(port), &["for-ever"])?;
    another_is_there(&captive, "not of its tree")
}

/// Nobody listens there any more.
fn stale_file() -> Outcome {
    let place = Place::new()?;
    let path = place.path("socket");
    drop(UnixListener::bind(&path)?);
    ensure!(path.exists(), "no file");
    let name = place.text("socket");
    for ready in [
        Ready::UnixListener(path.clone()),
        Ready::ConnectUnix(path.clone()),
    ] {
        none_is_there(&place.spawn(ready, &["for-ever"])?)?;
    }
    let steps = ["remove", &name, "unix", &name, "for-ever"];
    is_ready(&place.spawn(Ready::UnixListener(path), &steps)?)?;
    Ok(())
}

fn not_a_listener() -> Outcome {
    for steps in [
        &["bound", "socket", "write", "done", "for-ever"][..],
        &["datagram", "socket", "write", "done", "for-ever"],
        &["write", "socket", "write", "done", "for-ever"],
        &[
            "unix", "other", "write", "socket", "write", "done", "for-ever",
        ],
    ] {
        let place = Place::new()?;
        let path = place.path("socket");
        let mut command = place.command(Ready::UnixListener(path.clone()), steps)?;
        let captive = command.current_dir(place.directory.path()).spawn()?;
        await_that("the file", || place.path("done").exists())?;
        ensure!(path.exists(), "no file");
        none_is_there(&captive).map_err(|error| format!("{steps:?}: {error}"))?;
    }
    Ok(())
}

/// An abstract name is no file, whatever it looks like and whether there is such a file.
fn abstract_name() -> Outcome {
    for with_file in [false, true] {
        let place = Place::new()?;
        let path = place.text("socket");
        if with_file {
            drop(UnixListener::bind(&path)?);
        }
        let done = place.text("done");
        let steps = ["abstract", &path, "write", &done, "for-ever"];
        let captive = place.spawn(Ready::UnixListener(path.clone().into()), &steps)?;
        await_that("the listener", || place.path("done").exists())?;
        none_is_there(&captive)?;
    }
    Ok(())
}

/// The launcher's path is looked for from the launcher's directory, the captive's from the captive's.
fn relative() -> Outcome {
    let place = Place::new()?;
    let other = Place::new()?;
    let (here, there) = (place.directory.path(), other.directory.path());
    std::env::set_current_dir(here)?;
    let relative = || Ready::UnixListener("socket".into());

    let captive = place.spawn(relative(), &["unix", "socket", "for-ever"])?;
    is_ready(&captive)?;
    end(&captive)?;
    fs::remove_file("socket")?;

    let absolute = place.text("socket");
    let captive = place.spawn(relative(), &["unix", &absolute, "for-ever"])?;
    is_ready(&captive)?;
    end(&captive)?;
    fs::remove_file("socket")?;

    let steps = ["unix", "socket", "for-ever"];
    let mut command = place.command(Ready::UnixListener(other.path("socket")), &steps)?;
    let captive = command.current_dir(there).spawn()?;
    is_ready(&captive)?;
    end(&captive)?;
    fs::remove_file(other.path("socket"))?;

    // The same name, and not the same file: there is a stale one, then none.
    let steps = ["unix", "socket", "write", "done", "for-ever"];
    drop(UnixListener::bind("socket")?);
    let mut command = place.command(relative(), &steps)?;
    let captive = command.current_dir(there).spawn()?;
    await_that("its listener", || other.path("done").exists())?;
    none_is_there(&captive)?;
    fs::remove_file("socket")?;
    none_is_there(&captive)?;
    end(&captive)
}

/// Inodes are numbered in each file system anew.
fn two_file_systems() -> Outcome {
    let place = Place::new()?;
    let root = place.directory.path();
    let call = |answer: i32| {
        if answer == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    call(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let null = std::ptr::null();
    let none = c"none".as_ptr();
    call(unsafe { libc::mount(none, c"/".as_ptr(), null, private, null.cast()) })?;
    let mut mounted = Vec::new();
    for name in ["one", "two"] {
        let path = root.join(name);
        fs::create_dir(&path)?;
        let text = std::ffi::CString::new(path.to_str().unwrap())?;
        let kind = c"tmpfs".as_ptr();
        call(unsafe { libc::mount(none, text.as_ptr(), kind, 0, null.cast()) })?;
        mounted.push(text);
    }
    let outcome = (|| -> Outcome {
        let stale = place.path("two/stale");
        drop(UnixListener::bind(&stale)?);
        let path = place.text("one/socket");
        let done = place.text("done");
        let steps = ["unix", &path, "write", &done, "for-ever"];
        let captive = place.spawn(Ready::UnixListener(stale.clone()), &steps)?;
        await_that("its listener", || Path::new(&done).exists())?;
        let number = |path: &Path| -> Fallible<u64> {
            Ok(std::os::unix::fs::MetadataExt::ino(&fs::metadata(path)?))
        };
        // What the test needs to be one.
        ensure!(
            number(&stale)? == number(path.as_ref())?,
            "not the same number"
        );
        none_is_there(&captive)?;
        end(&captive)?;

        // One that says other numbers to stat(2) than the kernel has.
        for name in ["lower", "one/upper", "one/work", "merged"] {
            fs::create_dir(place.path(name))?;
        }
        let options = std::ffi::CString::new(format!(
            "lowerdir={},upperdir={},workdir={}",
            place.text("lower"),
            place.text("one/upper"),
            place.text("one/work")
        ))?;
        let merged = std::ffi::CString::new(place.text("merged"))?;
        let kind = c"overlay".as_ptr();
        call(unsafe { libc::mount(none, merged.as_ptr(), kind, 0, options.as_ptr().cast()) })?;
        let path = place.text("merged/socket");
        let steps = ["chdir", &place.text("merged"), "unix", &path, "for-ever"];
        let captive = place.spawn(Ready::UnixListener(path.clone().into()), &steps)?;
        let answer = is_ready(&captive);
        end(&captive)?;
        let other = place.text("merged/other");
        drop(UnixListener::bind(&other)?);
        let captive = place.spawn(
            Ready::UnixListener(other.into()),
            &[
                "unix",
                stale.with_extension("x").to_str().unwrap(),
                "for-ever",
            ],
        )?;
        let none = none_is_there(&captive);
        end(&captive)?;
        unsafe { libc::umount2(merged.as_ptr(), libc::MNT_DETACH) };
        answer?;
        none
    })();
    for path in mounted {
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
    outcome
}

/// A symbolic link in the path, and one to the socket itself.
fn through_a_link() -> Outcome {
    let place = Place::new()?;
    let directory = place.path("directory");
    fs::create_dir(&directory)?;
    std::os::unix::fs::symlink(&directory, place.path("link"))?;
    std::os::unix::fs::symlink(directory.join("socket"), place.path("to-it"))?;
    let path = place.text("directory/socket");
    for seen in ["link/socket", "to-it"] {
        let steps = ["unix", &path, "for-ever"];
        let captive = place.spawn(Ready::UnixListener(place.path(seen)), &steps)?;
        is_ready(&captive)?;
        end(&captive)?;
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// A root with this program and its libraries, and a directory that anybody may write to.
fn root_with_itself(place: &Place) -> Fallible<PathBuf> {
    let root = place.path("root");
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut files: Vec<&str> = maps
        .lines()
        .filter_map(|line| {
            line.split_once('/')
                .map(|(before, _)| &line[before.len()..])
        })
        .filter(|path| path.contains(".so"))
        .collect();
    files.dedup();
    let exe = std::env::current_exe()?;
    // The loader by the name that is in the program; by a process of its own, as for every program here.
    let script = "root=$1; exe=$2; shift 2; mkdir -p \"$root/inside\" \"$root/proc\"; chmod 777 \"$root/inside\"; \
        for file in /lib64/ld-linux-*.so* /lib/ld-linux-*.so* \"$@\"; do \
        if test -e \"$file\"; then mkdir -p \"$root${file%/*}\" && cp -L \"$file\" \"$root$file\" || exit; fi; done; \
        ln \"$exe\" \"$root/it\" || cp \"$exe\" \"$root/it\"";
    let done = std::process::Command::new("/bin/sh")
        .args(["-c", script, "sh"])
        .arg(&root)
        .arg(exe)
        .args(files)
        .status()?;
    ensure!(done.success(), "{done:?}");
    Ok(root)
}

/// The launcher's path and the captive's are different names of one file; and one name of two files.
fn in_a_chroot() -> Outcome {
    let place = Place::new()?;
    let root = root_with_itself(&place)?;
    let command = |ready: Ready, steps: &[&str]| -> Fallible<Command> {
        let mut command = Command::new("/it");
        command.args(["--role", "captives", "steps"]).args(steps);
        for (key, value) in place.tag.command("").get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        let options = format!("chroot={},user=65534:65534", root.display());
        command.run_with(options.parse()?).ready(ready);
        Ok(command)
    };
    let path = root.join("inside/socket");
    for containment in [Containment::Process, Containment::Tree] {
        let steps = ["unix", "/inside/socket", "for-ever"];
        let captive = command(Ready::UnixListener(path.clone()), &steps)?
            .containment(containment)
            .spawn()?;
        is_ready(&captive)?;
        end(&captive)?;
        fs::remove_file(&path)?;
    }
    // Where the launcher sees another file under the captive's name.
    let outside = place.path("socket");
    let inside = root.join(outside.strip_prefix("/")?);
    let made = fs::create_dir_all(inside.parent().ok_or("no parent")?);
    made?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(inside.parent().ok_or("no parent")?, open)?;
    drop(UnixListener::bind(&outside)?);
    let steps = ["unix", outside.to_str().unwrap(), "for-ever"];
    let captive = command(Ready::UnixListener(outside.clone()), &steps)?.spawn()?;
    await_that("its listener", || inside.exists())?;
    // Bound is not yet listening: a client knows.
    await_that("its listener", || UnixStream::connect(&inside).is_ok())?;
    none_is_there(&captive)?;
    end(&captive)?;
    // The other ways in there.
    let port = free_port()?;
    let steps = ["tcp", &format!("127.0.0.1:{port}"), "for-ever"];
    let captive = command(Ready::TcpListener(port), &steps)?.spawn()?;
    is_ready(&captive)?;
    let captive = command(Ready::Notify, &["notify", "READY=1", "for-ever"])?.spawn()?;
    is_ready(&captive)?;
    let steps = ["write", "/inside/file", "for-ever"];
    let captive = command(Ready::File(root.join("inside/file")), &steps)?.spawn()?;
    is_ready(&captive)?;
    Ok(())
}

/// The kernel's list comes in several parts.
fn among_many() -> Outcome {
    let place = Place::new()?;
    let mut others = Vec::new();
    for number in 0..600 {
        others.push(UnixListener::bind(
            place.path(&format!("{number}-with-a-name-that-takes-a-little-room")),
        )?);
    }
    let path = place.text("socket");
    let steps = ["unix", &path, "for-ever"];
    is_ready(&place.spawn(Ready::UnixListener(path.clone().into()), &steps)?)?;
    let path = place.text("captive's-too");
    let mut ports = Vec::new();
    for _ in 0..300 {
        ports.push(TcpListener::bind("127.0.0.1:0")?);
    }
    let port = free_port()?;
    let address = format!("127.0.0.1:{port}");
    let steps = ["unix", &path, "tcp", &address, "for-ever"];
    is_ready(&place.spawn(Ready::TcpListener(port), &steps)?)?;
    Ok(())
}

fn any_address() -> Outcome {
    let place = Place::new()?;
    let mut addresses = vec!["127.0.0.1", "127.0.0.9", "0.0.0.0"];
    if TcpListener::bind("[::1]:0").is_ok() {
        addresses.extend(["[::1]", "[::]"]);
    }
    for address in addresses {
        let port = free_port()?;
        let steps = ["tcp", &format!("{address}:{port}"), "for-ever"];
        let captive = place.spawn(Ready::TcpListener(port), &steps)?;
        is_ready(&captive).map_err(|error| format!("{address}: {error}"))?;
        end(&captive)?;
    }
    Ok(())
}

/// A captive whose connection has that port, and one that listens on another.
fn connected() -> Outcome {
    let place = Place::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = std::net::TcpStream::connect(listener.local_addr()?)?;
    let port = client.local_addr()?.port();
    let steps = ["tcp", &format!("127.0.0.1:{}", free_port()?), "for-ever"];
    let captive = place
        .command(Ready::TcpListener(port), &steps)?
        .descriptor(client, 10)
        .spawn()?;
    none_is_there(&captive)
}

/// A listener that a descendant has, as `before` makes it.
fn of_a_descendant(
    containment: Containment,
    before: &str,
    as_process: fn(&Captive) -> Outcome,
) -> Outcome {
    let place = Place::new()?;
    let (path, port) = (place.text("socket"), free_port()?);
    let address = format!("127.0.0.1:{port}");
    for (ready, step, operand) in [
        (Ready::UnixListener(path.clone().into()), "unix", &path),
        (Ready::TcpListener(port), "tcp", &address),
    ] {
        let done = place.text(step);
        let captive = place
            .command(ready, &[before, step, operand, "write", &done, "for-ever"])?
            .containment(containment)
            .spawn()?;
        await_that("the listener", || Path::new(&done).exists())?;
        let outcome = if containment == Containment::Process {
            as_process(&captive)
        } else {
            is_ready(&captive).map(drop)
        };
        outcome.map_err(|error| format!("{containment}, {step}: {error}"))?;
        end(&captive)?;
    }
    Ok(())
}

fn of_a_child(containment: Containment) -> Outcome {
    of_a_descendant(containment, "fork", |captive| is_ready(captive).map(drop))
}

/// A daemon whose parent has ended: only a tree knows whose it is.
fn of_a_daemon(containment: Containment) -> Outcome {
    of_a_descendant(containment, "daemonise", |captive| {
        another_is_there(captive, "not of its tree")
    })
}

/// A network namespace that nobody is in, but for what is launched there.
fn network() -> Fallible<File> {
    let made = std::thread::spawn(|| {
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        File::open("/proc/thread-self/ns/net")
    });
    Ok(made.join().map_err(|_| "the thread")??)
}

fn in_a_network(containment: Containment) -> Outcome {
    let place = Place::new()?;
    let namespace = network()?;
    // Here the port is another's, which is none of the captive's business.
    let other = TcpListener::bind("0.0.0.0:0")?;
    let port = other.local_addr()?.port();
    let address = format!("0.0.0.0:{port}");
    let there = |ready: Ready, steps: &[&str]| -> Fallible<Captive> {
        Ok(place
            .command(ready, steps)?
            .containment(containment)
            .network_namespace(namespace.try_clone()?)
            .spawn()?)
    };
    none_is_there(&there(Ready::TcpListener(port), &["for-ever"])?)?;
    for before in [&["chdir", "/"][..], &["fork"]] {
        let mut steps = before.to_vec();
        steps.extend(["tcp", &address, "for-ever"]);
        let captive = there(Ready::TcpListener(port), &steps)?;
        is_ready(&captive)?;
        end(&captive)?;
        await_that("the end of its children", || {
            place.tag.processes().is_empty() || {
                for (pid, _) in place.tag.processes() {
                    Witness::of(pid).map(|one| one.signal(libc::SIGKILL)).ok();
                }
                false
            }
        })?;
    }
    // And one of that namespace is not taken, though it has the port there.
    let first = there(Ready::TcpListener(port), &["tcp", &address, "for-ever"])?;
    is_ready(&first)?;
    another_is_there(
        &there(Ready::TcpListener(port), &["for-ever"])?,
        "not of its tree",
    )?;
    let path = place.text("socket");
    let steps = ["unix", &path, "for-ever"];
    is_ready(&there(Ready::UnixListener(path.clone().into()), &steps)?)?;
    // The launcher's threads are where they were.
    let own = fs::read_link("/proc/self/ns/net")?;
    for task in fs::read_dir("/proc/self/task")?.flatten() {
        let Ok(theirs) = fs::read_link(task.path().join("ns/net")) else {
            continue;
        };
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        ensure!(
            theirs == own || !name.starts_with("captive-"),
            "{name} is in {theirs:?}"
        );
    }
    Ok(())
}

/// It goes to a namespace of its own when it runs already.
fn new_network() -> Outcome {
    let place = Place::new()?;
    let other = TcpListener::bind("0.0.0.0:0")?;
    let port = other.local_addr()?.port();
    let steps = [
        "await",
        "new-network",
        "tcp",
        &format!("0.0.0.0:{port}"),
        "for-ever",
    ];
    let mut captive = place
        .command(Ready::TcpListener(port), &steps)?
        .stdin(Stdio::Piped)
        .spawn()?;
    another_is_there(&captive, "not of its tree")?;
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    is_ready(&captive)?;
    Ok(())
}

/// The launcher is root and sees everybody's descriptors.
fn of_another_user(containment: Containment) -> Outcome {
    let place = Place::new()?;
    for (_, kind) in KINDS {
        let (ready, steps) = kind(&place)?;
        let mut all: Vec<&str> = steps.iter().map(String::as_str).collect();
        all.push("for-ever");
        let captive = doing_by_descriptor(&place.tag, &all)?
            .run_with("user=65534:65534".parse()?)
            .containment(containment)
            .stdout(Stdio::Piped)
            .ready(ready.clone())
            .spawn()?;
        is_ready(&captive).map_err(|error| format!("{containment}: {ready}: {error}"))?;
        end(&captive)?;
        for name in ["socket", "file"] {
            let _ = fs::remove_file(place.path(name));
        }
    }
    Ok(())
}

/// A launcher that is not root: a captive of its user is seen, one that hides itself is not, and it is said. `dumpable`: what
/// a launcher that has been started as such is; one that has become it is not, and what is its own in `/proc` is root's.
fn not_seen(dumpable: bool) -> Outcome {
    let place = Place::new()?;
    let exe = File::open(std::env::current_exe()?)?;
    // A program that a user without rights may execute is not readable: keep it by its descriptor.
    let nobody = 65534;
    unsafe {
        ensure!(libc::setgroups(0, std::ptr::null()) == 0, "setgroups");
        ensure!(libc::setresgid(nobody, nobody, nobody) == 0, "setresgid");
        ensure!(libc::setresuid(nobody, nobody, nobody) == 0, "setresuid");
        let dumpable = libc::c_ulong::from(dumpable);
        ensure!(
            libc::prctl(libc::PR_SET_DUMPABLE, dumpable, 0, 0, 0) == 0,
            "prctl"
        );
    }
    let command = |ready: Ready, steps: &[&str]| -> Fallible<Command> {
        let mut command = Command::new("/proc/self/fd/500");
        command.descriptor(exe.try_clone()?, 500);
        command.args(["--role", "captives", "steps"]).args(steps);
        for (key, value) in place.tag.command("").get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        command.ready(ready);
        Ok(command)
    };
    for containment in [Containment::Process, Containment::TreeBestEffort] {
        for before in [&["chdir", "/"][..], &["fork"]] {
            let path = place.text("socket");
            let mut steps = before.to_vec();
            steps.extend(["unix", &path, "for-ever"]);
            let captive = command(Ready::UnixListener(path.clone().into()), &steps)?
                .containment(containment)
                .spawn()?;
            is_ready(&captive).map_err(|error| format!("{containment}: {error}"))?;
            end(&captive)?;
            fs::remove_file(&path)?;
        }
    }
    let port = free_port()?;
    let address = format!("127.0.0.1:{port}");
    let done = place.text("done");
    let steps = ["not-dumpable", "tcp", &address, "write", &done, "for-ever"];
    let captive = command(Ready::TcpListener(port), &steps)?.spawn()?;
    await_that("its listener", || Path::new(&done).exists())?;
    another_is_there(&captive, "may not be looked at")?;
    end(&captive)
}

/// A listener whose queue is full, so that a connect(2) that waits would wait for ever.
fn full_queue() -> Outcome {
    let place = Place::new()?;
    let path = place.path("socket");
    let listener = UnixListener::bind(&path)?;
    ensure!(
        unsafe { libc::listen(listener.as_raw_fd(), 0) } == 0,
        "listen"
    );
    let mut clients = Vec::new();
    loop {
        let client = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_NONBLOCK | nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let address = nix::sys::socket::UnixAddr::new(&path)?;
        match nix::sys::socket::connect(client.as_raw_fd(), &address) {
            Ok(()) => clients.push(client),
            Err(nix::errno::Errno::EAGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let captive = place.spawn(Ready::ConnectUnix(path), &["for-ever"])?;
    let (sender, answer) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = sender.send(none_is_there(&captive).map_err(|error| error.to_string()));
        });
        let in_time = answer.recv_timeout(HANG / 4);
        // Whoever waits still, waits no longer.
        drop(listener);
        in_time.map_err(|_| "it waits beyond its limit".to_owned())?
    })?;
    Ok(())
}

/// An address from which there is no answer, neither yes nor no: the limit and the end count there too.
fn nobody_answers() -> Outcome {
    let place = Place::new()?;
    // Its queue is full: what else connects is not answered.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    ensure!(
        unsafe { libc::listen(listener.as_raw_fd(), 0) } == 0,
        "listen"
    );
    let address = listener.local_addr()?;
    let mut clients = Vec::new();
    let short = Duration::from_millis(100);
    while let Ok(client) = std::net::TcpStream::connect_timeout(&address, short) {
        clients.push(client);
        ensure!(clients.len() < 100, "it takes them all");
    }
    let captive = place.spawn(Ready::ConnectTcp(address), &["for-ever"])?;
    // One attempt would go on for a second. Of several waits on a busy machine one is that fast.
    for _ in 0..5 {
        let before = Instant::now();
        none_is_there(&captive)?;
        if before.elapsed() < Duration::from_secs(1) {
            return Ok(());
        }
    }
    Err("its limit does not count".into())
}

/// By choice, whoever it is that answers.
fn connects_to_another() -> Outcome {
    let place = Place::new()?;
    let unix = UnixListener::bind(place.path("socket"))?;
    let captive = place.spawn(Ready::ConnectUnix(place.path("socket")), &["for-ever"])?;
    is_ready(&captive)?;
    ensure!(readable_within(unix.as_fd(), HANG), "nobody has connected");
    let (mut stream, _) = unix.accept()?;
    ensure!(stream.read(&mut [0])? == 0, "it is open");
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let captive = place.spawn(Ready::ConnectTcp(tcp.local_addr()?), &["for-ever"])?;
    is_ready(&captive)?;
    ensure!(readable_within(tcp.as_fd(), HANG), "nobody has connected");
    // And the others do not connect.
    for (ready, listener) in [
        (Ready::UnixListener(place.path("socket")), unix.as_fd()),
        (Ready::TcpListener(tcp.local_addr()?.port()), tcp.as_fd()),
    ] {
        drop(tcp.set_nonblocking(true));
        while tcp.accept().is_ok() {}
        another_is_there(&place.spawn(ready, &["for-ever"])?, "not of its tree")?;
        ensure!(
            !readable_within(listener, Duration::ZERO),
            "somebody has connected"
        );
    }
    Ok(())
}

/// Waits for its first client, and makes its second socket when it has had one.
fn qemu_with(ready: Ready, path: &str, second: &str) -> Fallible<Captive> {
    Ok(Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-S", "-display", "none", "-machine", "none"])
        .args(["-qmp", &format!("unix:{path},server=on,wait=on")])
        .args(["-qmp", &format!("unix:{second},server=on,wait=off")])
        .stdin(Stdio::Null)
        .stderr(Stdio::Null)
        .ready(ready)
        .spawn()?)
}

/// The first line that a client gets.
fn greeting(path: &str) -> Fallible<String> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(HANG))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

/// `wait=on`: QEMU goes on when it has a client, and takes whoever connects for it.
fn qemu() -> Outcome {
    let place = Place::new()?;
    let (path, second) = (place.text("qmp"), place.text("second"));
    let captive = qemu_with(Ready::UnixListener(path.clone().into()), &path, &second)?;
    is_ready(&captive)?;
    // It goes on waiting, where one that had a client would not.
    let until = Instant::now() + SURVIVES;
    while Instant::now() < until {
        ensure!(!Path::new(&second).exists(), "it has had a client");
        std::thread::sleep(Duration::from_millis(5));
    }
    let line = greeting(&path)?;
    ensure!(line.starts_with("{\"QMP\""), "{line:?}");
    await_that("its second socket", || Path::new(&second).exists())?;
    end(&captive)?;
    // What a connection does to it: that was its client.
    let (path, second) = (place.text("other"), place.text("other-second"));
    let captive = qemu_with(Ready::ConnectUnix(path.clone().into()), &path, &second)?;
    is_ready(&captive)?;
    await_that("its second socket", || Path::new(&second).exists())?;
    end(&captive)
}

fn nbdkit() -> Outcome {
    let place = Place::new()?;
    for containment in [Containment::Process, Containment::TreeBestEffort] {
        let path = place.text("socket");
        let pid_file = place.text("pid");
        for ready in [
            Ready::UnixListener(path.clone().into()),
            Ready::File(pid_file.clone().into()),
        ] {
            let captive = Command::new("nbdkit")
                .args(["-f", "-U", &path, "-P", &pid_file, "memory", "1M"])
                .stdin(Stdio::Null)
                .stderr(Stdio::Null)
                .containment(containment)
                .ready(ready)
                .spawn()?;
            is_ready(&captive)?;
            let mut stream = UnixStream::connect(&path)?;
            stream.set_read_timeout(Some(HANG))?;
            let mut magic = [0; 8];
            stream.read_exact(&mut magic)?;
            ensure!(&magic == b"NBDMAGIC", "{magic:?}");
            end(&captive)?;
            for file in [&path, &pid_file] {
                let _ = fs::remove_file(file);
            }
        }
        let port = free_port()?;
        let captive = Command::new("nbdkit")
            .args([
                "-f",
                "-i",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "memory",
                "1M",
            ])
            .stdin(Stdio::Null)
            .containment(containment)
            .ready(Ready::TcpListener(port))
            .spawn()?;
        is_ready(&captive)?;
        std::net::TcpStream::connect(("127.0.0.1", port))?;
        end(&captive)?;
    }
    Ok(())
}
