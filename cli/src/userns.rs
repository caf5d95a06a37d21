//! User namespaces: root inside, an ordinary user outside.

use std::io;

use anyhow::Context;
use nix::sched::{CloneFlags, unshare};

use crate::mounts;

/// What the lab has of its own.
const LAB: CloneFlags = CloneFlags::CLONE_NEWNET
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// Leaves the machine's namespaces for new ones; the pid namespace is for the children. With `rootless` this process becomes
/// root of a user namespace first, and is still the same user to everyone else. It must have one thread.
pub(crate) fn enter_lab(rootless: bool) -> anyhow::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if rootless {
        unshare(LAB.union(CloneFlags::CLONE_NEWUSER)).context("new namespaces were refused (unshare)")?;
        map(0, uid, 0, gid).context("the user could not be mapped")?;
    } else {
        unshare(LAB).context("new namespaces were refused (unshare)")?;
    }
    mounts::make_private().context("the mount namespace cannot be made private")
}

/// Goes into a user namespace below this one, in which this process's user is `uid` and its group `gid`.
pub(crate) fn enter_below(uid: u32, gid: u32) -> anyhow::Result<()> {
    let (outer_uid, outer_gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER).context("a user namespace was refused (unshare)")?;
    map(uid, outer_uid, gid, outer_gid).context("the user could not be mapped")
}

/// Writes the one line that an unprivileged process may write about itself (`user_namespaces(7)`).
fn map(uid: u32, outer_uid: u32, gid: u32, outer_gid: u32) -> io::Result<()> {
    // A group map needs it (CVE-2014-8989).
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {outer_uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {outer_gid} 1"))
}
