//! A CA that is somebody else's: its files are followed, and what can be used is taken over while the mesh runs.
//!
//! Whoever runs the CA replaces the files one after another (cert-manager and kubelet by a symbolic link), so that what is there may not fit together for
//! a moment. Only a whole that would be believed is put in force; else the earlier one stays, and the reason is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::Notify;
use weft_core::TrustDomain;
use weft_proto::v1;
use weft_tls::TrustBundle;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{Authority, Pem, certificates, last_certificate};
use super::ca::{Ca, CaError, Standing, own_svid};
use super::tokens::TokenKeys;
use crate::server::unix_now;

/// Roots that may be trusted at once: a sidecar tells of as many.
const MAX_ANCHORS: usize = 16;
/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// The files are looked at this often, in case an event was lost.
const LOOK: Duration = Duration::from_secs(10);
/// What does not fit together is looked at again so soon: more of it may be on its way.
const AGAIN: Duration = Duration::from_millis(500);
/// Files that are replaced together are read together.
const GATHER: Duration = Duration::from_millis(50);
/// Over so many seconds sidecars renew that serve a certificate of another root than the one that issues.
const SPREAD_SECONDS: u32 = 300;

/// Where the CA stands.
#[derive(Clone, Debug)]
pub struct Files {
    pub chain: PathBuf,
    pub key: PathBuf,
    /// The roots; without it, `ca.crt` beside the chain if that is there.
    pub bundle: Option<PathBuf>,
}

impl Files {
    /// Reads all of them.
    ///
    /// # Errors
    ///
    /// Where one cannot be read, or is too long.
    pub fn load(&self) -> Result<Pem, CaError> {
        let mut pem = Pem::load(&self.chain, &self.key)?;
        let beside = self.chain.with_file_name("ca.crt");
        let bundle = match &self.bundle {
            Some(bundle) => Some(bundle.as_path()),
            None => Some(beside.as_path()).filter(|path| *path != self.chain && path.exists()),
        };
        pem.anchors = bundle.map(text).transpose()?;
        Ok(pem)
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.chain), Some(&self.key), self.bundle.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }
}

fn text(path: &Path) -> Result<String, CaError> {
    let io = |why| CaError::Io { path: path.to_owned(), why };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_FILE {
        return Err(io(std::io::Error::other(format!("it has {length} bytes; at most {MAX_FILE} are read"))));
    }
    std::fs::read_to_string(path).map_err(io)
}

/// What would hold with a CA.
///
/// # Errors
///
/// Where the key is not the chain's, the chain leads to no anchor, one of them may not sign, has ended or may not sign these names, or there are too many.
pub fn standing(domain: &TrustDomain, pem: &Pem) -> Result<Standing, CaError> {
    let bad = |why: String| CaError::Pem { place: pem.place.clone(), why };
    let mut anchors: Vec<String> = match &pem.anchors {
        Some(text) => certificates(text).collect(),
        None => last_certificate(&pem.chain).into_iter().collect(),
    };
    let mut seen = std::collections::HashSet::new();
    anchors.retain(|anchor| seen.insert(anchor.clone()));
    if anchors.is_empty() || anchors.len() > MAX_ANCHORS {
        return Err(bad(format!("it names {} roots where 1 to {MAX_ANCHORS} are read", anchors.len())));
    }
    let ders = anchors.iter().map(|text| CertificateDer::from_pem_slice(text.as_bytes()).map_err(|e| bad(e.to_string())));
    let ders: Vec<CertificateDer<'static>> = ders.collect::<Result<_, _>>()?;
    for der in &ders {
        may_sign(der, true).map_err(|why| bad(format!("a root is not usable: {why}")))?;
    }
    let bundle = TrustBundle::new(domain.clone(), ders)?;
    let mut why = String::new();
    for anchor in &anchors {
        let authority = Authority::under(pem, anchor.clone())?;
        for der in authority.chain.iter().take(authority.chain.len() - 1) {
            may_sign(der, false).map_err(|why| bad(format!("a certificate of the chain is not usable: {why}")))?;
        }
        let alone = TrustBundle::new(domain.clone(), vec![authority.root().clone()])?;
        match vouched(domain, &authority, &alone)? {
            Err(e) => why = e,
            Ok(()) => {
                // Whoever serves a certificate of another root renews, so that this root can go some day.
                let issuing = (anchors.len() > 1)
                    .then(|| v1::Issuing { anchor: authority.anchor().to_owned(), spread_seconds: SPREAD_SECONDS });
                let tokens = TokenKeys::new(authority.token_key(domain)?, vec![]);
                let (authority, bundle) = (Arc::new(authority), Arc::new(bundle));
                return Ok(Standing { authority, bundle, anchors_pem: anchors.concat(), issuing, tokens });
            }
        }
    }
    Err(bad(format!("what it signs would not be believed: {why}")))
}

/// Whether what an authority signs is believed by those who have these anchors.
///
/// # Errors
///
/// Where it cannot sign.
pub fn is_believed(domain: &TrustDomain, authority: &Authority, bundle: &TrustBundle) -> Result<bool, CaError> {
    Ok(vouched(domain, authority, bundle)?.is_ok())
}

/// Signs something and checks it as a peer would: path, path lengths, name constraints and times.
fn vouched(domain: &TrustDomain, authority: &Authority, bundle: &TrustBundle) -> Result<Result<(), String>, CaError> {
    let svid = own_svid(domain, authority)?;
    Ok(bundle.check(svid.chain(), UnixTime::now()).map(drop).map_err(|e| e.to_string()))
}

/// What the path builder does not look at.
fn may_sign(der: &CertificateDer<'_>, is_root: bool) -> Result<(), String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let name = certificate.subject().to_string();
    if !certificate.is_ca() {
        return Err(format!("{name} is not a CA"));
    }
    if certificate.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(format!("{name} may not sign certificates: its key usage lacks keyCertSign"));
    }
    let (validity, now) = (certificate.validity(), unix_now());
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    // Roots that are to follow may begin later, and those that go may have ended.
    if !is_root && !(from..=until).contains(&now) {
        return Err(format!("{name} is valid from {from} to {until} (Unix seconds), and this machine's clock says {now}"));
    }
    Ok(())
}

/// Follows the files for ever: what can be used is put in force, what cannot is told.
pub async fn follow(files: Files, ca: Arc<Ca>) {
    let event = Arc::new(Notify::new());
    let _watcher = watch(&files, &event);
    // They may have been replaced since they were read.
    event.notify_one();
    let mut failing = false;
    loop {
        let wait = if failing { AGAIN } else { LOOK };
        tokio::select! {
            () = event.notified() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(wait) => {}
        }
        let (reading, taking) = (files.clone(), ca.clone());
        let taken = tokio::task::spawn_blocking(move || reading.load().and_then(|pem| taking.renew(&pem))).await;
        let Ok(taken) = taken else { continue };
        let before = std::mem::replace(&mut failing, taken.is_err());
        settle(&ca, taken, before, &files.chain.display());
    }
}

/// Tells what became of what was read. A first failure may be a whole that is not there yet.
pub fn settle(ca: &Ca, taken: Result<bool, CaError>, failed_before: bool, place: &dyn std::fmt::Display) {
    match taken {
        Ok(renewed) => {
            if renewed {
                let anchors = ca.now().bundle.hashes(ca.domain()).count();
                tracing::info!(%place, anchor = %ca.anchor_hash(), anchors, "the CA was renewed, and is in use");
            }
            ca.note_problem(String::new());
        }
        Err(e) if failed_before => {
            if ca.note_problem(e.to_string()) {
                tracing::warn!("{e}");
            }
        }
        Err(e) => tracing::debug!("{e}"),
    }
}

/// Has events told of the directories that the files stand in: a link that is exchanged is an event there.
fn watch(files: &Files, event: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let told = event.clone();
    let watcher = notify::recommended_watcher(move |e: notify::Result<notify::Event>| {
        if !e.is_ok_and(|e| e.kind.is_access()) {
            told.notify_one();
        }
    });
    let mut watcher =
        watcher.inspect_err(|e| tracing::warn!("the CA's files are looked at every {} s alone: {e}", LOOK.as_secs())).ok()?;
    for file in files.all() {
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Err(e) = watcher.watch(dir, RecursiveMode::NonRecursive) {
            tracing::warn!(dir = %dir.display(), "the CA's files are looked at every {} s alone: {e}", LOOK.as_secs());
        }
    }
    Some(watcher)
}

#[cfg(test)]
mod tests;
