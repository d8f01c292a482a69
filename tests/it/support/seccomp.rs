//! System calls that answer what a test wants, without being made.

use std::str::FromStr;

/// One argument of a system call, and the value it must have; the low 32 bits count.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    pub index: u32,
    pub value: u32,
}

/// What a filter looks for in a system call.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Always,
    Equals(Argument),
    /// Some of these bits are set.
    HasSome(Argument),
}

/// What a filtered call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This errno; 0 is a success that did nothing.
    Errno(u32),
    /// SIGSYS to the thread.
    Trap,
    /// The process ends as by SIGSYS.
    Kill,
}

/// From now on this system call answers `errno` in the calling thread and all it makes; 0 is a
/// success that did nothing. With CAP_SYS_ADMIN no_new_privs stays as it is.
pub fn deny(call: u32, argument: Option<Argument>, errno: u32) {
    let when = argument.map_or(When::Always, When::Equals);
    install(call, when, Answer::Errno(errno), 0);
}

/// The same in all threads that there are.
pub fn deny_in_all_threads(call: u32, argument: Option<Argument>, errno: u32) {
    let when = argument.map_or(When::Always, When::Equals);
    let all = libc::SECCOMP_FILTER_FLAG_TSYNC;
    install(call, when, Answer::Errno(errno), all);
}

/// A filter as text, for the command line of a role: `CALL[/INDEX=VALUE|/INDEX&BITS]:ANSWER`, the answer an
/// errno, `trap` or `kill`.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub call: u32,
    pub when: When,
    pub answer: Answer,
}

impl Rule {
    /// As [`deny`], for the calling thread and all it makes.
    pub fn take_effect(self) {
        install(self.call, self.when, self.answer, 0);
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.call)?;
        match self.when {
            When::Always => {}
            When::Equals(Argument { index, value }) => write!(f, "/{index}={value}")?,
            When::HasSome(Argument { index, value }) => write!(f, "/{index}&{value}")?,
        }
        match self.answer {
            Answer::Errno(errno) => write!(f, ":{errno}"),
            Answer::Trap => f.write_str(":trap"),
            Answer::Kill => f.write_str(":kill"),
        }
    }
}

impl FromStr for Rule {
    type Err = Box<dyn std::error::Error>;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (what, answer) = text.split_once(':').ok_or("no answer")?;
        let (call, when) = what
            .split_once('/')
            .map_or((what, None), |(c, w)| (c, Some(w)));
        let argument = |text: &str, sign: char| -> Result<Argument, Self::Err> {
            let (index, value) = text.split_once(sign).ok_or("no value")?;
            Ok(Argument {
                index: index.parse()?,
                value: value.parse()?,
            })
        };
        Ok(Self {
            call: call.parse()?,
            when: match when {
                None => When::Always,
                Some(text) if text.contains('&') => When::HasSome(argument(text, '&')?),
                Some(text) => When::Equals(argument(text, '=')?),
            },
            answer: match answer {
                "trap" => Answer::Trap,
                "kill" => Answer::Kill,
                errno => Answer::Errno(errno.parse()?),
            },
        })
    }
}

fn install(call: u32, when: When, answer: Answer, flags: libc::c_ulong) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let unless = |test: u32, k, jf| libc::sock_filter {
        jf,
        ..statement(libc::BPF_JMP | test | libc::BPF_K, k)
    };
    let answers = |k| statement(libc::BPF_RET | libc::BPF_K, k);
    // struct seccomp_data: the number, the architecture, the instruction pointer, six arguments of
    // eight bytes, the low half first on a little-endian machine.
    let mut program = vec![load(0)];
    match when {
        When::Always => program.push(unless(libc::BPF_JEQ, call, 1)),
        When::Equals(Argument { index, value }) => program.extend([
            unless(libc::BPF_JEQ, call, 3),
            load(16 + 8 * index),
            unless(libc::BPF_JEQ, value, 1),
        ]),
        When::HasSome(Argument { index, value }) => program.extend([
            unless(libc::BPF_JEQ, call, 3),
            load(16 + 8 * index),
            unless(libc::BPF_JSET, value, 1),
        ]),
    }
    program.extend([
        answers(match answer {
            Answer::Errno(errno) => libc::SECCOMP_RET_ERRNO | errno,
            Answer::Trap => libc::SECCOMP_RET_TRAP,
            Answer::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }),
        answers(libc::SECCOMP_RET_ALLOW),
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
