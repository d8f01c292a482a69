//! What is not run where run-with is the BSDs', with Linux's calls standing in for theirs (`.ci/stand-in`), and why. All
//! others are run: a test that is added is, until it is named here.

use libtest_mimic::Trial;

/// Beginnings of names, and why they are left out.
const NOT: &[(&str, &str)] = &[
    ("arming::", "the library"),
    ("captives::", "the launcher"),
    ("degraded::", "other Linux systems"),
    ("examples::", "the library and the launcher"),
    ("generated::", "the same text on every system"),
    ("grammar::", "the library, but for the help"),
    ("peers::", "measures Linux's programs"),
    ("privileges::", "the library"),
    ("qemu::", "the library"),
    ("teardown::", "async teardown is Linux's"),
    ("threads::", "the library, but for what races:: has as well"),
    ("server::", "--server is not on these systems"),
    // run-with's own.
    ("hardening::claim_of_", "held at Linux's own system calls"),
    ("mechanisms::", "names Linux's mechanisms"),
    (
        "namespaces::",
        "PID namespaces, and pidfds as the parent's descriptor",
    ),
    ("plan::step_fails_", "the library"),
    ("plan::prepare_errors", "the library"),
    ("plan::not_root", "the library"),
    ("plan::out_of_descriptors", "the library"),
    ("plan::no_way_back", "the library"),
    ("plan::from_a_thread", "the library"),
    ("plan::symlink_swapped", "the library"),
    ("plan::hostile_root_library", "the library"),
    (
        "plan::run_with_clone_of_command",
        "clone with Linux's flags",
    ),
    (
        "plan::run_with_fails_clone",
        "Linux's way to make the command",
    ),
    (
        "plan::run_with_fails_pdeathsig",
        "Linux's way to bind the command",
    ),
    (
        "plan::run_with_fails_pidfd_open",
        "pidfds stand in for kqueue: the guard has none then",
    ),
    (
        "races::steps_",
        "knows each of the system calls of Linux's run-with",
    ),
    ("races::random_", "takes two minutes; but for a few"),
    (
        "races::random_guard_killed",
        "run-with refuses to begin without a guard, as Linux's does not",
    ),
    ("terminal::suspend_tree_cgroup", "cgroups"),
    ("terminal::suspend_in_tmux", "the same as without tmux"),
    ("terminal::nested_shell_in_tmux", "the same as without tmux"),
    ("transparency::lets_go", "the guard's socket is held"),
    (
        "transparency::no_new_privileges",
        "not given up on these systems",
    ),
    (
        "tree::",
        "the scene knows the command by its parent, whom orphans have as well with a reaper; tests/portable has trees",
    ),
];

/// The same where a system with nothing but kqueue is stood in for.
const NOT_WITH_KQUEUE_ALONE: &[(&str, &str)] = &[
    ("orphans::guard_stopped", "nothing resumes the guard"),
    (
        "orphans::both_killed",
        "the command lives: orphans::nobody_is_left",
    ),
    ("orphans::exec_mode", "--exec binds nothing"),
    (
        "races::random_run_with_and_guard_killed",
        "the command lives",
    ),
    ("statuses::", "--exec is part of most"),
    ("transparency::alarm", "--exec is part of it"),
    ("transparency::arguments", "--exec is part of it"),
    ("transparency::descriptors", "--exec is part of it"),
    ("transparency::no_echo", "--exec is part of it"),
    ("transparency::signal_state", "--exec is part of it"),
    ("transparency::socket_activation", "--exec is part of it"),
    ("transparency::surroundings", "--exec is part of it"),
    ("terminal::filter_tree", "no trees"),
    ("terminal::background_tree", "no trees"),
    ("terminal::suspend_tree", "no trees"),
];

/// Whether such a system is stood in for.
pub fn is_kqueue_alone() -> bool {
    std::env::var_os("CAPTIVE_STAND_IN").is_some_and(|kind| kind == "kqueue")
}

/// What is run of those nevertheless.
const YET: &[&str] = &["races::random_run_with_and_guard_killed"];

/// Ignores what is not for the BSDs' run-with, if it is that which is tested.
pub fn applying(trials: Vec<Trial>) -> Vec<Trial> {
    if std::env::var_os("CAPTIVE_STAND_IN").is_none() {
        return trials;
    }
    let kqueue_alone = if is_kqueue_alone() {
        NOT_WITH_KQUEUE_ALONE
    } else {
        &[]
    };
    for (name, _) in NOT.iter().chain(kqueue_alone) {
        let is_one = trials.iter().any(|trial| trial.name().starts_with(name));
        assert!(is_one, "stand_in.rs: there is no test {name}");
    }
    let why_not = |name: &str| {
        let find = |list: &[(&str, &'static str)]| {
            let found = list.iter().find(|(start, _)| name.starts_with(start));
            found.map(|(_, why)| *why)
        };
        find(NOT)
            .filter(|_| !YET.contains(&name))
            .or_else(|| find(kqueue_alone))
    };
    let marked = trials.into_iter().map(|trial| match why_not(trial.name()) {
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
        None => trial,
    });
    marked.collect()
}
