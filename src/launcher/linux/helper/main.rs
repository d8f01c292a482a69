//! The program that the launcher carries: a static ELF without a C library, a few kilobytes, put into
//! a sealed memfd and executed from there. It has three lives:
//!
//! - `guard`: outlives the launcher just long enough to end its captives. See `guard.rs`.
//! - `init`: of a captive's PID namespace. See `init.rs`.
//! - `stage`: between the launcher's memory and a command with other credentials. See `stage.rs`.
//!
//! Compiled by `build.rs` with `core` alone; nothing in it allocates.
#![no_std]
#![no_main]
#![no_builtins]
#![deny(unsafe_op_in_unsafe_fn)]

mod cgroup;
mod files;
mod guard;
mod init;
mod marks;
mod protocol;
mod stage;
mod sys;

/// The program's arguments and environment, as the kernel lays them out.
pub struct Arguments {
    /// `argv`, with its null pointer.
    argv: *const *const u8,
    count: usize,
}

impl Arguments {
    /// One argument, without its NUL.
    pub fn get(&self, index: usize) -> Option<&'static [u8]> {
        if index >= self.count {
            return None;
        }
        let mut length = 0;
        // SAFETY: below argc, so a pointer to a NUL-terminated string.
        let place = unsafe { *self.argv.add(index) };
        // SAFETY: no byte before the NUL has been passed.
        while unsafe { *place.add(length) } != 0 {
            length += 1;
        }
        // SAFETY: bytes of a string that the kernel put there for the life of the process.
        Some(unsafe { core::slice::from_raw_parts(place, length) })
    }

    /// The arguments from `index` on, as execve wants them.
    pub fn from(&self, index: usize) -> Option<*const *const u8> {
        if index > self.count {
            return None;
        }
        // SAFETY: at most the null pointer that ends the array.
        Some(unsafe { self.argv.add(index) })
    }

    /// The environment.
    pub fn environment(&self) -> *const *const u8 {
        // SAFETY: the environment begins behind argv's null pointer (System V ABI, process stack).
        unsafe { self.argv.add(self.count + 1) }
    }
}

/// Called by `_start` with the initial stack pointer.
extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the System V ABI: argc, then argv.
    let count = unsafe { *stack };
    // SAFETY: as above.
    let argv = unsafe { stack.add(1) }.cast();
    let arguments = Arguments { argv, count };
    match arguments.get(1) {
        Some(protocol::ROLE_GUARD) => guard::run(),
        Some(protocol::ROLE_INIT) => init::run(),
        Some(protocol::ROLE_STAGE) => stage::run(&arguments),
        _ => sys::exit(125),
    }
}
