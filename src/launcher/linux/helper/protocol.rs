//! What the launcher and the program it carries tell each other. Compiled into both.

/// The guard's socket, in the guard.
pub const GUARD_SOCKET: i32 = 3;
/// The launcher's pidfd, in the guard.
pub const GUARD_LAUNCHER: i32 = 4;

/// What the guard says on its socket before anything else, once: this, or the errno of what it cannot do.
pub const GUARD_WATCHES: i32 = 0;

/// The first argument of the guard.
pub const ROLE_GUARD: &[u8] = b"guard";
/// The first argument of the stage.
pub const ROLE_STAGE: &[u8] = b"stage";
/// The first argument of the init of a PID namespace.
pub const ROLE_INIT: &[u8] = b"init";

/// The read end of the init's pipe, in the init: its end of file means that launcher and guard are gone.
pub const INIT_PIPE: i32 = 0;
/// What the launcher writes to it: the tree has been let go.
pub const INIT_LET_GO: u8 = b'd';

/// [`Message::tree`]: the tree is a PID namespace. The pidfd of its init comes with the message, and the write end
/// of that one's pipe.
pub const TREE_NAMESPACE: u32 = 1;
/// [`Message::tree`]: the tree is a cgroup. Its directory comes with the message.
pub const TREE_CGROUP: u32 = 2;
/// [`Message::tree`]: the tree is what carries its name in the environment.
pub const TREE_MARKED: u32 = 4;

/// The variable whose value is the name of a tree that is found by its marks.
pub const MARK: &[u8] = b"CAPTIVE_TREE=";

/// The name of a tree: `captive-PID-NUMBER`, of the launcher's pid and a number.
pub struct Name {
    bytes: [u8; NAME_ROOM],
    length: usize,
}

/// Two numbers of ten digits, what is before and between them, and a NUL.
const NAME_ROOM: usize = 32;

impl Name {
    /// The name that a message says.
    pub fn of(tree: u64) -> Self {
        let mut name = Self {
            bytes: [0; NAME_ROOM],
            length: 0,
        };
        name.push(b"captive-");
        name.push_number((tree >> 32) as u32);
        name.push(b"-");
        name.push_number((tree & 0xffff_ffff) as u32);
        name
    }

    /// Its bytes, without the NUL that follows them.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Its bytes, with at least one NUL.
    pub fn with_nul(&self) -> &[u8] {
        &self.bytes
    }

    fn push(&mut self, text: &[u8]) {
        for byte in text {
            // One remains zero.
            if self.length + 1 < NAME_ROOM {
                self.bytes[self.length] = *byte;
                self.length += 1;
            }
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut divisor = 1_000_000_000;
        while divisor > 1 && number < divisor {
            divisor /= 10;
        }
        while divisor > 0 {
            self.push(&[b'0' + (number / divisor % 10) as u8]);
            divisor /= 10;
        }
    }
}

/// [`Message::kind`]: a captive. Its pidfd comes with the message, then what its tree has.
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
    /// What contains the captive's tree: `TREE_` numbers, or 0 for nothing.
    pub tree: u32,
    /// See [`Name`].
    pub name: u64,
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
