//! What the parts share of the system: signals by name and number, and (Linux) system calls that
//! can be made between `clone` and `exec`.

pub(crate) mod signal;

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        pub(crate) mod linux;
    }
}
