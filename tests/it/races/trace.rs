//! ptrace(2), as much as the stepper needs.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::{Duration, Instant};

use super::namespace::check;
use crate::support::HANG;
use crate::support::process::PtraceRequest;

/// A stop before (`entry`) or after a system call. At an exit only `entry` is known.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub entry: bool,
    pub number: libc::c_long,
    pub first: u64,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.entry { "before" } else { "after" };
        write!(
            f,
            "{side} system call {} ({:#x}, ...)",
            self.number, self.first
        )
    }
}

/// What a wait says of a traced process.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Call(Call),
    /// It has made a process, which is traced too.
    Made {
        child: i32,
    },
    Exec,
    /// A signal is about to be delivered.
    Signal(i32),
    /// Another stop, to be resumed from.
    Stop,
    Ended,
}

fn request(request: PtraceRequest, pid: i32, address: usize, data: usize) -> io::Result<usize> {
    let answer = unsafe { libc::ptrace(request, pid, address, data) };
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer as usize)
}

/// Traces `pid`, which is in a system call that can be interrupted, and all that it makes; the next
/// event is its first system call.
pub fn seize(pid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE;
    request(libc::PTRACE_SEIZE, pid, 0, options as usize)?;
    request(libc::PTRACE_INTERRUPT, pid, 0, 0)?;
    wait_for(pid)?;
    resume(pid, 0)
}

/// Goes on to the next stop.
pub fn resume(pid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, pid, 0, signal as usize).map(drop)
}

/// Stops `pid` as soon as that is possible; one that is stopped, or gone, is left as it is.
pub fn interrupt(pid: i32) {
    let _ = request(libc::PTRACE_INTERRUPT, pid, 0, 0);
}

/// Lets `pid`, which is stopped, go; one that has been killed is gone already.
pub fn detach(pid: i32, signal: i32) {
    let _ = request(libc::PTRACE_DETACH, pid, 0, signal as usize);
}

/// Waits for the next event of any child or traced process.
pub fn next() -> io::Result<(i32, Event)> {
    let mut status = 0;
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
    check(pid)?;
    Ok((pid, event(pid, status)?))
}

/// Lets `pid` go on until it is about to make this system call.
pub fn await_call(pid: i32, number: libc::c_long) -> io::Result<()> {
    let deadline = Instant::now() + HANG;
    loop {
        let mut status = 0;
        let found = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        check(found)?;
        if found == 0 {
            if Instant::now() >= deadline {
                return Err(io::Error::other("the system call is not made"));
            }
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        match event(pid, status)? {
            Event::Call(call) if call.entry && call.number == number => return Ok(()),
            Event::Signal(signal) => resume(pid, signal)?,
            Event::Ended => return Err(io::Error::other("it has ended")),
            _ => resume(pid, 0)?,
        }
    }
}

/// Waits for the end of `pid`, which has been killed, and releases it to its parent.
pub fn await_end(pid: i32) -> io::Result<()> {
    while libc::WIFSTOPPED(wait_for(pid)?) {}
    Ok(())
}

fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    check(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) })?;
    Ok(status)
}

/// Lets go whoever has stopped, and reaps who has ended.
pub fn detach_all_that_stop() -> io::Result<()> {
    loop {
        let mut status = 0;
        let flags = libc::WNOHANG | libc::__WALL;
        let pid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        if pid <= 0 {
            return Ok(());
        }
        match event(pid, status)? {
            Event::Ended => {}
            Event::Signal(signal) => detach(pid, signal),
            _ => detach(pid, 0),
        }
    }
}

fn event(pid: i32, status: i32) -> io::Result<Event> {
    if !libc::WIFSTOPPED(status) {
        return Ok(Event::Ended);
    }
    let signal = libc::WSTOPSIG(status);
    if signal == libc::SIGTRAP | 0x80 {
        return Ok(call(pid).map_or(Event::Stop, Event::Call));
    }
    Ok(match status >> 16 {
        0 => Event::Signal(signal),
        libc::PTRACE_EVENT_EXEC => Event::Exec,
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
            let mut child: libc::c_ulong = 0;
            request(libc::PTRACE_GETEVENTMSG, pid, 0, &raw mut child as usize)?;
            Event::Made {
                child: child as i32,
            }
        }
        _ => Event::Stop,
    })
}

/// struct ptrace_syscall_info of linux/ptrace.h at the entry to a call; at other stops its beginning.
#[repr(C)]
struct SyscallInfo {
    op: u8,
    padding: [u8; 3],
    architecture: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    number: u64,
    arguments: [u64; 6],
}

/// PTRACE_GET_SYSCALL_INFO, Linux 5.3; `None` if the process has been killed meanwhile.
fn call(pid: i32) -> Option<Call> {
    const PTRACE_GET_SYSCALL_INFO: PtraceRequest = 0x420e;
    const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;
    let mut info = MaybeUninit::<SyscallInfo>::zeroed();
    let size = size_of::<SyscallInfo>();
    let place = info.as_mut_ptr() as usize;
    request(PTRACE_GET_SYSCALL_INFO, pid, size, place).ok()?;
    let info = unsafe { info.assume_init() };
    let entry = info.op == PTRACE_SYSCALL_INFO_ENTRY;
    let (number, first) = if entry {
        (info.number as libc::c_long, info.arguments[0])
    } else {
        (-1, 0)
    };
    Some(Call {
        entry,
        number,
        first,
    })
}

/// Makes SIGALRM interrupt waits with EINTR, and do nothing else.
pub fn interrupt_on_alarm() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let mut action = unsafe { std::mem::zeroed::<libc::sigaction>() };
    let handler: extern "C" fn(libc::c_int) = nothing;
    action.sa_sigaction = handler as libc::sighandler_t;
    check(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) })
}
