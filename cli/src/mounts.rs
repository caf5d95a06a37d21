//! The few mounts that a mesh needs, each in the mount namespace of the process that asks.

use std::os::fd::AsRawFd;
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

/// The same, but that the directory `shown` is seen there, under its own name.
pub(crate) fn cover_but(path: &Path, shown: &Path) -> std::io::Result<()> {
    let kept = std::fs::File::open(shown)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("size=4k,mode=0555"))?;
    let place = path.join(shown.file_name().unwrap_or_default());
    std::fs::create_dir(&place)?;
    bind(Path::new(&format!("/proc/self/fd/{}", kept.as_raw_fd())), &place)?;
    mount(NONE, path, NONE, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, Some("size=4k,mode=0555"))?;
    Ok(())
}

/// Shows `from` at `to` as well. A symbolic link at `to` is followed.
pub(crate) fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)
}
