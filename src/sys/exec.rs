//! execve with everything allocated beforehand, and the environment to pass on.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, OsString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use nix::errno::Errno;

use super::execve;

/// Strings for execve, and room for the array of pointers to them.
#[derive(Debug)]
pub(crate) struct StringArray {
    /// Each ends with a NUL.
    strings: Vec<Vec<u8>>,
    /// One more than `strings`; filled in by `pointers`.
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers are written and used within one call of `pointers`' callers, and point to the
// strings, which move with the array.
unsafe impl Send for StringArray {}

impl StringArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let strings: Vec<Vec<u8>> = strings
            .into_iter()
            .map(CString::into_bytes_with_nul)
            .collect();
        let pointers = vec![ptr::null(); strings.len() + 1];
        Self { strings, pointers }
    }

    /// The strings, to be put into another array.
    #[cfg(captive_helper)]
    pub(crate) fn into_strings(self) -> impl Iterator<Item = CString> {
        self.strings
            .into_iter()
            .filter_map(|bytes| CString::from_vec_with_nul(bytes).ok())
    }

    /// The bytes of one string without its NUL, to be changed in place.
    pub(crate) fn bytes_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        self.strings
            .get_mut(index)?
            .split_last_mut()
            .map(|(_nul, bytes)| bytes)
    }

    /// Writes a number into one string, from `start` to its end, where there is [room for any](PID_DIGITS): its digits from
    /// the left, then NULs. By a fresh child: nothing is allocated.
    pub(crate) fn write_decimal(&mut self, index: usize, start: usize, number: u32) {
        let digits = decimal(number);
        let value = self.bytes_mut(index).and_then(|text| text.get_mut(start..));
        if let Some(value) = value.filter(|value| value.len() == digits.len()) {
            value.copy_from_slice(&digits);
        }
    }

    /// The array as execve wants it; nothing is allocated.
    pub(crate) fn pointers(&mut self) -> &mut [*const c_char] {
        for (pointer, string) in self.pointers.iter_mut().zip(&self.strings) {
            *pointer = string.as_ptr().cast();
        }
        &mut self.pointers
    }
}

/// Room for any pid in an entry of the environment, to be written by the child that has it, from the left, and a NUL after it:
/// systemd reads leading zeroes as octal.
pub(crate) const PID_DIGITS: &str = "0000000000";

/// A number's digits from the left; the rest is NUL.
fn decimal(number: u32) -> [u8; PID_DIGITS.len()] {
    let mut digits = [0; PID_DIGITS.len()];
    let length = 1 + number.checked_ilog10().unwrap_or(0) as usize;
    let mut rest = number;
    for digit in digits.iter_mut().take(length).rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

/// The environment as it is, entry by entry: std's own reading of it leaves out what has no `=`.
///
/// environ(7). For a program that never changes its environment.
pub(crate) fn environment() -> Vec<CString> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: the C library's own variable, which nobody writes to while this program runs.
    let mut place = unsafe { environ };
    let mut entries = Vec::new();
    while !place.is_null() {
        // SAFETY: `place` points into the array, at its terminating null pointer at the latest.
        let entry = unsafe { *place };
        if entry.is_null() {
            break;
        }
        // SAFETY: a NUL-terminated string that lives as long as the process.
        entries.push(unsafe { CStr::from_ptr(entry) }.to_owned());
        // SAFETY: the entry was not the last, so there is another.
        place = unsafe { place.add(1) };
    }
    entries
}

/// execve(2) of `path` with the arguments in `argv` *from its second on*: the first is only used for
/// a file that has no interpreter line (ENOEXEC), which is given to it, the shell, as execvp(3) does.
/// Returns only if it fails. Allocates nothing.
fn exec(path: &CStr, argv: &mut StringArray, envp: &mut StringArray) -> Errno {
    let environment = envp.pointers().as_ptr();
    let arguments = argv.pointers();
    let Some(without_shell) = arguments.get(1..) else {
        return Errno::EINVAL;
    };
    // SAFETY: `path` and every string are NUL-terminated and borrowed for the call; both arrays end with
    // the null pointer that `new` put there.
    let errno = unsafe { execve(path.as_ptr(), without_shell.as_ptr(), environment) };
    if errno != Errno::ENOEXEC {
        return errno;
    }
    let [shell, name, ..] = arguments else {
        return errno;
    };
    *name = path.as_ptr();
    let shell = *shell;
    // SAFETY: as above.
    unsafe { execve(shell, arguments.as_ptr(), environment) }
}

/// Executes the first of `candidates` that can be; returns only if none can. Allocates nothing. The last
/// errno that says something wins, as in execvp(3).
pub(crate) fn exec_first(
    candidates: &[CString],
    argv: &mut StringArray,
    envp: &mut StringArray,
) -> Errno {
    let mut denied = None;
    for path in candidates {
        match exec(path, argv, envp) {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ENODEV | Errno::ETIMEDOUT => {}
            Errno::EACCES => denied = Some(Errno::EACCES),
            other => return other,
        }
    }
    denied.unwrap_or(Errno::ENOENT)
}

/// Where PATH leads if it is not set; execvp(3), on Linux and the BSDs.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Where `name` is looked for, in order: itself if it has a slash, else in each directory of `path`
/// (PATH), an empty one being the working directory; execvp(3).
pub(crate) fn candidates(name: &OsStr, path: Option<&OsStr>) -> Vec<OsString> {
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    if name.is_empty() {
        return Vec::new();
    }
    if name.as_bytes().contains(&b'/') {
        return vec![name.to_owned()];
    }
    let dirs = path.as_bytes().split(|b| *b == b':');
    dirs.map(|dir| {
        let mut candidate = OsStr::from_bytes(dir).to_owned();
        if !dir.is_empty() {
            candidate.push("/");
        }
        candidate.push(name);
        candidate
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_command_is_looked_for() {
        let look = |name: &str, path: &str| candidates(name.as_ref(), Some(path.as_ref()));
        assert_eq!(look("x", "/a:/b"), ["/a/x", "/b/x"]);
        assert_eq!(look("x", "/a::b"), ["/a/x", "x", "b/x"]);
        assert_eq!(look("./x", "/a"), ["./x"]);
        assert_eq!(look("x", ""), ["x"]);
        assert!(look("", "/a").is_empty());
    }

    #[test]
    fn digits_from_the_left() {
        for number in [0, 9, 10, 99, 100, 32768, 4_194_304, u32::MAX] {
            let digits = decimal(number);
            let text = digits.split(|b| *b == 0).next().unwrap();
            assert_eq!(text, number.to_string().as_bytes());
        }
    }
}
