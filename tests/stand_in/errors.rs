//! Launches that fail or stall: the step, and that nothing is left.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use captive::Command;
use captive::launcher::{CommandExt, Resource, SpawnError, SpawnStep, Stdio};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::libc;

use crate::ensure;
use crate::processes::{await_that, children, descriptors};
use crate::roles::{Process, sh, trials};
use crate::scene::Outcome;

pub fn tests() -> Vec<Trial> {
    trials(PROCESSES)
}

pub const PROCESSES: &[Process] = &[
    ("errors::steps", false, steps),
    ("errors::plan", true, plan),
    ("errors::new_root", true, new_root),
    ("errors::only_linux", false, only_linux),
    ("errors::stall", true, stall),
    ("errors::no_time", false, no_time),
    ("errors::no_processes", true, no_processes),
];

fn nothing_is_left() -> Outcome {
    await_that("the end of all children", || children().is_empty())
}

fn steps() -> Outcome {
    type Change = fn(&mut Command);
    let cases: [(SpawnStep, i32, Change); 7] = [
        (SpawnStep::ProcessGroup(1), libc::EPERM, |command| {
            command.process_group(1);
        }),
        (SpawnStep::ControllingTerminal, libc::ENOTTY, |command| {
            command.controlling_terminal(File::open("/dev/null").expect("opened"));
        }),
        (SpawnStep::Descriptor(1 << 30), libc::EBADF, |command| {
            command.descriptor(File::open("/dev/null").expect("opened"), 1 << 30);
        }),
        (
            SpawnStep::ChangeDirectory("/nonexistent".into()),
            libc::ENOENT,
            |command| {
                command.current_dir("/nonexistent");
            },
        ),
        (
            SpawnStep::ResourceLimit(Resource::CPU),
            libc::EINVAL,
            |command| {
                command.resource_limit(Resource::CORE, 0, 0);
                command.resource_limit(Resource::CPU, 2, 1);
            },
        ),
        (SpawnStep::Exec, libc::E2BIG, |command| {
            command.arg("x".repeat(1 << 18));
        }),
        (SpawnStep::Exec, libc::ENOENT, |command| {
            command.env("PATH", "/nonexistent");
        }),
    ];
    sh("exit 0").status()?;
    nothing_is_left()?;
    for (step, errno, change) in cases {
        let before = descriptors();
        let mut command = Command::new("true");
        change(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        match command.spawn() {
            Err(SpawnError::Step {
                step: found,
                errno: why,
                ..
            }) => {
                ensure!(found == step, "{found:?}, not {step:?}");
                ensure!(why.raw_os_error() == Some(errno), "{step:?}: {why}");
            }
            other => return Err(format!("{step:?}: {other:?}").into()),
        }
        nothing_is_left()?;
        // With what it held for the captive.
        drop(command);
        await_that("as many descriptors as before", || descriptors() == before)?;
    }
    Ok(())
}

/// A step of the plan has its own name.
fn plan() -> Outcome {
    nix::unistd::setgid(65534.into())?;
    nix::unistd::setuid(65534.into())?;
    let mut command = Command::new("true");
    command.run_with("user=0:0".parse()?);
    let spawned = command.spawn();
    ensure!(spawned.is_err(), "{spawned:?}");
    let mut command = Command::new("true");
    command.run_with("user=65533:65533".parse()?);
    match command.spawn() {
        Err(SpawnError::Step {
            step: SpawnStep::RunWith(step),
            errno,
            ..
        }) => {
            ensure!(step.to_string().starts_with("setgroups"), "{step}");
            ensure!(errno.raw_os_error() == Some(libc::EPERM), "{errno}");
        }
        other => return Err(format!("{other:?}").into()),
    }
    nothing_is_left()
}

/// The new root's descriptor is none of those that the captive is given, and is not there after its exec.
fn new_root() -> Outcome {
    let root = tempfile::tempdir()?;
    std::fs::copy("/bin/busybox", root.path().join("busybox"))
        .or_else(|_| std::fs::copy("/usr/bin/busybox", root.path().join("busybox")))?;
    std::fs::create_dir(root.path().join("inside"))?;
    std::fs::set_permissions(
        root.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    for lowest in 3..12 {
        let mut command = Command::new("/busybox");
        command.args(["sh", "-c", "pwd; echo *; read line <&9 && echo $line; for fd in 3 4 5 6 7 8 10 11 12 13 14 15; do (: <&$fd) 2>/dev/null && echo open $fd; done; id -u"]);
        command.current_dir("/inside");
        let given = tempfile::tempfile()?;
        std::io::Write::write_all(&mut &given, b"given\n")?;
        std::io::Seek::seek(&mut &given, std::io::SeekFrom::Start(0))?;
        command.descriptor(given, 9);
        // The numbers that a descriptor is opened with next.
        let holders: Result<Vec<File>, _> = (0..lowest).map(|_| File::open("/dev/null")).collect();
        let holders = holders?;
        let path = root.path().to_str().ok_or("a path")?;
        command.run_with(format!("chroot={path},user=65534:65534").parse()?);
        let output = command.output()?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(said == "/inside\n*\ngiven\n65534\n", "{said:?}");
        drop(holders);
    }
    nothing_is_left()
}

fn only_linux() -> Outcome {
    let mut network = sh("exit 0");
    network.network_namespace(File::open("/proc/self/ns/net")?);
    let mut group = sh("exit 0");
    group.cgroup("/sys/fs/cgroup");
    let mut order = sh("exit 0");
    order.order(1);
    for (mut command, word) in [(network, "network"), (group, "cgroup"), (order, "order")] {
        match command.spawn() {
            Err(SpawnError::Invalid { what, .. }) => ensure!(what.contains(word), "{what}"),
            other => return Err(format!("{word}: {other:?}").into()),
        }
    }
    let teardown = sh("exit 0").run_with("async-teardown=on".parse()?).spawn();
    ensure!(teardown.is_err(), "{teardown:?}");
    match std::process::Command::new("true").spawn_captive() {
        Err(SpawnError::Unsupported(_)) => {}
        other => return Err(format!("{other:?}").into()),
    }
    nothing_is_left()
}

/// A mount that nobody serves: who looks into it waits.
struct DeadMount {
    directory: tempfile::TempDir,
    device: Option<File>,
}

impl DeadMount {
    /// In a mount namespace of this process's own.
    fn new() -> Result<Self, libtest_mimic::Failed> {
        let directory = tempfile::tempdir()?;
        // SAFETY: no pointers; this process's threads share what is changed, as they should.
        Errno::result(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE, c"")?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = CString::new(format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        ))?;
        let path = CString::new(directory.path().as_os_str().as_encoded_bytes())?;
        mount(c"captive", &path, c"fuse", 0, &options)?;
        Ok(Self {
            directory,
            device: Some(device),
        })
    }
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
    options: &CStr,
) -> Result<(), Errno> {
    // SAFETY: NUL-terminated strings.
    let answer = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    Errno::result(answer).map(drop)
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        // Whoever still waits there gets an error.
        drop(self.device.take());
        let path = self.directory.path().as_os_str().as_encoded_bytes();
        let path = CString::new(path).expect("a path");
        // SAFETY: a NUL-terminated string.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A launch that stalls says where, holds up no other, and leaves nothing.
fn stall() -> Outcome {
    let mount = DeadMount::new()?;
    sh("exit 0").status()?;
    nothing_is_left()?;
    let before = descriptors();
    let limit = Duration::from_millis(300);
    let directory = mount.directory.path().join("directory");
    let mut there = Command::new("true");
    there.current_dir(&directory).spawn_timeout(limit);
    let mut program = Command::new(mount.directory.path().join("program"));
    program.spawn_timeout(limit);
    let mut another = Command::new(mount.directory.path().join("program"));
    another
        .spawn_timeout(limit)
        .run_with("user=65534:65534".parse()?);
    for (mut command, step) in [
        (there, SpawnStep::ChangeDirectory(directory)),
        (program, SpawnStep::Exec),
        (another, SpawnStep::Exec),
    ] {
        let since = Instant::now();
        let error = std::thread::scope(|scope| {
            let error = scope.spawn(|| command.spawn());
            let mut count = 0;
            while !error.is_finished() {
                sh("exit 0").status()?;
                count += 1;
            }
            if count == 0 {
                return Err("it held up the others".into());
            }
            error
                .join()
                .map_err(|_| libtest_mimic::Failed::from("a panic"))
        })?;
        ensure!(
            since.elapsed() < Duration::from_secs(5),
            "after {:?}",
            since.elapsed()
        );
        match error {
            Err(SpawnError::Stalled {
                step: found, after, ..
            }) => {
                ensure!(found == step && after == limit, "{found:?} after {after:?}");
            }
            other => return Err(format!("{step:?}: {other:?}").into()),
        }
        nothing_is_left()?;
    }
    await_that("as many descriptors as before", || descriptors() == before)
}

fn no_time() -> Outcome {
    for limit in [Duration::ZERO, Duration::from_micros(200), Duration::MAX] {
        for _ in 0..20 {
            match Command::new("true").spawn_timeout(limit).spawn() {
                Ok(captive) => ensure!(captive.wait()?.success(), "{captive:?}"),
                Err(SpawnError::Stalled { after, .. }) if after == limit => {}
                Err(error) => return Err(format!("{error:?}").into()),
            }
        }
    }
    nothing_is_left()
}

/// A user with room for no other process, and for one: the supervisor, and no captive.
fn no_processes() -> Outcome {
    // A user of whom there is no other process.
    let user = 64001;
    nix::unistd::setgid(user.into())?;
    nix::unistd::setuid(user.into())?;
    sh("exit 0").status()?;
    nothing_is_left()?;
    // This thread and the reaper.
    for (room, step) in [(2, SpawnStep::StartSupervisor), (3, SpawnStep::Fork)] {
        let limit = nix::sys::resource::Resource::RLIMIT_NPROC;
        let (_, hard) = nix::sys::resource::getrlimit(limit)?;
        nix::sys::resource::setrlimit(limit, room, hard)?;
        match sh("exit 0").spawn() {
            Err(SpawnError::Step {
                step: found, errno, ..
            }) => {
                ensure!(found == step, "{found:?}, not {step:?}");
                ensure!(errno.raw_os_error() == Some(libc::EAGAIN), "{errno}");
            }
            other => return Err(format!("{step:?}: {other:?}").into()),
        }
        nothing_is_left()?;
    }
    Ok(())
}
