//! What the parts share of the system: signals by name and number, what a process waits for, and system
//! calls that can be made between `fork` or `clone` and `exec`.

pub(crate) mod signal;

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        pub(crate) mod event_source;
        pub(crate) mod linux;
    } else if #[cfg(any(
        target_os = "freebsd",
        target_os = "macos",
        target_os = "netbsd",
        target_os = "openbsd",
        target_os = "dragonfly",
    ))] {
        pub(crate) mod bsd;
        pub(crate) mod event_source;
    }
}
