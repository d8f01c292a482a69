//! The handle.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::process::Output;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::net::unix::pipe::{Receiver, Sender};
use ::tokio::runtime::Handle;
use ::tokio::sync::Notify;
use ::tokio::time::Sleep;

use super::super::captive::{KILL_PATIENCE, std_status};
use super::super::platform::{self, Observer};
use super::super::{Captive, CaptiveError, Containment, ExitReport, Readiness, ReadyError};
use super::AsyncError;
use super::futures::{Either, both, first};
use crate::sys::signal::Signal;

/// A [`Captive`] whose waits are futures.
///
/// All waits take `&self`: as many tasks as one likes may wait, and others signal. Dropping it sends SIGKILL and returns at
/// once, on any thread, also outside of the runtime.
///
/// # Platforms
/// As [`launcher`](super::super#platforms).
#[derive(Debug)]
pub struct AsyncCaptive {
    /// The writing end of its standard input, if that is a pipe.
    pub stdin: Option<Sender>,
    /// The reading end of its standard output, if that is a pipe.
    pub stdout: Option<Receiver>,
    /// The reading end of its standard error, if that is a pipe.
    pub stderr: Option<Receiver>,
    captive: Captive,
    /// A copy of its pidfd, readable from its end on.
    pidfd: AsyncFd<OwnedFd>,
    runtime: Handle,
    /// Tells of a look that has found it ready: what one wait reads, another has no event for.
    looked: Arc<Notify>,
}

/// How long the first of several looks is followed by none.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause while a tracer keeps the kernel from telling how it ended.
const TRACED_PAUSE: Duration = Duration::from_millis(50);

impl AsyncCaptive {
    /// Of a captive that has been launched otherwise; the way back is [`into_inner`](Self::into_inner). Its pipes become
    /// the runtime's (O_NONBLOCK).
    ///
    /// # Errors
    /// The captive as it was, and why: [`AsyncError::NoRuntime`], [`AsyncError::Register`].
    ///
    /// # Panics
    /// If the runtime was built without `enable_io`, as everything of tokio's that needs it. Methods with a limit panic in one
    /// without `enable_time`.
    #[allow(
        clippy::result_large_err,
        reason = "the captive is what the caller wants back"
    )]
    pub fn new(captive: Captive) -> Result<Self, (Captive, AsyncError)> {
        match Handle::try_current() {
            Ok(runtime) => Self::on(runtime, captive),
            Err(error) => Err((captive, AsyncError::NoRuntime(error))),
        }
    }

    #[allow(clippy::result_large_err, reason = "as above")]
    pub(super) fn on(runtime: Handle, mut captive: Captive) -> Result<Self, (Captive, AsyncError)> {
        let context = runtime.enter();
        let failed = |what: &'static str| move |errno| AsyncError::Register { what, errno };
        let pidfd = captive
            .pidfd()
            .try_clone_to_owned()
            .and_then(|pidfd| register(pidfd, Interest::READABLE))
            .map_err(failed("pidfd"));
        let pidfd = match pidfd {
            Ok(pidfd) => pidfd,
            Err(error) => return Err((captive, error)),
        };
        let pipes = Pipes::of(&captive);
        let Pipes {
            stdin,
            stdout,
            stderr,
        } = match pipes.map_err(failed("pipes")) {
            Ok(pipes) => pipes,
            Err(error) => {
                make_blocking(&captive);
                return Err((captive, error));
            }
        };
        (captive.stdin, captive.stdout, captive.stderr) = (None, None, None);
        drop(context);
        Ok(Self {
            stdin,
            stdout,
            stderr,
            captive,
            pidfd,
            runtime,
            looked: Arc::default(),
        })
    }

    /// The captive without the runtime, with its pipes, as far as they are still here (and block again).
    ///
    /// # Errors
    /// The captive without the pipes that could not be taken from the runtime, and why.
    #[allow(
        clippy::result_large_err,
        reason = "the captive is what the caller wants back"
    )]
    pub fn into_inner(self) -> Result<Captive, (Captive, io::Error)> {
        let mut captive = self.captive;
        let mut failed = None;
        let mut keep = |fd: Option<io::Result<OwnedFd>>| match fd? {
            Ok(fd) => Some(fd),
            Err(error) => {
                failed = Some(error);
                None
            }
        };
        captive.stdin = keep(self.stdin.map(Sender::into_blocking_fd)).map(Into::into);
        captive.stdout = keep(self.stdout.map(Receiver::into_blocking_fd)).map(Into::into);
        captive.stderr = keep(self.stderr.map(Receiver::into_blocking_fd)).map(Into::into);
        match failed {
            None => Ok(captive),
            Some(error) => Err((captive, error)),
        }
    }

    /// Its pid. After its end the number may be another process's: signal through this handle.
    pub fn id(&self) -> u32 {
        self.captive.id()
    }

    /// By which mechanism its tree is contained: never [`Containment::Tree`], but the one that was chosen for it.
    pub fn containment(&self) -> Containment {
        self.captive.containment()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// As [`Captive::try_wait`].
    pub fn try_wait(&self) -> Result<Option<ExitReport>, CaptiveError> {
        self.captive.try_wait()
    }

    /// Sends a signal, at once. One that has ended gets nothing, and nobody else does.
    ///
    /// # Errors
    /// As [`Captive::signal`].
    pub fn signal(&self, signal: Signal) -> Result<(), CaptiveError> {
        self.captive.signal(signal)
    }

    /// SIGKILL, at once. Does not wait: see [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`Captive::kill`].
    pub fn kill(&self) -> Result<(), CaptiveError> {
        self.captive.kill()
    }

    /// Waits for its end. Standard input, if it is a pipe, is *not* closed first.
    ///
    /// # Cancel safety
    /// Nothing has happened: wait again.
    ///
    /// # Errors
    /// As [`Captive::wait`]; [`CaptiveError::Wait`] also when the runtime has been shut down.
    pub async fn wait(&self) -> Result<ExitReport, CaptiveError> {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(report) = self.captive.try_wait()? {
                return Ok(report);
            }
            self.ends().await?;
            if let Some(report) = self.captive.try_wait()? {
                return Ok(report);
            }
            // A tracer has not let go of it: nothing tells when it does.
            self.sleep(pause).await;
            pause = (pause * 2).min(TRACED_PAUSE);
        }
    }

    /// Ends it: SIGTERM (and SIGCONT, in case it is stopped), after `grace` SIGKILL; then its report, which says what was
    /// needed.
    ///
    /// # Cancel safety
    /// It goes no further: a captive that has had its SIGTERM gets no SIGKILL when the grace is over (but does when the
    /// handle is dropped). To go on, call it again: that sends SIGTERM again and begins a new grace.
    ///
    /// # Errors
    /// As [`Captive::terminate`].
    pub async fn terminate(&self, grace: Duration) -> Result<ExitReport, CaptiveError> {
        self.signal(Signal::TERM)?;
        self.captive.handle().resume();
        if let Some(report) = self.wait_within(grace).await? {
            return Ok(report);
        }
        self.kill()?;
        if let Some(report) = self.wait_within(KILL_PATIENCE).await? {
            return Ok(report);
        }
        let observer = self.captive.handle().observer()?;
        let stuck = self.blocking(move || observer.stuck()).await;
        Err(CaptiveError::Stuck(
            stuck.unwrap_or_else(|_| self.captive.handle().stuck()),
        ))
    }

    /// Waits until it has ended and nothing is left of its tree, at most `limit`; whether it is so. Without a tree
    /// ([`Containment::Process`]) only for its own end.
    ///
    /// # Cancel safety
    /// Nothing has happened: wait again.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn wait_tree(&self, limit: Duration) -> Result<bool, CaptiveError> {
        if let Either::A(ended) = first(self.tree_ends(), self.sleep(limit)).await {
            return ended.map(|()| true);
        }
        // A look, whatever the limit is.
        Ok(self.captive.try_wait()?.is_some()
            && self
                .tree_is_empty(&self.captive.handle().observer()?)
                .await?)
    }

    /// Waits until it is ready, as [`Command::ready`](super::super::Command::ready) said, at most `limit`. Once it was, the
    /// answer is the same again. With [`Ready::Line`](super::super::Ready::Line) the stream must still be in this handle,
    /// and not be read by others meanwhile.
    ///
    /// # Cancel safety
    /// What has been read of the stream is kept for the next wait, whose [`Readiness::output`] has it as well. A look that
    /// is under way on a blocking thread goes on (for a second at most, with `Ready::ConnectTcp`).
    ///
    /// # Errors
    /// As [`Captive::wait_ready`].
    pub async fn wait_ready(&self, limit: Duration) -> Result<Readiness, ReadyError> {
        let observer = self.captive.handle().observer()?;
        let words = observer.words(self.streams())?.map(Arc::new);
        if let Either::A(ready) = first(
            self.becomes_ready(&observer, words.as_ref()),
            self.sleep(limit),
        )
        .await
        {
            return ready;
        }
        // A look, whatever the limit is.
        match self.look(&observer, words.as_ref()).await? {
            platform::Look::Ready(readiness) => Ok(readiness),
            _ => self.ask(move || Err(observer.after_limit(limit))).await,
        }
    }

    /// Lets it go: it lives on when the launcher ends, and when this handle is gone.
    ///
    /// # Cancel safety
    /// Letting go goes on; if it fails, the captive gets SIGKILL.
    ///
    /// # Errors
    /// As [`Captive::detach`].
    #[allow(
        clippy::result_large_err,
        reason = "the handle is what the caller wants back"
    )]
    pub async fn detach(self) -> Result<(), (Self, CaptiveError)> {
        let Self {
            stdin,
            stdout,
            stderr,
            captive,
            pidfd,
            runtime,
            looked,
        } = self;
        // Shared, so that it is not lost with a runtime that is shut down before it begins.
        let shared = Arc::new(Mutex::new(Some(captive)));
        let own = Arc::clone(&shared);
        let detached = runtime.spawn_blocking(move || lock(&own).as_ref().map(Captive::let_go));
        let error = match detached.await {
            Ok(Some(Err(error))) => error,
            Ok(_) => return Ok(()),
            Err(stopped) => CaptiveError::Guard(io::Error::other(stopped)),
        };
        // Nobody else takes it.
        let Some(captive) = lock(&shared).take() else {
            return Ok(());
        };
        let handle = Self {
            stdin,
            stdout,
            stderr,
            captive,
            pidfd,
            runtime,
            looked,
        };
        Err((handle, error))
    }

    /// Closes its standard input, reads its output and errors to their ends, and waits for it.
    ///
    /// # Cancel safety
    /// The handle is in the future: the captive gets SIGKILL, and what was read is gone. To be able to go on, read
    /// [`stdout`](Self::stdout) and [`wait`](Self::wait) instead.
    ///
    /// # Errors
    /// As [`Captive::wait_with_output`].
    pub async fn wait_with_output(mut self) -> Result<Output, CaptiveError> {
        drop(self.stdin.take());
        let (out, err) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr) = both(read_to_end(out), read_to_end(err)).await;
        let (stdout, stderr) = (
            stdout.map_err(CaptiveError::Read)?,
            stderr.map_err(CaptiveError::Read)?,
        );
        let status = std_status(&self.wait().await?, self.id())?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// Waits for the event, which stays: whoever comes later is to see it too.
    async fn ends(&self) -> Result<(), CaptiveError> {
        let readable = self.pidfd.readable().await;
        readable
            .map(|mut event| event.retain_ready())
            .map_err(|errno| self.cannot_wait(errno))
    }

    fn cannot_wait(&self, errno: io::Error) -> CaptiveError {
        let pid = self.id();
        CaptiveError::Wait { pid, errno }
    }

    async fn wait_within(&self, limit: Duration) -> Result<Option<ExitReport>, CaptiveError> {
        match first(self.wait(), self.sleep(limit)).await {
            Either::A(ended) => ended.map(Some),
            Either::B(()) => self.captive.try_wait(),
        }
    }

    async fn tree_ends(&self) -> Result<(), CaptiveError> {
        self.wait().await?;
        let observer = self.captive.handle().observer()?;
        let change = observer.tree_change().and_then(|change| {
            let _context = self.runtime.enter();
            let interest = change.interest;
            let fd = register(change.fd, interest).ok()?;
            Some((fd, interest))
        });
        loop {
            if self.tree_is_empty(&observer).await? {
                return Ok(());
            }
            // Nothing tells if somebody removes its cgroup between its end and the word of that.
            let pause = self.sleep(platform::PAUSE);
            let Some((fd, interest)) = &change else {
                pause.await;
                continue;
            };
            match first(fd.ready(*interest), pause).await {
                Either::A(Ok(mut event)) => event.clear_ready(),
                Either::A(Err(errno)) => return Err(self.cannot_wait(errno)),
                Either::B(()) => {}
            }
        }
    }

    async fn tree_is_empty(&self, observer: &Observer) -> Result<bool, CaptiveError> {
        if !observer.has_to_walk() {
            return Ok(observer.tree_is_empty());
        }
        let observer = observer.clone();
        self.blocking(move || observer.tree_is_empty())
            .await
            .map_err(|errno| self.cannot_wait(errno))
    }

    async fn becomes_ready(
        &self,
        observer: &Observer,
        words: Option<&Arc<OwnedFd>>,
    ) -> Result<Readiness, ReadyError> {
        let news = words.and_then(|fd| {
            let _context = self.runtime.enter();
            register(Arc::clone(fd), Interest::READABLE).ok()
        });
        let mut pause = FIRST_PAUSE;
        let mut has_ended = false;
        loop {
            // From before the look on, so that none of another's is missed.
            let mut looked = pin!(self.looked.notified());
            looked.as_mut().enable();
            match self.look(observer, words).await? {
                platform::Look::Ready(readiness) => return Ok(readiness),
                platform::Look::More => continue,
                platform::Look::Closed => {
                    let _ = first(self.ends(), self.sleep(platform::LAST_WORDS)).await;
                    let own = observer.clone();
                    return self.ask(move || Err(own.after_closing())).await;
                }
                platform::Look::NotYet => {}
            }
            if has_ended {
                // A tracer has not let go of it.
                self.sleep(pause).await;
            } else if let Either::A(ended) =
                first(self.ends(), first(self.word(news.as_ref(), pause), looked)).await
            {
                ended?;
                has_ended = true;
            }
            pause = (pause * 2).min(platform::PAUSE);
        }
    }

    /// Something new to look at, or the time for another look where nothing tells.
    async fn word(&self, news: Option<&AsyncFd<Arc<OwnedFd>>>, pause: Duration) {
        if let Some(fd) = news {
            if let Ok(mut event) = fd.readable().await {
                return event.clear_ready();
            }
        }
        self.sleep(pause).await;
    }

    async fn look(
        &self,
        observer: &Observer,
        words: Option<&Arc<OwnedFd>>,
    ) -> Result<platform::Look, ReadyError> {
        let (observer, words) = (observer.clone(), words.cloned());
        let looked = Arc::clone(&self.looked);
        self.ask(move || {
            let look = observer.look(words.as_deref().map(AsFd::as_fd));
            // Here, since a wait that is dropped hears no answer. An edge is not told of a pipe that has been emptied
            // meanwhile.
            if matches!(look, Ok(platform::Look::Ready(_))) {
                looked.notify_waiters();
            }
            look
        })
        .await
    }

    /// On a blocking thread.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce() -> Result<T, ReadyError> + Send + 'static,
    ) -> Result<T, ReadyError> {
        let answer = self.blocking(ask).await;
        answer.map_err(|errno| ReadyError::Captive(self.cannot_wait(errno)))?
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let done = self.runtime.spawn_blocking(work).await;
        done.map_err(io::Error::other)
    }

    /// On this handle's runtime, whoever polls.
    fn sleep(&self, limit: Duration) -> Sleep {
        let _context = self.runtime.enter();
        ::tokio::time::sleep(limit)
    }

    fn streams(&self) -> platform::Streams<'_> {
        let stdout = self.stdout.as_ref().map(AsFd::as_fd);
        let stderr = self.stderr.as_ref().map(AsFd::as_fd);
        platform::Streams { stdout, stderr }
    }
}

impl AsRef<Captive> for AsyncCaptive {
    /// For what does not wait. Its pipes are not in it.
    fn as_ref(&self) -> &Captive {
        &self.captive
    }
}

fn lock(shared: &Mutex<Option<Captive>>) -> MutexGuard<'_, Option<Captive>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the context of a runtime.
#[allow(
    deprecated,
    reason = "what replaces it is of tokio 1.54, and asks for owned descriptors, which these are"
)]
fn register<T: std::os::fd::AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest)
}

/// The launcher's ends of a captive's pipes, as copies that are the runtime's.
struct Pipes {
    stdin: Option<Sender>,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
}

impl Pipes {
    fn of(captive: &Captive) -> io::Result<Self> {
        let receiver = |fd: BorrowedFd<'_>| Receiver::from_owned_fd(fd.try_clone_to_owned()?);
        let sender = |fd: BorrowedFd<'_>| Sender::from_owned_fd(fd.try_clone_to_owned()?);
        let [stdin, stdout, stderr] = ends_of(captive);
        Ok(Self {
            stdin: stdin.map(sender).transpose()?,
            stdout: stdout.map(receiver).transpose()?,
            stderr: stderr.map(receiver).transpose()?,
        })
    }
}

fn ends_of(captive: &Captive) -> [Option<BorrowedFd<'_>>; 3] {
    [
        captive.stdin.as_ref().map(AsFd::as_fd),
        captive.stdout.as_ref().map(AsFd::as_fd),
        captive.stderr.as_ref().map(AsFd::as_fd),
    ]
}

/// Undoes what a copy's way to the runtime has done to what both are.
fn make_blocking(captive: &Captive) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    for fd in ends_of(captive).into_iter().flatten() {
        if let Ok(flags) = fcntl(fd, FcntlArg::F_GETFL) {
            let flags = OFlag::from_bits_retain(flags) & !OFlag::O_NONBLOCK;
            let _ = fcntl(fd, FcntlArg::F_SETFL(flags));
        }
    }
}

async fn read_to_end(pipe: Option<Receiver>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let Some(pipe) = pipe else {
        return Ok(all);
    };
    let mut bytes = vec![0; 16 * 1024];
    loop {
        pipe.readable().await?;
        match pipe.try_read(&mut bytes) {
            Ok(0) => return Ok(all),
            Ok(read) => all.extend_from_slice(bytes.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
