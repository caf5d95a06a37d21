//! The few mounts that a mesh needs, each in the mount namespace of the process that asks.

use std::path::Path;

use nix::mount::{MsFlags, mount};

const NONE: Option<&str> = None;

/// Keeps what is mounted from now on to this namespace and its copies.
pub(crate) fn make_private() -> nix::Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
}

/// Shows the processes of this pid namespace under `/proc`. The kernel refuses it below a `/proc` that is partly covered, as
/// in many containers.
pub(crate) fn fresh_proc() -> nix::Result<()> {
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, NONE)
}

/// Memory as a directory, for its owner only.
pub(crate) fn private_memory(path: &Path) -> nix::Result<()> {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=256m,mode=0700"))
}

/// Hides what is below `path` under an empty directory that nothing can be written to.
pub(crate) fn cover(path: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("size=4k,mode=0555"))
}

/// Shows `from` at `to` as well. A symbolic link at `to` is followed.
pub(crate) fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)
}
