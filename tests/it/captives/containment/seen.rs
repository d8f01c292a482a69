//! What a captive with a tree sees, and what its launcher sees of it: all that it sees without, but for what the
//! mechanism says.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use captive::exit_with_parent::Signal;
use captive::launcher::{EndedBy, Resource};

use super::super::signal;
use super::*;
use crate::support::process::status_field;

const ALL: &[Need] = &[Need::Root, Need::Cgroups];
const ROOT: &[Need] = &[Need::Root];

pub const CASES: &[Case] = &[
    ("by-name", ALL, || each(by_name)),
    ("by-name-as-a-user", ROOT, by_name_as_a_user),
    ("stdio-env-cwd-args", ALL, || each(plain_options)),
    ("pids", ALL, || each(pids)),
    ("cgroup-of-its-own", ALL, || each(cgroup_of_its_own)),
    ("mark", ALL, || each(mark)),
    ("user-namespace", ROOT, user_namespace),
    ("groups-and-sessions", ALL, || each(groups_and_sessions)),
    ("group-that-is-none", ALL, || each(group_that_is_none)),
    ("other-options", ALL, || each(other_options)),
    ("descriptors", ALL, || each(descriptors)),
    (
        "user-and-chroot",
        &[Need::Root, Need::Cgroups, Need::Program("busybox")],
        user_and_chroot,
    ),
    ("whole-tree-ends", ALL, || each(whole_tree_ends)),
];

fn each(body: fn(Containment) -> Outcome) -> Outcome {
    for containment in MECHANISMS {
        body(containment).map_err(|error| format!("{containment}: {error}"))?;
        nothing_left().map_err(|error| format!("{containment}: {error}"))?;
    }
    Ok(())
}

fn is_namespace(containment: Containment) -> bool {
    [Containment::PidNamespace, Containment::UserNamespace].contains(&containment)
}

fn by_name(containment: Containment) -> Outcome {
    for code in [0, 7, 255] {
        let captive = contained(shell(&format!("exit {code}")), containment).spawn()?;
        ensure!(captive.containment() == containment, "{captive:?}");
        let report = ended(&captive)?;
        ensure!(report.status() == ExitStatus::Exited(code), "{report:?}");
        ensure!(report.ended_by() == EndedBy::Itself, "{report:?}");
        tree_ended(&captive)?;
        // For ever.
        tree_ended(&captive)?;
        ensure!(captive.wait()? == report, "{report:?}");
    }
    let work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
    let usage = ended(&contained(shell(work), containment).spawn()?)?
        .usage()
        .ok_or("no usage")?;
    ensure!(!(usage.user + usage.system).is_zero(), "{usage:?}");
    ensure!(usage.max_rss >= 64 * 1024, "{usage:?}");
    for number in [
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGKILL,
        libc::SIGRTMIN(),
    ] {
        let captive = sleeper(containment).spawn()?;
        captive.signal(signal(number))?;
        let report = ended(&captive)?;
        ensure!(
            report.status().signal() == Some(signal(number)),
            "{report:?}"
        );
        tree_ended(&captive)?;
    }
    let captive = sleeper(containment).spawn()?;
    ensure!(
        !captive.wait_tree(std::time::Duration::from_millis(20))?,
        "it has ended"
    );
    let report = captive.terminate(HANG)?;
    ensure!(report.ended_by() == EndedBy::Signal, "{report:?}");
    let report = contained(shell("exit 3"), containment).status()?;
    ensure!(report.status() == ExitStatus::Exited(3), "{report:?}");
    Ok(())
}

fn by_name_as_a_user() -> Outcome {
    become_nobody(true)?;
    for containment in [Containment::UserNamespace, Containment::TreeBestEffort] {
        for body in [
            by_name,
            plain_options,
            pids,
            mark,
            groups_and_sessions,
            whole_tree_ends,
        ] {
            body(containment).map_err(|error| format!("{containment}: {error}"))?;
        }
        nothing_left()?;
    }
    Ok(())
}

fn plain_options(containment: Containment) -> Outcome {
    let dir = tempfile::tempdir()?;
    let script =
        "cat; echo errors >&2; printf '%s|' \"$0\" \"$@\"; echo \"$A\"; readlink /proc/self/cwd";
    let mut command = contained(shell(script), containment);
    let mut captive = command
        .args(["zero", "", "two words"])
        .env("A", "variable")
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = captive.stdin.take().ok_or("no stdin")?;
    stdin.write_all(b"through")?;
    drop(stdin);
    let done = captive.wait_with_output()?;
    let cwd = dir.path().canonicalize()?;
    let expected = format!("throughzero||two words|variable\n{}\n", cwd.display());
    let said = String::from_utf8(done.stdout)?;
    ensure!(said == expected, "{said:?}, not {expected:?}");
    ensure!(done.stderr == b"errors\n", "{:?}", done.stderr);
    // The end of the pipe is there although an init and a guard are about.
    let mut captive = contained(shell("echo one"), containment)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    captive
        .stdout
        .take()
        .ok_or("no pipe")?
        .read_to_string(&mut said)?;
    ensure!(said == "one\n", "{said:?}");
    Ok(())
}

fn pids(containment: Containment) -> Outcome {
    let script = "echo $$; echo $PPID; readlink /proc/self; exec cat /proc/self/status";
    let mut command = contained(shell(script), containment);
    let mut captive = command.stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let mut out = captive.stdout.take().ok_or("no pipe")?;
    out.read_to_string(&mut said)?;
    ended(&captive)?;
    let mut lines = said.lines();
    let mut number = || -> Fallible<u32> { Ok(lines.next().ok_or("no line")?.parse()?) };
    let (pid, parent, _) = (number()?, number()?, number()?);
    let field = |name: &str| {
        said.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .ok_or_else(|| format!("no {name} in {said}"))
    };
    // /proc is the launcher's: there it has the pid that the launcher knows.
    ensure!(field("Pid")? == captive.id().to_string(), "{said}");
    ensure!(field("PPid")? == std::process::id().to_string(), "{said}");
    let numbers = field("NSpid")?.split('\t').count();
    if is_namespace(containment) {
        // The init is 1, and who made the captive is outside.
        ensure!(pid == 2 && parent == 0, "{said}");
        ensure!(field("NSpid")? == format!("{}\t2", captive.id()), "{said}");
    } else {
        ensure!(pid == captive.id(), "{said}");
        ensure!(parent == std::process::id(), "{said}");
        ensure!(numbers == 1, "{said}");
    }
    Ok(())
}

fn cgroup_of_its_own(containment: Containment) -> Outcome {
    let mut command = contained(shell("grep ^0: /proc/self/cgroup; sleep 1000"), containment);
    let (captive, said) = says_first(&mut command, 1)?;
    let found = said[0].strip_prefix("0::/").ok_or("no cgroup")?;
    ensure!(
        found == cgroup_of(&captive.id().to_string())?,
        "{said:?}: not what /proc says"
    );
    let own = cgroup_of("self")?;
    if containment == Containment::Cgroup {
        let below = Path::new(found).strip_prefix(&own)?;
        let name = below.to_str().ok_or("a name")?;
        let prefix = format!("captive-{}-", std::process::id());
        let number = name.strip_prefix(&prefix).ok_or(format!("{name:?}"))?;
        number.parse::<u32>()?;
        let path = mount()?.join(found);
        ensure!(path.metadata()?.uid() == 0, "{path:?}");
        ensure!(
            directories_of(std::process::id()) == [path],
            "more than one"
        );
        // The next has another.
        let (_other, again) = says_first(&mut command, 1)?;
        ensure!(again != said, "{again:?}");
    } else {
        ensure!(found == own, "{found}, not {own}");
        ensure!(directories_of(std::process::id()).is_empty(), "a cgroup");
    }
    Ok(())
}

fn mark(containment: Containment) -> Outcome {
    let marks = |said: &str| -> Vec<String> {
        let marks = said
            .lines()
            .filter(|line| line.starts_with("CAPTIVE_TREE="));
        marks.map(str::to_owned).collect()
    };
    let mut command = contained(Command::new("/usr/bin/env"), containment);
    let first = marks(&says(&mut command)?);
    if containment != Containment::TreeBestEffort {
        return if first.is_empty() {
            Ok(())
        } else {
            Err(format!("{first:?}").into())
        };
    }
    let own = std::process::id();
    let prefix = format!("CAPTIVE_TREE=captive-{own}-");
    ensure!(
        first.len() == 1 && first[0].starts_with(&prefix),
        "{first:?}"
    );
    let second = marks(&says(&mut command)?);
    ensure!(second.len() == 1 && second != first, "{first:?} {second:?}");
    // Whatever the command says of its environment, and of this variable.
    let cleared = says(
        command
            .env_clear()
            .env("A", "1")
            .env("CAPTIVE_TREE", "other"),
    )?;
    ensure!(
        cleared.lines().count() == 2 && marks(&cleared).len() == 1,
        "{cleared}"
    );
    ensure!(marks(&cleared)[0].starts_with(&prefix), "{cleared}");
    Ok(())
}

/// Its user is the launcher's, and nobody else is there.
fn user_namespace() -> Outcome {
    become_nobody(true)?;
    let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; \
                  grep ^Cap /proc/self/status; stat -c %u /";
    let said = says(&mut contained(shell(script), Containment::UserNamespace))?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let nobody = "65534";
    ensure!(words[..2] == [nobody, nobody], "{said}");
    let maps = [nobody, nobody, "1", nobody, nobody, "1", "deny"];
    ensure!(words[2..9] == maps, "{said}");
    // No capability that one could have without it.
    let none = "0000000000000000";
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        let at = words.iter().position(|word| *word == set).ok_or("no set")?;
        ensure!(words[at + 1] == none, "{said}");
    }
    // Root is nobody there: the overflow user, which happens to have the same number.
    ensure!(words.last() == Some(&nobody), "{said}");
    Ok(())
}

/// One field of /proc/PID/stat, counted from the state, which is 0.
fn stat(pid: u32, field: usize) -> Fallible<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = text.rsplit_once(") ").ok_or("no stat")?.1;
    Ok(rest.split(' ').nth(field).ok_or("no field")?.parse()?)
}

fn groups_and_sessions(containment: Containment) -> Outcome {
    const GROUP: usize = 2;
    const SESSION: usize = 3;
    let own = (unsafe { libc::getpgid(0) }, unsafe { libc::getsid(0) });
    let seen = |command: &mut Command| -> Fallible<(i32, i32, i32)> {
        let captive = command.spawn()?;
        let pid = captive.id();
        Ok((pid as i32, stat(pid, GROUP)?, stat(pid, SESSION)?))
    };
    let (_, group, session) = seen(&mut sleeper(containment))?;
    ensure!((group, session) == own, "{group} {session}, not {own:?}");
    let (pid, group, session) = seen(sleeper(containment).process_group(0))?;
    ensure!(group == pid && session == own.1, "{pid} {group} {session}");
    let (pid, group, session) = seen(sleeper(containment).setsid(true))?;
    ensure!(group == pid && session == pid, "{pid} {group} {session}");
    let leader = Command::new("sleep").arg("1000").process_group(0).spawn()?;
    let other = leader.id() as i32;
    let (_, group, session) = seen(sleeper(containment).process_group(other))?;
    ensure!(group == other && session == own.1, "{group} {session}");
    let (_, group, _) = seen(sleeper(containment).process_group(own.0))?;
    ensure!(group == own.0, "{group}, not {own:?}");
    // A signal to the group is one to the captive.
    let captive = sleeper(containment).process_group(0).spawn()?;
    ensure!(
        unsafe { libc::kill(-(captive.id() as i32), libc::SIGTERM) } == 0,
        "kill"
    );
    let report = ended(&captive)?;
    ensure!(report.status().signal() == Some(Signal::TERM), "{report:?}");
    drop(leader);
    Ok(())
}

/// Another session's group: EPERM, whichever process says so.
fn group_that_is_none(containment: Containment) -> Outcome {
    let error = refused(contained(Command::new("true"), containment).process_group(1))?;
    nothing_left()?;
    let SpawnError::Step { step, errno, .. } = &error else {
        return Err(format!("{error:?}").into());
    };
    ensure!(errno.raw_os_error() == Some(libc::EPERM), "{error:?}");
    ensure!(
        *step == captive::launcher::SpawnStep::ProcessGroup(1),
        "{error:?}"
    );
    Ok(())
}

fn other_options(containment: Containment) -> Outcome {
    let script = "nice; umask; ulimit -Sn; ulimit -Hn; exec cat /proc/self/status";
    let mut users = vec![None];
    // Nobody else is known in a user namespace.
    if containment != Containment::UserNamespace {
        users.push(Some(as_nobody()?));
    }
    for user in users {
        let mut command = contained(shell(script), containment);
        command
            .nice(7)
            .umask(0o071)
            .resource_limit(Resource::NOFILE, 44, 55)
            .ignore_signal(signal(libc::SIGUSR2));
        let expected = if let Some(user) = user {
            command.run_with(user);
            "65534\t65534\t65534\t65534"
        } else {
            "0\t0\t0\t0"
        };
        let said = says(&mut command)?;
        ensure!(said.starts_with("7\n0071\n44\n55\n"), "{said}");
        let field = |name: &str| {
            said.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
                .ok_or_else(|| format!("no {name} in {said}"))
        };
        for ids in ["Uid", "Gid"] {
            ensure!(field(ids)? == expected, "{said}");
        }
        let bit = |number: i32| 1_u64 << (number - 1);
        let set = |name: &str| -> Fallible<u64> { Ok(u64::from_str_radix(field(name)?, 16)?) };
        ensure!(set("SigIgn")? & bit(libc::SIGUSR2) != 0, "{said}");
        ensure!(set("SigIgn")? & bit(libc::SIGCHLD) == 0, "{said}");
        ensure!(field("NoNewPrivs")? == "0", "{said}");
    }
    let mut command = contained(Command::new("grep"), containment);
    command.args(["SigBlk", "/proc/self/status"]);
    let said = says(command.signal_mask([signal(libc::SIGUSR1)]))?;
    ensure!(
        said == format!("SigBlk:\t{:016x}\n", 1 << (libc::SIGUSR1 - 1)),
        "{said}"
    );
    // The parent-death signal, as without.
    let mut command = ourselves(&["command", "report"])?;
    let said = says(command.containment(containment))?;
    ensure!(said.contains("pdeathsig 9\n"), "{said}");
    let said = says(command.order(1))?;
    ensure!(said.contains("pdeathsig 0\n"), "{said}");
    Ok(())
}

fn descriptors(containment: Containment) -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().canonicalize()?.join("file");
    let file = File::create(&path)?;
    let mut users = vec![None];
    if containment != Containment::UserNamespace {
        users.push(Some(as_nobody()?));
    }
    for user in users {
        let mut command = ourselves(&["command", "report"])?;
        command
            .containment(containment)
            .descriptor(file.try_clone()?, 77);
        if let Some(user) = user {
            command.run_with(user);
        }
        let said = says(&mut command)?;
        let above: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix("fd "))
            .filter(|line| line.split(' ').next().is_some_and(|fd| fd.len() > 1))
            .collect();
        let binary = std::env::current_exe()?;
        let expected = [
            format!("77 {}", path.display()),
            format!("500 {}", binary.display()),
        ];
        ensure!(above == expected, "{said}");
        let only = said.lines().filter(|line| line.starts_with("fd ")).count();
        ensure!(only == 5, "{said}");
    }
    Ok(())
}

fn user_and_chroot() -> Outcome {
    let public = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
    let root = tempfile::Builder::new().permissions(public()).tempdir()?;
    fs::create_dir(root.path().join("bin"))?;
    let busybox = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("busybox"))
        .find(|path| path.is_file())
        .ok_or("no busybox")?;
    fs::copy(busybox, root.path().join("bin/busybox"))?;
    let script = "busybox id -u; busybox pwd; busybox ls /; echo $$; echo $PPID";
    let option = format!("chroot={},user=65534:65534", root.path().display());
    for containment in MECHANISMS {
        let mut command = contained(Command::new("/bin/busybox"), containment);
        command.args(["sh", "-c", script]);
        command.run_with(RunWith::parse(option.as_ref())?);
        if containment == Containment::UserNamespace {
            let error = refused(&mut command)?;
            ensure!(
                matches!(error, SpawnError::Step { .. } | SpawnError::Prepare(_)),
                "{error:?}"
            );
            nothing_left()?;
            continue;
        }
        let said = says(&mut command)?;
        ensure!(said.starts_with("65534\n/\nbin\n"), "{said}");
        ensure!(
            (containment == Containment::PidNamespace) == said.ends_with("\n2\n0\n"),
            "{containment}: {said}"
        );
        nothing_left()?;
    }
    Ok(())
}

/// What the main process leaves behind ends when it does, though it has been let loose from its session.
fn whole_tree_ends(containment: Containment) -> Outcome {
    let script = "setsid sleep 1000 & setsid sh -c 'sleep 1000 & wait' & echo ready; read line";
    for by_itself in [true, false] {
        let mut command = contained(shell(script), containment);
        let (mut captive, _) = says_first(command.stdin(Stdio::piped()), 1)?;
        let mut tree = Vec::new();
        await_that("four processes", || {
            tree = descendants(captive.id() as i32);
            tree.len() == 4
        })?;
        ensure!(tree.iter().all(Witness::alive), "{tree:?}");
        for process in &tree {
            let user = status_field(process.pid, "Uid").ok_or("it has ended")?;
            ensure!(
                user.starts_with(&nix::unistd::getuid().to_string()),
                "{user}"
            );
        }
        if by_itself {
            drop(captive.stdin.take());
            ended(&captive)?;
        } else {
            captive.kill()?;
        }
        tree_ended(&captive)?;
        // Done is done: no waiting here.
        for process in &tree {
            ensure!(!process.alive(), "{process:?} lives on");
        }
    }
    Ok(())
}
