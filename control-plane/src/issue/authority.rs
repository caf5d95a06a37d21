//! A root with the issuer below it: what leaves are signed with, and how a new one is made.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, PublicKeyData as _,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use weft_core::{TrustDomain, wellknown};
use weft_tls::Key;
use weft_tls::jwt::{KeyError, SigningKey};
use zeroize::Zeroizing;

use super::ca::CaError;

/// A CA as text: the issuer's certificate followed by its chain up to the root, and the issuer's key.
pub struct Pem {
    /// Where it was found, for errors.
    pub place: String,
    pub chain: String,
    pub key: Zeroizing<String>,
    /// The roots that are to be trusted. With them, the chain may end below its root. None: the chain ends with the one root.
    pub anchors: Option<String>,
}

impl Pem {
    /// Reads it from files.
    ///
    /// # Errors
    ///
    /// Where one cannot be read.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, CaError> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(|why| CaError::Io { path: path.to_owned(), why });
        let place = format!("{} with {}", chain.display(), key.display());
        Ok(Self { place, chain: read(chain)?, key: Zeroizing::new(read(key)?), anchors: None })
    }
}

/// Certificates that a chain may have: a handshake carries them, and its peer checks each.
const MAX_CHAIN: usize = 8;

/// What leaves are signed with.
pub struct Authority {
    pub(super) issuer: Issuer<'static, Key>,
    pub(super) ends: OffsetDateTime,
    /// The issuer's certificate and whatever stands between it and the root, which is last.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// While the root is rotated: the issuer's certificate under the other root, and that root, for those who know that one alone.
    pub(super) crossed: Vec<CertificateDer<'static>>,
    anchor: String,
    anchor_pem: String,
    anchor_ends: i64,
}

impl Authority {
    /// Reads a CA and checks that it can sign.
    ///
    /// # Errors
    ///
    /// Where it is no CA with its key.
    pub fn read(pem: &Pem) -> Result<Self, CaError> {
        let root = last_certificate(&pem.chain);
        let root = root.ok_or_else(|| CaError::Pem { place: pem.place.clone(), why: "it holds no certificate".into() })?;
        Self::under(pem, root)
    }

    /// The same, under a root that the chain need not name. Whether the chain leads there is not checked.
    pub(super) fn under(pem: &Pem, anchor_pem: String) -> Result<Self, CaError> {
        let bad = |why: String| CaError::Pem { place: pem.place.clone(), why };
        let mut chain: Vec<_> =
            CertificateDer::pem_slice_iter(pem.chain.as_bytes()).collect::<Result<_, _>>().map_err(|e| bad(e.to_string()))?;
        if chain.is_empty() || chain.len() > MAX_CHAIN {
            return Err(bad(format!("it holds {} certificates where 1 to {MAX_CHAIN} are read", chain.len())));
        }
        let root = CertificateDer::from_pem_slice(anchor_pem.as_bytes()).map_err(|e| bad(e.to_string()))?;
        if chain.last() != Some(&root) {
            chain.push(root.clone());
        }
        let key = Key::from_pem(&pem.key).map_err(|e| bad(e.to_string()))?;
        let first = x509_parser::parse_x509_certificate(&chain[0]).map_err(|e| bad(e.to_string()))?.1;
        if first.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(bad("the key is not that of the first certificate in the chain".into()));
        }
        if !first.is_ca() {
            return Err(bad("the first certificate is not a CA".into()));
        }
        let ends = first.validity().not_after.to_datetime();
        let anchor_ends = x509_parser::parse_x509_certificate(&root).map_err(|e| bad(e.to_string()))?.1.validity().not_after;
        let issuer = Issuer::from_ca_cert_der(&chain[0], key)?;
        let (anchor, anchor_ends) = (weft_tls::anchor_hash(&root), anchor_ends.timestamp());
        Ok(Self { issuer, ends, chain, crossed: vec![], anchor, anchor_pem, anchor_ends })
    }

    /// The same, for those as well who know the other root alone.
    #[must_use]
    pub fn crossed(mut self, cross: CertificateDer<'static>, other_root: CertificateDer<'static>) -> Self {
        self.crossed = vec![cross, other_root];
        self
    }

    /// How long its issuer is still good for; zero where it is not.
    pub fn remaining(&self) -> std::time::Duration {
        (self.ends - OffsetDateTime::now_utc()).try_into().unwrap_or_default()
    }

    /// The root.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().expect("checked when it was read")
    }

    /// SHA-256 of the root, hexadecimal.
    pub fn anchor(&self) -> &str {
        &self.anchor
    }

    /// The root as text.
    pub fn anchor_pem(&self) -> &str {
        &self.anchor_pem
    }

    /// What JWT-SVIDs of `domain` are signed with: it follows from the issuer's key.
    ///
    /// # Errors
    ///
    /// Where no key can be derived.
    pub fn token_key(&self, domain: &TrustDomain) -> Result<Arc<SigningKey>, CaError> {
        let bad = |e: KeyError| CaError::Pem { place: "the issuer's key".into(), why: e.to_string() };
        SigningKey::derive(self.issuer.key().der(), domain).map(Arc::new).map_err(bad)
    }

    /// When the root ends, in seconds since the Unix epoch.
    pub fn anchor_ends(&self) -> i64 {
        self.anchor_ends
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
pub(super) fn last_certificate(pem: &str) -> Option<String> {
    certificates(pem).last()
}

/// Each certificate of a PEM text, as text.
pub(super) fn certificates(pem: &str) -> impl DoubleEndedIterator<Item = String> {
    const END: &str = "-----END CERTIFICATE-----";
    let each = pem.match_indices("-----BEGIN CERTIFICATE-----").filter_map(|(at, _)| {
        let from = &pem[at..];
        Some(from[..from.find(END)? + END.len()].to_owned() + "\n")
    });
    each.collect::<Vec<_>>().into_iter()
}

fn params(name: &DistinguishedName, path: u8, days: i64) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = name.clone();
    params.serial_number = Some(serial());
    params.not_before = now - Duration::seconds(wellknown::BACKDATE_SECS);
    params.not_after = now + Duration::days(days);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = path == 0;
    params
}

/// How long an issuer is good for.
const ISSUER_DAYS: i64 = 365;

/// Makes a root and an issuer under it. `tag` tells them from others of the same domain; empty for the first.
pub fn make(domain: &TrustDomain, tag: &str) -> Result<Made, CaError> {
    let named = |name: &str| {
        let mut dn = DistinguishedName::new();
        dn.push(DnType::CommonName, format!("{name} {tag}").trim());
        dn.push(DnType::OrganizationName, domain.as_str());
        dn
    };
    let root_key = Key::generate()?;
    let root_params = params(&named("weft root"), 1, 3650);
    let root = root_params.self_signed(&root_key)?;
    let issuer_key = Key::generate()?;
    let root_key_pem = root_key.pem();
    let issuer = params(&named("weft issuer"), 0, ISSUER_DAYS).signed_by(&issuer_key, &Issuer::new(root_params, root_key))?;
    Ok(Made { root_key: root_key_pem, issuer_key: issuer_key.pem(), chain: Zeroizing::new(issuer.pem() + &root.pem()) })
}

/// The certificate of a CA's issuer under another CA's root, as PEM: whoever knows that root alone believes what the issuer signs, too.
///
/// # Errors
///
/// Where one of the keys or certificates is none.
pub fn cross(of: &Pem, by: &Pem, by_root_key: &str) -> Result<String, CaError> {
    let bad = |pem: &Pem, why: String| CaError::Pem { place: pem.place.clone(), why };
    let (subject, root) = (Authority::read(of)?, Authority::read(by)?);
    let (_, certificate) = x509_parser::parse_x509_certificate(&subject.chain[0]).map_err(|e| bad(of, e.to_string()))?;
    let mut name = DistinguishedName::new();
    for (kind, text) in [
        (DnType::CommonName, certificate.subject().iter_common_name().next()),
        (DnType::OrganizationName, certificate.subject().iter_organization().next()),
    ] {
        if let Some(text) = text.and_then(|t| t.as_str().ok()) {
            name.push(kind, text);
        }
    }
    let signer = Issuer::from_ca_cert_der(root.root(), Key::from_pem(by_root_key)?)?;
    let key = Key::from_pem(&of.key)?;
    Ok(params(&name, 0, ISSUER_DAYS).signed_by(&key, &signer)?.pem())
}

/// 126 random bits: positive, and never short enough to be padded (CA/B baseline, section 7.1, asks for 64).
pub(super) fn serial() -> SerialNumber {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}
