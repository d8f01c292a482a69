//! Processes in odd states, and one that counts its signals.

use std::ffi::{CString, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use crate::support::process::close_from;

/// The role `odd`: puts itself into the state that its arguments say, then executes what follows
/// `--`. It starts from no blocked and no ignored signals (std's `main` ignores SIGPIPE), and no
/// descriptors above 2.
///
/// `block=N,...` `ignore=N,...` `open=FD,...` `close=FD,...` `umask=OCTAL` `nice=N` `cwd=DIR`
/// `files=N` (soft limit) `core=unlimited` `session` `group` `tty=PATH` `alarm=MILLISECONDS`
/// `pidvar=NAME` (set to our own pid) `env=ENTRY` (the environment is the entries given, if any)
pub fn odd(args: &[OsString]) -> i32 {
    let split = args.iter().position(|arg| arg == "--").unwrap();
    let (settings, command) = (&args[..split], &args[split + 1..]);
    set_mask(0);
    let settable = |signal: &i32| ![libc::SIGKILL, libc::SIGSTOP].contains(signal);
    (1..=64)
        .filter(settable)
        .for_each(|signal| set_disposition(signal, libc::SIG_DFL));
    // SAFETY: nothing in this process uses a descriptor above 2.
    unsafe { close_from(3) };
    let mut environment = Vec::new();
    let mut own = Vec::new();
    for setting in settings {
        let bytes = setting.as_bytes();
        let at = bytes.iter().position(|b| *b == b'=').unwrap_or(bytes.len());
        let value = bytes.get(at + 1..).unwrap_or_default();
        let text = std::str::from_utf8(value).unwrap_or_default();
        match &bytes[..at] {
            b"env" => environment.push(CString::new(value).unwrap()),
            b"pidvar" => own.push(text.to_owned()),
            name => set(std::str::from_utf8(name).unwrap(), text),
        }
    }
    if environment.is_empty() {
        environment = std::env::vars_os()
            .map(|(key, value)| {
                CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).unwrap()
            })
            .collect();
    }
    for name in own {
        environment.push(CString::new(format!("{name}={}", std::process::id())).unwrap());
    }
    let command: Vec<CString> = command
        .iter()
        .map(|arg| CString::new(arg.as_bytes()).unwrap())
        .collect();
    let error = nix::unistd::execve(&command[0], &command, &environment);
    eprintln!("it: {command:?}: {error:?}");
    2
}

fn set(name: &str, value: &str) {
    let numbers = || value.split(',').map(|n| n.parse::<i32>().unwrap());
    // SAFETY: plain system calls on this process, which has one thread.
    unsafe {
        match name {
            "block" => set_mask(numbers().fold(0, |mask, n| mask | 1 << (n - 1))),
            "ignore" => numbers().for_each(|n| set_disposition(n, libc::SIG_IGN)),
            "open" => {
                let low = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
                // Above all that are asked for, below the usual limit of 1024.
                let null = libc::fcntl(low, libc::F_DUPFD, 1001);
                libc::close(low);
                numbers().for_each(|fd| assert_eq!(libc::dup2(null, fd), fd));
                libc::close(null);
            }
            "close" => numbers().for_each(|fd| assert_eq!(libc::close(fd), 0)),
            "umask" => {
                libc::umask(libc::mode_t::from_str_radix(value, 8).unwrap());
            }
            "nice" => {
                libc::setpriority(libc::PRIO_PROCESS, 0, value.parse().unwrap());
            }
            "cwd" => std::env::set_current_dir(value).unwrap(),
            "files" => {
                let mut limit: libc::rlimit = std::mem::zeroed();
                libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
                limit.rlim_cur = value.parse().unwrap();
                assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
            }
            "core" => {
                let mut limit: libc::rlimit = std::mem::zeroed();
                libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit);
                limit.rlim_cur = limit.rlim_max;
                assert_eq!(libc::setrlimit(libc::RLIMIT_CORE, &raw const limit), 0);
            }
            "session" => assert!(libc::setsid() > 0),
            "group" => assert_eq!(libc::setpgid(0, 0), 0),
            // Ours from here on, and on 0, 1 and 2; after `session`.
            "tty" => {
                let path = CString::new(value).unwrap();
                let fd = libc::open(path.as_ptr(), libc::O_RDWR);
                assert!(fd >= 0, "{value}: {}", io::Error::last_os_error());
                assert_eq!(libc::ioctl(fd, libc::TIOCSCTTY, 0), 0);
                (0..3).for_each(|n| assert_eq!(libc::dup2(fd, n), n));
                libc::close(fd);
            }
            "alarm" => {
                let mut timer: libc::itimerval = std::mem::zeroed();
                timer.it_value.tv_usec = value.parse::<libc::suseconds_t>().unwrap() * 1000;
                let null = std::ptr::null_mut::<libc::itimerval>();
                assert_eq!(
                    libc::setitimer(libc::ITIMER_REAL, &raw const timer, null),
                    0
                );
            }
            other => panic!("{other}"),
        }
    }
}

/// Past the C library, which keeps 32 and 33 to itself.
fn set_mask(mask: u64) {
    let old = std::ptr::null_mut::<u64>();
    let how = libc::SIG_SETMASK;
    // SAFETY: the kernel reads eight bytes.
    let answer = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const mask, old, 8) };
    assert_eq!(answer, 0);
}

fn set_disposition(signal: i32, handler: libc::sighandler_t) {
    let action: [usize; 4] = [handler, 0, 0, 0];
    let old = std::ptr::null_mut::<usize>();
    // SAFETY: the kernel reads four words; no handler.
    let answer =
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, old, 8) };
    assert_eq!(answer, 0, "signal {signal}");
}

/// The role `count`: says `ready PID`, then each signal it gets, `got N`, in a write of its own. The
/// signals of job control stop it as they would any program. `group`: in a process group of its own;
/// `foreground`: and with the terminal.
pub fn count(args: &[OsString]) -> i32 {
    if !args.is_empty() {
        nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0)).unwrap();
    }
    let job_control = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    set_mask(!0);
    if args.iter().any(|arg| arg == "foreground") {
        nix::unistd::tcsetpgrp(io::stdin(), nix::unistd::getpgrp()).unwrap();
    }
    set_mask(
        job_control
            .iter()
            .fold(!0, |mask, n| mask & !(1 << (n - 1))),
    );
    say(&format!("ready {}", std::process::id()));
    let all: u64 = job_control
        .iter()
        .fold(!0, |mask, n| mask & !(1 << (n - 1)));
    loop {
        let info = std::ptr::null_mut::<libc::siginfo_t>();
        let limit = std::ptr::null::<libc::timespec>();
        // SAFETY: the kernel reads eight bytes, and waits without a limit.
        let signal =
            unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const all, info, limit, 8) };
        if signal > 0 {
            say(&format!("got {signal}"));
        }
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The role `signal WHO N`: sends itself (`self`), its parent (`parent`) or its group (`group`) the
/// signal N, by kill(2). A signal that it survives, or that goes elsewhere, is followed by counting.
pub fn signal(args: &[OsString]) -> i32 {
    let signal: libc::c_long = args[1].to_str().unwrap().parse().unwrap();
    let pid = match args[0].to_str().unwrap() {
        "self" => {
            set_mask(0);
            if ![libc::SIGKILL, libc::SIGSTOP].contains(&(signal as i32)) {
                set_disposition(signal as i32, libc::SIG_DFL);
            }
            std::process::id() as i32
        }
        "parent" => unsafe { libc::getppid() },
        "group" => {
            set_mask(!0);
            0
        }
        other => panic!("{other}"),
    };
    // SAFETY: kill takes no pointers.
    assert_eq!(unsafe { libc::syscall(libc::SYS_kill, pid, signal) }, 0);
    count(&[])
}
