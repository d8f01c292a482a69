//! `Ready::Notify`.

use super::*;

pub const OF_TREES: &[Contained] = &[
    ("notify-of-a-child", of_a_child),
    ("notify-of-a-daemon", of_a_daemon),
];

pub const AS_ROOT: &[Contained] = &[("notify-as-another-user", as_another_user)];

pub fn tests(add: &mut dyn FnMut(&str, &'static [Need], fn() -> Outcome)) {
    add(
        "notify-of-a-child-that-has-ended",
        &[],
        of_a_child_that_has_ended,
    );
    add("notify-of-another", &[], of_another);
    add("notify-status", &[], status);
    add("notify-several", &[], several);
    add("notify-wrong-first", &[], wrong_first);
    add("notify-too-long", &[], too_long);
    add("notify-with-descriptors", &[], with_descriptors);
    add("notify-after-it-is-ready", &[], after_it_is_ready);
    add("notify-by-python", &[Need::Program("python3")], by_python);
    add("notify-not-asked", &[], not_asked);
    add("notify-two-threads", &[], two_threads);
}

fn of_a_child(containment: Containment) -> Outcome {
    let place = Place::new()?;
    let captive = place
        .command(Ready::Notify, &["fork", "notify", "READY=1", "for-ever"])?
        .containment(containment)
        .spawn()?;
    is_ready(&captive).map_err(|error| format!("{containment}: {error}"))?;
    end(&captive)?;
    Ok(())
}

/// A daemon's parent has ended: only a tree knows whose it is.
fn of_a_daemon(containment: Containment) -> Outcome {
    let place = Place::new()?;
    let steps = ["daemonise", "notify", "READY=1", "for-ever"];
    let captive = place
        .command(Ready::Notify, &steps)?
        .containment(containment)
        .spawn()?;
    if containment == Containment::Process {
        another_is_there(&captive, "not of its tree")?;
    } else {
        is_ready(&captive).map_err(|error| format!("{containment}: {error}"))?;
    }
    end(&captive)?;
    Ok(())
}

/// One that has ended before it was looked at is nobody's: as documented, it may not count. It is said.
fn of_a_child_that_has_ended() -> Outcome {
    let place = Place::new()?;
    let done = place.text("done");
    let steps = [
        "in-a-child",
        "notify",
        "READY=1",
        "write",
        &done,
        "await",
        "notify",
        "READY=1",
        "for-ever",
    ];
    let mut captive = place
        .command(Ready::Notify, &steps)?
        .stdin(Stdio::Piped)
        .spawn()?;
    await_that("the child's end", || place.path("done").exists())?;
    another_is_there(&captive, "has ended")?;
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    is_ready(&captive)?;
    Ok(())
}

/// The variable that a captive has.
fn address_of(captive: &Captive) -> Fallible<String> {
    let path = format!("/proc/{}/environ", captive.id());
    let mut found = None;
    // The kernel lets the launcher go on a moment before the environment is the new one.
    await_that("NOTIFY_SOCKET", || {
        let environment = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&environment).into_owned();
        let mut entries = text.split('\0');
        found = entries.find_map(|entry| Some(entry.strip_prefix("NOTIFY_SOCKET=")?.to_owned()));
        found.is_some()
    })?;
    found.ok_or_else(|| "none".into())
}

/// The test itself, which is no descendant; before the captive, and while it is waited for.
fn of_another() -> Outcome {
    let place = Place::new()?;
    let steps = ["await", "notify", "READY=1", "for-ever"];
    let mut captive = place
        .command(Ready::Notify, &steps)?
        .stdin(Stdio::Piped)
        .spawn()?;
    let address = address_of(&captive)?;
    ensure!(address.starts_with('@'), "{address}");
    steps::notify_at(&address, b"READY=1\nSTATUS=a lie", None)?;
    another_is_there(&captive, &format!("process {}", std::process::id()))?;
    // Another captive's.
    let other = place
        .command(Ready::Notify, &["notify", "READY=1", "for-ever"])?
        .env("NOTIFY_SOCKET", &address)
        .spawn()?;
    // Its own address wins.
    is_ready(&other)?;
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    let readiness = is_ready(&captive)?;
    ensure!(readiness.status.is_none(), "{readiness:?}");
    Ok(())
}

fn status() -> Outcome {
    let place = Place::new()?;
    let status = |steps: &[&str]| -> Fallible<Option<String>> {
        Ok(is_ready(&place.spawn(Ready::Notify, steps)?)?.status)
    };
    let together = status(&["notify", "STATUS=going up\nREADY=1\nX=Y\n", "for-ever"])?;
    ensure!(together.as_deref() == Some("going up"), "{together:?}");
    let before = status(&[
        "notify",
        "STATUS=first",
        "notify",
        "STATUS=second\n",
        "notify",
        "READY=1",
        "for-ever",
    ])?;
    ensure!(before.as_deref() == Some("second"), "{before:?}");
    let none = status(&["notify", "READY=1", "for-ever"])?;
    ensure!(none.is_none(), "{none:?}");
    // One that was told in a wait before.
    let mut captive = place
        .command(
            Ready::Notify,
            &[
                "notify",
                "STATUS=early",
                "await",
                "notify",
                "READY=1",
                "for-ever",
            ],
        )?
        .stdin(Stdio::Piped)
        .spawn()?;
    none_is_there(&captive)?;
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    let status = is_ready(&captive)?.status;
    ensure!(status.as_deref() == Some("early"), "{status:?}");
    Ok(())
}

/// More than one wait takes.
fn several() -> Outcome {
    let place = Place::new()?;
    let mut steps = Vec::new();
    let texts: Vec<String> = (0..100).map(|n| format!("STATUS={n} of 100")).collect();
    for text in &texts {
        steps.extend(["notify", text]);
    }
    steps.extend(["notify", "READY=1", "for-ever"]);
    let readiness = is_ready(&place.spawn(Ready::Notify, &steps)?)?;
    ensure!(
        readiness.status.as_deref() == Some("99 of 100"),
        "{readiness:?}"
    );
    Ok(())
}

fn wrong_first() -> Outcome {
    let place = Place::new()?;
    let wrong = [
        "READY=0",
        "READY=11",
        "READY=1 ",
        " READY=1",
        "ready=1",
        "XREADY=1",
        "READY=",
        "RELOADING=1\nSTOPPING=1",
        "STATUS=READY=1",
        "\n\n",
    ];
    let mut steps = Vec::new();
    for text in wrong {
        steps.extend(["notify", text]);
    }
    steps.extend(["await", "notify", "X=1\nREADY=1", "for-ever"]);
    let mut captive = place
        .command(Ready::Notify, &steps)?
        .stdin(Stdio::Piped)
        .spawn()?;
    none_is_there(&captive)?;
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    is_ready(&captive)?;
    Ok(())
}

/// systemd takes no more than 4096 bytes, and nothing of a message that has more.
fn too_long() -> Outcome {
    let place = Place::new()?;
    for (text, length) in [("READY=1\nSTATUS=", 4097), ("READY=1\nSTATUS=", 60_000)] {
        let steps = [
            "notify-long",
            text,
            &length.to_string(),
            "await",
            "notify",
            "READY=1",
            "for-ever",
        ];
        let mut captive = place
            .command(Ready::Notify, &steps)?
            .stdin(Stdio::Piped)
            .spawn()?;
        another_is_there(&captive, "too long")?;
        captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
        let readiness = is_ready(&captive)?;
        ensure!(readiness.status.is_none(), "{length}");
    }
    // Cut, it would be right.
    let before = format!("X={}\nREADY=1", "x".repeat(4096 - 10));
    let steps = ["notify-long", &before, "4097", "for-ever"];
    another_is_there(&place.spawn(Ready::Notify, &steps)?, "too long")?;
    let steps = ["notify-long", "READY=1\nSTATUS=", "4096", "for-ever"];
    let readiness = is_ready(&place.spawn(Ready::Notify, &steps)?)?;
    ensure!(
        readiness
            .status
            .is_some_and(|status| status.len() == 4096 - 15),
        "cut"
    );
    Ok(())
}

/// The launcher does not keep what it did not ask for.
fn with_descriptors() -> Outcome {
    let place = Place::new()?;
    let path = place.path("attached");
    fs::write(&path, "")?;
    let attached = path.to_str().unwrap();
    let mut steps = Vec::new();
    for _ in 0..20 {
        steps.extend(["notify-with-descriptor", "FDSTORE=1", attached]);
    }
    steps.extend(["notify-with-descriptor", "READY=1", attached, "for-ever"]);
    let captive = place.spawn(Ready::Notify, &steps)?;
    is_ready(&captive)?;
    let canonical = path.canonicalize()?;
    let held = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == canonical))
        .count();
    ensure!(held == 0, "{held} descriptors");
    Ok(())
}

/// Its messages fail; none of them waits for somebody to read it.
fn after_it_is_ready() -> Outcome {
    let place = Place::new()?;
    let mut steps = vec!["notify", "READY=1", "await"];
    for _ in 0..50 {
        steps.extend(["notify-answer", "WATCHDOG=1"]);
    }
    steps.extend(["exit", "0"]);
    let mut captive = place
        .command(Ready::Notify, &steps)?
        .stdin(Stdio::Piped)
        .stdout(Stdio::Piped)
        .spawn()?;
    is_ready(&captive)?;
    captive.stdin.take().ok_or("no pipe")?.write_all(b"\n")?;
    ensure!(captive.wait_timeout(HANG)?.is_some(), "it waits");
    let done = String::from_utf8(captive.wait_with_output()?.stdout)?;
    let refused = nix::errno::Errno::ECONNREFUSED.desc();
    ensure!(
        done.lines().count() == 50 && done.lines().all(|line| line.contains(refused)),
        "{done}"
    );
    Ok(())
}

/// As its users do it: with the address from the variable.
fn by_python() -> Outcome {
    let script = "import os, socket, time\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        s.connect('\\0' + os.environ['NOTIFY_SOCKET'][1:])\n\
        s.send(b'STATUS=up\\nREADY=1\\n')\n\
        time.sleep(1000)";
    for containment in [Containment::Process, Containment::TreeBestEffort] {
        let captive = Command::new("python3")
            .args(["-c", script])
            .containment(containment)
            .ready(Ready::Notify)
            .spawn()?;
        let readiness = is_ready(&captive)?;
        ensure!(readiness.status.as_deref() == Some("up"), "{readiness:?}");
        end(&captive)?;
    }
    Ok(())
}

fn as_another_user(containment: Containment) -> Outcome {
    for before in ["chdir", "fork"] {
        let mut steps = vec![before];
        if before == "chdir" {
            steps.push("/");
        }
        steps.extend(["notify", "READY=1", "for-ever"]);
        let place = Place::new()?;
        let captive = doing_by_descriptor(&place.tag, &steps)?
            .containment(containment)
            .run_with("user=65534:65534".parse()?)
            .ready(Ready::Notify)
            .spawn()?;
        is_ready(&captive)?;
        end(&captive)?;
    }
    Ok(())
}

/// Without it there is no such variable of ours.
fn not_asked() -> Outcome {
    let captive = Command::new("/usr/bin/env")
        .env_remove("NOTIFY_SOCKET")
        .stdout(Stdio::Piped)
        .spawn()?;
    let done = String::from_utf8(captive.wait_with_output()?.stdout)?;
    ensure!(!done.contains("NOTIFY_SOCKET"), "{done}");
    Ok(())
}

/// A thread that waits, which it does for up to 20 ms at a time, does not hold up one that only looks.
fn two_threads() -> Outcome {
    let place = Place::new()?;
    let captive = place.spawn(Ready::Notify, &["for-ever"])?;
    let look = || -> Fallible<Duration> {
        // Long enough for the other to be waiting again.
        std::thread::sleep(Duration::from_millis(5));
        let began = Instant::now();
        match captive.wait_ready(Duration::ZERO) {
            Err(ReadyError::TimedOut { .. }) => Ok(began.elapsed()),
            other => Err(format!("{other:?}").into()),
        }
    };
    let mut looks = std::thread::scope(|scope| {
        let waits = scope.spawn(|| captive.wait_ready(HANG).is_err());
        let looks = (0..51).map(|_| look()).collect::<Fallible<Vec<_>>>();
        // Its wait ends with it.
        let ended = end(&captive);
        ensure!(waits.join().unwrap_or(false), "it was ready");
        ended.and(looks)
    })?;
    looks.sort_unstable();
    ensure!(looks[25] < Duration::from_millis(8), "{looks:?}");
    Ok(())
}
