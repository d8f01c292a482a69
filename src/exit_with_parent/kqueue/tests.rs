//! All of `kqueue.rs` but the queue, run on Linux: with epoll in its place, on real pipes and processes.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::super::known::Who;
use super::*;
use crate::sys::event_source::{EventSource, Interest, Key};

/// Long enough for whatever is to come.
const LIMIT: Duration = Duration::from_secs(60);

fn request(expected: Expected, action: Action) -> Request {
    Request {
        expected,
        mechanism: None,
        second_line: false,
        action,
    }
}

/// An action that tells, and whose end is seen when the thread and the handle have let go of it.
fn telling() -> (Action, Receiver<ParentExited>) {
    let (sender, receiver) = bounded(2);
    let action = Action::Call(Arc::new(move |event| sender.send(event).unwrap()));
    (action, receiver)
}

#[test]
fn the_end_of_a_pipe_is_told_once() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (action, told) = telling();
    let mut armed = Armed::arm(request(Expected::Fd(reader), action)).unwrap();
    assert!(armed.parent_is_alive());
    let mut writer = std::fs::File::from(writer);
    writer.write_all(b"unread").unwrap();
    assert!(armed.parent_is_alive());
    assert!(armed.rearm().is_ok());
    assert!(told.is_empty());
    drop(writer);
    assert_eq!(told.recv_timeout(LIMIT), Ok(ParentExited { pid: None }));
    assert!(!armed.parent_is_alive());
    assert!(armed.rearm().unwrap_err().is_parent_gone());
    armed.disarm().unwrap();
    // The thread has ended, and said nothing more.
    let nothing = told.recv_timeout(LIMIT);
    assert_eq!(nothing, Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_pipe_that_has_ended_arms_nothing() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(writer);
    let (action, told) = telling();
    let error = Armed::arm(request(Expected::Fd(reader), action)).unwrap_err();
    assert!(error.is_parent_gone());
    let nothing = told.recv_timeout(LIMIT);
    assert_eq!(nothing, Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_disarmed_thread_ends() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (action, told) = telling();
    let armed = Armed::arm(request(Expected::Fd(reader), action)).unwrap();
    armed.disarm().unwrap();
    let nothing = told.recv_timeout(LIMIT);
    assert_eq!(nothing, Err(RecvTimeoutError::Disconnected));
    drop(writer);
}

#[test]
fn the_parent_by_its_pid() {
    let parent = std::os::unix::process::parent_id();
    let (action, _told) = telling();
    let armed = Armed::arm(request(Expected::Pid(parent), action)).unwrap();
    assert!(armed.parent_is_alive());
    assert_eq!(armed.report().parent, Known::Expected(parent));
    assert_eq!(armed.report().mechanism, Mechanism::Kqueue);
    armed.disarm().unwrap();
    let (action, _told) = telling();
    let stranger = Expected::Pid(process::id());
    let error = Armed::arm(request(stranger, action)).unwrap_err();
    assert!(error.is_parent_gone());
}

#[test]
fn what_has_no_such_mechanism() {
    assert!(is_supported());
    for mechanism in [Mechanism::Pidfd, Mechanism::ParentDeathSignal] {
        let (action, _told) = telling();
        let request = Request {
            mechanism: Some(mechanism),
            ..request(Expected::Unsaid, action)
        };
        let error = Armed::arm(request).unwrap_err();
        assert!(matches!(error, ArmError::Unsupported(Some(found)) if found == mechanism));
    }
}

/// The exit of a real process, as if it were our parent: both sources are told, and the thread acts.
#[test]
fn the_exit_of_a_process() {
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let who = Who {
        known: Known::Unsaid(pid),
        step: ArmStep::Register(pid),
        may_be_hidden: false,
    };
    let exit = || Interest::Exit(i32::try_from(pid).unwrap());
    let (stop, stopped) = UnixStream::pair().unwrap();
    let queues = || [Queue::new().unwrap(), Queue::new().unwrap()];
    let parent = || Some(pid);
    let (watcher, asked) = asked::arm(who, parent, queues(), exit(), stopped.as_fd()).unwrap();
    assert_eq!(asked.is_gone(), Ok(false));
    let (action, told) = telling();
    let event = ParentExited { pid: Some(pid) };
    let thread = thread::spawn(move || watcher.run(&OwnProcess, &action, event));
    drop(child.stdin.take());
    assert_eq!(told.recv_timeout(LIMIT), Ok(event));
    thread.join().unwrap();
    assert_eq!(asked.is_gone(), Ok(true));
    // A zombie, then nobody.
    let gone = asked::arm(who, parent, queues(), exit(), stopped.as_fd()).map(drop);
    assert!(gone.unwrap_err().is_parent_gone());
    child.wait().unwrap();
    let gone = asked::arm(who, parent, queues(), exit(), stopped.as_fd()).map(drop);
    assert!(gone.unwrap_err().is_parent_gone());
    drop(stop);
}

/// A program that has closed all that it does not know, and given the numbers to others: those are left alone.
#[test]
fn numbers_that_are_anothers() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (action, told) = telling();
    let armed = Armed::arm(request(Expected::Fd(reader), action)).unwrap();
    let (mut ours, strangers) = UnixStream::pair().unwrap();
    let number = armed.watch.stop.as_raw_fd();
    // SAFETY: the number is given up by the watch, as when the program has closed it; nothing else has it.
    assert_eq!(unsafe { libc::dup2(strangers.as_raw_fd(), number) }, number);
    drop(strangers);
    assert!(armed.parent_is_alive());
    assert!(!armed.watch.is_whole());
    let error = armed.disarm().unwrap_err();
    assert!(matches!(
        error,
        ArmError::Os {
            step: ArmStep::Wakeup,
            ..
        }
    ));
    // Open, and not shut down.
    // SAFETY: still open, and borrowed for this test alone.
    let strangers = unsafe { BorrowedFd::borrow_raw(number) };
    ours.write_all(b"a").unwrap();
    let mut byte = [0];
    assert_eq!(nix::unistd::read(strangers, &mut byte), Ok(1));
    assert_eq!(nix::unistd::write(strangers, b"b"), Ok(1));
    assert!(told.is_empty());
    drop(writer);
}

#[test]
fn whoever_closes_all_from_some_number_on_closes_the_highest() {
    let (one, other) = UnixStream::pair().unwrap();
    let same = above(one.as_fd(), [other.as_fd(), one.as_fd()].into_iter()).unwrap();
    assert!(same.as_raw_fd() > one.as_raw_fd().max(other.as_raw_fd()));
    assert_eq!(socket(same.as_fd()), socket(one.as_fd()));
    assert_ne!(socket(other.as_fd()), socket(one.as_fd()));
    assert!(socket(one.as_fd()).is_some());
    assert_eq!(socket(nix::unistd::pipe().unwrap().0.as_fd()), None);
}

/// As below, for the handle's source.
#[test]
fn another_source_is_asked() {
    use crate::exit_with_parent::binding::Binding;

    let (reader, writer) = nix::unistd::pipe().unwrap();
    let queue = Queue::new().unwrap();
    let (readable, other) = nix::unistd::pipe().unwrap();
    drop(other);
    queue
        .add(Key(0), Interest::Readable(readable.as_fd()))
        .unwrap();
    let parent = Interest::Closed(reader.as_fd());
    let asked = Asked::register(queue, Arc::new(Binding::new()), parent).unwrap();
    assert_eq!(asked.is_gone(), Err(Errno::EBADF));
    drop(writer);
}

/// A source that the program has closed and made anew: its events are not ours.
#[test]
fn a_source_in_place_of_ours() {
    use crate::exit_with_parent::binding::Binding;

    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (_stop, stopped) = UnixStream::pair().unwrap();
    let queue = Queue::new().unwrap();
    let (readable, other) = nix::unistd::pipe().unwrap();
    drop(other);
    queue
        .add(Key(0), Interest::Readable(readable.as_fd()))
        .unwrap();
    let binding = Arc::new(Binding::new());
    let parent = Interest::Closed(reader.as_fd());
    let watcher = Watcher::register(queue, Arc::clone(&binding), parent, stopped.as_fd()).unwrap();
    let (action, told) = telling();
    // Returns at once, without a word.
    watcher.run(&OwnProcess, &action, ParentExited { pid: None });
    assert!(told.is_empty());
    assert!(!binding.is_watched());
    drop(writer);
}
