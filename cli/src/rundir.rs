//! Where a running mesh has its sockets and state: one private directory for each mesh.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;

/// The lab's own socket in the run directory.
pub(crate) const LAB_SOCKET: &str = "lab.sock";
/// The operator socket, as the control plane makes it.
pub(crate) const OPERATOR_SOCKET: &str = "state/operator.sock";
/// The control plane's state directory.
pub(crate) const STATE: &str = "state";
/// The directory that the control plane follows.
pub(crate) const MANIFESTS: &str = "manifests";
/// Where each replica has a directory; in memory, and seen by the lab alone.
pub(crate) const PODS: &str = "pods";
/// Written once every replica is ready.
pub(crate) const READY: &str = "ready";
const LOCK: &str = "lock";

/// Where run directories are where the user names none: `$XDG_RUNTIME_DIR/weft`, or `/tmp/weft-UID` without one of one's own.
pub(crate) fn base() -> PathBuf {
    let uid = nix::unistd::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    match runtime.filter(|dir| fs::metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == uid)) {
        Some(dir) => dir.join("weft"),
        None => PathBuf::from(format!("/tmp/weft-{uid}")),
    }
}

/// Which of the meshes that are running.
#[derive(Args, Debug, Clone)]
pub(crate) struct Which {
    /// Name of the mesh, where several are running
    #[arg(long, value_name = "NAME")]
    mesh: Option<String>,
    /// Run directory of the mesh, where `weft up` was given one
    #[arg(long, value_name = "DIR", env = "WEFT_RUN_DIR", conflicts_with = "mesh")]
    run_dir: Option<PathBuf>,
}

impl Which {
    /// Whether one was named, so that no other is meant.
    pub(crate) fn is_named(&self) -> bool {
        self.mesh.is_some() || self.run_dir.is_some()
    }

    /// The run directory of the mesh that is meant; it is running.
    pub(crate) fn find(&self) -> anyhow::Result<PathBuf> {
        find(self.mesh.as_deref(), self.run_dir.as_deref())
    }
}

/// Where a mesh has its run directory.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    pub(crate) path: PathBuf,
    /// What workloads must not see: the directory of every mesh of this user's, or only this one's.
    pub(crate) cover: PathBuf,
}

impl Location {
    /// For the mesh `name`, or where the user asks for it.
    pub(crate) fn of(asked: Option<&Path>, name: &str) -> anyhow::Result<Self> {
        match asked {
            Some(dir) => {
                let path = std::path::absolute(dir).with_context(|| format!("--run-dir {}", dir.display()))?;
                Ok(Self { cover: path.clone(), path })
            }
            None => Ok(Self { path: base().join(name), cover: base() }),
        }
    }
}

/// A run directory that is ours while this lives.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    lock: File,
}

impl RunDir {
    /// Takes the run directory of mesh `name`, and empties it of what an earlier mesh left.
    pub(crate) fn claim(location: &Location, name: &str) -> anyhow::Result<Self> {
        private_dir(&location.cover)?;
        let path = &location.path;
        loop {
            private_dir(path)?;
            if !path.join(LOCK).exists() && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
                bail!("{} is not empty, and no mesh left it: name a new directory with --run-dir", path.display());
            }
            if let Some(lock) = lock(path, name)? {
                empty(path)?;
                for dir in [MANIFESTS, PODS] {
                    private_dir(&path.join(dir))?;
                }
                return Ok(Self { path: path.clone(), lock });
            }
        }
    }

    /// Removes the directory, and then gives it up.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.path).with_context(|| format!("the run directory {} cannot be removed", self.path.display()))?;
        drop(self.lock);
        Ok(())
    }
}

/// Makes a directory for its owner alone, or checks that one is. Its parents are made too.
fn private_dir(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => return Err(anyhow!("{shown} cannot be made: {e}; name another place with --run-dir")),
    }
    // The link itself, not what it points at: in /tmp it may be somebody else's.
    let found = fs::symlink_metadata(path).with_context(|| format!("{shown} cannot be looked at"))?;
    let uid = nix::unistd::geteuid().as_raw();
    if !found.is_dir() {
        bail!("{shown} is there and is not a directory: remove it, or name another place with --run-dir");
    }
    if found.uid() != uid {
        bail!("{shown} belongs to user {}, not to you ({uid}): remove it, or name another place with --run-dir", found.uid());
    }
    if found.mode() & 0o077 != 0 {
        bail!("{shown} is open to others (mode {:o}): chmod 700 it, or name another place with --run-dir", found.mode() & 0o7777);
    }
    Ok(())
}

/// The lock on a run directory; none where the directory was removed in between.
fn lock(path: &Path, name: &str) -> anyhow::Result<Option<File>> {
    let file = path.join(LOCK);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&file);
    let lock = match opened {
        Ok(lock) => lock,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(anyhow!("{} cannot be opened: {e}", file.display())),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "a mesh named {name} is running already, in {}: end it first (Ctrl-C where it runs), or give this one another `name:`",
            path.display()
        ),
        Err(TryLockError::Error(e)) => return Err(anyhow!("{} cannot be locked: {e}", file.display())),
    }
    let ours = lock.metadata().context("the lock cannot be looked at")?.ino();
    let there = fs::metadata(&file).map(|m| m.ino()).ok();
    Ok((there == Some(ours)).then_some(lock))
}

fn empty(path: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(path).with_context(|| format!("{} cannot be read", path.display()))? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        let left = entry.path();
        let removed = if entry.file_type()?.is_dir() { fs::remove_dir_all(&left) } else { fs::remove_file(&left) };
        removed.with_context(|| format!("{} was left by an earlier mesh and cannot be removed", left.display()))?;
    }
    Ok(())
}

/// The run directory of a mesh that is running: the one that is asked for, or the only one there is.
fn find(mesh: Option<&str>, run_dir: Option<&Path>) -> anyhow::Result<PathBuf> {
    let base = base();
    if let Some(path) = run_dir.map(Path::to_owned).or_else(|| mesh.map(|name| base.join(name))) {
        if is_running(&path) {
            return Ok(path);
        }
        bail!("no mesh is running in {}: start one with `weft up`{}", path.display(), if_sudo());
    }
    let mut running: Vec<PathBuf> = fs::read_dir(&base)
        .map(|entries| entries.flatten().map(|e| e.path()).filter(|path| is_running(path)).collect())
        .unwrap_or_default();
    match running.len() {
        0 => bail!("no mesh is running in {}: start one with `weft up`{}", base.display(), if_sudo()),
        1 => Ok(running.remove(0)),
        _ => {
            let names: Vec<String> = running.iter().filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
            bail!("several meshes are running: choose one with --mesh: {}", names.join(", "))
        }
    }
}

fn is_running(path: &Path) -> bool {
    UnixStream::connect(path.join(LAB_SOCKET)).is_ok()
}

fn if_sudo() -> &'static str {
    if nix::unistd::geteuid().is_root() { "" } else { "; one that was started with sudo is found with sudo" }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_claimed_once_emptied_and_removed() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("run");
        let location = Location::of(Some(&path), "shop").expect("a path");
        let first = RunDir::claim(&location, "shop").expect("free");
        fs::write(path.join("stale"), "x").expect("written");
        let refused = RunDir::claim(&location, "shop").expect_err("taken").to_string();
        assert!(refused.contains("shop is running already"), "{refused}");
        drop(first);

        let second = RunDir::claim(&location, "shop").expect("free again");
        assert!(!path.join("stale").exists());
        assert!(path.join(MANIFESTS).is_dir());
        second.remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("run");
        fs::create_dir(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("opened");
        let location = Location::of(Some(&path), "shop").expect("a path");
        let refused = RunDir::claim(&location, "shop").expect_err("open to others").to_string();
        assert!(refused.contains("open to others"), "{refused}");
    }

    #[test]
    fn a_directory_with_somebodys_files_is_left_alone() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o700)).expect("closed");
        fs::write(temporary.path().join("thesis"), "x").expect("written");
        let location = Location::of(Some(temporary.path()), "shop").expect("a path");
        let refused = RunDir::claim(&location, "shop").expect_err("not empty").to_string();
        assert!(refused.contains("not empty"), "{refused}");
        assert!(temporary.path().join("thesis").exists());
    }
}
