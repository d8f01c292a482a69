//! The system call instruction itself.
//!
//! `libc::syscall` stores errno, which is thread-local: in a `CLONE_VM` child that is a variable of
//! the process it shares memory with. Here the kernel's answer comes back as a value. Where there
//! is no assembly below, [`ERRNO_FREE`] is false and nothing may be made with `CLONE_VM`.

#![allow(unsafe_code, clippy::many_single_char_names)]
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "arguments and answers are registers"
)]

use nix::errno::Errno;

/// One system call, up to six arguments.
///
/// # Safety
/// As for the system call: pointers must be valid for what the kernel does with them, and the
/// effect on the process (descriptors, memory, threads) must be one the caller may have.
#[inline]
pub(crate) unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: the caller's promise, passed on.
    let answer = unsafe { arch::syscall(number, args) };
    // The kernel returns -4095..=-1 for errors; syscall(2), "Architecture-specific requirements".
    match answer {
        -4095..=-1 => Err(Errno::from_raw(
            i32::try_from(-answer).unwrap_or(libc::EINVAL),
        )),
        value => Ok(value as usize),
    }
}

#[expect(unused_imports, reason = "asked by what clones with CLONE_VM")]
pub(crate) use arch::ERRNO_FREE;

cfg_if::cfg_if! {
    if #[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))] {
        mod arch {
            /// No thread-local storage is touched.
            pub(crate) const ERRNO_FREE: bool = true;

            /// # Safety
            /// See [`super::syscall`].
            #[inline]
            pub(super) unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> isize {
                let [a, b, c, d, e, f] = args;
                let answer;
                // SAFETY: the x86-64 system call convention of syscall(2): rcx and r11 are
                // clobbered, everything else but rax is kept; memory may be read and written, so
                // neither `nomem` nor `readonly` is claimed.
                unsafe {
                    core::arch::asm!(
                        "syscall",
                        inlateout("rax") number as isize => answer,
                        in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
                        lateout("rcx") _, lateout("r11") _,
                        options(nostack),
                    );
                }
                answer
            }
        }
    } else if #[cfg(target_arch = "aarch64")] {
        mod arch {
            /// No thread-local storage is touched.
            pub(crate) const ERRNO_FREE: bool = true;

            /// # Safety
            /// See [`super::syscall`].
            #[inline]
            pub(super) unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> isize {
                let [a, b, c, d, e, f] = args;
                let answer;
                // SAFETY: the arm64 system call convention of syscall(2): the number in x8, the
                // answer in x0, every other register kept; memory may be read and written.
                unsafe {
                    core::arch::asm!(
                        "svc 0",
                        in("x8") number,
                        inlateout("x0") a => answer,
                        in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
                        options(nostack),
                    );
                }
                answer
            }
        }
    } else {
        mod arch {
            /// errno is written: never with shared memory.
            pub(crate) const ERRNO_FREE: bool = false;

            /// # Safety
            /// See [`super::syscall`].
            pub(super) unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> isize {
                let [a, b, c, d, e, f] = args;
                // SAFETY: the caller's promise, passed on.
                let answer = unsafe { libc::syscall(number, a, b, c, d, e, f) };
                if answer == -1 { -(nix::errno::Errno::last_raw() as isize) } else { answer as isize }
            }
        }
    }
}
