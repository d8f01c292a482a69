//! Threads of many kinds, beside the one that does what is tested.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// Twenty threads that stay: at work, in a system call, asleep, in poll, waiting for each other; and
/// two that make threads which end at once, for ever.
pub fn gather() {
    static LOCK: Mutex<()> = Mutex::new(());
    static WORK: AtomicBool = AtomicBool::new(true);
    // Leaked: each holds until the process ends.
    let condition: &'static Condvar = Box::leak(Box::default());
    let wait = || {
        let mut guard = LOCK.lock().unwrap();
        loop {
            guard = condition.wait(guard).unwrap();
        }
    };
    for number in 0..20 {
        thread::spawn(move || match number % 5 {
            0 => loop {
                thread::sleep(Duration::from_secs(3600));
            },
            1 => {
                let (mut reader, _writer) = UnixStream::pair().unwrap();
                reader.read_exact(&mut [0]).unwrap();
            }
            2 => wait(),
            3 => loop {
                unsafe { libc::poll(std::ptr::null_mut(), 0, -1) };
            },
            _ => {
                while WORK.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            }
        });
    }
    for _ in 0..2 {
        thread::spawn(|| {
            while WORK.load(Ordering::Relaxed) {
                for ended in [0; 4].map(|_| thread::spawn(thread::yield_now)) {
                    ended.join().unwrap();
                }
            }
        });
    }
}

/// A thread that the C library does not know; it ends after this time. The answer is its id.
pub fn raw_thread(life: Duration) -> i32 {
    extern "C" fn live(life: *mut libc::c_void) -> i32 {
        // System calls only: the thread-local storage is that of its maker.
        unsafe { libc::nanosleep(life.cast(), std::ptr::null_mut()) };
        0
    }
    let life = Box::leak(Box::new(libc::timespec {
        tv_sec: life.as_secs() as libc::time_t,
        tv_nsec: life.subsec_nanos().into(),
    }));
    let stack = Box::leak(vec![0_u128; 4096].into_boxed_slice());
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let top = stack.as_mut_ptr_range().end;
    let tid = unsafe { libc::clone(live, top.cast(), flags, (&raw mut *life).cast()) };
    assert!(tid > 0);
    tid
}

/// A thread that does this and then stays; the answer is its id.
pub fn thread_that(act: impl FnOnce() + Send + 'static) -> i32 {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        act();
        sender.send(unsafe { libc::gettid() }).unwrap();
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    });
    receiver.recv().unwrap()
}
