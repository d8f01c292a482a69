//! The system call that makes a child on another stack.
//!
//! The C library wraps clone(2), not clone3(2), and not with every flag: musl refuses CLONE_CHILD_CLEARTID (EINVAL).

use std::ffi::c_void;

use nix::errno::Errno;

/// A system call that makes a child on another stack, which then does `run(argument)`.
///
/// # Safety
/// As for clone(2): the stack is the child's alone, `run` does not come back, and all it does may be done in
/// a child that shares our memory.
#[allow(clippy::many_single_char_names, reason = "registers")]
#[cfg(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "aarch64"
))]
pub(crate) unsafe fn clone_onto(
    number: libc::c_long,
    args: [usize; 5],
    run: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> Result<i32, Errno> {
    let [a, b, c, d, e] = args;
    let answer: isize;
    // SAFETY: the x86-64 convention of syscall(2). In the child (rax 0) the stack is the new one, 16-byte aligned
    // before the call as the ABI wants it, and the registers are copies of ours.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") number as isize => answer,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            in("r12") run, in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: the arm64 convention of syscall(2); otherwise as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, #0",
            "mov x0, x21",
            "blr x20",
            "brk #1",
            "2:",
            in("x8") number,
            inlateout("x0") a as isize => answer,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            in("x20") run, in("x21") argument,
        );
    }
    match answer {
        -4095..=-1 => Err(Errno::from_raw((-answer) as i32)),
        pid => Ok(pid as i32),
    }
}

/// Where there is no assembly above nothing may share our memory; [`ERRNO_FREE`](super::ERRNO_FREE).
///
/// # Safety
/// None is needed.
#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "aarch64"
)))]
pub(crate) unsafe fn clone_onto(
    _number: libc::c_long,
    _args: [usize; 5],
    _run: extern "C" fn(*mut c_void) -> !,
    _argument: *mut c_void,
) -> Result<i32, Errno> {
    Err(Errno::ENOSYS)
}
