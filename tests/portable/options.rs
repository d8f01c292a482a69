//! `RunWith`: QEMU's option string, and the plan made in a process.

use captive::RunWith;
use libtest_mimic::Trial;

use crate::ensure;
use crate::roles::{say, serve};
use crate::scene::{Outcome, Scene, root_test, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("run_with::grammar", grammar),
        test("run_with::unknown_user", unknown_user),
        test("run_with::async_teardown", async_teardown),
        root_test("run_with::user", user),
        root_test("run_with::chroot_and_user", chroot_and_user),
    ]
}

/// The role: makes a plan of the options, says who it is and what it sees, and serves.
pub fn apply(options: &str) -> i32 {
    let options: RunWith = match options.parse() {
        Ok(options) => options,
        Err(error) => {
            say(format!("refused {error}"));
            return 3;
        }
    };
    let prepared = match options.prepare() {
        Ok(prepared) => prepared,
        Err(error) => {
            say(format!("refused {error}"));
            return 3;
        }
    };
    match prepared.apply() {
        Ok(_applied) => {
            let uid = nix::unistd::geteuid();
            let gid = nix::unistd::getegid();
            let back = nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_ok();
            let entries = std::fs::read_dir("/").map_or(0, Iterator::count);
            say(format!(
                "applied uid {uid} gid {gid} back {back} entries {entries}"
            ));
            serve()
        }
        Err(error) => {
            say(format!(
                "failed {error}: {:?}",
                std::error::Error::source(&error)
            ));
            4
        }
    }
}

fn grammar() -> Outcome {
    let options: RunWith = "exit-with-parent=on,chroot=/a,,b,user=nobody".parse()?;
    ensure!(
        options.to_string().contains("chroot=/a,,b"),
        "{options} was printed"
    );
    ensure!(
        "exit-with-parent".parse::<RunWith>().is_err(),
        "a short form was taken"
    );
    ensure!(
        "nothing=on".parse::<RunWith>().is_err(),
        "an unknown key was taken"
    );
    Ok(())
}

fn unknown_user() -> Outcome {
    let scene = Scene::role(&["user", "user=no-such-user-here"])?;
    let error = scene.expect("refused")?;
    ensure!(error.contains("no-such-user-here"), "{error}");
    scene.close()
}

/// On or refused, and never taken for on.
fn async_teardown() -> Outcome {
    let options: RunWith = "async-teardown=on".parse()?;
    let prepared = options.prepare();
    ensure!(
        prepared.is_ok() == captive::async_teardown::is_supported(),
        "supported: {}, prepared: {}",
        captive::async_teardown::is_supported(),
        prepared.is_ok()
    );
    Ok(())
}

fn nobody() -> Result<nix::unistd::User, libtest_mimic::Failed> {
    Ok(nix::unistd::User::from_name("nobody")?.ok_or("there is no user nobody")?)
}

fn user() -> Outcome {
    let scene = Scene::role(&["user", "user=nobody"])?;
    let nobody = nobody()?;
    let wanted = format!("uid {} gid {} back false", nobody.uid, nobody.gid);
    let applied = scene.expect("applied")?;
    ensure!(applied.starts_with(&wanted), "{applied}, wanted {wanted}");
    scene.close()
}

fn chroot_and_user() -> Outcome {
    let root = tempfile::tempdir()?;
    let path = root.path().to_str().ok_or("a path")?;
    // Who is nobody looks into the new root.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let scene = Scene::role(&["user", &format!("chroot={path},user=nobody")])?;
    let applied = scene.expect("applied")?;
    ensure!(applied.ends_with("back false entries 0"), "{applied}");
    scene.close()
}
