//! The directory in which roots are kept, and how far a rotation of them is.
//!
//! ```text
//! chain.pem issuer.key root.key   the first root, until a rotation has replaced it
//! HASH/                           a root that a rotation made, by the first 16 characters of its hash: the same files, and beside them
//!   cross.pem                     its issuer under the root that it follows
//!   back.pem                      the issuer that it follows under it
//! trust.json                      which root is in use, which is to follow, and how far that is; without it, the first
//! issued                          what was issued (see `journal`)
//! ```
//!
//! `trust.json` alone decides. What it does not name is removed. Everything is text in files that are replaced whole, so that a Secret could
//! hold the same under the same names.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;
use weft_core::TrustDomain;

use super::super::authority::{self, Authority, Made, Pem};
use super::super::ca::CaError;
use super::super::{private_dir, write_private};
use super::records::Records;
use super::roots::{Following, Roots, new_root};
use super::rotation::State;

const STATE: &str = "trust.json";
const JOURNAL: &str = "issued";
const CHAIN: &str = "chain.pem";
const KEY: &str = "issuer.key";
const ROOT_KEY: &str = "root.key";
const CROSS: &str = "cross.pem";
const BACK: &str = "back.pem";

/// What is kept, as it stands on disk.
pub struct Keep {
    dir: PathBuf,
    roots: Roots,
    /// The directory, locked: another control plane that wrote in it would have this one's records be lost.
    _lock: File,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CaError {
    let path = path.to_owned();
    move |why| CaError::Io { path, why }
}

impl Keep {
    /// Opens the directory, and makes a first root where there is none.
    ///
    /// # Errors
    ///
    /// Where another control plane uses it, it cannot be read or written, or holds something that is no CA.
    pub fn open(dir: &Path, domain: &TrustDomain) -> Result<(Self, Arc<Records>), CaError> {
        private_dir(dir).map_err(io(dir))?;
        let lock = lock(dir)?;
        let path = dir.join(STATE);
        let damaged = |why: String| CaError::State { place: path.display().to_string(), why };
        let written = match std::fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice::<State>(&bytes).map_err(|e| damaged(e.to_string()))?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(io(&path)(e)),
        };
        let mut fresh = false;
        let state = match written {
            Some(state) => state,
            None => {
                if !dir.join(CHAIN).exists() || !dir.join(KEY).exists() {
                    if rotated_roots(dir).next().is_some() {
                        return Err(damaged("it is gone, and there are roots that a rotation made".into()));
                    }
                    write(dir, &authority::make(domain, "")?)?;
                    fresh = true;
                }
                State::settled(Authority::read(&pem(dir)?)?.anchor().to_owned())
            }
        };
        let roots = load(dir, state)?;
        let journal = dir.join(JOURNAL);
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let records = Records::kept(&journal, fresh, now).map_err(io(&journal))?;
        let keep = Self { dir: dir.to_owned(), roots, _lock: lock };
        keep.sweep();
        Ok((keep, records))
    }

    pub fn state(&self) -> &State {
        &self.roots.state
    }

    /// The roots that are in use.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Makes a root that is to follow, and gives its hash. Until a state that names it is committed, it is nothing.
    ///
    /// # Errors
    ///
    /// Where it cannot be made or written.
    pub fn make(&self, domain: &TrustDomain) -> Result<String, CaError> {
        let (made, new, anchor) = new_root(domain)?;
        let home = self.dir.join(name(&anchor));
        private_dir(&home).map_err(io(&home))?;
        write(&home, &made)?;
        let from = place_of(&self.dir, &self.state().current);
        let old = pem(&from)?;
        let put = |name: &str, text: String| write_private(&home.join(name), text.as_bytes()).map_err(io(&home.join(name)));
        put(BACK, authority::cross(&old, &new, &made.root_key)?)?;
        match std::fs::read_to_string(from.join(ROOT_KEY)) {
            Ok(root_key) => put(CROSS, authority::cross(&new, &old, &zeroize::Zeroizing::new(root_key))?)?,
            // Somebody took it away, which is right.
            Err(e) => tracing::warn!(
                file = %from.join(ROOT_KEY).display(), error = %e,
                "the old root's key is not there: join tokens that were made before the new root issues are of no use after that"
            ),
        }
        Ok(anchor)
    }

    /// Puts a state on disk; what it does not name is removed.
    ///
    /// # Errors
    ///
    /// Where it could not be written. Then nothing changes.
    pub fn commit(&mut self, state: State) -> Result<(), CaError> {
        let roots = load(&self.dir, state)?;
        let path = self.dir.join(STATE);
        let text = serde_json::to_vec_pretty(&roots.state).map_err(|e| io(&path)(e.into()))?;
        write_private(&path, &text).map_err(io(&path))?;
        self.roots = roots;
        self.sweep();
        Ok(())
    }

    /// Removes a root that was made in vain. It stays until the next start where the state on disk may name it all the same.
    pub fn discard(&self) {
        let on_disk = match std::fs::read(self.dir.join(STATE)) {
            Ok(bytes) => serde_json::from_slice::<State>(&bytes).ok(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some(self.state().clone()),
            Err(_) => None,
        };
        if on_disk.as_ref() == Some(self.state()) {
            self.sweep();
        }
    }

    /// Removes what is not named: the keys of a root that is gone are of use to thieves alone. What cannot be removed now is at the next start.
    fn sweep(&self) {
        let named: Vec<PathBuf> = self.state().trusted().map(|anchor| place_of(&self.dir, anchor)).collect();
        let complain = |path: &Path, outcome: std::io::Result<()>| {
            if let Err(e) = outcome
                && e.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), error = %e, "the keys of a root that is gone cannot be removed: remove them");
            }
        };
        for home in rotated_roots(&self.dir).filter(|home| !named.contains(home)) {
            complain(&home, std::fs::remove_dir_all(&home));
        }
        if !named.contains(&self.dir) {
            for file in [ROOT_KEY, KEY, CHAIN].map(|name| self.dir.join(name)) {
                complain(&file, std::fs::remove_file(&file));
            }
        }
    }
}

/// Locks the directory itself, since there may be no room for a file. The lock ends with the process, however that ends.
fn lock(dir: &Path) -> Result<File, CaError> {
    let file = File::open(dir).map_err(io(dir))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(CaError::InUse { dir: dir.to_owned() }),
        // A file system without locks.
        Err(TryLockError::Error(e)) => {
            tracing::warn!(dir = %dir.display(), error = %e, "the directory cannot be locked: see that no other control plane uses it");
        }
    }
    Ok(file)
}

fn name(anchor: &str) -> &str {
    &anchor[..anchor.len().min(16)]
}

/// Where a root is: a directory of its own, or the first one's place.
fn place_of(dir: &Path, anchor: &str) -> PathBuf {
    let own = dir.join(name(anchor));
    if own.is_dir() { own } else { dir.to_owned() }
}

fn rotated_roots(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let is_ours = |name: &str| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(move |e| e.file_name().to_str().is_some_and(is_ours)).map(|e| e.path()).filter(|path| path.is_dir())
}

fn pem(home: &Path) -> Result<Pem, CaError> {
    Pem::load(&home.join(CHAIN), &home.join(KEY))
}

fn write(home: &Path, made: &Made) -> Result<(), CaError> {
    // The key first: a chain without a key would be in the way at the next start.
    for (name, content) in [(ROOT_KEY, &made.root_key), (KEY, &made.issuer_key), (CHAIN, &made.chain)] {
        let path = home.join(name);
        write_private(&path, content.as_bytes()).map_err(io(&path))?;
    }
    Ok(())
}

/// The roots that a state names.
fn load(dir: &Path, state: State) -> Result<Roots, CaError> {
    let path = dir.join(STATE).display().to_string();
    let current = pem(&place_of(dir, &state.current))?;
    let Some(next) = &state.next else { return Roots::read(state, &path, &current, None) };
    let home = place_of(dir, &next.anchor);
    let next = pem(&home)?;
    let certificate = |name: &str| {
        let path = home.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(&path)(e)),
        }
    };
    let (cross, back) = (certificate(CROSS)?, certificate(BACK)?);
    Roots::read(state, &path, &current, Some(Following { pem: &next, cross: cross.as_deref(), back: back.as_deref() }))
}

#[cfg(test)]
mod tests;
