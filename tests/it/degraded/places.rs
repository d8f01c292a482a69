//! Files that are not where programs look for them.

use std::ffi::CString;
use std::fs::File;
use std::sync::OnceLock;

/// This program, for a user who may not look into the directory that it is in.
pub static ITSELF: OnceLock<File> = OnceLock::new();

/// In a mount namespace of this process's own; root's.
pub fn take_away(what: &str) {
    let mount = |kind: &str, at: &str, flags, data: &str| {
        let text = |text: &str| CString::new(text).unwrap();
        let (kind, at, data) = (text(kind), text(at), text(data));
        let done = unsafe {
            libc::mount(
                kind.as_ptr(),
                at.as_ptr(),
                kind.as_ptr(),
                flags,
                data.as_ptr().cast(),
            )
        };
        assert_eq!(done, 0, "{at:?}: {}", std::io::Error::last_os_error());
    };
    let unmount = |at: &str| {
        let at = CString::new(at).unwrap();
        let done = unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        assert_eq!(done, 0, "{at:?}: {}", std::io::Error::last_os_error());
    };
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
    mount("none", "/", libc::MS_REC | libc::MS_PRIVATE, "");
    match what {
        "proc-unmounted" => unmount("/proc"),
        "proc-empty" => mount("tmpfs", "/proc", 0, ""),
        "proc-hidepid" => mount("proc", "/proc", 0, "hidepid=2"),
        // Root sees everybody.
        "proc-hidepid-as-nobody" => {
            mount("proc", "/proc", 0, "hidepid=2");
            become_nobody();
        }
        // As Linux before 5.14 has it for who is not dumpable. The subject has one thread yet.
        "proc-fdinfo-hidden" => mount("tmpfs", "/proc/self/fdinfo", 0, ""),
        "cgroup-unmounted" => unmount(&group()),
        "cgroup-read-only" => {
            let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            mount("none", &group(), flags, "");
        }
        "dev-null-missing" => mount("tmpfs", "/dev", 0, ""),
        _ => panic!("{what}?"),
    }
}

/// As one who has been started as such, who is dumpable.
fn become_nobody() {
    let itself = File::open("/proc/self/exe").expect("/proc");
    ITSELF.set(itself).expect("once");
    let nobody = 65534;
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(nobody, nobody, nobody) == 0
            && libc::setresuid(nobody, nobody, nobody) == 0
            && libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
    // Of root's processes, whom root's /proc shows, there are none: our parent is one.
    let parent = format!("/proc/{}", std::os::unix::process::parent_id());
    assert!(!std::path::Path::new(&parent).exists(), "{parent} is shown");
}

fn group() -> String {
    let root = crate::support::cgroups::root_of_version_2().expect("cgroup2");
    root.to_str().unwrap().to_owned()
}
