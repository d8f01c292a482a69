//! `Ready::Line`.

use super::*;

pub fn tests(add: &mut dyn FnMut(&str, &'static [Need], fn() -> Outcome)) {
    add("line-on-stderr", &[], on_stderr);
    add("line-after-more-than-a-pipe-holds", &[], after_much);
    add("line-in-pieces", &[], in_pieces);
    add("line-across-reads", &[], across_reads);
    add("line-twice", &[], there_twice);
    add("line-without-its-end", &[], without_its_end);
    add("line-after-a-time-out", &[], after_a_time_out);
    add("line-of-another-kind", &[], of_another_kind);
    add("line-stream-closed", &[], stream_closed);
    add("line-stream-closed-by-one-of-two", &[], closed_by_one);
    add("line-stream-taken", &[], stream_taken);
    add("line-of-a-child", &[], of_a_child);
    add("line-then-the-end", &[], then_the_end);
    add("line-in-a-flood", &[], in_a_flood);
    add("line-the-rest-is-in-the-pipe", &[], the_rest);
}

/// A captive with pipes, ready by a line with this text.
fn with(place: &Place, stream: Stream, text: &str, steps: &[&str]) -> Fallible<Captive> {
    let mut command = place.command(Ready::Line(stream, text.into()), steps)?;
    command
        .stdin(Stdio::Piped)
        .stdout(Stdio::Piped)
        .stderr(Stdio::Piped);
    Ok(command.spawn()?)
}

fn go_on(captive: &mut Captive) -> Outcome {
    captive.stdin.as_mut().ok_or("no pipe")?.write_all(b"\n")?;
    Ok(())
}

fn on_stderr() -> Outcome {
    let place = Place::new()?;
    let steps = ["out", "up on the other\n", "err", "up\n", "for-ever"];
    let captive = with(&place, Stream::Stderr, "up", &steps)?;
    let readiness = is_ready(&captive)?;
    ensure!(readiness.output == b"up\n", "{readiness:?}");
    // The other one is not read.
    let mut line = String::new();
    let mut captive = captive;
    let out = captive.stdout.take().ok_or("no pipe")?;
    BufReader::new(out).read_line(&mut line)?;
    ensure!(line == "up on the other\n", "{line:?}");
    let captive = with(&place, Stream::Stderr, "up", &["out", "up\n", "for-ever"])?;
    none_is_there(&captive)
}

/// And not before that was read, which nobody else does.
fn after_much() -> Outcome {
    let place = Place::new()?;
    let much = "a line that is none\n".repeat(6_000);
    let steps = ["out", &much, "out", "it is up\n", "for-ever"];
    let captive = with(&place, Stream::Stdout, "is up", &steps)?;
    let readiness = is_ready(&captive)?;
    ensure!(
        readiness.output == format!("{much}it is up\n").as_bytes(),
        "{} bytes",
        readiness.output.len()
    );
    // All of it in one line.
    let much = "x".repeat(100_000);
    let steps = ["out", &much, "out", "it is up\n", "for-ever"];
    let captive = with(&place, Stream::Stdout, "is up", &steps)?;
    let readiness = is_ready(&captive)?;
    ensure!(readiness.output.len() == 100_009, "{readiness:?}");
    Ok(())
}

/// Each is read alone: the next comes when the one before has been taken out of the pipe.
fn in_pieces() -> Outcome {
    let place = Place::new()?;
    let steps = [
        "out",
        "first\nit",
        "await",
        "out",
        " is",
        "await",
        "out",
        " u",
        "await",
        "out",
        "p\n",
        "for-ever",
    ];
    let mut captive = with(&place, Stream::Stdout, "it is up", &steps)?;
    let mut stdin = captive.stdin.take().ok_or("no pipe")?;
    let pipes = [
        captive.stdout.as_ref().ok_or("no pipe")?.as_raw_fd(),
        stdin.as_raw_fd(),
    ];
    let is_empty = |pipe: &i32| {
        let mut unread = 0;
        unsafe { libc::ioctl(*pipe, libc::FIONREAD, &raw mut unread) == 0 && unread == 0 }
    };
    let pid = captive.id() as i32;
    let answer = std::thread::scope(|scope| {
        let ready = scope.spawn(|| is_ready(&captive).map_err(|error| error.to_string()));
        for _ in 0..3 {
            // It has taken the last word, has said its piece, and sleeps; the piece has been read.
            await_that("the piece was read", || {
                state(pid) == Some('S') && pipes.iter().all(is_empty)
            })
            .map_err(|error| error.to_string())?;
            stdin.write_all(b"\n").map_err(|error| error.to_string())?;
        }
        ready.join().map_err(|_| "a panic".to_owned())?
    })?;
    ensure!(answer.output == b"first\nit is up\n", "{answer:?}");
    Ok(())
}

/// Reads are of 4096 bytes: wherever that cuts it.
fn across_reads() -> Outcome {
    let place = Place::new()?;
    for before in (4085..4100).chain([8190, 8191, 8192]) {
        for newline in [false, true] {
            let mut text = "y".repeat(before);
            if newline {
                text.pop();
                text.push('\n');
            }
            let captive = with(
                &place,
                Stream::Stdout,
                "it is up",
                &["out", &format!("{text}it is up\n"), "for-ever"],
            )?;
            let readiness = is_ready(&captive).map_err(|error| format!("{before}: {error}"))?;
            ensure!(readiness.output.len() == before + 9, "{before}");
        }
    }
    Ok(())
}

fn there_twice() -> Outcome {
    let place = Place::new()?;
    let captive = with(
        &place,
        Stream::Stdout,
        "up",
        &["out", "up\nup\nmore\n", "for-ever"],
    )?;
    let readiness = is_ready(&captive)?;
    // One write, one read.
    ensure!(readiness.output == b"up\nup\nmore\n", "{readiness:?}");
    let captive = with(
        &place,
        Stream::Stdout,
        "up",
        &["out", "upupup\n", "for-ever"],
    )?;
    ensure!(is_ready(&captive)?.output == b"upupup\n", "?");
    Ok(())
}

/// Only a whole line counts: what it goes on with may be anything.
fn without_its_end() -> Outcome {
    let place = Place::new()?;
    let captive = with(&place, Stream::Stdout, "up", &["out", "x\nup", "for-ever"])?;
    not_ready_by(&captive, b"x\nup")?;
    let captive = with(&place, Stream::Stdout, "up", &["out", "up", "exit", "3"])?;
    let (report, output) = ended_first(&captive)?;
    ensure!(report.status() == ExitStatus::Exited(3), "{report:?}");
    ensure!(output == b"up", "{output:?}");
    Ok(())
}

/// What the first wait has read is not lost for the second.
fn after_a_time_out() -> Outcome {
    let place = Place::new()?;
    let steps = ["out", "first\nit is", "await", "out", " up\n", "for-ever"];
    let mut captive = with(&place, Stream::Stdout, "it is up", &steps)?;
    not_ready_by(&captive, b"first\nit is")?;
    not_ready_by(&captive, b"first\nit is")?;
    go_on(&mut captive)?;
    let readiness = is_ready(&captive)?;
    ensure!(readiness.output == b"first\nit is up\n", "{readiness:?}");
    Ok(())
}

/// In parts of two lines, in another case, with a byte that is no text.
fn of_another_kind() -> Outcome {
    let place = Place::new()?;
    for said in ["it is\nup\n", "It Is Up\n", "it is  up\n", "it isup\n"] {
        let captive = with(
            &place,
            Stream::Stdout,
            "it is up",
            &["out", said, "for-ever"],
        )?;
        not_ready_by(&captive, said.as_bytes())?;
    }
    let script = "printf '\\377\\376it is up\\r\\n\\n'; exec sleep 1000";
    let captive = shell(script)
        .ready(Ready::Line(Stream::Stdout, "it is up".into()))
        .stdout(Stdio::Piped)
        .spawn()?;
    let readiness = is_ready(&captive)?;
    ensure!(
        readiness.output == b"\xff\xfeit is up\r\n\n",
        "{readiness:?}"
    );
    Ok(())
}

/// Nothing more can come, and it runs on.
fn stream_closed() -> Outcome {
    let place = Place::new()?;
    let steps = ["out", "x\nup", "close", "1", "for-ever"];
    let captive = with(&place, Stream::Stdout, "up", &steps)?;
    for _ in 0..2 {
        match captive.wait_ready(HANG) {
            Err(ReadyError::Closed { output, .. }) if output == b"x\nup" => {}
            other => return Err(format!("{other:?}").into()),
        }
    }
    ensure!(captive.try_wait()?.is_none(), "it has ended");
    // The other one's end is nothing.
    let steps = ["close", "2", "out", "up\n", "for-ever"];
    is_ready(&with(&place, Stream::Stdout, "up", &steps)?)?;
    Ok(())
}

/// A child has it open still.
fn closed_by_one() -> Outcome {
    let place = Place::new()?;
    let path = place.path("go");
    let script = "(while ! test -e \"$0\"; do sleep 0.01; done; echo up; exec sleep 1000) & exec >&-; exec sleep 1000";
    let mut command = shell(script);
    for (key, value) in place.tag.command("").get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    let captive = command
        .arg(&path)
        .ready(Ready::Line(Stream::Stdout, "up".into()))
        .stdout(Stdio::Piped)
        .spawn()?;
    none_is_there(&captive)?;
    fs::write(&path, "")?;
    ensure!(is_ready(&captive)?.output == b"up\n", "?");
    Ok(())
}

fn stream_taken() -> Outcome {
    let place = Place::new()?;
    let steps = ["out", "up\n", "err", "up\n", "for-ever"];
    for stream in [Stream::Stdout, Stream::Stderr] {
        let mut captive = with(&place, stream, "up", &steps)?;
        match stream {
            Stream::Stdout => drop(captive.stdout.take()),
            Stream::Stderr => drop(captive.stderr.take()),
        }
        match captive.wait_ready(HANG) {
            Err(ReadyError::Look { what, errno, .. })
                if what.contains("taken") && errno.raw_os_error() == Some(libc::EBADF) => {}
            other => return Err(format!("{other:?}").into()),
        }
        ensure!(captive.try_wait()?.is_none(), "it has ended");
    }
    Ok(())
}

fn of_a_child() -> Outcome {
    let place = Place::new()?;
    for before in ["fork", "daemonise"] {
        let steps = [before, "out", "up\n", "for-ever"];
        is_ready(&with(&place, Stream::Stdout, "up", &steps)?)?;
    }
    // A child's word does not count when the captive has ended, though the stream is open.
    let go = place.text("go");
    let steps = ["leave", "4", "await-file", &go, "out", "up\n", "for-ever"];
    let captive = with(&place, Stream::Stdout, "up", &steps)?;
    let (report, output) = ended_first(&captive)?;
    ensure!(report.status() == ExitStatus::Exited(4), "{report:?}");
    ensure!(output.is_empty(), "{output:?}");
    Ok(())
}

/// It had said so, but has ended: of no use to anybody.
fn then_the_end() -> Outcome {
    let place = Place::new()?;
    let captive = with(&place, Stream::Stdout, "up", &["out", "up\n", "exit", "5"])?;
    ensure!(readable_within(captive.pidfd(), HANG), "it does not end");
    let (report, output) = ended_first(&captive)?;
    ensure!(report.status() == ExitStatus::Exited(5), "{report:?}");
    ensure!(output == b"up\n", "{output:?}");
    Ok(())
}

/// Who writes faster than is read is waited for no longer than others, and its end is seen.
fn in_a_flood() -> Outcome {
    let place = Place::new()?;
    let captive = with(&place, Stream::Stdout, "up", &["flood", "never "])?;
    let (sender, answer) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let answer = captive.wait_ready(SOON);
        let _ = sender.send(matches!(answer, Err(ReadyError::TimedOut { .. })));
    });
    let in_time = answer.recv_timeout(HANG);
    // Whatever it is that hangs, it is not for ever.
    drop(place);
    let _ = waiter.join();
    ensure!(in_time?, "not timed out");
    Ok(())
}

/// What comes after the line is the caller's to read.
fn the_rest() -> Outcome {
    let place = Place::new()?;
    let steps = ["out", "up\n", "await", "out", "more\n", "exit", "0"];
    let mut captive = with(&place, Stream::Stdout, "up", &steps)?;
    ensure!(is_ready(&captive)?.output == b"up\n", "?");
    go_on(&mut captive)?;
    let mut rest = String::new();
    captive
        .stdout
        .take()
        .ok_or("no pipe")?
        .read_to_string(&mut rest)?;
    ensure!(rest == "more\n", "{rest:?}");
    Ok(())
}
