//! What a test needs of the machine. Not there: a skip on a laptop, a failure under `CI=true`.

use std::path::{Path, PathBuf};

use libtest_mimic::Trial;

use super::appliance::appliance;
use super::{Outcome, cgroups};

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Effective uid 0.
    Root,
    /// A program on PATH; `tests/run` installs it.
    Program(&'static str),
    /// An example, built beside the tests: `cargo test --all-features` builds them all, `--test it`
    /// none.
    Example(&'static str),
    /// What `tests/appliance/build` makes; `tests/run` runs it.
    Appliance,
    /// A test that takes long: run under `CAPTIVE_LONG=1` only, skipped otherwise, under CI too.
    Long,
    /// Cgroups of version 2, which this process may make below its own, with `cgroup.kill` (Linux 5.14).
    Cgroups,
    /// Cgroups that this controller limits, of either version.
    Controller(&'static str),
    /// Cgroups of version 2 that this controller limits.
    Controller2(&'static str),
    /// PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9.
    GroupSignal,
    /// The controller `freezer`, which is of version 1 only, with cgroups that this process may make.
    Freezer,
    /// A machine that is not emulated (tests/guest): there, some loops in the kernel take minutes.
    Native,
    /// User namespaces for those who are not root.
    UserNamespaces,
    /// glibc: its clone(2) makes threads (musl's refuses CLONE_THREAD), and small pieces of memory take no mmap(2).
    Glibc,
    /// A core dump ends one process, not all that share its memory: Linux 5.16.
    DumpOfOne,
}

impl Need {
    fn is_met(self) -> bool {
        match self {
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Program(name) => find_program(name),
            Self::Example(name) => example(name).is_file(),
            Self::Appliance => appliance().join("initrd").is_file(),
            Self::Long => std::env::var_os("CAPTIVE_LONG").is_some_and(|v| v == "1"),
            Self::Cgroups => cgroups::Group::new(cgroups::version_2(), &[])
                .is_ok_and(|group| group.0.join("cgroup.kill").exists()),
            Self::Controller(name) => cgroups::limited_by(name).is_some(),
            Self::Controller2(name) => cgroups::Group::new(cgroups::limited_by(name), &[])
                .is_ok_and(|group| group.is_of_version_2()),
            Self::GroupSignal => group_signal(),
            Self::Freezer => cgroups::Group::new(cgroups::version_1("freezer"), &[]).is_ok(),
            Self::Native => std::env::var_os("CAPTIVE_EMULATED").is_none(),
            Self::UserNamespaces => user_namespaces(),
            Self::Glibc => cfg!(target_env = "gnu"),
            Self::DumpOfOne => is_at_least((5, 16)),
        }
    }
}

impl Need {
    /// Whether another part of the same run of `tests/run`, or its long form, is where the test is run: the guest
    /// with cgroups of version 2 alone, `tests/guest/run x86_64`; here, not by `.ci/musl`.
    fn is_met_elsewhere(&self) -> bool {
        let in_a_guest = std::env::var_os("CAPTIVE_EMULATED").is_some();
        matches!(self, Self::Long | Self::Glibc)
            || (matches!(self, Self::Controller2(_)) && !in_a_guest)
    }
}

fn group_signal() -> bool {
    let all_of_a_group = 4; // PIDFD_SIGNAL_PROCESS_GROUP
    let tried = super::Witness::of(std::process::id() as i32)
        .and_then(|own| own.try_signal(0, all_of_a_group));
    // ESRCH: we lead no group. EINVAL: the flag is not known.
    tried.map_or_else(|error| error.raw_os_error() == Some(libc::ESRCH), |()| true)
}

fn is_at_least(wanted: (u32, u32)) -> bool {
    let system = nix::sys::utsname::uname().expect("uname");
    let mut numbers = system
        .release()
        .to_str()
        .expect("a release")
        .split('.')
        .map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()) >= Some(wanted)
}

/// What the usual three settings say; a kernel does not have them all.
fn user_namespaces() -> bool {
    let is = |path: &str, value: &str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
    };
    !is("/proc/sys/user/max_user_namespaces", "0")
        && !is("/proc/sys/kernel/unprivileged_userns_clone", "0")
        && !is(
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
        )
}

fn find_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| Path::new(&dir).join(name).is_file())
}

/// Where cargo puts an example: `target/PROFILE/examples`, beside the tests' `deps`.
pub fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("/proc");
    let profile = tests.parent().and_then(Path::parent).expect("deps");
    profile.join("examples").join(name)
}

/// A test by name, with what it needs.
pub fn test(
    name: &str,
    needs: &'static [Need],
    body: impl FnOnce() -> Outcome + Send + 'static,
) -> Trial {
    let missing: Vec<Need> = needs
        .iter()
        .copied()
        .filter(|need| !need.is_met())
        .collect();
    let ci = std::env::var_os("CI").is_some_and(|v| v == "true");
    let run_elsewhere = missing.iter().all(Need::is_met_elsewhere);
    if missing.is_empty() || (ci && !run_elsewhere) {
        Trial::test(name.to_owned(), move || {
            if !missing.is_empty() {
                return Err(format!("this machine lacks what the test needs: {missing:?}").into());
            }
            body().map_err(|error| error.to_string().into())
        })
    } else {
        Trial::test(format!("{name} (needs {missing:?})"), || Ok(())).with_ignored_flag(true)
    }
}
