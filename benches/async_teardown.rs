//! What async teardown gains: from SIGKILL until the process can be waited for, and until its
//! memory is back; with it, without it, and beside QEMU with and without `-async-teardown`.
//!
//! `cargo bench --bench async_teardown`. All variants in turn in every round; only ratios are
//! printed, since the times are the machine's. Every page is a small one (transparent huge pages
//! are off for everything started here). `CAPTIVE_BENCH_MIB` (512) and `CAPTIVE_BENCH_ROUNDS` (5)
//! change the size; it takes twice that much free memory.

#![allow(
    unsafe_code,
    clippy::pedantic,
    clippy::panic,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    clippy::print_stdout,
    missing_docs
)]

#[cfg(target_os = "linux")]
#[path = "async_teardown/linux.rs"]
mod linux;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("async teardown is for Linux only");
}
