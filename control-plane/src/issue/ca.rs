//! The certificate authority: what signs leaves for one trust domain, and the anchors by which they are believed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::server::danger::ClientCertVerifier as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use weft_core::service::ObjectRef;
use weft_core::{SpiffeId, TrustDomain, wellknown};
use weft_proto::v1;
use weft_tls::{ClientVerifier, LeafInfo, PendingKey, Svid, TrustBundle};

use super::authority::serial;
pub use super::authority::{Authority, Made, Pem, make};
use super::tokens::TokenKeys;
use super::trust::keep::Keep;
use super::trust::records::Records;

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
    Given { chain: &'a Path, key: &'a Path },
    /// Given as text.
    Text(&'a Pem),
}

/// Signs leaves for one trust domain, and knows whom it has signed for. The issuer below the root can be renewed while it serves; a root that is
/// kept here can be rotated.
pub struct Ca {
    domain: TrustDomain,
    standing: watch::Sender<Arc<Standing>>,
    records: Arc<Records>,
    /// Held to read from the choice of an authority until what it signed is recorded, so that whoever changes the authority knows all of it then.
    signing: RwLock<()>,
    keep: Option<Mutex<Keep>>,
}

/// What holds now: all of it changes at once.
pub struct Standing {
    /// The mesh's own.
    pub domain: TrustDomain,
    /// What leaves are signed with.
    pub authority: Arc<Authority>,
    /// The anchors by which leaves are checked.
    pub bundle: Arc<TrustBundle>,
    /// What sidecars are told while the root is rotated.
    pub issuing: Option<v1::Issuing>,
    /// What JWT-SVIDs are signed with, and checked by.
    pub tokens: TokenKeys,
}

impl Standing {
    /// One authority, and its root alone as anchor.
    fn alone(domain: &TrustDomain, authority: Arc<Authority>) -> Result<Self, CaError> {
        let bundle = Arc::new(TrustBundle::new(domain.clone(), vec![authority.root().clone()])?);
        let tokens = TokenKeys::new(authority.token_key(domain)?, vec![]);
        Ok(Self { domain: domain.clone(), authority, bundle, issuing: None, tokens })
    }

    /// The bundle as sidecars are told it.
    pub fn told(&self) -> v1::TrustBundle {
        let mut told = v1::TrustBundle { issuing: self.issuing.clone(), ..(&*self.bundle).into() };
        if let Some(own) = told.domains.iter_mut().find(|d| d.trust_domain == self.domain.as_str()) {
            own.jwks = self.tokens.published().into();
        }
        told
    }
}

impl Ca {
    pub fn open(domain: TrustDomain, source: &Source<'_>) -> Result<Self, CaError> {
        let (authority, records) = match source {
            Source::Kept(dir) => {
                let (keep, records) = Keep::open(dir, &domain)?;
                let standing = keep.standing(&domain)?;
                let standing = watch::Sender::new(Arc::new(standing));
                return Ok(Self { domain, standing, records, signing: RwLock::default(), keep: Some(Mutex::new(keep)) });
            }
            Source::Given { chain, key } => (Authority::read(&Pem::load(chain, key)?)?, Records::new()),
            Source::Text(pem) => (Authority::read(pem)?, Records::new()),
        };
        let standing = watch::Sender::new(Arc::new(Standing::alone(&domain, Arc::new(authority))?));
        Ok(Self { domain, standing, records, signing: RwLock::default(), keep: None })
    }

    /// Takes over the issuer of a CA that has the same root; false if it is the one in use.
    ///
    /// # Errors
    ///
    /// Where it cannot be used or has another root, or where what it signs would not be believed. Then nothing changes.
    pub fn renew(&self, pem: &Pem) -> Result<bool, CaError> {
        let bad = |why: String| CaError::Renewal { place: pem.place.clone(), why };
        let mut renewed = Standing::alone(&self.domain, Arc::new(Authority::read(pem)?))?;
        let now = self.now();
        renewed.tokens = renewed.tokens.after(&now.tokens, OffsetDateTime::now_utc().unix_timestamp());
        if renewed.authority.anchor() != now.authority.anchor() {
            return Err(bad("it has another root, which nobody in the mesh trusts yet".into()));
        }
        if renewed.authority.chain == now.authority.chain {
            return Ok(false);
        }
        let svid = own_svid(&self.domain, &renewed.authority)?;
        let verifier = ClientVerifier::optional(weft_tls::provider(), now.bundle.clone());
        let (leaf, between) = svid.chain().split_first().ok_or_else(|| bad("it signs nothing".into()))?;
        let believed = verifier.verify_client_cert(leaf, between, UnixTime::now());
        believed.map_err(|e| bad(format!("what it signs would not be believed: {e}")))?;
        self.standing.send_replace(Arc::new(renewed));
        Ok(true)
    }

    /// What holds, now and whenever it is another.
    pub fn standing(&self) -> watch::Receiver<Arc<Standing>> {
        self.standing.subscribe()
    }

    /// What holds now.
    pub fn now(&self) -> Arc<Standing> {
        self.standing.borrow().clone()
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

    /// Puts what is kept in force. When it returns, everything that was signed before is recorded.
    pub(super) fn put_in_force(&self, keep: &Keep) -> Result<(), CaError> {
        let standing = Arc::new(keep.standing(&self.domain)?);
        self.standing.send_replace(standing);
        drop(self.signing.write().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// SHA-256 of the anchor of what is issued now, for join tokens.
    pub fn anchor_hash(&self) -> String {
        self.now().authority.anchor().to_owned()
    }

    /// The anchor as text, for those who have no bundle yet.
    pub fn anchor_pem(&self) -> String {
        self.now().authority.anchor_pem().to_owned()
    }

    /// Signs a leaf for `id` over a public key that was proved to be the requester's; leaf first, then the
    /// intermediates, without the root. It is recorded for the pod before it is handed out.
    ///
    /// # Errors
    ///
    /// Where it cannot be signed.
    pub fn issue(
        &self,
        id: &SpiffeId,
        pod: &ObjectRef,
        key: &impl PublicKeyData,
        whose: Whose,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let _signing = self.signing.read().unwrap_or_else(PoisonError::into_inner);
        let authority = self.now().authority.clone();
        let named = matches!(whose, Whose::Sidecar).then_some(pod);
        let chain = sign(&authority, id, named, key)?;
        let leaf = LeafInfo::read(&chain[0])
            .map_err(|e| CaError::Pem { place: "what was signed just now".into(), why: e.to_string() })?;
        self.records.issued(pod, authority.anchor(), &leaf, OffsetDateTime::now_utc().unix_timestamp());
        Ok(chain)
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

fn own_svid(domain: &TrustDomain, authority: &Authority) -> Result<Svid, CaError> {
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
