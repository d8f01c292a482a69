//! The plan: each step made to fail in turn, in a process of its own (the role `captive`) and in
//! run-with, supervising and with `--exec`; and a new root that lies.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::support::process::run_with_path;
use crate::support::{Fallible, HANG, Launched, Need, Outcome, Tag, output, test};

pub fn tests() -> Vec<Trial> {
    const ROOT: &[Need] = &[Need::Root];
    const NEW_ROOT: &[Need] = &[Need::Root, Need::Program("busybox")];
    const TRACED: &[Need] = &[
        Need::Root,
        Need::Program("busybox"),
        Need::Program("strace"),
    ];
    let mut tests = vec![
        test("plan::prepare_errors", &[], prepare_errors),
        test("plan::not_root", ROOT, not_root),
        test("plan::out_of_descriptors", ROOT, out_of_descriptors),
        test("plan::no_way_back", ROOT, no_way_back),
        test("plan::from_a_thread", ROOT, apply_from_a_thread),
        test("plan::symlink_swapped", ROOT, symlink_swapped),
        test("plan::hostile_root_library", TRACED, hostile_root_library),
        test("plan::run_with_refuses", &[], run_with_refuses),
        test(
            "plan::run_with_not_root",
            &[Need::Root, Need::Program("setpriv")],
            run_with_not_root,
        ),
        test("plan::run_with_clone_of_command", TRACED, clone_of_command),
        test("plan::run_with_execve", TRACED, execve),
        test("plan::run_with_bears_it", &[], run_with_bears_it),
    ];
    for case in library_cases() {
        tests.push(test(
            &format!("plan::step_fails_{}", case.name),
            ROOT,
            move || step_fails(&case),
        ));
    }
    for case in run_with_cases() {
        tests.push(test(
            &format!("plan::run_with_fails_{}", case.name),
            ROOT,
            move || run_with_fails(&case),
        ));
    }
    for exec in [false, true] {
        let name = |what: &str| format!("plan::{what}{}", if exec { "_exec" } else { "" });
        tests.extend([
            test(&name("new_root"), NEW_ROOT, move || new_root(exec)),
            test(&name("new_root_by_symlink"), NEW_ROOT, move || {
                new_root_by_symlink(exec)
            }),
            test(&name("hostile_root"), TRACED, move || hostile_root(exec)),
        ]);
    }
    tests
}

// In a process of its own.

/// A system call that answers an errno, and what apply says to that.
struct LibraryCase {
    name: &'static str,
    call: libc::c_long,
    errno: i32,
    /// `INDEX VALUE` of an argument, or any.
    argument: String,
    options: &'static str,
    how: &'static str,
    step: &'static str,
    done: &'static str,
    text: &'static str,
}

const BOTH: &str = "chroot=/tmp,user=65534:65534";
const MOVED: &str = "[Chroot(\"/tmp\"), ChangeDirectory]";

fn library_cases() -> Vec<LibraryCase> {
    let case = |name, call, options, step, done, text| LibraryCase {
        name,
        call,
        errno: libc::EPERM,
        argument: String::new(),
        options,
        how: "",
        step,
        done,
        text,
    };
    vec![
        case(
            "chroot",
            libc::SYS_chroot,
            BOTH,
            "Chroot(\"/tmp\")",
            "[]",
            "chroot to /tmp failed; nothing had been changed: Operation not permitted",
        ),
        case(
            "fchdir",
            libc::SYS_fchdir,
            BOTH,
            "Chroot(\"/tmp\")",
            "[]",
            "chroot to /tmp failed; nothing had been changed: Operation not permitted",
        ),
        case(
            "chdir",
            libc::SYS_chdir,
            BOTH,
            "ChangeDirectory",
            "[Chroot(\"/tmp\")]",
            "chdir to / in the new root failed; done before: chroot to /tmp; the process must end: ",
        ),
        case(
            "setgroups_first",
            libc::SYS_setgroups,
            "user=65534:65534",
            "SetGroups([65534])",
            "[]",
            "setgroups to 65534 failed; nothing had been changed: ",
        ),
        case(
            "setgroups",
            libc::SYS_setgroups,
            BOTH,
            "SetGroups([65534])",
            MOVED,
            "setgroups to 65534 failed; done before: chroot to /tmp, chdir to / in the new root; ",
        ),
        case(
            "setresgid",
            libc::SYS_setresgid,
            "user=65534:4321",
            "SetGid(4321)",
            "[SetGroups([4321])]",
            "setgid to 4321 failed; done before: setgroups to 4321; the process must end: ",
        ),
        case(
            "setresuid",
            libc::SYS_setresuid,
            "user=4321:65534",
            "SetUid(4321)",
            "[SetGroups([65534]), SetGid(65534)]",
            "setuid to 4321 failed; done before: setgroups to 65534, setgid to 65534; ",
        ),
        LibraryCase {
            errno: libc::EAGAIN,
            ..case(
                "clone",
                libc::SYS_clone,
                "async-teardown=on",
                "StartAsyncTeardown",
                "[]",
                "starting async teardown failed; nothing had been changed: ",
            )
        },
        LibraryCase {
            argument: format!("0 {}", libc::PR_SET_PDEATHSIG),
            errno: libc::EINVAL,
            how: "mechanism=signal",
            ..case(
                "prctl",
                libc::SYS_prctl,
                "exit-with-parent=on,user=65534:65534",
                "RearmExitWithParent",
                "[SetGroups([65534]), SetGid(65534), SetUid(65534), ProveDropped]",
                "arming exit-with-parent again failed; done before: setgroups to 65534, setgid to \
                 65534, setuid to 65534, the proof that privileges are gone; the process must end: \
                 setting the parent-death signal TERM failed: Invalid argument",
            )
        },
    ]
}

fn step_fails(case: &LibraryCase) -> Outcome {
    let prepared = |tag: &Tag| -> Fallible<Launched> {
        let mut it = Launched::captive(tag)?;
        it.session.expect("chdir /usr", "done")?;
        it.session.expect(
            &format!("prepare {} {}", case.options, case.how),
            "prepared",
        )?;
        Ok(it)
    };
    let tag = Tag::new();
    let mut it = prepared(&tag)?;
    let before = it.session.ask("state")?;
    it.session.expect(
        &format!("deny {} {} {}", case.call, case.errno, case.argument),
        "denied",
    )?;
    let must_end = case.done != "[]";
    it.session.expect_parts(
        "apply",
        &[
            &format!("step {} done {} must_end {must_end} ", case.step, case.done),
            case.text,
            &std::io::Error::from_raw_os_error(case.errno).to_string(),
        ],
    )?;
    if !must_end {
        it.session.expect("state", &before)?;
    }
    // It is the denial that does it.
    prepared(&tag)?.session.expect("apply", "applied")
}

fn prepare_errors() -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    fs::write(&file, "")?;
    let file = file.display();
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    let before = it.session.ask("state")?;
    for (options, parts) in [
        (
            "chroot=/no/such".to_owned(),
            [
                "error Root { path: \"/no/such\"",
                "opening the new root /no/such as a directory failed: No such file or directory",
            ],
        ),
        (
            format!("chroot={file}"),
            ["error Root", "as a directory failed: Not a directory"],
        ),
        (
            "user=no-such-user".to_owned(),
            [
                "error User(NoSuchUser(",
                "user \"no-such-user\" doesn't exist",
            ],
        ),
        (
            "user=root".to_owned(),
            ["error User(KeepsRoot(", "user \"root\" is root"],
        ),
        (
            "user=0:0".to_owned(),
            ["error User(KeepsRoot(", "user \"0:0\" is root"],
        ),
    ] {
        it.session
            .expect_parts(&format!("prepare {options},exit-with-parent=on"), &parts)?;
        it.session.expect_parts(
            &format!("prepare {options},exit-with-parent=on second"),
            &parts,
        )?;
    }
    it.session.expect_parts(
        "prepare exit-with-parent=on expect=1",
        &["error ExitWithParent(ParentGone"],
    )?;
    // Nothing is changed, and nothing armed.
    it.session.expect("state", &before)?;
    it.session.expect("pdeathsig", "0")?;
    it.kill_launcher()?;
    it.session.expect("state", &before)
}

fn not_root() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session.expect("become 4321", "changed")?;
    let before = it.session.ask("state")?;
    for (options, step) in [
        (BOTH, "Chroot(\"/tmp\")"),
        ("user=nobody", "SetGroups([65534])"),
    ] {
        it.session
            .expect(&format!("prepare {options}"), "prepared")?;
        it.session.expect_parts(
            "apply",
            &[
                &format!("step {step} done [] must_end false "),
                "; nothing had been changed: Operation not permitted",
            ],
        )?;
        it.session.expect("state", &before)?;
    }
    // What needs no right is done.
    it.session
        .expect("prepare exit-with-parent=on", "prepared")?;
    it.session.expect("apply", "applied")?;
    it.kill_launcher()?;
    it.session.ended()
}

/// The threads cannot be looked at afterwards: said before anything is changed, and of that step.
fn out_of_descriptors() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    let before = it.session.ask("state")?;
    it.session.expect(&format!("prepare {BOTH}"), "prepared")?;
    it.session.expect("limit-descriptors 3", "limited")?;
    it.session.expect_parts(
        "apply",
        &[
            "step ProveDropped done [] must_end false ",
            "Too many open files",
        ],
    )?;
    it.session.expect("state", &before)
}

/// A working directory that could not be come back to is not left.
fn no_way_back() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session.expect("chdir /usr", "done")?;
    let before = it.session.ask("state")?;
    it.session.expect("prepare chroot=/tmp", "prepared")?;
    it.session
        .expect(&format!("deny {} 1", libc::SYS_chroot), "denied")?;
    it.session.expect("limit-descriptors 3", "limited")?;
    it.session
        .expect_parts("apply", &["step Chroot(\"/tmp\") done [] must_end false "])?;
    it.session.expect("state", &before)
}

/// Root and ids are the process's, whichever thread applies.
fn apply_from_a_thread() -> Outcome {
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    let dir = public_dir()?;
    fs::write(dir.path().join("marker"), "")?;
    let chroot = dir.path().display();
    it.session
        .expect(&format!("prepare chroot={chroot},user=nobody"), "prepared")?;
    it.session.expect("apply-in-thread", "applied")?;
    it.session.expect("exists /marker", "true")?;
    it.session.expect("exists marker", "true")?;
    it.session
        .expect_parts("state", &["real: Uid(65534)", "groups [Gid(65534)]"])
}

fn symlink_swapped() -> Outcome {
    let dir = public_dir()?;
    let link = dir.path().join("link");
    for name in ["before", "after"] {
        fs::create_dir(dir.path().join(name))?;
        fs::write(dir.path().join(name).join(name), "")?;
    }
    symlink("before", &link)?;
    let tag = Tag::new();
    let mut it = Launched::captive(&tag)?;
    it.session
        .expect(&format!("prepare chroot={}", link.display()), "prepared")?;
    fs::remove_file(&link)?;
    symlink("after", &link)?;
    it.session.expect("apply", "applied")?;
    it.session.expect("exists /before", "true")?;
    it.session.expect("exists /after", "false")
}

// run-with.

fn said(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim_end().to_owned()
}

/// Says one thing, with status 125, and leaves nothing behind.
fn refuses(tag: &Tag, command: &mut Command, expected: &str) -> Outcome {
    let out = output(command)?;
    let stderr = said(&out.stderr);
    ensure!(
        out.status.code() == Some(125),
        "{}: {stderr:?} for {command:?}",
        out.status
    );
    ensure!(
        stderr.starts_with("run-with: ") && stderr.contains(expected),
        "{stderr:?} has no {expected:?}"
    );
    ensure!(!stderr.contains('\n'), "{stderr:?}");
    let left = tag.survivors(HANG);
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

const MODES: [&[&str]; 2] = [&[], &["--exec"]];

fn run_with_refuses() -> Outcome {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    fs::write(&file, "")?;
    for mode in MODES {
        for (options, message) in [
            (
                "chroot=/no/such".to_owned(),
                "opening the new root /no/such as a directory failed: No such file or directory",
            ),
            (
                format!("chroot={}", file.display()),
                "as a directory failed: Not a directory",
            ),
            (
                "user=no-such-user".to_owned(),
                "user \"no-such-user\" doesn't exist (and is not uid:gid)",
            ),
            (
                "user=root".to_owned(),
                "user \"root\" is root: nothing would be dropped",
            ),
            (
                "user=0:5".to_owned(),
                "user \"0:5\" is root: nothing would be dropped",
            ),
        ] {
            let tag = Tag::new();
            let mut command = tag.run_with();
            command.args(mode).arg(options).args(["--", "echo", "ran"]);
            refuses(&tag, &mut command, message)?;
        }
    }
    Ok(())
}

fn run_with_not_root() -> Outcome {
    // Where another user may execute it.
    let dir = public_dir()?;
    let program = dir.path().join("run-with");
    fs::copy(run_with_path(), &program)?;
    for mode in MODES {
        for (options, message) in [
            (
                BOTH,
                "chroot to /tmp failed; nothing had been changed: Operation not permitted",
            ),
            (
                "user=nobody",
                "setgroups to 65534 failed; nothing had been changed: Operation not permitted",
            ),
        ] {
            let tag = Tag::new();
            let mut command = tag.command("setpriv");
            command
                .args(["--reuid=4321", "--regid=4321", "--clear-groups"])
                .arg(&program)
                .args(mode)
                .args([options, "--", "echo", "ran"]);
            refuses(&tag, &mut command, message)?;
        }
    }
    Ok(())
}

/// A system call that answers an errno, and what run-with says to that.
struct RunWithCase {
    name: &'static str,
    call: libc::c_long,
    argument: Option<(u32, i32)>,
    errno: i32,
    options: &'static str,
    supervised: Option<&'static str>,
    exec: Option<&'static str>,
}

fn run_with_cases() -> Vec<RunWithCase> {
    let case = |name, call, errno, options, message| RunWithCase {
        name,
        call,
        argument: None,
        errno,
        options,
        supervised: Some(message),
        exec: Some(message),
    };
    let supervised = |name, call, errno, options, message| RunWithCase {
        exec: None,
        ..case(name, call, errno, options, message)
    };
    const BOUND: &str = "exit-with-parent=on";
    vec![
        case(
            "chroot",
            libc::SYS_chroot,
            libc::EPERM,
            BOTH,
            "chroot to /tmp failed; nothing had been changed: Operation not permitted",
        ),
        case(
            "chdir",
            libc::SYS_chdir,
            libc::EACCES,
            BOTH,
            "chdir to / in the new root failed; done before: chroot to /tmp; the process must \
             end: Permission denied",
        ),
        case(
            "setgroups",
            libc::SYS_setgroups,
            libc::EPERM,
            BOTH,
            "setgroups to 65534 failed; done before: chroot to /tmp, chdir to / in the new root; \
             the process must end: Operation not permitted",
        ),
        case(
            "setresgid",
            libc::SYS_setresgid,
            libc::EPERM,
            "user=65534:4321",
            "setgid to 4321 failed; done before: setgroups to 4321; the process must end: ",
        ),
        case(
            "setresuid",
            libc::SYS_setresuid,
            libc::EAGAIN,
            "user=4321:65534",
            "setuid to 4321 failed; done before: setgroups to 65534, setgid to 65534; the \
             process must end: Resource temporarily unavailable",
        ),
        // Successes that did nothing.
        case(
            "setgroups_in_silence",
            libc::SYS_setgroups,
            0,
            "user=nobody",
            "the proof that privileges are gone failed; done before: ",
        ),
        case(
            "setresgid_in_silence",
            libc::SYS_setresgid,
            0,
            "user=nobody",
            "the proof that privileges are gone failed; done before: ",
        ),
        case(
            "setresuid_in_silence",
            libc::SYS_setresuid,
            0,
            "user=nobody",
            "the proof that privileges are gone failed; done before: ",
        ),
        supervised(
            "clone",
            libc::SYS_clone,
            libc::EAGAIN,
            "user=nobody",
            "clone: EAGAIN",
        ),
        supervised(
            "clone_of_guard",
            libc::SYS_clone,
            libc::EAGAIN,
            BOUND,
            "starting the guard: EAGAIN",
        ),
        RunWithCase {
            argument: Some((0, libc::PR_SET_PDEATHSIG)),
            exec: Some("setting the parent-death signal TERM failed: Invalid argument"),
            ..case(
                "pdeathsig",
                libc::SYS_prctl,
                libc::EINVAL,
                BOUND,
                "PR_SET_PDEATHSIG: EINVAL",
            )
        },
        supervised(
            "pidfd_open",
            libc::SYS_pidfd_open,
            libc::ENOSYS,
            BOUND,
            "opening a pidfd on the parent ",
        ),
        supervised(
            "pidfd_open_refused",
            libc::SYS_pidfd_open,
            libc::EPERM,
            BOUND,
            "failed: Operation not permitted",
        ),
        RunWithCase {
            argument: Some((3, libc::MAP_SHARED | libc::MAP_ANONYMOUS)),
            ..supervised("page", libc::SYS_mmap, libc::ENOMEM, BOUND, "mmap: ENOMEM")
        },
        supervised(
            "signalfd",
            libc::SYS_signalfd4,
            libc::EMFILE,
            BOUND,
            "taking over the signals: EMFILE",
        ),
    ]
}

fn denied(tag: &Tag, case: &RunWithCase) -> Command {
    let mut command = tag.role("denied");
    let (index, value) = case.argument.map_or(("-".to_owned(), 0), |(index, value)| {
        (index.to_string(), value)
    });
    command.args([
        case.call.to_string(),
        case.errno.to_string(),
        index,
        value.to_string(),
        run_with_path().to_owned(),
    ]);
    command
}

fn run_with_fails(case: &RunWithCase) -> Outcome {
    for (mode, message) in [(MODES[0], case.supervised), (MODES[1], case.exec)] {
        let Some(message) = message else { continue };
        let tag = Tag::new();
        let mut command = denied(&tag, case);
        command
            .args(mode)
            .arg(case.options)
            .args(["--", "/bin/echo", "ran"]);
        refuses(&tag, &mut command, message)?;
    }
    Ok(())
}

/// What old kernels and containers lack, and run-with can do without.
fn run_with_bears_it() -> Outcome {
    for (call, errno, argument) in [
        (
            libc::SYS_prctl,
            libc::EINVAL,
            Some((0, libc::PR_SET_NO_NEW_PRIVS)),
        ),
        (libc::SYS_prctl, libc::EPERM, Some((0, libc::PR_SET_NAME))),
        (libc::SYS_setsid, libc::EPERM, None),
        (libc::SYS_close_range, libc::ENOSYS, None),
        (libc::SYS_close_range, libc::EPERM, None),
    ] {
        for mode in MODES {
            let case = RunWithCase {
                name: "",
                call,
                argument,
                errno,
                options: "exit-with-parent=on",
                supervised: None,
                exec: None,
            };
            let tag = Tag::new();
            let mut command = denied(&tag, &case);
            command.args(mode).args([case.options, "--", "echo", "ran"]);
            let out = output(&mut command)?;
            let stderr = said(&out.stderr);
            ensure!(
                out.status.success() && out.stdout == b"ran\n" && stderr.is_empty(),
                "call {call}: {} {stderr}",
                out.status
            );
            let left = tag.survivors(HANG);
            ensure!(left.is_empty(), "{left:?}");
        }
    }
    Ok(())
}

/// The second clone of run-with, after its guard's.
fn clone_of_command() -> Outcome {
    let tag = Tag::new();
    let mut command = tag.command("strace");
    command.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=clone:error=EAGAIN:when=2",
    ]);
    command.args([run_with_path(), "exit-with-parent=on", "--", "echo", "ran"]);
    refuses(&tag, &mut command, "clone: EAGAIN")
}

fn execve() -> Outcome {
    for mode in MODES {
        for (errno, status, text) in [
            ("EIO", 126, "/bin/echo: Input/output error"),
            ("ENOENT", 127, "/bin/echo: No such file or directory"),
        ] {
            let tag = Tag::new();
            let mut command = tag.command("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-P", "/bin/echo", "-e"]);
            command.arg(format!("inject=execve:error={errno}"));
            command.arg(run_with_path()).args(mode);
            command.args(["exit-with-parent=on", "--", "/bin/echo", "ran"]);
            let out = output(&mut command)?;
            let stderr = said(&out.stderr);
            ensure!(
                out.status.code() == Some(status) && stderr.contains(text),
                "{} {stderr}",
                out.status
            );
            let left = tag.survivors(HANG);
            ensure!(left.is_empty(), "{left:?}");
        }
    }
    Ok(())
}

// A new root.

/// A directory that every user may enter.
fn public_dir() -> Fallible<TempDir> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// A root with one program, which is in a directory that is nowhere else.
fn root_with_busybox() -> Fallible<TempDir> {
    let dir = public_dir()?;
    let bin = dir.path().join("inside/bin");
    fs::create_dir_all(&bin)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let busybox: PathBuf = std::env::split_paths(&path)
        .map(|dir| dir.join("busybox"))
        .find(|file| file.is_file())
        .ok_or("no busybox")?;
    fs::copy(busybox, bin.join("sh"))?;
    Ok(dir)
}

/// run-with into a root and to nobody, with a script for its shell.
fn run_inside(tag: &Tag, exec: bool, root: &Path, script: &str) -> Command {
    let mut command = tag.run_with();
    if exec {
        command.arg("--exec");
    }
    command
        .arg(format!("chroot={},user=nobody", root.display()))
        .args(["--", "sh", "-c", script])
        .env("PATH", "/inside/bin");
    command
}

fn new_root(exec: bool) -> Outcome {
    let root = root_with_busybox()?;
    let tag = Tag::new();
    let script = "pwd; pwd -P; echo *; echo $HOME $USER $LOGNAME $PATH; exec sh -c 'echo nested'";
    let mut command = run_inside(&tag, exec, root.path(), script);
    command
        .current_dir("/usr")
        .env("HOME", "/a/home")
        .env("USER", "somebody")
        .env("LOGNAME", "somebody-else");
    let out = output(&mut command)?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(
        stdout == "/\n/\ninside\n/a/home somebody somebody-else /inside/bin\nnested\n",
        "{stdout:?} {}",
        said(&out.stderr)
    );
    // PATH means the new root: what is only outside is not found.
    let mut command = run_inside(&tag, exec, root.path(), "");
    command.env("PATH", "/bin:/usr/bin");
    let out = output(&mut command)?;
    ensure!(out.status.code() == Some(127), "{}", out.status);
    Ok(())
}

fn new_root_by_symlink(exec: bool) -> Outcome {
    let root = root_with_busybox()?;
    let dir = public_dir()?;
    let link = dir.path().join("link");
    symlink(root.path(), &link)?;
    let tag = Tag::new();
    let out = output(&mut run_inside(&tag, exec, &link, "echo *"))?;
    ensure!(out.stdout == b"inside\n", "{}", said(&out.stderr));
    Ok(())
}

/// A root in which nobody is root, and names are looked up by a library of the root's own.
fn make_hostile(root: &Path) -> Outcome {
    fs::create_dir(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "nobody:x:0:0::/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "nogroup:x:0:nobody\n")?;
    fs::write(
        root.join("etc/nsswitch.conf"),
        "passwd: captive\ngroup: captive\ninitgroups: captive\n",
    )?;
    for dir in ["lib", "lib64", "usr/lib", "lib/x86_64-linux-gnu"] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("libnss_captive.so.2"), "not even a library")?;
        fs::write(dir.join("libnss_files.so.2"), "not even a library")?;
    }
    Ok(())
}

/// What was done between chroot and the command's exec (or to the end), and what came before.
fn split_trace(trace: &str) -> Fallible<(Vec<String>, Vec<String>)> {
    let mut before = Vec::new();
    let mut inside = Vec::new();
    let mut who = None;
    for line in trace.lines() {
        let (pid, call) = line.split_once(' ').ok_or("no pid")?;
        let call = call.trim_start().to_owned();
        match who {
            None if call.starts_with("chroot(") => who = Some(pid.to_owned()),
            None => before.push(call),
            Some(ref who) if who != pid => {}
            Some(_) if call.starts_with("execve(\"/inside") => break,
            Some(_) => inside.push(call),
        }
    }
    ensure!(who.is_some(), "no chroot in {trace}");
    Ok((before, inside))
}

/// Nothing of the new root was opened, and what was looked up was looked up outside.
fn looked_up_outside(trace: &str, root: &Path) -> Outcome {
    let (before, inside) = split_trace(trace)?;
    let opens = |call: &&String| call.starts_with("open") || call.starts_with("connect(");
    let path = root.display().to_string();
    let of_root: Vec<_> = before.iter().filter(|call| call.contains(&path)).collect();
    // The arguments, and the directory itself.
    let opened: Vec<_> = of_root
        .iter()
        .filter(|call| !call.starts_with("execve("))
        .collect();
    ensure!(
        matches!(opened[..], [one] if one.contains("O_PATH") && one.contains(&format!("\"{path}\""))),
        "{of_root:?}"
    );
    let outer = |call: &String| call.starts_with("open") && call.contains("\"/etc/passwd\"");
    ensure!(before.iter().any(outer), "no look-up in {before:?}");
    // The threads, relative to a descriptor of /proc/self/task.
    let strange: Vec<_> = inside
        .iter()
        .filter(opens)
        .filter(|call| !call.contains("/status\""))
        .collect();
    ensure!(strange.is_empty(), "{strange:?}");
    ensure!(!trace.contains("libnss_captive"), "the root's library");
    Ok(())
}

fn hostile_root(exec: bool) -> Outcome {
    let root = root_with_busybox()?;
    make_hostile(root.path())?;
    let log = tempfile::NamedTempFile::new()?;
    let tag = Tag::new();
    let script = "read -r line < /etc/passwd; echo \"$line\"; while read -r key value; do case \
                  $key in Uid:|Gid:|Groups:) echo $key $value;; esac; done < /proc/self/status";
    let inner = run_inside(&tag, exec, root.path(), script);
    // What the command is shown of itself.
    let proc = root.path().join("proc");
    fs::create_dir(&proc)?;
    let mut command = tag.command("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg("mount -t proc proc \"$0\" && exec \"$@\"");
    command.arg(&proc);
    command.args(["strace", "-f", "-qq", "-s", "200", "-E", "PATH=/inside/bin"]);
    command.args(["-e", "trace=%file,%network,fchdir", "-o"]);
    command
        .arg(log.path())
        .arg(run_with_path())
        .args(inner.get_args());
    let out = output(&mut command)?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(
        stdout
            == "nobody:x:0:0::/:/bin/sh\nUid: 65534 65534 65534 65534\nGid: 65534 65534 65534 \
                65534\nGroups: 65534\n",
        "{stdout:?} {}",
        said(&out.stderr)
    );
    looked_up_outside(&fs::read_to_string(log.path())?, root.path())
}

fn hostile_root_library() -> Outcome {
    let root = public_dir()?;
    make_hostile(root.path())?;
    let log = tempfile::NamedTempFile::new()?;
    let file = log.path().to_str().ok_or("a path")?;
    let tag = Tag::new();
    let between = [
        "strace",
        "-f",
        "-qq",
        "-s",
        "200",
        "-e",
        "trace=%file,%network",
        "-o",
        file,
    ];
    let mut it = Launched::through(&tag, &between)?;
    let chroot = root.path().display();
    it.session.expect(
        &format!("prepare chroot={chroot},user=nobody,async-teardown=on,exit-with-parent=on"),
        "prepared",
    )?;
    it.session.expect("apply", "applied")?;
    it.session.tell("exit 0")?;
    it.session.ended()?;
    looked_up_outside(&fs::read_to_string(log.path())?, root.path())
}
