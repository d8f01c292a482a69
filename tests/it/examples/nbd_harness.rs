//! Twenty servers at once: they answer, and are gone with the harness, as is their directory.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::adopted::{Adopted, Random};
use crate::support::needs::example;
use crate::support::session::output;
use crate::support::{HANG, Need, Outcome, Tag, test};

const NAME: &str = "nbd_harness";
const NEEDS: &[Need] = &[Need::Example(NAME), Need::Program("nbdkit")];
const NEEDS_LONG: &[Need] = &[Need::Example(NAME), Need::Program("nbdkit"), Need::Long];

pub fn tests() -> Vec<Trial> {
    vec![
        test("examples::nbd_harness", NEEDS, || works().map(drop)),
        test("examples::nbd_harness_fails", NEEDS, fails),
        test("examples::nbd_harness_killed", NEEDS, || rounds(20)),
        test("examples::nbd_harness_killed_long", NEEDS_LONG, || {
            rounds(500)
        }),
    ]
}

/// How long it took.
fn works() -> Result<Duration, Box<dyn std::error::Error>> {
    let tag = Tag::new();
    let dir = tempfile::tempdir()?;
    let started = Instant::now();
    let mut command = tag.command(example(NAME).to_str().ok_or("not UTF-8")?);
    let done = output(command.env("TMPDIR", dir.path()))?;
    let took = started.elapsed();
    let said = String::from_utf8_lossy(&done.stdout);
    ensure!(done.status.success(), "{done:?}");
    ensure!(
        said == "20 servers answered, 20 ended in order\n",
        "{done:?}"
    );
    left_nothing(&tag, dir.path())?;
    Ok(took)
}

fn left_nothing(tag: &Tag, dir: &std::path::Path) -> Outcome {
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "left over: {left:?}");
    let files: Vec<_> = fs::read_dir(dir)?.flatten().collect();
    ensure!(files.is_empty(), "left over: {files:?}");
    Ok(())
}

/// One server of twenty cannot be had: an error, and none of the others is left, nor the directory.
fn fails() -> Outcome {
    let tag = Tag::new();
    let (dir, programs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    // The one that opens 8.sock ends at once.
    let stub = format!(
        "#!/bin/sh\ncase \"$*\" in *8.sock*) exit 7 ;; esac\nPATH='{}' exec nbdkit \"$@\"\n",
        std::env::var("PATH")?
    );
    let path = programs.path().join("nbdkit");
    fs::write(&path, stub)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let search = format!("{}:{}", programs.path().display(), std::env::var("PATH")?);
    let mut command = tag.command(example(NAME).to_str().ok_or("not UTF-8")?);
    let done = output(command.env("TMPDIR", dir.path()).env("PATH", search))?;
    ensure!(done.status.code() == Some(1), "{done:?}");
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        said.contains("nbd_harness: the captive ended (exit status 7) before there was a listener"),
        "{said}"
    );
    left_nothing(&tag, dir.path())
}

/// The harness gets SIGKILL at a random moment of its life.
fn rounds(count: u32) -> Outcome {
    let mut random = Random::new();
    let seed = random.0;
    let life = works()?;
    let (mut killed, mut adopted) = (0, 0);
    for round in 0..count {
        let dir = tempfile::tempdir()?;
        let at = random.below(life);
        let remains = Adopted::start(dir.path(), &[example(NAME).into()]).and_then(|it| {
            std::thread::sleep(at);
            it.kill()
        });
        let context = format!("seed {seed}, round {round}, after {at:?} of {life:?}");
        let remains = remains.map_err(|error| format!("{context}: {error}"))?;
        killed += u32::from(remains.killed);
        adopted += remains.adopted;
        let files: Vec<_> = fs::read_dir(dir.path())?.flatten().collect();
        ensure!(files.is_empty(), "{context}: left over: {files:?}");
    }
    // Most of them had not ended by themselves, and left something that had to end.
    ensure!(
        killed * 2 >= count && adopted >= killed,
        "seed {seed}: {killed} of {count} killed, {adopted} adopted"
    );
    Ok(())
}
