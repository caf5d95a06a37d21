//! The certificate authority: what signs leaves for one trust domain, and the anchors by which they are believed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use weft_core::service::ObjectRef;
use weft_core::{SpiffeId, TrustDomain, wellknown};
use weft_proto::v1;
use weft_tls::{LeafInfo, PendingKey, Svid, TrustBundle};

use super::authority::serial;
pub use super::authority::{Authority, Made, Pem, make};
use super::deny::Denials;
use super::given;
use super::tokens::TokenKeys;
use super::trust::keep::Keep;
use super::trust::records::{Recorded, Records};
use super::trust::roots::Roots;

/// Why the CA cannot start or sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{path}: {why}")]
    Io { path: PathBuf, why: std::io::Error },
    #[error("{place} is not usable as a CA: {why}: give a PEM certificate with its PKCS#8 key, or remove it to start anew")]
    Pem { place: String, why: String },
    #[error("{place} does not say how far the rotation of the root is: {why}: put the file back as it was")]
    State { place: String, why: String },
    #[error("{dir} is in use by another control plane: stop that one first, or give this one another --state")]
    InUse { dir: PathBuf },
    #[error("{place} is not taken over: {why}; what was read before stays in use")]
    Renewal { place: String, why: String },
    #[error("nobody has recorded that it was issued: ask again, and see the control plane's log")]
    Unrecorded,
    #[error("could not sign: {0}")]
    Sign(#[from] rcgen::Error),
    #[error(transparent)]
    Svid(#[from] weft_tls::SvidError),
    #[error(transparent)]
    Bundle(#[from] weft_tls::BundleError),
}

/// Who of a pod a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The sidecar: it names the pod, so that policy is told and renewal granted on its word.
    Sidecar,
    /// The application: it names the identity alone.
    Application,
}

/// Where the CA's keys come from.
pub enum Source<'a> {
    /// Made on first start in this directory, and kept.
    Kept(&'a Path),
    /// Given: the issuer's certificate followed by its chain up to the root, and its key.
    Given(&'a given::Files),
    /// Given as text.
    Text(&'a Pem),
    /// Kept where all replicas share it.
    Shared(&'a Roots),
}

/// Signs leaves for one trust domain, and knows whom it has signed for. The issuer below the root can be renewed while it serves; a root that is
/// kept here can be rotated.
pub struct Ca {
    domain: TrustDomain,
    standing: watch::Sender<Arc<Standing>>,
    records: Arc<Records>,
    /// Held to read from the choice of an authority until what it signed is in the ledger, so that whoever changes the authority knows all of it then.
    signing: RwLock<()>,
    keep: Option<Mutex<Keep>>,
    /// Why what was given last is not in use; empty where it is.
    problem: Mutex<String>,
    denials: Denials,
}

/// What holds now: all of it changes at once.
pub struct Standing {
    /// What leaves are signed with.
    pub authority: Arc<Authority>,
    /// The anchors by which leaves are checked.
    pub bundle: Arc<TrustBundle>,
    /// The same as text, for those who have no bundle yet.
    pub anchors_pem: String,
    /// What sidecars are told while the root is rotated.
    pub issuing: Option<v1::Issuing>,
    /// What JWT-SVIDs are signed with, and checked by.
    pub tokens: TokenKeys,
}

/// A leaf that was signed, and may not be on disk as issued yet.
#[must_use]
pub struct Signed {
    chain: Vec<CertificateDer<'static>>,
    recorded: Recorded,
}

impl Signed {
    /// The leaf first, then the intermediates, without the root; once that it was issued is recorded as well as it can be.
    ///
    /// # Errors
    ///
    /// Where nobody has recorded it.
    pub async fn recorded(self) -> Result<Vec<CertificateDer<'static>>, CaError> {
        self.recorded.waited().await.map_err(|_| CaError::Unrecorded)?;
        Ok(self.chain)
    }

    #[cfg(test)]
    pub fn waited(self) -> Vec<CertificateDer<'static>> {
        self.recorded.blocked();
        self.chain
    }
}

impl Ca {
    pub fn open(domain: TrustDomain, source: &Source<'_>) -> Result<Self, CaError> {
        let standing = match source {
            Source::Kept(dir) => {
                let (keep, records) = Keep::open(dir, &domain)?;
                let standing = keep.roots().standing(&domain)?;
                let standing = watch::Sender::new(Arc::new(standing));
                let keep = Some(Mutex::new(keep));
                return Ok(Self {
                    domain,
                    standing,
                    records,
                    signing: RwLock::default(),
                    keep,
                    problem: Mutex::default(),
                    denials: Denials::default(),
                });
            }
            Source::Given(files) => given::standing(&domain, &files.load()?)?,
            Source::Text(pem) => given::standing(&domain, pem)?,
            Source::Shared(roots) => roots.standing(&domain)?,
        };
        let records = if matches!(source, Source::Shared(_)) { Records::shared() } else { Records::new() };
        let standing = watch::Sender::new(Arc::new(standing));
        Ok(Self {
            domain,
            standing,
            records,
            signing: RwLock::default(),
            keep: None,
            problem: Mutex::default(),
            denials: Denials::default(),
        })
    }

    /// Takes over what is given now, issuer and anchors; false if it is what is in use.
    ///
    /// # Errors
    ///
    /// Where it cannot be used, what it signs would not be believed by those who have the anchors that are in force, or it lacks an anchor to
    /// which certificates lead that are served. Then nothing changes.
    pub fn renew(&self, pem: &Pem) -> Result<bool, CaError> {
        let bad = |why: String| CaError::Renewal { place: pem.place.clone(), why };
        let now = self.now();
        let mut renewed = given::standing(&self.domain, pem).map_err(|e| bad(e.to_string()))?;
        renewed.tokens = renewed.tokens.after(&now.tokens, OffsetDateTime::now_utc().unix_timestamp());
        if renewed.authority.chain == now.authority.chain && renewed.bundle == now.bundle {
            return Ok(false);
        }
        if !given::is_believed(&self.domain, &renewed.authority, &now.bundle)? {
            return Err(bad(
                "it leads to another root, which nobody in the mesh trusts yet: put that root beside the old one first".into(),
            ));
        }
        let gone: Vec<_> =
            now.bundle.hashes(&self.domain).filter(|old| !renewed.bundle.hashes(&self.domain).any(|a| a == *old)).collect();
        let at = OffsetDateTime::now_utc().unix_timestamp();
        let served = self
            .records
            .read(|ledger| ledger.holders().values().filter(|h| h.may_serve(at, |a| gone.iter().any(|g| g == a))).count());
        if served > 0 {
            return Err(bad(format!(
                "it lacks a root to which the certificates of {served} sidecars may lead: they renew, and then it is taken over"
            )));
        }
        self.standing.send_replace(Arc::new(renewed));
        drop(self.signing.write().unwrap_or_else(PoisonError::into_inner));
        Ok(true)
    }

    /// Notes why what is given now is not in use, or that it is; true where that is news.
    pub fn note_problem(&self, problem: String) -> bool {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *known != problem;
        *known = problem;
        is_news
    }

    /// Why what is given now is not in use; empty where it is.
    pub fn problem(&self) -> String {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What holds, now and whenever it is another.
    pub fn standing(&self) -> watch::Receiver<Arc<Standing>> {
        self.standing.subscribe()
    }

    /// What holds now.
    pub fn now(&self) -> Arc<Standing> {
        self.standing.borrow().clone()
    }

    /// Who is denied, and which foreign domains are believed.
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    /// By what those are checked who call the control plane: those of its own trust domain that are not denied.
    pub fn checked_by(&self) -> Arc<TrustBundle> {
        let own = (*self.now().bundle).clone();
        Arc::new(own.denying(self.denials.now().denied.clone()))
    }

    /// The bundle as sidecars are told it.
    pub fn told(&self) -> v1::TrustBundle {
        let (standing, effective) = (self.now(), self.denials.now());
        let mut bundle = (*standing.bundle).clone().denying(effective.denied.clone());
        for (domain, anchors) in effective.foreign.iter().filter(|(domain, _)| **domain != self.domain) {
            if let Err(e) = bundle.insert(domain.clone(), anchors.clone()) {
                tracing::error!("a foreign domain that was read before can't be used: {e}");
            }
        }
        let mut told = v1::TrustBundle { issuing: standing.issuing.clone(), ..(&bundle).into() };
        if let Some(own) = told.domains.iter_mut().find(|d| d.trust_domain == self.domain.as_str()) {
            own.jwks = standing.tokens.published().into();
        }
        told
    }

    /// Who holds what.
    pub fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// The directory in which the root is kept, where it is kept here.
    pub(super) fn keep(&self) -> Option<MutexGuard<'_, Keep>> {
        // Nothing that holds the lock can leave it half changed: what is on disk is read first.
        self.keep.as_ref().map(|keep| keep.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts what is kept in force. When it returns, everything that was signed before is in the ledger.
    pub(super) fn put_in_force(&self, keep: &Keep) -> Result<(), CaError> {
        self.take(keep.roots().standing(&self.domain)?);
        Ok(())
    }

    /// Puts something else in force. When it returns, everything that was signed before is in the ledger.
    pub(super) fn take(&self, standing: Standing) {
        self.standing.send_replace(Arc::new(standing));
        drop(self.signing.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// SHA-256 of the anchor of what is issued now, for join tokens.
    pub fn anchor_hash(&self) -> String {
        self.now().authority.anchor().to_owned()
    }

    /// The anchors as text, for those who have no bundle yet.
    pub fn anchor_pem(&self) -> String {
        self.now().anchors_pem.clone()
    }

    /// Signs a leaf for `id` over a public key that was proved to be the requester's, for the pod.
    ///
    /// # Errors
    ///
    /// Where it cannot be signed.
    pub fn issue(&self, id: &SpiffeId, pod: &ObjectRef, key: &impl PublicKeyData, whose: Whose) -> Result<Signed, CaError> {
        let _signing = self.signing.read().unwrap_or_else(PoisonError::into_inner);
        let authority = self.now().authority.clone();
        let named = matches!(whose, Whose::Sidecar).then_some(pod);
        let chain = sign(&authority, id, named, key)?;
        let leaf = LeafInfo::read(&chain[0])
            .map_err(|e| CaError::Pem { place: "what was signed just now".into(), why: e.to_string() })?;
        let recorded = self.records.issued(pod, authority.anchor(), &leaf);
        Ok(Signed { chain, recorded })
    }

    /// The control plane's own SVID. Its chain ends with the root, so that a joiner can compare the root's hash; while the root is
    /// rotated, the other root follows, with the issuer's certificate under it.
    ///
    /// # Errors
    ///
    /// Where it cannot be signed.
    pub fn own_svid(&self) -> Result<Svid, CaError> {
        own_svid(&self.domain, &self.now().authority)
    }
}

pub(super) fn own_svid(domain: &TrustDomain, authority: &Authority) -> Result<Svid, CaError> {
    let key = PendingKey::generate()?;
    let id = SpiffeId::control_plane(domain.clone());
    let request = super::csr::check(&key.request(&id)?)
        .map_err(|e| CaError::Pem { place: "its own request".into(), why: e.to_string() })?;
    let mut chain = sign(authority, &id, None, &request.public_key)?;
    chain.push(authority.root().clone());
    chain.extend(authority.crossed.iter().cloned());
    Ok(key.with_chain(chain)?)
}

fn sign(
    authority: &Authority,
    id: &SpiffeId,
    pod: Option<&ObjectRef>,
    key: &impl PublicKeyData,
) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial());
    params.not_before = now - Duration::seconds(wellknown::BACKDATE_SECS);
    // A leaf that outlives its issuer would be refused before its time.
    params.not_after = (now + Duration::seconds(wellknown::LEAF_LIFETIME_SECS)).min(authority.ends);
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    if let Some(pod) = pod {
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&wellknown::OID_ATTESTED_POD, utf8_string(&pod.to_string()))];
    }
    let leaf = params.signed_by(key, &authority.issuer)?;
    let between = authority.chain.len() - 1;
    Ok(std::iter::once(leaf.der().clone()).chain(authority.chain.iter().take(between).cloned()).collect())
}

fn utf8_string(text: &str) -> Vec<u8> {
    let n = text.len();
    let mut der = match n {
        0..=0x7f => vec![0x0c, n as u8],
        0x80..=0xff => vec![0x0c, 0x81, n as u8],
        _ => vec![0x0c, 0x82, (n >> 8) as u8, n as u8],
    };
    der.extend_from_slice(text.as_bytes());
    der
}

#[cfg(test)]
mod tests;
