//! Files and directories, by names that end with a NUL.

use crate::sys::{self, int, syscall};

/// O_DIRECTORY for a place that is said in full.
#[cfg(target_arch = "x86_64")]
pub const DIRECTORY: usize = 0o200_000;
/// O_DIRECTORY for a place that is said in full.
#[cfg(target_arch = "aarch64")]
pub const DIRECTORY: usize = 0o40_000;

/// openat(2), close-on-exec.
pub fn open(at: i32, name: &[u8], flags: usize) -> Result<i32, i32> {
    const CLOSE_ON_EXEC: usize = 0o2_000_000;
    if name.last() != Some(&0) {
        return Err(sys::EINVAL);
    }
    let place = name.as_ptr() as usize;
    // SAFETY: the kernel reads up to the NUL, which is the last byte.
    let answer = unsafe {
        syscall(
            sys::OPENAT,
            [int(at), place, flags | CLOSE_ON_EXEC, 0, 0, 0],
        )
    };
    answer.map(|fd| fd as i32)
}

pub fn open_directory(at: i32, name: &[u8]) -> Result<i32, i32> {
    open(at, name, DIRECTORY)
}

/// write(2), as much as there is room for.
pub fn write(fd: i32, text: &[u8]) {
    let place = text.as_ptr() as usize;
    // SAFETY: the kernel reads as many bytes as there are.
    let _ = unsafe { syscall(sys::WRITE, [int(fd), place, text.len(), 0, 0, 0]) };
}

/// read(2): how much; 0 at the end, and for an error.
pub fn read(fd: i32, text: &mut [u8]) -> usize {
    let place = text.as_mut_ptr() as usize;
    // SAFETY: the kernel writes at most as many bytes as there is room for.
    unsafe { syscall(sys::READ, [int(fd), place, text.len(), 0, 0, 0]) }.unwrap_or(0)
}

/// The same from the start, wherever the last read ended; pread(2).
pub fn read_at_start(fd: i32, text: &mut [u8]) -> usize {
    let place = text.as_mut_ptr() as usize;
    // SAFETY: as above.
    unsafe { syscall(sys::PREAD64, [int(fd), place, text.len(), 0, 0, 0]) }.unwrap_or(0)
}

/// unlinkat(2) of an empty directory.
pub fn remove_directory(at: i32, name: &[u8]) {
    const AT_REMOVEDIR: usize = 0x200;
    if !name.contains(&0) {
        return;
    }
    let place = name.as_ptr() as usize;
    // SAFETY: the kernel reads up to the NUL, which is there.
    let _ = unsafe { syscall(sys::UNLINKAT, [int(at), place, AT_REMOVEDIR, 0, 0, 0]) };
}

/// Each name in a directory, with its NUL, and whether it is one of a directory; getdents64(2).
pub fn each_entry(directory: i32, act: &mut dyn FnMut(&[u8], bool)) {
    /// Room for the fixed part of struct linux_dirent64: inode, offset, length, type.
    const FIXED: usize = 19;
    const DT_DIR: u8 = 4;
    // A reading of its own, from the start.
    let Ok(list) = open_directory(directory, b".\0") else {
        return;
    };
    let mut buffer = [0_u64; 256];
    loop {
        let place = buffer.as_mut_ptr() as usize;
        let room = size_of_val(&buffer);
        // SAFETY: the kernel writes at most as many bytes as there is room for.
        let answer = unsafe { syscall(sys::GETDENTS64, [int(list), place, room, 0, 0, 0]) };
        let read = match answer {
            Ok(read) if read > 0 => read.min(room),
            _ => break,
        };
        // SAFETY: the buffer's own bytes, all of them initialised.
        let bytes = unsafe { core::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), read) };
        let mut rest = bytes;
        while let Some(&[low, high]) = rest.get(16..18) {
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let Some(entry) = rest.get(..length).filter(|_| length > FIXED) else {
                break;
            };
            let (kind, name) = (entry[FIXED - 1], &entry[FIXED..]);
            let end = name.iter().position(|byte| *byte == 0);
            let name = end.and_then(|end| name.get(..=end)).unwrap_or_default();
            if name != b"" && name != b".\0" && name != b"..\0" {
                act(name, kind == DT_DIR);
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    sys::close(list);
}
