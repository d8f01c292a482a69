//! What `--tree` would use: concluded, since a try would make a process or a directory.

use std::fs;

use super::super::tree;
use super::{Offer, is_at_least, missing, offer};

const CAP_SYS_ADMIN: u32 = 21;

/// `--tree`, then each mechanism. `lacking`: what run-with and its guard lack to end a command.
pub(super) fn offers(lacking: Option<&str>, release: Option<&str>) -> Vec<Offer> {
    let since = |major, minor| {
        let old = release.is_some_and(|release| !is_at_least(release, major, minor));
        old.then(|| format!("needs Linux {major}.{minor}"))
    };
    let helper = (!tree::IS_BUILT)
        .then_some("this build has no helper program")
        .or(lacking)
        .map(str::to_owned);
    let pid = helper
        .clone()
        .or_else(|| missing(&[(CAP_SYS_ADMIN, "CAP_SYS_ADMIN")]))
        .or_else(|| since(5, 8));
    let user = helper
        .clone()
        .or_else(user_namespaces)
        .or_else(|| since(5, 8));
    let cgroup = helper
        .or_else(|| tree::own_cgroup().err())
        .or_else(|| since(5, 14));
    let root = nix::unistd::geteuid().is_root();
    let (refusal, chosen) = match (&pid, &user) {
        (None, _) => (None, "pid-namespace"),
        (_, None) if !root => (None, "user-namespace"),
        _ => (
            Some(
                "no mechanism that cannot be left, unless the command has another user and \
                 run-with's cgroup is not that one's"
                    .to_owned(),
            ),
            "",
        ),
    };
    vec![
        offer("--tree", refusal, chosen),
        offer(
            "--tree-by pid-namespace",
            pid,
            "clone with CLONE_NEWPID, setns (Linux 5.8; not tried, that would make a process)",
        ),
        offer(
            "--tree-by user-namespace",
            user,
            "the same with CLONE_NEWUSER (not tried: a security module may still refuse it)",
        ),
        offer(
            "--tree-by cgroup",
            cgroup,
            "a directory in run-with's own cgroup, cgroup.kill (Linux 5.14)",
        ),
    ]
}

/// Why users cannot make them; user_namespaces(7), and two distributions' own settings.
fn user_namespaces() -> Option<String> {
    let is = |path: &str, value: &str| {
        fs::read_to_string(path)
            .is_ok_and(|text| text.trim_end() == value)
            .then(|| format!("{path} is {value}"))
    };
    let privileged = missing(&[(CAP_SYS_ADMIN, "CAP_SYS_ADMIN")]).is_none();
    is("/proc/sys/user/max_user_namespaces", "0").or_else(|| {
        if privileged {
            return None;
        }
        is("/proc/sys/kernel/unprivileged_userns_clone", "0").or_else(|| {
            is(
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1",
            )
        })
    })
}
