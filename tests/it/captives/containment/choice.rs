//! What `Containment::Tree` chooses, and what it says where it finds nothing.

use super::*;

const ROOT: &[Need] = &[Need::Root];
const CGROUP: &[Need] = &[Need::Root, Need::Cgroups];
const USER: &[Need] = &[Need::Root, Need::UserNamespaces];

pub const CASES: &[Case] = &[
    ("tree-of-root", ROOT, of_root),
    ("tree-of-a-user", USER, || of_a_user(true)),
    ("tree-of-an-undumpable-user", USER, || of_a_user(false)),
    ("best-effort-of-an-undumpable-user", ROOT, marks_of_a_user),
    ("tree-after-a-change-of-user", USER, after_a_change),
    ("tree-without-pid-namespaces", CGROUP, by_cgroup),
    ("tree-of-nothing-as-root", CGROUP, nothing_as_root),
    ("tree-of-nothing-as-a-user", ROOT, nothing_as_a_user),
    ("tree-of-a-bad-command", CGROUP, bad_command),
    ("autokill", ROOT, autokill),
    ("reaper-is-anothers", ROOT, reaper),
];

fn tree() -> Command {
    contained(Command::new("true"), Containment::Tree)
}

fn of_root() -> Outcome {
    for mut command in [tree(), tree()] {
        let found = chosen(&mut command)?;
        ensure!(found == Containment::PidNamespace, "{found}");
        // Whatever the captive's user.
        let found = chosen(command.run_with(as_nobody()?))?;
        ensure!(found == Containment::PidNamespace, "{found}");
    }
    let process = chosen(&mut Command::new("true"))?;
    ensure!(process == Containment::Process, "{process}");
    Ok(())
}

fn of_a_user(dumpable: bool) -> Outcome {
    become_nobody(dumpable)?;
    for _ in 0..2 {
        let found = chosen(&mut tree())?;
        ensure!(found == Containment::UserNamespace, "{found}");
    }
    Ok(())
}

/// What belongs to root in `/proc` is the launcher's own alone: the captives' is theirs.
fn marks_of_a_user() -> Outcome {
    become_nobody(false)?;
    let mut command = contained(
        shell("setsid sleep 1000 & echo $!; exec sleep 1000"),
        Containment::TreeBestEffort,
    );
    let mut captive = command.stdout(Stdio::Piped).spawn()?;
    let mut line = String::new();
    let said = captive.stdout.take().ok_or("no pipe")?;
    BufReader::new(said).read_line(&mut line)?;
    let descendant = Witness::of(line.trim().parse()?)?;
    captive.kill()?;
    tree_ended(&captive)?;
    ensure!(descendant.gone(), "a descendant lives on");
    Ok(())
}

/// A launcher that has had its helper and guard as root.
fn after_a_change() -> Outcome {
    let found = chosen(&mut tree())?;
    ensure!(found == Containment::PidNamespace, "{found}");
    become_nobody(true)?;
    let found = chosen(&mut tree())?;
    ensure!(found == Containment::UserNamespace, "{found}");
    Ok(())
}

fn by_cgroup() -> Outcome {
    deny_namespaces(false, libc::EPERM);
    let found = chosen(tree().run_with(as_nobody()?))?;
    ensure!(found == Containment::Cgroup, "{found}");
    Ok(())
}

fn nothing_as_root() -> Outcome {
    deny_namespaces(false, libc::EPERM);
    let error = uncontained(&mut tree())?;
    ensure!(error.asked == Containment::Tree, "{error:?}");
    ensure!(error.program == "true", "{error:?}");
    let order: Vec<_> = error.missing.iter().map(|m| m.containment).collect();
    let expected = [
        Containment::PidNamespace,
        Containment::Cgroup,
        Containment::UserNamespace,
    ];
    ensure!(order == expected, "{order:?}");
    let of = |containment| lacking(&error, containment);
    ensure!(
        errno(of(Containment::PidNamespace)?) == Some(libc::EPERM)
            && of(Containment::PidNamespace)?.what.contains("CLONE_NEWPID"),
        "{error}"
    );
    let mount = mount()?.display().to_string();
    let leaves = &of(Containment::Cgroup)?.what;
    ensure!(
        leaves.contains("user 0 could leave it") && leaves.contains(&mount),
        "{leaves}"
    );
    ensure!(errno(of(Containment::Cgroup)?).is_none(), "{error:?}");
    let user = &of(Containment::UserNamespace)?.what;
    ensure!(user == "the launcher is root", "{user}");
    let by_name = [
        Containment::Cgroup,
        Containment::UserNamespace,
        Containment::TreeBestEffort,
    ];
    ensure!(error.available == by_name, "{:?}", error.available);
    for containment in by_name {
        let found = chosen(&mut contained(Command::new("true"), containment))?;
        ensure!(found == containment, "{found}, not {containment}");
    }
    // All of that is in the text, and the error of `spawn` has the same.
    let text = error.to_string();
    let start =
        "launching true: it cannot be contained as Tree: PidNamespace: clone with CLONE_NEWPID: ";
    let end = "; UserNamespace: the launcher is root; \
               available by name: Cgroup, UserNamespace, TreeBestEffort";
    ensure!(text.starts_with(start) && text.ends_with(end), "{text}");
    ensure!(text.contains("; Cgroup: a process of user 0"), "{text}");
    let whole = SpawnError::Containment(error);
    ensure!(whole.to_string() == text, "{whole}");
    // There is more than one reason.
    ensure!(std::error::Error::source(&whole).is_none(), "{whole:?}");
    Ok(())
}

fn nothing_as_a_user() -> Outcome {
    become_nobody(true)?;
    deny_namespaces(true, libc::EPERM);
    let error = uncontained(&mut tree())?;
    ensure!(error.missing.len() == 3, "{error:?}");
    let of = |containment| lacking(&error, containment);
    let root = of(Containment::PidNamespace)?;
    ensure!(root.what == "CAP_SYS_ADMIN is missing", "{root:?}");
    // Whether there is none, or none that is writable.
    let cgroup = of(Containment::Cgroup)?;
    ensure!(!cgroup.what.is_empty(), "{cgroup:?}");
    if let Ok(own) = own_cgroup() {
        let own = own.display().to_string();
        let own = own.trim_end_matches('/');
        ensure!(cgroup.what.contains(own), "{cgroup:?}, not {own}");
        ensure!(
            matches!(
                errno(cgroup),
                Some(libc::EACCES | libc::EROFS | libc::EPERM)
            ),
            "{cgroup:?}"
        );
    }
    let user = of(Containment::UserNamespace)?;
    ensure!(
        user.what.contains("CLONE_NEWUSER") && errno(user) == Some(libc::EPERM),
        "{user:?}"
    );
    ensure!(
        error.available == [Containment::TreeBestEffort],
        "{:?}",
        error.available
    );
    // By name each says the same of itself alone.
    for containment in &MECHANISMS[..3] {
        let alone = uncontained(&mut contained(Command::new("true"), *containment))?;
        let (one, other) = (lacking(&alone, *containment)?, of(*containment)?);
        ensure!(alone.missing.len() == 1, "{alone:?}");
        // A cgroup would have had another number in its name.
        let same = |missing: &Missing| {
            let what = missing.what.trim_end_matches(|c: char| c.is_ascii_digit());
            (what.to_owned(), errno(missing))
        };
        ensure!(same(one) == same(other), "{one}, not {other}");
        ensure!(alone.asked == *containment, "{alone:?}");
        ensure!(alone.available == [Containment::TreeBestEffort], "{alone}");
        let source = std::error::Error::source(&alone).map(ToString::to_string);
        ensure!(
            source == other.errno.as_ref().map(ToString::to_string),
            "{source:?}"
        );
    }
    let found = chosen(&mut contained(
        Command::new("true"),
        Containment::TreeBestEffort,
    ))?;
    ensure!(found == Containment::TreeBestEffort, "{found}");
    Ok(())
}

/// What is wrong with the command is said as without a tree, and before one is made.
fn bad_command() -> Outcome {
    for containment in MECHANISMS.into_iter().chain([Containment::Tree]) {
        let error = refused(contained(Command::new("true"), containment).env("A=B", ""))?;
        ensure!(matches!(error, SpawnError::Invalid { .. }), "{error:?}");
        let error = refused(contained(Command::new("true"), containment).arg("\0"))?;
        ensure!(matches!(error, SpawnError::Invalid { .. }), "{error:?}");
        let unknown = RunWith::parse("user=captive-no-such-user".as_ref())?;
        let error = refused(contained(Command::new("true"), containment).run_with(unknown))?;
        ensure!(matches!(error, SpawnError::Prepare(_)), "{error:?}");
        nothing_left()?;
    }
    Ok(())
}

/// Another system's is an error, and never chosen.
fn reaper() -> Outcome {
    let error = match contained(Command::new("true"), Containment::Reaper).spawn() {
        Err(SpawnError::Containment(error)) => error,
        other => return Err(format!("{other:?}").into()),
    };
    nothing_left()?;
    let missing = lacking(&error, Containment::Reaper)?;
    ensure!(missing.what.contains("FreeBSD"), "{missing:?}");
    ensure!(error.missing.len() == 1, "{error:?}");
    ensure!(
        error.available.contains(&Containment::PidNamespace),
        "{error:?}"
    );
    Ok(())
}

/// Nobody has a kernel that knows it: what happens on one is not said here.
fn autokill() -> Outcome {
    let mut command = contained(Command::new("true"), Containment::PidfdAutokill);
    let error = match command.spawn() {
        Ok(captive) => {
            drop(captive);
            return Ok(());
        }
        Err(SpawnError::Containment(error)) => error,
        Err(error) => return Err(format!("{error:?}").into()),
    };
    nothing_left()?;
    let missing = lacking(&error, Containment::PidfdAutokill)?;
    ensure!(error.missing.len() == 1, "{error:?}");
    ensure!(error.asked == Containment::PidfdAutokill, "{error:?}");
    for part in ["CLONE_PIDFD_AUTOKILL", "Linux 7.1", "CAP_SYS_ADMIN"] {
        ensure!(missing.what.contains(part), "{missing:?}");
    }
    ensure!(errno(missing) == Some(libc::EINVAL), "{missing:?}");
    ensure!(
        error.available.contains(&Containment::PidNamespace)
            && error.available.contains(&Containment::TreeBestEffort)
            && !error.available.contains(&Containment::PidfdAutokill),
        "{error:?}"
    );
    Ok(())
}
