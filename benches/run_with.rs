//! What run-with costs, as ratios to the tools that do a part of its work, measured in the same run.
//!
//! Rounds are interleaved: every command once, in a new order each round; a ratio is one of medians.
//! `CAPTIVE_BENCH_ROUNDS` (default 300) for the starts; the kills take a tenth of it. A launcher with
//! 4 GiB is measured if `CAPTIVE_BENCH_GIB=4` is set.

#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::print_stdout
)]
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::exit)]

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        #[path = "run_with/linux.rs"]
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
