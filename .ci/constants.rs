//! What Rust takes for the constants, structures and functions of the systems that this crate's files
//! for FreeBSD, macOS, NetBSD and OpenBSD rely on, as lines of C: see `.ci/constants`, which has them
//! compiled against the systems' own headers.
//!
//! No number stands here. Each comes from libc or nix as compiled for the target, and ends up as text
//! in the object file: the program never runs. Where the code goes through nix, nix's value is taken.

#![no_std]

use core::ffi::{c_char, c_int, c_void};
use core::mem::{MaybeUninit, offset_of};

use nix::errno::Errno;
use nix::fcntl::{FdFlag, OFlag};
use nix::libc;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent};
use nix::sys::signal::{SigmaskHow, Signal};
use nix::sys::stat::SFlag;

/// By this a line is found in the object file.
const MARK: [u8; 11] = *b"/*captive*/";

/// An assertion, as text.
#[repr(C)]
struct Assertion<const N: usize> {
    mark: [u8; 11],
    start: [u8; 16],
    c: [u8; N],
    equals: [u8; 6],
    value: [u8; 20],
    reason: [u8; 15],
    again: [u8; N],
    end: [u8; 3],
}

impl<const N: usize> Assertion<N> {
    const fn new(c: &[u8; N], value: i128) -> Self {
        Self {
            mark: MARK,
            start: *b"_Static_assert((",
            c: *c,
            equals: *b") == (",
            value: digits(value),
            reason: *b"LL), \"differs: ",
            again: *c,
            end: *b"\");",
        }
    }
}

/// A line of its own, as text.
#[repr(C)]
struct Line<T> {
    text: T,
    end: u8,
}

/// The number in decimal, after spaces. One that does not fit stops the compiler.
const fn digits(value: i128) -> [u8; 20] {
    let mut text = [b' '; 20];
    let mut place = text.len();
    let mut rest = value.unsigned_abs();
    loop {
        place -= 1;
        text[place] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        text[place - 1] = b'-';
    }
    text
}

const fn size_behind<T>(_: *const T) -> usize {
    size_of::<T>()
}

/// One that the C expression and Rust's must agree on.
macro_rules! same {
    ($($c:expr => $value:expr;)+) => {$(
        const _: () = {
            const TEXT: &[u8; $c.len()] = match $c.as_bytes().first_chunk() {
                Some(text) => text,
                None => unreachable!(),
            };
            #[used]
            static LINE: Line<Assertion<{ $c.len() }>> = Line {
                text: Assertion::new(TEXT, $value as i128),
                end: b'\n',
            };
        };
    )+};
}

/// Constants that have the same name in C.
macro_rules! constants {
    ($($($path:ident)::+),+ $(,)?) => {$( constants!(@ $($path)::+); )+};
    (@ $type:ident :: $name:ident) => { same! { stringify!($name) => $type::$name; } };
}

/// The same, of nix's sets of flags.
macro_rules! flags {
    ($($type:ident :: $name:ident),+ $(,)?) => {
        same! { $( stringify!($name) => $type::$name.bits(); )+ }
    };
}

/// Types of integers: their size, and whether they have a sign.
macro_rules! integers {
    ($($name:ident),+ $(,)?) => { same! {$(
        concat!("sizeof(", stringify!($name), ")") => size_of::<libc::$name>();
        concat!("(", stringify!($name), ")-1 < 1") => libc::$name::MIN != 0;
    )+} };
}

/// A structure's fields: where they are, and how large.
macro_rules! fields {
    ($name:ident: $($field:ident),+ $(,)?) => { same! {$(
        concat!("offsetof(struct ", stringify!($name), ", ", stringify!($field), ")")
            => offset_of!(libc::$name, $field);
        concat!("sizeof(((struct ", stringify!($name), " *)0)->", stringify!($field), ")")
            => {
                let place = MaybeUninit::<libc::$name>::uninit();
                // SAFETY: only the place is asked for, nothing is read.
                size_behind(unsafe { &raw const (*place.as_ptr()).$field })
            };
    )+} };
}

/// Functions: what C declares and what Rust declares, each compared by its own compiler.
macro_rules! functions {
    ($($c:literal => $name:ident: fn($($argument:ty),*) -> $result:ty;)+) => {$(
        const _: () = {
            const _: unsafe extern "C" fn($($argument),*) -> $result = libc::$name;
            const TEXT: &str = concat!("/*captive*/", $c, ";\n");
            #[used]
            static LINE: [u8; TEXT.len()] = match TEXT.as_bytes().first_chunk() {
                Some(text) => *text,
                None => unreachable!(),
            };
        };
    )+};
}

constants! {
    EventFilter::EVFILT_PROC, EventFilter::EVFILT_READ, EventFilter::EVFILT_SIGNAL,
    libc::F_DUPFD_CLOEXEC, libc::F_GETFL, libc::F_SETFD,
    SigmaskHow::SIG_SETMASK,
    Errno::EACCES, Errno::EAGAIN, Errno::EBADF, Errno::EBUSY, Errno::ECANCELED, Errno::ECONNRESET, Errno::EINPROGRESS, Errno::EINTR, Errno::EINVAL, Errno::EMFILE,
    Errno::ENOBUFS, Errno::ENODEV, Errno::ENOENT, Errno::ENOEXEC, Errno::ENOMEM, Errno::ENOSYS, Errno::ENOTCONN, Errno::ENOTDIR,
    Errno::EFBIG, Errno::EPERM, Errno::EPIPE, Errno::ESRCH, Errno::ESTALE, Errno::ETIMEDOUT, libc::ECHILD, libc::EIO,
    libc::POLLIN, libc::POLLOUT,
    libc::MAP_ANON, libc::MAP_SHARED, libc::PROT_READ, libc::PROT_WRITE,
    libc::MSG_DONTWAIT, libc::SOL_SOCKET, libc::PRIO_PROCESS, libc::TIOCSCTTY, libc::RLIM_INFINITY,
    libc::SA_RESTART, libc::SA_SIGINFO, libc::WCONTINUED, libc::WNOHANG, libc::WUNTRACED,
    libc::SIGHUP, libc::SIGINT, libc::SIGKILL, libc::SIGTERM,
    // By name, as the user gives them.
    Signal::SIGABRT, Signal::SIGALRM, Signal::SIGBUS, Signal::SIGCHLD, Signal::SIGCONT,
    Signal::SIGEMT, Signal::SIGFPE, Signal::SIGHUP, Signal::SIGILL, Signal::SIGINFO,
    Signal::SIGINT, Signal::SIGIO, Signal::SIGKILL, Signal::SIGPIPE, Signal::SIGPROF,
    Signal::SIGQUIT, Signal::SIGSEGV, Signal::SIGSTOP, Signal::SIGSYS, Signal::SIGTERM,
    Signal::SIGTRAP, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGURG,
    Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGVTALRM, Signal::SIGWINCH, Signal::SIGXCPU,
    Signal::SIGXFSZ,
    libc::RLIMIT_CORE, libc::RLIMIT_CPU, libc::RLIMIT_DATA, libc::RLIMIT_FSIZE,
    libc::RLIMIT_MEMLOCK, libc::RLIMIT_NOFILE, libc::RLIMIT_NPROC, libc::RLIMIT_STACK,
}

#[cfg(not(target_os = "openbsd"))]
constants! { libc::RLIMIT_AS }

// Pointers in C, which no assertion takes as they are.
same! {
    "(long)SIG_DFL" => libc::SIG_DFL;
    "(long)SIG_IGN" => libc::SIG_IGN;
}

#[cfg(target_os = "macos")]
constants! { libc::SO_NOSIGPIPE }

#[cfg(not(target_os = "macos"))]
constants! { libc::MSG_NOSIGNAL }

flags! {
    EvFlags::EV_ADD, EvFlags::EV_CLEAR, EvFlags::EV_DELETE, EvFlags::EV_EOF,
    FilterFlag::NOTE_EXIT,
    FdFlag::FD_CLOEXEC,
    OFlag::O_ACCMODE, OFlag::O_CLOEXEC, OFlag::O_DIRECTORY, OFlag::O_NONBLOCK, OFlag::O_RDONLY,
    SFlag::S_IFIFO, SFlag::S_IFMT, SFlag::S_IFSOCK,
}

integers! { gid_t, intptr_t, mode_t, nfds_t, pid_t, size_t, time_t, uid_t, uintptr_t }

fields! { kevent: ident, filter, flags, fflags, data, udata }
fields! { pollfd: fd, events, revents }
fields! { timespec: tv_sec, tv_nsec }
fields! { stat: st_mode }
fields! { rlimit: rlim_cur, rlim_max }
fields! { timeval: tv_sec, tv_usec }
fields! { rusage: ru_utime, ru_stime, ru_maxrss }
fields! { sigaction: sa_flags, sa_mask }
fields! { passwd: pw_name, pw_passwd, pw_uid, pw_gid, pw_change, pw_class, pw_gecos, pw_dir, pw_shell, pw_expire }

same! {
    "sizeof(struct pollfd)" => size_of::<libc::pollfd>();
    "sizeof(struct timespec)" => size_of::<libc::timespec>();
    "sizeof(struct stat)" => size_of::<libc::stat>();
    "sizeof(struct passwd)" => size_of::<libc::passwd>();
    "sizeof(sigset_t)" => size_of::<libc::sigset_t>();
    "sizeof(struct rlimit)" => size_of::<libc::rlimit>();
    "sizeof(struct rusage)" => size_of::<libc::rusage>();
    "sizeof(struct sigaction)" => size_of::<libc::sigaction>();
    "sizeof(siginfo_t)" => size_of::<libc::siginfo_t>();
    "offsetof(struct sigaction, sa_sigaction)" => offset_of!(libc::sigaction, sa_sigaction);
}

// Lists of events are given to the system as nix's type.
#[cfg(not(target_os = "netbsd"))]
same! {
    "sizeof(struct kevent)" => size_of::<libc::kevent>();
    "sizeof(struct kevent)" => size_of::<KEvent>();
}

// Rust calls `__kevent50`, whose structure ended where NetBSD 10 has added `ext`.
#[cfg(target_os = "netbsd")]
same! {
    "offsetof(struct kevent, ext)" => size_of::<libc::kevent>();
    "offsetof(struct kevent, ext)" => size_of::<KEvent>();
}

functions! {
    "int chroot(const char *)" => chroot: fn(*const c_char) -> c_int;
    "int fchdir(int)" => fchdir: fn(c_int) -> c_int;
    "int fstat(int, struct stat *)" => fstat: fn(c_int, *mut libc::stat) -> c_int;
    "int getpwnam_r(const char *, struct passwd *, char *, size_t, struct passwd **)" => getpwnam_r:
        fn(*const c_char, *mut libc::passwd, *mut c_char, libc::size_t, *mut *mut libc::passwd) -> c_int;
    "int chdir(const char *)" => chdir: fn(*const c_char) -> c_int;
    "int close(int)" => close: fn(c_int) -> c_int;
    "int dup2(int, int)" => dup2: fn(c_int, c_int) -> c_int;
    "int execve(const char *, char *const *, char *const *)" => execve:
        fn(*const c_char, *const *const c_char, *const *const c_char) -> c_int;
    "pid_t fork(void)" => fork: fn() -> libc::pid_t;
    "int getdtablesize(void)" => getdtablesize: fn() -> c_int;
    "void *mmap(void *, size_t, int, int, int, off_t)" => mmap:
        fn(*mut c_void, libc::size_t, c_int, c_int, c_int, libc::off_t) -> *mut c_void;
    "int munmap(void *, size_t)" => munmap: fn(*mut c_void, libc::size_t) -> c_int;
    "int poll(struct pollfd *, nfds_t, int)" => poll: fn(*mut libc::pollfd, libc::nfds_t, c_int) -> c_int;
    "ssize_t send(int, const void *, size_t, int)" => send:
        fn(c_int, *const c_void, libc::size_t, c_int) -> libc::ssize_t;
    "int setpgid(pid_t, pid_t)" => setpgid: fn(libc::pid_t, libc::pid_t) -> c_int;
    "int setrlimit(int, const struct rlimit *)" => setrlimit: fn(c_int, *const libc::rlimit) -> c_int;
    "int setsockopt(int, int, int, const void *, socklen_t)" => setsockopt:
        fn(c_int, c_int, c_int, *const c_void, libc::socklen_t) -> c_int;
    "int sigaction(int, const struct sigaction *, struct sigaction *)" => sigaction:
        fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
    "int sigpending(sigset_t *)" => sigpending: fn(*mut libc::sigset_t) -> c_int;
    "mode_t umask(mode_t)" => umask: fn(libc::mode_t) -> libc::mode_t;
    "pid_t wait4(pid_t, int *, int, struct rusage *)" => wait4:
        fn(libc::pid_t, *mut c_int, c_int, *mut libc::rusage) -> libc::pid_t;
    "pid_t waitpid(pid_t, int *, int)" => waitpid: fn(libc::pid_t, *mut c_int, c_int) -> libc::pid_t;
    "int kill(pid_t, int)" => kill: fn(libc::pid_t, c_int) -> c_int;
    "int kqueue(void)" => kqueue: fn() -> c_int;
    "int pthread_sigmask(int, const sigset_t *, sigset_t *)" => pthread_sigmask:
        fn(c_int, *const libc::sigset_t, *mut libc::sigset_t) -> c_int;
    "int setegid(gid_t)" => setegid: fn(libc::gid_t) -> c_int;
    "int seteuid(uid_t)" => seteuid: fn(libc::uid_t) -> c_int;
    "int setgid(gid_t)" => setgid: fn(libc::gid_t) -> c_int;
    "int setgroups(int, const gid_t *)" => setgroups: fn(c_int, *const libc::gid_t) -> c_int;
    "int setuid(uid_t)" => setuid: fn(libc::uid_t) -> c_int;
}

#[cfg(not(target_os = "netbsd"))]
functions! {
    "int kevent(int, const struct kevent *, int, struct kevent *, int, const struct timespec *)" => kevent:
        fn(c_int, *const libc::kevent, c_int, *mut libc::kevent, c_int, *const libc::timespec) -> c_int;
}

#[cfg(target_os = "netbsd")]
functions! {
    "int kevent(int, const struct kevent *, size_t, struct kevent *, size_t, const struct timespec *)" => kevent:
        fn(c_int, *const libc::kevent, libc::size_t, *mut libc::kevent, libc::size_t, *const libc::timespec) -> c_int;
}

#[cfg(not(target_os = "macos"))]
functions! {
    "int getgrouplist(const char *, gid_t, gid_t *, int *)" => getgrouplist:
        fn(*const c_char, libc::gid_t, *mut libc::gid_t, *mut c_int) -> c_int;
}

#[cfg(target_os = "macos")]
functions! {
    "int getgrouplist(const char *, int, int *, int *)" => getgrouplist:
        fn(*const c_char, c_int, *mut c_int, *mut c_int) -> c_int;
}

#[cfg(not(target_os = "freebsd"))]
functions! {
    "int setpriority(int, id_t, int)" => setpriority: fn(c_int, libc::id_t, c_int) -> c_int;
}

#[cfg(target_os = "freebsd")]
functions! {
    "int setpriority(int, int, int)" => setpriority: fn(c_int, c_int, c_int) -> c_int;
    "void closefrom(int)" => closefrom: fn(c_int) -> ();
}

#[cfg(any(target_os = "netbsd", target_os = "openbsd"))]
functions! {
    "int closefrom(int)" => closefrom: fn(c_int) -> c_int;
}

// What libc lacks and the crate has for itself.
#[cfg(target_os = "freebsd")]
#[path = "../src/sys/bsd/layout.rs"]
#[allow(dead_code)]
mod layout;

#[cfg(target_os = "freebsd")]
mod freebsd {
    use super::*;

    constants! {
        EventFilter::EVFILT_PROCDESC,
        libc::P_PID, libc::PROC_PDEATHSIG_CTL, libc::PROC_PDEATHSIG_STATUS,
        libc::PROC_REAP_ACQUIRE, libc::PROC_REAP_KILL, libc::PROC_REAP_STATUS,
        libc::PD_CLOEXEC, libc::PD_DAEMON,
    }

    same! {
        "SYS_sigaction" => layout::SYS_SIGACTION;
        "sizeof(struct procctl_reaper_status)" => size_of::<layout::ReaperStatus>();
        "offsetof(struct procctl_reaper_status, rs_descendants)" => offset_of!(layout::ReaperStatus, descendants);
        "offsetof(struct procctl_reaper_status, rs_children)" => offset_of!(layout::ReaperStatus, children);
        "sizeof(struct procctl_reaper_kill)" => size_of::<layout::ReaperKill>();
        "offsetof(struct procctl_reaper_kill, rk_sig)" => offset_of!(layout::ReaperKill, signal);
        "offsetof(struct procctl_reaper_kill, rk_flags)" => offset_of!(layout::ReaperKill, flags);
        "offsetof(struct procctl_reaper_kill, rk_subtree)" => offset_of!(layout::ReaperKill, subtree);
        "offsetof(struct procctl_reaper_kill, rk_killed)" => offset_of!(layout::ReaperKill, killed);
        "offsetof(struct procctl_reaper_kill, rk_fpid)" => offset_of!(layout::ReaperKill, first_failed);
    }

    integers! { id_t }

    same! { "sizeof(idtype_t)" => size_of::<libc::idtype_t>(); }

    functions! {
        "int procctl(idtype_t, id_t, int, void *)" => procctl:
            fn(libc::idtype_t, libc::id_t, c_int, *mut c_void) -> c_int;
        "pid_t pdfork(int *, int)" => pdfork: fn(*mut c_int, c_int) -> libc::pid_t;
    }
}

/// Only FreeBSD's functions take one.
#[cfg(not(target_os = "freebsd"))]
const _: Option<*const c_void> = None;
