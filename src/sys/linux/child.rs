//! What the launcher's child does to itself between clone and exec, and what the launcher asks of the
//! kernel about it afterwards.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::{StringArray, fd_arg, int_arg, plain, syscall};

/// A copy of `fd` with a number of at least `lowest`, close-on-exec; fcntl(F_DUPFD_CLOEXEC). EINVAL
/// if `lowest` is beyond RLIMIT_NOFILE.
pub(crate) fn dup_at_least(fd: RawFd, lowest: RawFd) -> Result<RawFd, Errno> {
    let command = int_arg(libc::F_DUPFD_CLOEXEC);
    let args = [int_arg(fd), command, int_arg(lowest), 0, 0, 0];
    plain(libc::SYS_fcntl, args).map(|fd| fd as RawFd)
}

/// Makes `to` mean what `from` does, not close-on-exec; dup3(2). The two must differ.
pub(crate) fn dup_to(from: RawFd, to: RawFd) -> Result<(), Errno> {
    plain(libc::SYS_dup3, [int_arg(from), int_arg(to), 0, 0, 0, 0]).map(drop)
}

/// Whether a descriptor is closed by exec; fcntl(F_SETFD).
pub(crate) fn set_close_on_exec(fd: RawFd, closed: bool) -> Result<(), Errno> {
    let flag = if closed { libc::FD_CLOEXEC } else { 0 };
    let args = [int_arg(fd), int_arg(libc::F_SETFD), int_arg(flag), 0, 0, 0];
    plain(libc::SYS_fcntl, args).map(drop)
}

/// setpgid(2) of the calling process.
pub(crate) fn set_process_group(group: i32) -> Result<(), Errno> {
    plain(libc::SYS_setpgid, [0, int_arg(group), 0, 0, 0, 0]).map(drop)
}

/// Makes the terminal `fd` the controlling one of the calling process, which must lead a session
/// without one; TIOCSCTTY(2const). EPERM if it is another session's.
pub(crate) fn set_controlling_terminal(fd: RawFd) -> Result<(), Errno> {
    let request = libc::TIOCSCTTY as usize;
    plain(libc::SYS_ioctl, [int_arg(fd), request, 0, 0, 0, 0]).map(drop)
}

/// Moves the calling *thread* into a network namespace; setns(2). CAP_SYS_ADMIN, there and here.
pub(crate) fn enter_network_namespace(fd: RawFd) -> Result<(), Errno> {
    let kind = int_arg(libc::CLONE_NEWNET);
    plain(libc::SYS_setns, [int_arg(fd), kind, 0, 0, 0, 0]).map(drop)
}

/// umask(2): of everybody who shares the file-system attributes (CLONE_FS), which no child made here
/// does.
pub(crate) fn set_umask(mask: u32) {
    let _ = plain(libc::SYS_umask, [mask as usize, 0, 0, 0, 0, 0]);
}

/// setpriority(2) of the calling thread. EACCES: lower than RLIMIT_NICE allows.
pub(crate) fn set_nice(nice: i32) -> Result<(), Errno> {
    plain(
        libc::SYS_setpriority,
        [libc::PRIO_PROCESS as usize, 0, int_arg(nice), 0, 0, 0],
    )
    .map(drop)
}

/// setrlimit(2) of the calling process: soft, then hard.
pub(crate) fn set_resource_limit(resource: i32, limit: &[u64; 2]) -> Result<(), Errno> {
    let place = (&raw const *limit) as usize;
    let args = [0, int_arg(resource), place, 0, 0, 0];
    // SAFETY: the kernel reads one struct rlimit64.
    unsafe { syscall(libc::SYS_prlimit64, args) }.map(drop)
}

/// Gives every signal that has a handler, and those in `default`, the default disposition, and
/// ignores those in `ignore`. Sets as the kernel has them: bit n-1 for signal n.
///
/// rt_sigaction(2). Of a child made without CLONE_SIGHAND: the dispositions are its own.
pub(crate) fn reset_dispositions(default: u64, ignore: u64) -> Result<(), Errno> {
    for signal in 1..=64_i32 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let bit = 1_u64 << (signal - 1);
        if ignore & bit != 0 {
            super::set_disposition(signal, libc::SIG_IGN)?;
            continue;
        }
        // struct kernel_sigaction, as in `set_disposition`.
        let mut action = [0_usize; 5];
        let place = (&raw mut action) as usize;
        // SAFETY: the kernel writes at most the five words.
        unsafe {
            syscall(
                libc::SYS_rt_sigaction,
                [int_arg(signal), 0, place, size_of::<u64>(), 0, 0],
            )
        }?;
        let [handler, ..] = action;
        let has_handler = handler != libc::SIG_DFL && handler != libc::SIG_IGN;
        if has_handler || (default & bit != 0 && handler != libc::SIG_DFL) {
            super::set_disposition(signal, libc::SIG_DFL)?;
        }
    }
    Ok(())
}

/// execveat(2) of the file behind a descriptor, which may be close-on-exec (not for a script).
/// `argv` is used from its first string on. Returns only if it fails; allocates nothing.
pub(crate) fn exec_fd(fd: RawFd, argv: &mut StringArray, envp: &mut StringArray) -> Errno {
    let registers = [
        int_arg(fd),
        c"".as_ptr() as usize,
        argv.pointers().as_ptr() as usize,
        envp.pointers().as_ptr() as usize,
        int_arg(libc::AT_EMPTY_PATH),
        0,
    ];
    // SAFETY: an empty NUL-terminated path and two arrays as execve wants them, borrowed for the
    // call.
    unsafe { syscall(libc::SYS_execveat, registers) }
        .err()
        .unwrap_or(Errno::UnknownErrno)
}

/// Two connected sockets that keep messages apart (SOCK_SEQPACKET), close-on-exec; socketpair(2).
pub(crate) fn message_sockets() -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut pair = [-1_i32; 2];
    let kind = int_arg(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC);
    let place = (&raw mut pair) as usize;
    // SAFETY: the kernel writes two ints.
    unsafe {
        syscall(
            libc::SYS_socketpair,
            [int_arg(libc::AF_UNIX), kind, 0, place, 0, 0],
        )
    }?;
    let [a, b] = pair.map(super::adopt);
    Ok((a, b))
}

/// The number that no other socket has or will have; SO_COOKIE of getsockopt(2). ENOTSOCK of anything else; 0 where sockets
/// have none (not Linux's own).
pub(crate) fn socket_cookie(fd: RawFd) -> Result<u64, Errno> {
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    let args = [
        int_arg(fd),
        int_arg(libc::SOL_SOCKET),
        int_arg(libc::SO_COOKIE),
        (&raw mut cookie) as usize,
        (&raw mut size) as usize,
        0,
    ];
    // SAFETY: the kernel writes at most the eight bytes that it is told of, and their count.
    match unsafe { syscall(libc::SYS_getsockopt, args) } {
        Err(Errno::ENOPROTOOPT) => Ok(0),
        answer => answer.map(|_| cookie),
    }
}

/// As many descriptors as [`send_with_fds`] sends.
pub(crate) const MOST_SENT: usize = 4;

/// Sends `message`, and descriptors with it (as many as there is room for), in one piece, without waiting or
/// SIGPIPE; sendmsg(2). EAGAIN if the receiver's queue is full, EPIPE or ECONNRESET if there is no receiver,
/// ETOOMANYREFS if too many descriptors are under way.
#[doc(alias = "SCM_RIGHTS")]
pub(crate) fn send_with_fds(socket: RawFd, message: &[u8], fds: &[RawFd]) -> Result<(), Errno> {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        fds: [RawFd; MOST_SENT],
    }
    // SAFETY: plain C structures, for which all zeroes are values.
    let mut control: Control = unsafe { std::mem::zeroed() };
    let mut count = 0;
    for (place, fd) in control.fds.iter_mut().zip(fds) {
        *place = *fd;
        count += 1;
    }
    let length = size_of::<libc::cmsghdr>() + count * size_of::<RawFd>();
    let room = length.next_multiple_of(size_of::<usize>());
    // The kernel's are as wide as a pointer; musl's are half of that, beside room that is zero, with the lower half
    // first, and libc has either.
    control.header.cmsg_len = as_wide(length);
    control.header.cmsg_level = libc::SOL_SOCKET;
    control.header.cmsg_type = libc::SCM_RIGHTS;
    let buffer = libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: message.len(),
    };
    // SAFETY: as above.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = (&raw const buffer).cast_mut();
    header.msg_iovlen = 1;
    if count > 0 {
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = as_wide(room);
    }
    let flags = int_arg(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    let place = (&raw const header) as usize;
    // SAFETY: the kernel reads the header and what it points to, all of which outlives the call.
    unsafe { syscall(libc::SYS_sendmsg, [int_arg(socket), place, flags, 0, 0, 0]) }.map(drop)
}

/// A number that fits, as what the C library takes for it.
fn as_wide<T: TryFrom<usize> + Default>(length: usize) -> T {
    T::try_from(length).unwrap_or_default()
}

/// A sealed file in memory with these contents, to be executed from its descriptor; memfd_create(2),
/// F_SEAL_*(2const): nobody can change it, however they come by it.
pub(crate) fn sealed_program(name: &CStr, contents: &[u8]) -> Result<OwnedFd, Errno> {
    // Linux 6.3; an older one does not know it, and files there can be executed anyway.
    const MFD_EXEC: u32 = 0x10;
    let make = |flags: u32| {
        let args = [name.as_ptr() as usize, flags as usize, 0, 0, 0, 0];
        // SAFETY: the kernel reads a NUL-terminated string.
        unsafe { syscall(libc::SYS_memfd_create, args) }
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let fd = match make(flags | MFD_EXEC) {
        Err(Errno::EINVAL) => make(flags),
        answer => answer,
    }?;
    // SAFETY: just made by the kernel for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let mut rest = contents;
    while !rest.is_empty() {
        let args = [
            fd_arg(fd.as_fd()),
            rest.as_ptr() as usize,
            rest.len(),
            0,
            0,
            0,
        ];
        // SAFETY: the kernel reads at most as many bytes as there are.
        let written = unsafe { syscall(libc::SYS_write, args) }?;
        rest = rest.get(written..).unwrap_or_default();
    }
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    let command = int_arg(libc::F_ADD_SEALS);
    plain(
        libc::SYS_fcntl,
        [fd_arg(fd.as_fd()), command, int_arg(seals), 0, 0, 0],
    )?;
    Ok(fd)
}

/// How a child ended, as the kernel told it when it was reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reaped {
    /// CLD_EXITED, CLD_KILLED or CLD_DUMPED.
    pub(crate) code: i32,
    /// The exit status, or the signal.
    pub(crate) status: i32,
    /// User and system time, each as seconds and microseconds.
    pub(crate) times: [(i64, i64); 2],
    /// The largest resident set, in KiB.
    pub(crate) max_rss: i64,
}

/// Reaps the child behind `pidfd` if it has ended; waitid(2) with the kernel's fifth argument, struct
/// rusage. `None` while it runs, or while somebody traces it. ECHILD: it is no child of ours, or has
/// been reaped (by another wait, or by the kernel where SIGCHLD is ignored).
pub(crate) fn try_reap(pidfd: BorrowedFd<'_>) -> Result<Option<Reaped>, Errno> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let args = [
        libc::P_PIDFD as usize,
        fd_arg(pidfd),
        info.as_mut_ptr() as usize,
        int_arg(libc::WEXITED | libc::WNOHANG),
        usage.as_mut_ptr() as usize,
        0,
    ];
    // SAFETY: the kernel writes one siginfo_t and one rusage.
    unsafe { syscall(libc::SYS_waitid, args) }?;
    // SAFETY: a plain C structure that was all zeroes before the kernel wrote to it.
    let info = unsafe { info.assume_init() };
    // SAFETY: as above.
    let usage = unsafe { usage.assume_init() };
    // SAFETY: waitid fills in the SIGCHLD fields, or leaves them zero with WNOHANG.
    if unsafe { info.si_pid() } == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    let time = |time: libc::timeval| (time.tv_sec, time.tv_usec);
    Ok(Some(Reaped {
        code: info.si_code,
        status,
        times: [time(usage.ru_utime), time(usage.ru_stime)],
        max_rss: usage.ru_maxrss,
    }))
}

/// The wait status of a process that has been reaped by others, if the kernel keeps it with the
/// pidfd: PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15. `None` or ESRCH before it has been reaped,
/// and from Linux 6.13 and 6.14; ENOTTY or EINVAL before.
#[doc(alias = "PIDFD_GET_INFO")]
pub(crate) fn status_after_reaping(pidfd: BorrowedFd<'_>) -> Result<Option<i32>, Errno> {
    // struct pidfd_info, its first published size: mask, cgroupid, eleven 32-bit ids, exit_code.
    const WORDS: usize = 16;
    const PIDFD_INFO_EXIT: u32 = 1 << 3;
    // _IOWR(0xFF, 11, struct pidfd_info)
    const PIDFD_GET_INFO: usize = 0xC000_FF0B | (WORDS * 4) << 16;
    let mut info = [0_u32; WORDS];
    info[0] = PIDFD_INFO_EXIT;
    let place = (&raw mut info) as usize;
    // SAFETY: the kernel writes at most the size that is part of the request's number; the array is
    // only read as 32-bit words.
    unsafe {
        syscall(
            libc::SYS_ioctl,
            [fd_arg(pidfd), PIDFD_GET_INFO, place, 0, 0, 0],
        )
    }?;
    let [mask, ..] = info;
    Ok((mask & PIDFD_INFO_EXIT != 0).then(|| info[WORDS - 1] as i32))
}

/// What was leaked by `Box::leak`, by its address; `None` for a null pointer.
pub(crate) fn leaked<T>(place: *const T) -> Option<&'static T> {
    // SAFETY: the callers store nothing there but null and what `Box::leak` returned, and free nothing.
    unsafe { place.as_ref() }
}

/// A type that is bytes and nothing else.
///
/// # Safety
/// Every bit of a value is initialised: integers only, no padding.
pub(crate) unsafe trait Plain {}

/// The bytes of a value, to be sent.
pub(crate) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain`: as many initialised bytes as the type is large, borrowed as long as the value.
    unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}
