//! The stage: from the launcher's child to the command, where the credentials change.
//!
//! While a child shares the launcher's memory, a change of its user would let the new user stop it
//! (and with it a launcher that waits) or trace it, and would make the launcher's address space
//! undumpable. So the child executes this program first, which has memory of its own: the launcher
//! goes on, and what the new user does to the stage concerns the stage.
//!
//! The order is that of `run_with`'s plan: root, groups, gid, uid, proof; then the parent-death
//! signal, which the change of user cleared, and the parent once more.

use crate::Arguments;
use crate::protocol::*;
use crate::sys::{self, int, plain, syscall};

/// The numbers of argument 2, in the order in which the launcher writes them (`stage::insert` there): the
/// pipe, the new root or -1, the launcher's pid, the parent-death signal or 0, the signal mask, whether
/// there is a user, its uid and gid, how many candidates follow, how many groups, the groups.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> i64 {
        let mut value: i64 = 0;
        let mut negative = false;
        let mut seen = false;
        while let Some((byte, rest)) = self.0.split_first() {
            self.0 = rest;
            match byte {
                b'-' => negative = true,
                b'0'..=b'9' => {
                    seen = true;
                    value = value.wrapping_mul(10).wrapping_add(i64::from(byte - b'0'));
                }
                _ if seen => break,
                _ => {}
            }
        }
        if negative { -value } else { value }
    }
}

/// As many groups as setgroups(2) takes (NGROUPS_MAX).
const MOST_GROUPS: usize = 65536;

static mut GROUPS: [u32; MOST_GROUPS] = [0; MOST_GROUPS];
static mut FOUND: [u32; MOST_GROUPS] = [0; MOST_GROUPS];

struct Report(i32);

impl Report {
    fn say(&self, step: u32, errno: i32) {
        let report = StageReport { step, errno };
        let place = (&raw const report) as usize;
        // SAFETY: the kernel reads the structure's bytes.
        let _ = unsafe {
            syscall(
                sys::WRITE,
                [int(self.0), place, size_of::<StageReport>(), 0, 0, 0],
            )
        };
    }

    fn check(&self, step: u32, answer: Result<usize, i32>) {
        if let Err(errno) = answer {
            self.say(step, errno);
            sys::exit(127);
        }
    }
}

pub fn run(arguments: &Arguments) -> ! {
    let mut numbers = Numbers(arguments.get(2).unwrap_or_default());
    let report = Report(numbers.next() as i32);
    let root = numbers.next() as i32;
    let launcher = numbers.next() as i32;
    let parent_death_signal = numbers.next() as i32;
    let mask = numbers.next() as u64;
    let identity = numbers.next() != 0;
    let uid = numbers.next() as u32;
    let gid = numbers.next() as u32;
    let candidates = numbers.next() as usize;
    let count = numbers.next() as usize;
    report.check(STEP_ARGUMENTS, sys::set_close_on_exec(report.0).map(|()| 0));
    if root >= 0 {
        let answer = plain(sys::FCHDIR, [int(root), 0, 0, 0, 0, 0]);
        report.check(STEP_CHROOT, answer);
        report.check(STEP_CHROOT, path_call(sys::CHROOT, b".\0"));
        sys::close(root);
        report.check(STEP_CHDIR, path_call(sys::CHDIR, b"/\0"));
    }
    let directory = arguments.get(3).unwrap_or_default();
    if !directory.is_empty() {
        report.say(STEP_CHDIR, 0);
        // An argument is followed by its NUL.
        report.check(STEP_CHDIR, path_call(sys::CHDIR, directory));
    }
    if identity {
        become_user(&report, uid, gid, count, &mut numbers);
    }
    if parent_death_signal != 0 {
        const PR_SET_PDEATHSIG: usize = 1;
        let answer = plain(
            sys::PRCTL,
            [PR_SET_PDEATHSIG, int(parent_death_signal), 0, 0, 0, 0],
        );
        report.check(STEP_PARENT, answer);
    }
    if plain(sys::GETPPID, [0; 6]) != Ok(int(launcher)) {
        report.check(STEP_PARENT, Err(sys::ESRCH));
    }
    const SIG_SETMASK: usize = 2;
    report.say(STEP_EXEC, 0);
    // SAFETY: the kernel reads eight bytes.
    let answer = unsafe {
        syscall(
            sys::RT_SIGPROCMASK,
            [SIG_SETMASK, (&raw const mask) as usize, 0, 8, 0, 0],
        )
    };
    report.check(STEP_MASK, answer);
    let errno = exec(arguments, candidates);
    report.check(STEP_EXEC, Err(errno));
    sys::exit(127)
}

/// A call whose one argument is a path that ends with a NUL or is followed by one.
fn path_call(number: usize, path: &[u8]) -> Result<usize, i32> {
    // SAFETY: NUL-terminated by the callers, and only read.
    unsafe { syscall(number, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }
}

fn become_user(report: &Report, uid: u32, gid: u32, count: usize, numbers: &mut Numbers<'_>) {
    // SAFETY: this program has one thread, and this is the one place that uses the two.
    let groups = unsafe { &mut *(&raw mut GROUPS) };
    // SAFETY: as above.
    let found = unsafe { &mut *(&raw mut FOUND) };
    let Some(groups) = groups.get_mut(..count) else {
        report.say(STEP_GROUPS, sys::EINVAL);
        sys::exit(127)
    };
    for group in groups.iter_mut() {
        *group = numbers.next() as u32;
    }
    let place = groups.as_ptr() as usize;
    // SAFETY: the kernel reads as many groups as there are.
    let answer = unsafe { syscall(sys::SETGROUPS, [count, place, 0, 0, 0, 0]) };
    report.check(STEP_GROUPS, answer);
    let (u, g) = (uid as usize, gid as usize);
    report.check(STEP_GID, plain(sys::SETRESGID, [g, g, g, 0, 0, 0]));
    report.check(STEP_UID, plain(sys::SETRESUID, [u, u, u, 0, 0, 0]));
    let regained = plain(sys::SETRESUID, [0; 6]).is_ok();
    let place = found.as_mut_ptr() as usize;
    // SAFETY: the kernel writes at most as many groups as there is room for.
    let answer = unsafe { syscall(sys::GETGROUPS, [MOST_GROUPS, place, 0, 0, 0, 0]) };
    let found = found.get(..answer.unwrap_or(0)).unwrap_or_default();
    let same = answer.is_ok()
        && found.iter().all(|group| groups.contains(group))
        && groups.iter().all(|group| found.contains(group));
    let ids = three(sys::GETRESUID) == [uid; 3] && three(sys::GETRESGID) == [gid; 3];
    if regained || !same || !ids || has_capabilities() {
        report.check(STEP_PROOF, Err(sys::EPERM));
    }
}

fn three(number: usize) -> [u32; 3] {
    let mut ids = [u32::MAX; 3];
    let base = (&raw mut ids) as usize;
    // SAFETY: the kernel writes one id to each of three places.
    let _ = unsafe { syscall(number, [base, base + 4, base + 8, 0, 0, 0]) };
    ids
}

/// Whether any capability is permitted, or whether that cannot be known; capget(2), version 3.
fn has_capabilities() -> bool {
    let mut header = [0x2008_0522_u32, 0];
    let mut data = [0_u32; 6];
    let (header, place) = ((&raw mut header) as usize, (&raw mut data) as usize);
    // SAFETY: both have the sizes that version 3 reads and writes.
    let answer = unsafe { syscall(sys::CAPGET, [header, place, 0, 0, 0, 0]) };
    let [_, low, _, _, high, _] = data;
    answer.is_err() || low != 0 || high != 0
}

/// Tries each place where the command may be, as execvp(3) does. Arguments from 4 on: the candidates,
/// the shell for a file without an interpreter line, the command's own.
fn exec(arguments: &Arguments, candidates: usize) -> i32 {
    let environment = arguments.environment() as usize;
    let shell = 4 + candidates;
    let Some(argv) = arguments.from(shell + 1) else {
        return sys::EINVAL;
    };
    let mut denied = false;
    for index in 4..shell {
        let Some(path) = arguments.get(index) else {
            return sys::EINVAL;
        };
        // SAFETY: strings and arrays as the kernel gave them, each ended as execve wants it.
        let answer = unsafe {
            syscall(
                sys::EXECVE,
                [path.as_ptr() as usize, argv as usize, environment, 0, 0, 0],
            )
        };
        match answer {
            Err(sys::ENOENT | sys::ENOTDIR | sys::ESTALE | sys::ENODEV | sys::ETIMEDOUT) => {}
            Err(sys::EACCES) => denied = true,
            Err(sys::ENOEXEC) => return exec_shell(arguments, shell, path, environment),
            Err(other) => return other,
            Ok(_) => {}
        }
    }
    if denied { sys::EACCES } else { sys::ENOENT }
}

/// A file without an interpreter line is the shell's. argv[0] of the command gives way to its path.
fn exec_shell(arguments: &Arguments, shell: usize, path: &[u8], environment: usize) -> i32 {
    let (Some(program), Some(argv)) = (arguments.get(shell), arguments.from(shell)) else {
        return sys::EINVAL;
    };
    let name = argv.wrapping_add(1).cast_mut();
    // SAFETY: the array that the kernel put on this process's own stack, which nobody else uses; the
    // command has an argv[0].
    unsafe { *name = path.as_ptr() };
    let program = program.as_ptr() as usize;
    // SAFETY: as in `exec`.
    let answer = unsafe { syscall(sys::EXECVE, [program, argv as usize, environment, 0, 0, 0]) };
    answer.err().unwrap_or(sys::EINVAL)
}
