//! What the launcher and the program it carries tell each other. Compiled into both.

/// The guard's socket, in the guard.
pub const GUARD_SOCKET: i32 = 3;
/// The launcher's pidfd, in the guard.
pub const GUARD_LAUNCHER: i32 = 4;

/// The first argument of the guard.
pub const ROLE_GUARD: &[u8] = b"guard";
/// The first argument of the stage.
pub const ROLE_STAGE: &[u8] = b"stage";

/// [`Message::kind`]: a captive. Its pidfd comes with the message.
pub const ADD: u32 = 1;
/// [`Message::kind`]: a captive that has been let go, or has ended and been reaped.
pub const FORGET: u32 = 2;

/// One message to the guard, over a SOCK_SEQPACKET socket.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Message {
    /// The launcher's own number for the captive; never used again.
    pub id: u64,
    /// How long after the signal SIGKILL follows, in milliseconds; negative: never.
    pub grace: i64,
    /// [`ADD`] or [`FORGET`].
    pub kind: u32,
    /// The signal for the launcher's exit.
    pub signal: i32,
    /// Captives of a lower number end first.
    pub order: u32,
    /// Zero.
    pub reserved: u32,
}

/// What the stage says over its pipe before it executes the command, or fails to: which step, and
/// with which errno; 0 for a step that has only begun.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct StageReport {
    /// One of the `STEP_` numbers.
    pub step: u32,
    /// Its errno, or 0.
    pub errno: i32,
}

/// fchdir(2) and chroot(2) to the new root.
pub const STEP_CHROOT: u32 = 1;
/// chdir(2) in the new root.
pub const STEP_CHDIR: u32 = 2;
/// setgroups(2).
pub const STEP_GROUPS: u32 = 3;
/// setresgid(2).
pub const STEP_GID: u32 = 4;
/// setresuid(2).
pub const STEP_UID: u32 = 5;
/// The proof that root is gone.
pub const STEP_PROOF: u32 = 6;
/// The parent-death signal, and a look at the parent.
pub const STEP_PARENT: u32 = 7;
/// The signal mask.
pub const STEP_MASK: u32 = 8;
/// execve(2) of the command.
pub const STEP_EXEC: u32 = 9;
/// The arguments made no sense: a mistake of this crate.
pub const STEP_ARGUMENTS: u32 = 10;
