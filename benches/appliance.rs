//! What becomes of QEMU when its launcher gets SIGKILL: the example `appliance` beside libguestfs's own launcher
//! (`guestfish`, backend `direct`): how long QEMU lives on, idle and while the guest works for a command, and what is left.
//!
//! ```sh
//! tests/appliance/build && cargo build --release --example appliance && cargo bench --bench appliance
//! ```
//!
//! Rounds are interleaved: each launcher in each state once, killed at a random moment; a ratio is one of medians.
//! `CAPTIVE_BENCH_ROUNDS` (7); a round is about half a minute, most of it guestfish's boot. Both run without KVM.
//!
//! guestfish is Debian's package of that name; it makes its appliance from the installed system, and needs a kernel:
//! an installed one, or `SUPERMIN_KERNEL`, `SUPERMIN_KERNEL_VERSION` and `SUPERMIN_MODULES`, or a whole appliance by
//! `LIBGUESTFS_PATH`. Without it only the example is measured; where its appliance does not boot, both are killed while
//! they boot, and the output says so.

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
        #[path = "appliance/linux.rs"]
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
