//! The launchers of `peers`: each starts a wrapper with nothing on its standard input and output, and
//! says its pid.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The role `peers-launcher`: `main|thread ARGV...`, starts ARGV from that thread. The thread ends at
/// a line on standard input, the process at its end of file.
pub(crate) fn launcher(args: &[String]) -> i32 {
    let (from, argv) = args.split_first().unwrap();
    if from == "thread" {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start(argv);
                io::stdin().read_line(&mut String::new()).unwrap();
            });
        });
        println!("ended");
    } else {
        start(argv);
    }
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    0
}

/// Its end is the tag's business, not that of a handle.
fn start(argv: &[String]) {
    println!("wrapper {}", command(argv).spawn().unwrap().id());
}

fn command(argv: &[String]) -> Command {
    let mut command = Command::new(&argv[0]);
    command
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// The role `peers-adopter`: `init|subreaper ARGV...`. It is what adopts a wrapper whose launcher has
/// died before the wrapper's first instruction; in ARGV, `{launcher}` is the dead one's pid.
///
/// ```text
/// adopter ── launcher (forks, exits) ── the process that waits for the adopter and becomes ARGV
/// ```
pub(crate) fn adopter(args: &[String]) -> i32 {
    let (kind, argv) = args.split_first().unwrap();
    let own = std::process::id();
    if kind == "init" {
        assert_eq!(own, 1);
    } else {
        let set = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
        assert_eq!(set, 0);
    }
    match unsafe { libc::fork() } {
        -1 => return 1,
        0 => orphan(own, argv),
        _ => {}
    }
    loop {
        let mut status = 0;
        match unsafe { libc::waitpid(-1, &raw mut status, 0) } {
            -1 => break,
            pid => println!("ended {pid} {status}"),
        }
    }
    // A command that daemonised is not ours: nothing to wait for, and the end of an init is everyone's.
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    0
}

/// In the launcher: makes the orphan and exits.
fn orphan(adopter: u32, argv: &[String]) -> ! {
    let launcher = std::process::id().to_string();
    if unsafe { libc::fork() } != 0 {
        unsafe { libc::_exit(0) };
    }
    while std::os::unix::process::parent_id() != adopter {
        std::thread::sleep(Duration::from_millis(1));
    }
    let argv: Vec<String> = argv
        .iter()
        .map(|arg| arg.replace("{launcher}", &launcher))
        .collect();
    println!("wrapper {}", std::process::id());
    let error = command(&argv).exec();
    eprintln!("{argv:?}: {error}");
    unsafe { libc::_exit(1) }
}
