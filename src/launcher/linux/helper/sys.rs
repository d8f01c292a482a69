//! System calls and the few functions that a compiler wants from a C library.

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym crate::start,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, sp",
    "bl {start}",
    "brk #1",
    start = sym crate::start,
);

/// One system call: its answer, or an errno.
///
/// # Safety
/// As for the system call.
#[cfg(target_arch = "x86_64")]
pub unsafe fn syscall(number: usize, args: [usize; 6]) -> Result<usize, i32> {
    let [a, b, c, d, e, f] = args;
    let answer: isize;
    // SAFETY: the x86-64 convention of syscall(2); the rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => answer,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    checked(answer)
}

/// One system call: its answer, or an errno.
///
/// # Safety
/// As for the system call.
#[cfg(target_arch = "aarch64")]
pub unsafe fn syscall(number: usize, args: [usize; 6]) -> Result<usize, i32> {
    let [a, b, c, d, e, f] = args;
    let answer: isize;
    // SAFETY: the arm64 convention of syscall(2); the rest is the caller's promise.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => answer,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    checked(answer)
}

fn checked(answer: isize) -> Result<usize, i32> {
    match answer {
        -4095..=-1 => Err(-answer as i32),
        value => Ok(value as usize),
    }
}

/// A system call without pointers.
pub fn plain(number: usize, args: [usize; 6]) -> Result<usize, i32> {
    // SAFETY: only for calls that take numbers.
    unsafe { syscall(number, args) }
}

/// An `int` as an argument.
pub fn int(value: i32) -> usize {
    value as isize as usize
}

macro_rules! numbers {
    ($($name:ident $x86:literal $arm:literal)+) => {
        #[cfg(target_arch = "x86_64")]
        mod nr { $(pub const $name: usize = $x86;)+ }
        #[cfg(target_arch = "aarch64")]
        mod nr { $(pub const $name: usize = $arm;)+ }
        pub use nr::*;
    };
}

// arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
numbers! {
    CLOSE 3 57
    WRITE 1 64
    FCNTL 72 25
    SETSID 112 157
    SHUTDOWN 48 210
    SENDTO 44 206
    PRCTL 157 167
    MREMAP 25 216
    MMAP 9 222
    PRLIMIT64 302 261
    EPOLL_CREATE1 291 20
    EPOLL_CTL 233 21
    EPOLL_PWAIT 281 22
    RECVMSG 47 212
    PIDFD_SEND_SIGNAL 424 424
    CLOCK_GETTIME 228 113
    EXIT_GROUP 231 94
    GETPPID 110 173
    FCHDIR 81 50
    CHDIR 80 49
    CHROOT 161 51
    SETGROUPS 116 159
    GETGROUPS 115 158
    SETRESGID 119 149
    SETRESUID 117 147
    GETRESGID 120 150
    GETRESUID 118 148
    CAPGET 125 90
    RT_SIGPROCMASK 14 135
    EXECVE 59 221
    READ 0 63
    PREAD64 17 67
    OPENAT 257 56
    GETDENTS64 217 61
    UNLINKAT 263 35
    RT_SIGACTION 13 134
    KILL 62 129
    PPOLL 271 73
}

pub const EINTR: i32 = 4;
pub const EAGAIN: i32 = 11;
pub const ENOEXEC: i32 = 8;
pub const ENOENT: i32 = 2;
pub const ESRCH: i32 = 3;
pub const EPERM: i32 = 1;
pub const EACCES: i32 = 13;
pub const ENODEV: i32 = 19;
pub const ENOTDIR: i32 = 20;
pub const EINVAL: i32 = 22;
pub const ETIMEDOUT: i32 = 110;
pub const ESTALE: i32 = 116;

pub const SIGKILL: i32 = 9;
pub const SIGCONT: i32 = 18;

pub fn exit(status: i32) -> ! {
    loop {
        let _ = plain(EXIT_GROUP, [int(status), 0, 0, 0, 0, 0]);
    }
}

pub fn close(fd: i32) {
    let _ = plain(CLOSE, [int(fd), 0, 0, 0, 0, 0]);
}

pub fn pidfd_send_signal(pidfd: i32, signal: i32) -> Result<(), i32> {
    plain(PIDFD_SEND_SIGNAL, [int(pidfd), int(signal), 0, 0, 0, 0]).map(drop)
}

pub fn set_close_on_exec(fd: i32) -> Result<(), i32> {
    const F_SETFD: usize = 2;
    plain(FCNTL, [int(fd), F_SETFD, 1, 0, 0, 0]).map(drop)
}

pub fn set_name(name: &[u8; 16]) {
    const PR_SET_NAME: usize = 15;
    // SAFETY: the kernel reads at most 16 bytes.
    let _ = unsafe { syscall(PRCTL, [PR_SET_NAME, name.as_ptr() as usize, 0, 0, 0, 0]) };
}

/// CLOCK_MONOTONIC, in milliseconds.
pub fn clock() -> Result<i64, i32> {
    let mut time = [0_i64; 2];
    // SAFETY: the kernel writes one timespec.
    unsafe { syscall(CLOCK_GETTIME, [1, (&raw mut time) as usize, 0, 0, 0, 0]) }?;
    let [seconds, nanoseconds] = time;
    Ok(seconds * 1000 + nanoseconds / 1_000_000)
}

/// The same, where it has been tried.
pub fn now() -> i64 {
    clock().unwrap_or(0)
}

// What the compiler calls by itself. This crate is compiled as `no_builtins`, so none of them becomes
// a call of itself.

/// C's.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: below `count`, which both have.
        unsafe { *to.add(at) = *from.add(at) };
        at += 1;
    }
    to
}

/// C's.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize) <= from as usize {
        // SAFETY: the caller's promise; a forward copy is right for this overlap.
        return unsafe { memcpy(to, from, count) };
    }
    let mut at = count;
    while at > 0 {
        at -= 1;
        // SAFETY: below `count`, which both have.
        unsafe { *to.add(at) = *from.add(at) };
    }
    to
}

/// C's.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: below `count`.
        unsafe { *to.add(at) = byte as u8 };
        at += 1;
    }
    to
}

/// C's.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    let mut at = 0;
    while at < count {
        // SAFETY: below `count`, which both have.
        let (x, y) = unsafe { (*a.add(at), *b.add(at)) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        at += 1;
    }
    0
}

/// C's.
///
/// # Safety
/// As C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, count) }
}

/// `core` is compiled with unwinding tables that name it; nothing unwinds here.
#[unsafe(no_mangle)]
pub extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}
