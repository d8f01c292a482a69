//! System calls that answer what a test wants, without being made.

/// One argument of a system call, and the value it must have; the low 32 bits count.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    pub index: u32,
    pub value: u32,
}

/// From now on this system call answers `errno` in the calling thread and all it makes; 0 is a
/// success that did nothing. With CAP_SYS_ADMIN no_new_privs stays as it is.
pub fn deny(call: u32, argument: Option<Argument>, errno: u32) {
    install(call, argument, errno, 0);
}

/// The same in all threads that there are.
pub fn deny_in_all_threads(call: u32, argument: Option<Argument>, errno: u32) {
    install(call, argument, errno, libc::SECCOMP_FILTER_FLAG_TSYNC);
}

fn install(call: u32, argument: Option<Argument>, errno: u32, flags: libc::c_ulong) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let unless_equal = |k, jf| libc::sock_filter {
        jf,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k)
    };
    let answer = |k| statement(libc::BPF_RET | libc::BPF_K, k);
    // struct seccomp_data: the number, the architecture, the instruction pointer, six arguments of
    // eight bytes, the low half first on a little-endian machine.
    let mut program = vec![load(0)];
    match argument {
        Some(Argument { index, value }) => program.extend([
            unless_equal(call, 3),
            load(16 + 8 * index),
            unless_equal(value, 1),
        ]),
        None => program.push(unless_equal(call, 1)),
    }
    program.extend([
        answer(libc::SECCOMP_RET_ERRNO | errno),
        answer(libc::SECCOMP_RET_ALLOW),
    ]);
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    let filter = || unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if filter() != 0 {
        assert_eq!(
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) },
            0
        );
        assert_eq!(filter(), 0);
    }
}
