//! Files that are not where programs look for them.

use std::ffi::CString;

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
        // As another user sees it: what follows is not root's.
        "proc-hidepid" => mount("proc", "/proc", 0, "hidepid=2"),
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

fn group() -> String {
    let root = crate::support::cgroups::root_of_version_2().expect("cgroup2");
    root.to_str().unwrap().to_owned()
}
