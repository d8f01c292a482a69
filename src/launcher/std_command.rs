//! Captives that std has launched.

use std::process::{Child, Command};

use super::{SpawnError, platform};

/// For launchers that keep std's [`Command`] and [`Child`]: the child ends when the launcher *process* does.
///
/// ```no_run
/// use std::process::Command;
/// use captive::launcher::CommandExt;
///
/// let mut child = Command::new("nbdkit").args(["-f", "memory", "1G"]).spawn_captive()?;
/// // A std Child: wait(), kill(), try_wait() are std's.
/// child.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The child tells the crate's guard of itself before it executes its program, and the guard sends it SIGKILL when the
/// launcher is gone: the first line of [what is promised](super#what-is-promised-linux), and only that one.
///
/// # What a `captive::Command` has beyond it
///
/// - **A second line.** If launcher and guard are killed in the same instant, the child lives on. The parent-death signal,
///   which would cover that, is not armed: it comes when the *thread* that spawned ends, and that is the caller's, which may
///   end long before the launcher. (A [`Command`](super::Command) spawns on a thread of the crate's that never ends.)
/// - **A spawn whose cost does not depend on the launcher's memory.** With a `pre_exec` std forks: about 90 ms for a launcher
///   with 4 GiB. This is so for each later spawn of the same `Command`, also a plain one.
/// - **A deadline.** A child that is held up on its way to exec (a directory on a dead mount) holds up the spawn with it. One
///   that is held up before it has told the guard is not ended with the launcher; but when it goes on, it ends instead of
///   executing its program.
/// - **A tree**, a grace, an order, `detach`; the child has no [`Captive`](super::Captive).
/// - **A drop that ends it.** A dropped [`Child`] runs on, as always with std, until the launcher ends.
///
/// # What std does before and after
///
/// In the child std changes groups, gid, uid, root and directory first, then calls what was given to `pre_exec`, in that order;
/// this is the last of them at the time of the call, whatever the order in the program's text. So the guard is told by the
/// new user; it has the launcher's rights, and ends a child of another user too. A hook of the caller's that closes all
/// descriptors makes the spawn fail, and so does one that forks ([`SpawnStep::LookAtParent`](super::SpawnStep::LookAtParent)).
///
/// Each call adds a hook of about a hundred bytes to the `Command`, which has no way to take it back; it does nothing once the
/// call has returned. Plain spawns of the same `Command` are plain.
///
/// # Platforms
///
/// Linux, as [`launcher`](super#platforms); elsewhere [`SpawnError::Unsupported`].
pub trait CommandExt: sealed::Sealed {
    /// Spawns as [`Command::spawn`] does; the child ends when this process does, whichever thread called, and whatever has
    /// become of the [`Child`].
    ///
    /// # Errors
    /// [`SpawnError::Step`]: [`SpawnStep::StdSpawn`](super::SpawnStep::StdSpawn) with std's error if std could not spawn it, or
    /// the step that failed of the guard's part. Nothing is left of the child then.
    fn spawn_captive(&mut self) -> Result<Child, SpawnError>;
}

impl CommandExt for Command {
    fn spawn_captive(&mut self) -> Result<Child, SpawnError> {
        platform::spawn_std(self)
    }
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for std::process::Command {}
}
