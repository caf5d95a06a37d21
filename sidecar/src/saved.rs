//! The last good state on disk, so that a restart with the control plane away still serves. It holds the private key: the
//! directory must be the sidecar's alone, and is best memory-backed.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use weft_proto::v1;
use weft_tls::{Svid, TrustBundle};
use zeroize::Zeroizing;

use crate::identity::unix_now;

const MAGIC: &[u8] = b"weft-state/1\n";
/// State that is older is not used: discovery could be anything by then.
const MAX_AGE_SECS: i64 = 24 * 3600;

/// Where state is kept.
pub struct Store {
    path: PathBuf,
}

/// What was kept.
pub struct Saved {
    pub svid: Svid,
    pub bundle: TrustBundle,
    pub resources: Vec<v1::Resource>,
}

impl Store {
    /// Opens the directory, or makes it. One that others may enter is refused.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let mode = std::fs::metadata(dir)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            bail!("{} may be entered by others (mode {mode:o}) and would hold a private key: chmod 700 it", dir.display());
        }
        if !is_in_memory(dir) {
            tracing::warn!(dir = %dir.display(), "the state directory is not in memory (tmpfs), and will hold a private key: whoever reads the disk later has it");
        }
        Ok(Self { path: dir.join("state") })
    }

    /// What was kept, if there is anything and it can be used.
    pub fn load(&self) -> anyhow::Result<Option<Saved>> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", self.path.display())),
        };
        let mut state = decode(&bytes)?;
        let key = wiped(&mut state);
        let age = unix_now() - state.saved_at;
        if !(0..=MAX_AGE_SECS).contains(&age) {
            bail!("it was saved {age} s ago by this machine's clock, and at most {MAX_AGE_SECS} s are trusted");
        }
        let chain = state.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let svid = Svid::new(chain, key)?;
        if svid.info().not_after <= unix_now() {
            bail!("its certificate has expired");
        }
        let bundle = TrustBundle::try_from(state.trust_bundle.as_ref().context("it has no trust bundle")?)?;
        Ok(Some(Saved { svid, bundle, resources: state.resources }))
    }

    /// Keeps state: a new file renamed over the old one, so that a full disk or a crash loses nothing.
    pub fn save(&self, svid: &Svid, bundle: &TrustBundle, resources: &[Arc<v1::Resource>]) -> std::io::Result<()> {
        let mut state = v1::SavedState {
            saved_at: unix_now(),
            chain: svid.chain().iter().map(|der| der.as_ref().to_vec().into()).collect(),
            private_key: svid.pkcs8().to_vec().into(),
            trust_bundle: Some(bundle.into()),
            resources: resources.iter().map(|r| (**r).clone()).collect(),
        };
        let body = Zeroizing::new(prost::Message::encode_to_vec(&state));
        drop(wiped(&mut state));
        let temporary = self.path.with_extension("new");
        let written = (|| {
            let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(MAGIC)?;
            file.write_all(digest(&SHA256, &body).as_ref())?;
            file.write_all(&body)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            // What is told to be kept is there after a crash of the machine, too.
            std::fs::File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

/// Whether what is written there never reaches a disk, swap aside. Where that cannot be told, it is taken to.
fn is_in_memory(dir: &Path) -> bool {
    use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
    /// `ramfs`, as linux/magic.h has it.
    const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
    statfs(dir).is_ok_and(|fs| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&fs.filesystem_type()))
}

/// Takes the key out of a state: its bytes are overwritten when what is given ends.
fn wiped(state: &mut v1::SavedState) -> Zeroizing<Vec<u8>> {
    // Nobody else holds them, so that these are the bytes themselves and no copy.
    Zeroizing::new(Vec::from(std::mem::take(&mut state.private_key)))
}

fn decode(bytes: &[u8]) -> anyhow::Result<v1::SavedState> {
    let rest = bytes.strip_prefix(MAGIC).context("it was saved by another version, or is not saved state")?;
    let (sum, body) = rest.split_at_checked(32).context("it is cut short")?;
    if digest(&SHA256, body).as_ref() != sum {
        bail!("its checksum is wrong");
    }
    Ok(prost::Message::decode(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_certs::{Authority, LeafKind, LeafSpec};

    fn svid() -> (Svid, TrustBundle) {
        let ca = Authority::new("cluster.local");
        let leaf = ca.leaf(&LeafSpec::new(LeafKind::Valid, "spiffe://cluster.local/ns/a/sa/b"));
        let key = Zeroizing::new(leaf.key_der.secret_der().to_vec());
        let svid = Svid::new(leaf.chain_der.clone(), key).expect("valid");
        (svid, TrustBundle::new("cluster.local".parse().expect("valid"), vec![ca.root_der().clone()]).expect("valid"))
    }

    #[test]
    fn state_survives_and_damage_is_noticed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("s")).expect("opens");
        assert!(store.load().expect("nothing").is_none());
        let (svid, bundle) = svid();
        let resource = v1::Resource { name: "mesh".into(), version: 7, body: None };
        store.save(&svid, &bundle, &[Arc::new(resource)]).expect("saved");
        let saved = store.load().expect("good").expect("there");
        assert_eq!((saved.svid.info(), saved.resources.len()), (svid.info(), 1));
        assert_eq!(std::fs::metadata(&store.path).expect("there").mode() & 0o777, 0o600);

        let mut bytes = std::fs::read(&store.path).expect("there");
        for damage in [0, 20, bytes.len() - 1] {
            bytes[damage] ^= 1;
            std::fs::write(&store.path, &bytes).expect("written");
            assert!(store.load().is_err(), "damage at {damage} was not noticed");
            bytes[damage] ^= 1;
        }
        for length in [0, 5, 40, bytes.len() / 2] {
            std::fs::write(&store.path, &bytes[..length]).expect("written");
            assert!(store.load().is_err(), "{length} bytes were taken for whole");
        }
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("changed");
        assert!(Store::open(dir.path()).is_err());
    }
}
