//! Where the appliance is. A file of its own, because a bench has it too.

use std::path::{Path, PathBuf};

/// The folder where `tests/appliance/build` leaves `kernel` and `initrd`.
pub fn appliance() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = variable("CAPTIVE_CACHE").map_or_else(
        || {
            let home = || Path::new(&variable("HOME").unwrap_or_default()).join(".cache");
            let cache = variable("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
            cache.join("captive")
        },
        PathBuf::from,
    );
    cache.join("appliance/current")
}
