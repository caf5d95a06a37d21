//! The certificate authority: a root that signs an issuer, and the issuer that signs leaves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::server::danger::ClientCertVerifier as _;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use weft_core::service::ObjectRef;
use weft_core::{SpiffeId, TrustDomain, wellknown};
use weft_tls::{ClientVerifier, PendingKey, Svid, TrustBundle};
use zeroize::Zeroizing;

use super::{private_dir, write_private};

/// Why the CA cannot start or sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{path}: {why}")]
    Io { path: PathBuf, why: std::io::Error },
    #[error("{place} is not usable as a CA: {why}: give a PEM certificate with its PKCS#8 key, or remove it to start anew")]
    Pem { place: String, why: String },
    #[error("{place} is not taken over: {why}; what was read before stays in use")]
    Renewal { place: String, why: String },
    #[error("could not sign: {0}")]
    Sign(#[from] rcgen::Error),
    #[error(transparent)]
    Svid(#[from] weft_tls::SvidError),
    #[error(transparent)]
    Bundle(#[from] weft_tls::BundleError),
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

/// A CA as text: the issuer's certificate followed by its chain up to the root, and the issuer's key.
pub struct Pem {
    /// Where it was found, for errors.
    pub place: String,
    pub chain: String,
    pub key: Zeroizing<String>,
}

/// Signs leaves for one trust domain. Its root is the same for life; the issuer below it can be renewed while it serves.
pub struct Ca {
    domain: TrustDomain,
    anchor_pem: String,
    bundle: Arc<TrustBundle>,
    issuing: watch::Sender<Arc<Issuing>>,
}

/// What leaves are signed with.
pub struct Issuing {
    issuer: Issuer<'static, KeyPair>,
    ends: OffsetDateTime,
    /// The issuer's certificate and whatever stands between it and the root, which is last.
    chain: Vec<CertificateDer<'static>>,
}

impl Issuing {
    /// How long it is still good for; zero where it is not.
    pub fn remaining(&self) -> std::time::Duration {
        (self.ends - OffsetDateTime::now_utc()).try_into().unwrap_or_default()
    }
}

impl Ca {
    pub fn open(domain: TrustDomain, source: &Source<'_>) -> Result<Self, CaError> {
        match source {
            Source::Given { chain, key } => Self::load(domain, chain, key),
            Source::Text(pem) => Self::read(domain, pem),
            Source::Kept(dir) => {
                let io = |path: &Path| {
                    let path = path.to_owned();
                    move |why| CaError::Io { path, why }
                };
                private_dir(dir).map_err(io(dir))?;
                let (chain, key) = (dir.join("chain.pem"), dir.join("issuer.key"));
                if !chain.exists() || !key.exists() {
                    let made = make(&domain)?;
                    // The key first: a chain without a key would be in the way at the next start.
                    for (name, content) in
                        [("root.key", &made.root_key), ("issuer.key", &made.issuer_key), ("chain.pem", &made.chain)]
                    {
                        let path = dir.join(name);
                        write_private(&path, content.as_bytes()).map_err(io(&path))?;
                    }
                }
                Self::load(domain, &chain, &key)
            }
        }
    }

    fn load(domain: TrustDomain, chain_path: &Path, key_path: &Path) -> Result<Self, CaError> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(|why| CaError::Io { path: path.to_owned(), why });
        let place = format!("{} with {}", chain_path.display(), key_path.display());
        Self::read(domain, &Pem { place, chain: read(chain_path)?, key: Zeroizing::new(read(key_path)?) })
    }

    fn read(domain: TrustDomain, pem: &Pem) -> Result<Self, CaError> {
        let bad = |why: String| CaError::Pem { place: pem.place.clone(), why };
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(pem.chain.as_bytes()).collect::<Result<_, _>>().map_err(|e| bad(e.to_string()))?;
        let Some(root) = chain.last() else { return Err(bad("it holds no certificate".into())) };
        let key = KeyPair::from_pem(&pem.key).map_err(|e| bad(e.to_string()))?;
        let first = x509_parser::parse_x509_certificate(&chain[0]).map_err(|e| bad(e.to_string()))?.1;
        if first.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(bad("the key is not that of the first certificate in the chain".into()));
        }
        if !first.is_ca() {
            return Err(bad("the first certificate is not a CA".into()));
        }
        let ends = first.validity().not_after.to_datetime();
        let bundle = Arc::new(TrustBundle::new(domain.clone(), vec![root.clone()])?);
        let issuer = Issuer::from_ca_cert_der(&chain[0], key)?;
        let anchor_pem = last_certificate(&pem.chain).ok_or_else(|| bad("it holds no certificate".into()))?;
        let issuing = watch::Sender::new(Arc::new(Issuing { issuer, ends, chain }));
        Ok(Self { domain, anchor_pem, bundle, issuing })
    }

    /// Takes over the issuer of a CA that has the same root; false if it is the one in use.
    ///
    /// # Errors
    ///
    /// Where it cannot be used or has another root, or where what it signs would not be believed. Then nothing changes.
    pub fn renew(&self, pem: &Pem) -> Result<bool, CaError> {
        let bad = |why: String| CaError::Renewal { place: pem.place.clone(), why };
        let other = Self::read(self.domain.clone(), pem)?;
        if other.anchor_hash() != self.anchor_hash() {
            return Err(bad("it has another root, which nobody in the mesh trusts yet".into()));
        }
        let renewed = other.issuing.borrow().clone();
        if renewed.chain == self.issuing.borrow().chain {
            return Ok(false);
        }
        let svid = other.own_svid()?;
        let verifier = ClientVerifier::optional(weft_tls::provider(), self.bundle.clone());
        let (leaf, between) = svid.chain().split_first().ok_or_else(|| bad("it signs nothing".into()))?;
        let believed = verifier.verify_client_cert(leaf, between, UnixTime::now());
        believed.map_err(|e| bad(format!("what it signs would not be believed: {e}")))?;
        self.issuing.send_replace(renewed);
        Ok(true)
    }

    /// What leaves are signed with, now and whenever it was renewed.
    pub fn issuing(&self) -> watch::Receiver<Arc<Issuing>> {
        self.issuing.subscribe()
    }

    fn root(&self) -> CertificateDer<'static> {
        self.issuing.borrow().chain.last().expect("checked when it was opened").clone()
    }

    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// SHA-256 of the anchor, for join tokens.
    pub fn anchor_hash(&self) -> String {
        weft_tls::anchor_hash(&self.root())
    }

    /// The anchor as text, for those who have no bundle yet.
    pub fn anchor_pem(&self) -> &str {
        &self.anchor_pem
    }

    /// Signs a leaf for `id` over a public key that was proved to be the requester's; leaf first, then the
    /// intermediates, without the root.
    pub fn sign(
        &self,
        id: &SpiffeId,
        pod: Option<&ObjectRef>,
        key: &impl PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let now = OffsetDateTime::now_utc();
        let issuing = self.issuing.borrow().clone();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(serial());
        params.not_before = now - Duration::seconds(wellknown::BACKDATE_SECS);
        // A leaf that outlives its issuer would be refused before its time.
        params.not_after = (now + Duration::seconds(wellknown::LEAF_LIFETIME_SECS)).min(issuing.ends);
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        if let Some(pod) = pod {
            params.custom_extensions =
                vec![CustomExtension::from_oid_content(&wellknown::OID_ATTESTED_POD, utf8_string(&pod.to_string()))];
        }
        let leaf = params.signed_by(key, &issuing.issuer)?;
        let between = issuing.chain.len() - 1;
        Ok(std::iter::once(leaf.der().clone()).chain(issuing.chain.iter().take(between).cloned()).collect())
    }

    /// The control plane's own SVID. Its chain ends with the root, so that a joiner can compare the root's hash.
    pub fn own_svid(&self) -> Result<Svid, CaError> {
        let key = PendingKey::generate()?;
        let id = SpiffeId::control_plane(self.domain.clone());
        let request = super::csr::check(&key.request(&id)?)
            .map_err(|e| CaError::Pem { place: "its own request".into(), why: e.to_string() })?;
        let mut chain = self.sign(&id, None, &request.public_key)?;
        chain.push(self.root());
        Ok(key.with_chain(chain)?)
    }
}

/// A new CA, as text.
pub struct Made {
    pub root_key: Zeroizing<String>,
    pub issuer_key: Zeroizing<String>,
    /// The issuer, then the root.
    pub chain: Zeroizing<String>,
}

/// The last certificate of a PEM text, and nothing else that may stand beside it, such as a key.
fn last_certificate(pem: &str) -> Option<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let from = &pem[pem.rfind("-----BEGIN CERTIFICATE-----")?..];
    Some(from[..from.find(END)? + END.len()].to_owned() + "\n")
}

/// Makes a root and an issuer under it.
pub fn make(domain: &TrustDomain) -> Result<Made, CaError> {
    let now = OffsetDateTime::now_utc();
    let authority = |name: &str, path: u8, days: i64| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
        params.serial_number = Some(serial());
        params.not_before = now - Duration::seconds(wellknown::BACKDATE_SECS);
        params.not_after = now + Duration::days(days);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = path == 0;
        params
    };
    let root_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let root_params = authority("weft root", 1, 3650);
    let root = root_params.self_signed(&root_key)?;
    let issuer_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let root_key_pem = Zeroizing::new(root_key.serialize_pem());
    let issuer = authority("weft issuer", 0, 365).signed_by(&issuer_key, &Issuer::new(root_params, root_key))?;
    Ok(Made {
        root_key: root_key_pem,
        issuer_key: Zeroizing::new(issuer_key.serialize_pem()),
        chain: Zeroizing::new(issuer.pem() + &root.pem()),
    })
}

/// 126 random bits: positive, and never short enough to be padded (CA/B baseline, section 7.1, asks for 64).
fn serial() -> SerialNumber {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
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
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_kept_private_and_used_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ca");
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        let first = Ca::open(domain.clone(), &Source::Kept(&path)).expect("made");
        let second = Ca::open(domain, &Source::Kept(&path)).expect("read again");
        assert_eq!(first.anchor_hash(), second.anchor_hash());
        for file in std::fs::read_dir(&path).expect("there").flatten() {
            let mode = file.metadata().expect("there").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", file.path());
        }
        let anchor = CertificateDer::from_pem_slice(second.anchor_pem().as_bytes()).expect("one certificate");
        assert_eq!(weft_tls::anchor_hash(&anchor), second.anchor_hash());
        let svid = second.own_svid().expect("signed");
        assert!(svid.info().id.is_control_plane());
        assert_eq!(svid.chain().len(), 3);
        assert!(!format!("{svid:?}").contains("PRIVATE"));
    }

    #[test]
    fn the_anchor_is_told_without_the_key_that_stands_beside_it() {
        let made = make(&"cluster.local".parse().expect("valid")).expect("made");
        let together = format!("{}{}", *made.chain, *made.issuer_key);
        let pem = Pem { place: "here".into(), chain: together, key: made.issuer_key.clone() };
        let ca = Ca::open("cluster.local".parse().expect("valid"), &Source::Text(&pem)).expect("good");
        assert!(!ca.anchor_pem().contains("PRIVATE"));
        assert!(made.chain.ends_with(ca.anchor_pem()), "the root is last");
    }

    /// The CA that was made, with another issuer under its root, or under `root_key` in its root's name.
    fn renewed(made: &Made, root_key: &str) -> Pem {
        let root = last_certificate(&made.chain).expect("made");
        let by = Issuer::from_ca_cert_pem(&root, KeyPair::from_pem(root_key).expect("a key")).expect("a CA");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
        let key = KeyPair::generate().expect("a key");
        let issuer = params.signed_by(&key, &by).expect("signed");
        Pem { place: "there".into(), chain: issuer.pem() + &root, key: Zeroizing::new(key.serialize_pem()) }
    }

    #[test]
    fn an_issuer_is_renewed_under_its_root_and_under_no_other() {
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        let made = make(&domain).expect("made");
        let pem = |made: &Made| Pem { place: "there".into(), chain: made.chain.to_string(), key: made.issuer_key.clone() };
        let ca = Ca::open(domain.clone(), &Source::Text(&pem(&made))).expect("good");
        let mut issuing = ca.issuing();
        let before = ca.own_svid().expect("signed").chain()[1].clone();
        assert!(!ca.renew(&pem(&made)).expect("it is the same"));

        let another = make(&domain).expect("made");
        for (bad, why) in [
            (pem(&another), "another root"),
            (renewed(&made, &another.root_key), "would not be believed"),
            (Pem { key: another.issuer_key.clone(), ..pem(&made) }, "not that of the first certificate"),
        ] {
            let e = ca.renew(&bad).expect_err(why);
            assert!(e.to_string().contains(why), "{e}");
        }
        assert!(!issuing.has_changed().expect("it is there"));
        assert_eq!(ca.own_svid().expect("signed").chain()[1], before);

        assert!(ca.renew(&renewed(&made, &made.root_key)).expect("good"));
        let left = issuing.borrow_and_update().remaining().as_secs();
        assert!((3_500..=3_600).contains(&left), "{left}");
        let svid = ca.own_svid().expect("signed");
        assert_ne!(svid.chain()[1], before);
        assert_eq!(ca.anchor_hash(), Ca::open(domain, &Source::Text(&pem(&made))).expect("good").anchor_hash());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        Ca::open(domain.clone(), &Source::Kept(dir.path())).expect("made");
        let chain = dir.path().join("chain.pem");
        let e = Ca::open(domain, &Source::Given { chain: &chain, key: &dir.path().join("root.key") }).err().expect("refused");
        assert!(e.to_string().contains("not that of the first certificate"), "{e}");
    }
}
