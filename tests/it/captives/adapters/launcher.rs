//! A launcher that launches by the adapters: a line a command, a line an answer.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use captive::launcher::CommandExt as _;

/// What std is to spawn.
fn command(kind: &str) -> Command {
    let mut command = match kind {
        "plain" | "user" => {
            let mut command = Command::new("sleep");
            command.arg("600").stdout(Stdio::null());
            command
        }
        _ => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--role", "captives", "death", "captive", kind]);
            command.stdout(Stdio::piped());
            command
        }
    };
    command.stdin(Stdio::null());
    if kind == "user" {
        command.uid(65534).gid(65534);
    }
    command
}

/// A child that says so, and does not go on before the launcher has ended.
fn held() -> Command {
    let mut command = command("plain");
    let (out, launcher) = (unsafe { libc::dup(1) }, std::process::id() as i32);
    unsafe {
        command.pre_exec(move || {
            libc::write(out, b"held\n".as_ptr().cast(), 5);
            while libc::getppid() == launcher {
                libc::usleep(1000);
            }
            Ok(())
        });
    }
    command
}

/// Waits until it is ready. Never dropped, never waited for.
fn keep(child: Child) -> String {
    let child = Box::leak(Box::new(child));
    if let Some(stdout) = child.stdout.take() {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }
    child.id().to_string()
}

pub fn run() -> i32 {
    let mut again = command("plain");
    #[cfg(feature = "tokio")]
    let runtimes = asynchronous::Runtimes::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words.as_slice() {
            ["std", kind] => keep(command(kind).spawn_captive().unwrap()),
            ["std-thread", kind] => std::thread::scope(|scope| {
                let spawned = scope.spawn(|| keep(command(kind).spawn_captive().unwrap()));
                spawned.join().unwrap()
            }),
            ["again", "captive"] => keep(again.spawn_captive().unwrap()),
            ["again", "plain"] => keep(again.spawn().unwrap()),
            ["held"] => {
                // Its guard has to do until this is over.
                let (deaf, _) = super::super::death::launcher::spawn(&["deaf", "grace=2000"]);
                Box::leak(Box::new(deaf));
                std::thread::spawn(|| held().spawn_captive());
                continue;
            }
            // Until it is killed: each lives on, or has ended and been reaped.
            ["churn"] => {
                println!("churns");
                for index in 0.. {
                    let mut child = command("plain").spawn_captive().unwrap();
                    if index % 2 == 0 {
                        child.kill().unwrap();
                        child.wait().unwrap();
                    }
                }
                unreachable!()
            }
            #[cfg(feature = "tokio")]
            [how, what @ ..] => runtimes.run(how, what),
            _ => panic!("{line}?"),
        };
        println!("{answer}");
    }
    0
}

#[cfg(feature = "tokio")]
mod asynchronous {
    use std::time::Duration;

    use captive::launcher::tokio::{self as captives, AsyncCaptive};
    use captive::launcher::{Ready, Stream};
    use tokio::runtime::{Builder, Runtime};

    use super::super::super::death::launcher::command;
    use crate::support::HANG;

    pub struct Runtimes {
        current: Runtime,
        multi: Runtime,
    }

    impl Runtimes {
        pub fn new() -> &'static Self {
            // Never dropped: no end of this process is to be mistaken for a drop.
            Box::leak(Box::new(Self {
                current: Builder::new_current_thread().enable_all().build().unwrap(),
                multi: Builder::new_multi_thread().enable_all().build().unwrap(),
            }))
        }

        pub fn run(&self, how: &str, what: &[&str]) -> String {
            match how {
                "current" => self.current.block_on(launch(what)),
                "multi" => self.multi.block_on(async {
                    let what: Vec<String> = what.iter().map(ToString::to_string).collect();
                    let task = tokio::spawn(async move {
                        let what: Vec<&str> = what.iter().map(String::as_str).collect();
                        launch(&what).await
                    });
                    task.await.unwrap()
                }),
                "detach" => self.multi.block_on(async {
                    let captive = spawn(what).await;
                    let pid = captive.id();
                    captive.detach().await.map_err(|(_, error)| error).unwrap();
                    pid.to_string()
                }),
                "detach-refused" => self.multi.block_on(async {
                    let captive = spawn(what).await;
                    let (captive, error) = captive.detach().await.unwrap_err();
                    keep(captive);
                    error.to_string()
                }),
                "detach-cancelled" => {
                    let mut builder = Builder::new_multi_thread();
                    builder.enable_all().max_blocking_threads(1);
                    builder.build().unwrap().block_on(async {
                        let captive = spawn(what).await;
                        let pid = captive.id();
                        // Not before it has been polled.
                        let (go, gone) = std::sync::mpsc::channel::<()>();
                        tokio::task::spawn_blocking(move || gone.recv());
                        assert!(super::super::tokio::is_pending(captive.detach()));
                        drop(go);
                        // By the same thread: when this is done, so is that.
                        tokio::task::spawn_blocking(|| {}).await.unwrap();
                        pid.to_string()
                    })
                }
                _ => panic!("{how}?"),
            }
        }
    }

    async fn spawn(what: &[&str]) -> AsyncCaptive {
        let mut command = command(what);
        if !["plain", "user"].contains(&what[0]) {
            command.ready(Ready::Line(Stream::Stdout, "ready".into()));
        }
        let captive = captives::spawn(command).await.unwrap();
        if captive.stdout.is_some() {
            captive.wait_ready(HANG).await.unwrap();
        }
        captive
    }

    async fn launch(what: &[&str]) -> String {
        let captive = spawn(what).await;
        let pid = captive.id();
        // Somebody waits for it, too.
        let wait = tokio::time::timeout(Duration::from_millis(1), captive.wait());
        assert!(wait.await.is_err());
        keep(captive);
        pid.to_string()
    }

    fn keep(captive: AsyncCaptive) {
        Box::leak(Box::new(captive));
    }
}
