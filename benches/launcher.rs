//! What a spawn of `captive::Command` costs, as ratios to std's measured in the same run: with little and
//! with much memory in the launcher, the first one of a process, and with many captives alive; and what
//! a drop costs.
//!
//! `cargo bench --bench launcher`. Rounds are interleaved: every variant once, in a new order each
//! round; a ratio is one of medians. `CAPTIVE_BENCH_ROUNDS` (300) for the spawns, the rest takes a part
//! of it; `CAPTIVE_BENCH_GIB` (4) for the largest launcher, twice that for the process that is dropped;
//! `CAPTIVE_BENCH_MANY` (1000) captives at once; `CAPTIVE_BENCH_TREE` (1000) processes in a tree. A short one:
//! 20, 1, 200, 100.

#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::exit)]

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        #[path = "launcher/linux.rs"]
        mod linux;
        fn main() {
            linux::main();
        }
    } else {
        fn main() {
            println!("this bench measures Linux");
        }
    }
}
