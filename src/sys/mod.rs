//! What the parts share of the system: signals by name and number, what a process waits for, and system
//! calls that can be made between `fork` or `clone` and `exec`.

#[cfg(any(feature = "cli", feature = "launcher"))]
pub(crate) mod change;
#[cfg(feature = "cli")]
pub(crate) mod inherited;
// Linux's launcher does without.
#[cfg(any(
    feature = "cli",
    all(feature = "launcher", any(captive_stand_in, not(target_os = "linux")))
))]
pub(crate) mod shared;
pub(crate) mod signal;

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        pub(crate) mod event_source;
        // Each of those who execute programs uses a part.
        #[allow(dead_code)]
        #[cfg(any(feature = "cli", feature = "launcher"))]
        pub(crate) mod exec;
        pub(crate) mod linux;
        // run-with uses a part; the rest is for the launcher.
        #[allow(dead_code)]
        #[cfg(captive_stand_in)]
        mod posix;
        #[cfg(captive_stand_in)]
        pub(crate) mod stand_in;

        #[cfg(any(feature = "cli", feature = "launcher"))]
        use linux::execve;
        /// What is written for the BSDs is run against this one's functions, by tests.
        #[cfg(captive_stand_in)]
        #[allow(unused_imports)]
        pub(crate) use stand_in as bsd;
    } else if #[cfg(any(
        target_os = "freebsd",
        target_os = "macos",
        target_os = "netbsd",
        target_os = "openbsd",
        target_os = "dragonfly",
    ))] {
        pub(crate) mod bsd;
        pub(crate) mod event_source;
        // Each of those who execute programs uses a part.
        #[allow(dead_code)]
        #[cfg(any(feature = "cli", feature = "launcher"))]
        pub(crate) mod exec;
        #[cfg(any(feature = "cli", feature = "launcher"))]
        mod posix;

        #[cfg(any(feature = "cli", feature = "launcher"))]
        use bsd::execve;
    }
}
