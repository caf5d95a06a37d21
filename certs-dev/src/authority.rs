//! The anchor and the issuer under it, and the leaves that they sign.

use std::fmt;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use weft_core::TrustDomain;
use weft_core::identity::InvalidName;
use weft_core::wellknown::{BACKDATE_SECS, OID_ATTESTED_POD};

use crate::leaf::{LeafKind, LeafSpec};

/// The root's life.
const ROOT_LIFETIME: Duration = Duration::days(3650);
/// The issuer's life.
const ISSUER_LIFETIME: Duration = Duration::days(365);
/// Root and issuer are backdated by this much, so that an expired leaf had its time within theirs.
const AUTHORITY_BACKDATE: Duration = Duration::days(7);
/// How far the time of a leaf that is expired, or not yet valid, lies from now.
const OUT_OF_TIME: Duration = Duration::hours(1);
/// The trust domain of leaves that should be of another one.
const ANOTHER_TRUST_DOMAIN: &str = "elsewhere.invalid";
/// The DNS name of leaves that should have one instead of a URI.
const DNS_NAME: &str = "workload.example";

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// The trust domain is not one.
    #[error(transparent)]
    TrustDomain(#[from] InvalidName),
    /// The identity has characters that a URI SAN cannot hold (RFC 5280, section 4.2.1.6: an `IA5String`).
    #[error("the identity {0:?} can't stand in a certificate: a URI has ASCII characters only")]
    Identity(String),
    /// A key could not be made, or a certificate not signed.
    #[error("the certificate could not be made")]
    Signing(#[from] rcgen::Error),
}

/// A root that signs itself and the issuer under it that signs leaves, both with P-256 keys. The root's key is
/// dropped as soon as the issuer is signed.
pub struct Authority {
    trust_domain: TrustDomain,
    root: Certificate,
    issuer_certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority for tests, with new keys.
    ///
    /// # Panics
    ///
    /// Where [`Authority::try_new`] fails: on a text that is no trust domain.
    pub fn new(trust_domain: &str) -> Self {
        Self::try_new(trust_domain).unwrap_or_else(|error| panic!("no throwaway authority for {trust_domain:?}: {error}"))
    }

    /// A new authority with new keys. Neither certificate has a SAN: an authority is nobody's identity.
    pub fn try_new(trust_domain: &str) -> Result<Self, CertsError> {
        Self::build(trust_domain, ISSUER_LIFETIME)
    }

    /// The same, whose issuer ends so soon: what it issues ends no later.
    pub fn try_ending_in(trust_domain: &str, seconds: u32) -> Result<Self, CertsError> {
        Self::build(trust_domain, Duration::seconds(seconds.into()))
    }

    fn build(trust_domain: &str, life: Duration) -> Result<Self, CertsError> {
        let trust_domain: TrustDomain = trust_domain.parse()?;
        let now = OffsetDateTime::now_utc();

        let root_key = KeyPair::generate()?;
        let root_params = authority_params("weft development root", &trust_domain, 1, now, ROOT_LIFETIME);
        let root = root_params.self_signed(&root_key)?;
        let root_issuer = Issuer::new(root_params, root_key);

        let issuer_key = KeyPair::generate()?;
        let mut issuer_params = authority_params("weft development issuer", &trust_domain, 0, now, life);
        issuer_params.use_authority_key_identifier_extension = true;
        let issuer_certificate = issuer_params.signed_by(&issuer_key, &root_issuer)?;
        let issuer = Issuer::new(issuer_params, issuer_key);

        Ok(Self { trust_domain, root, issuer_certificate, issuer })
    }

    /// A new leaf with a new key, for tests.
    ///
    /// # Panics
    ///
    /// Where [`Authority::try_leaf`] fails: on an identity that is not ASCII.
    pub fn leaf(&self, spec: &LeafSpec) -> Leaf {
        self.try_leaf(spec).unwrap_or_else(|error| panic!("no throwaway leaf for {spec:?}: {error}"))
    }

    /// A new leaf with a new key.
    pub fn try_leaf(&self, spec: &LeafSpec) -> Result<Leaf, CertsError> {
        let key = KeyPair::generate()?;
        let params = leaf_params(spec, OffsetDateTime::now_utc())?;
        let chain = match spec.kind {
            LeafKind::SelfSigned => vec![params.self_signed(&key)?],
            LeafKind::ForeignRoot => {
                let foreign = Self::try_new(self.trust_domain.as_str())?;
                vec![params.signed_by(&key, &foreign.issuer)?, foreign.issuer_certificate]
            }
            _ => vec![params.signed_by(&key, &self.issuer)?, self.issuer_certificate.clone()],
        };
        Ok(Leaf {
            chain_pem: chain.iter().map(Certificate::pem).collect(),
            chain_der: chain.into_iter().map(CertificateDer::from).collect(),
            key_pem: key.serialize_pem(),
            key_der: PrivateKeyDer::from(key),
        })
    }

    /// The trust domain that it vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The anchor.
    pub fn root_der(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// The anchor in PEM.
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The certificate that signs leaves, itself signed by the anchor.
    pub fn issuer_der(&self) -> CertificateDer<'static> {
        self.issuer_certificate.der().clone()
    }

    /// The certificate that signs leaves, in PEM.
    pub fn issuer_pem(&self) -> String {
        self.issuer_certificate.pem()
    }

    /// The issuer's private key, PKCS#8 in PEM.
    pub fn issuer_key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// A leaf with its chain and private key.
pub struct Leaf {
    /// The leaf first, then its issuer; the root is left out. A self-signed leaf stands alone.
    pub chain_der: Vec<CertificateDer<'static>>,
    /// The private key, PKCS#8.
    pub key_der: PrivateKeyDer<'static>,
    chain_pem: String,
    key_pem: String,
}

impl Leaf {
    /// The chain in PEM, the leaf first.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key, PKCS#8 in PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("certificates", &self.chain_der.len()).finish_non_exhaustive()
    }
}

fn authority_params(
    name: &str,
    trust_domain: &TrustDomain,
    path_length: u8,
    now: OffsetDateTime,
    lifetime: Duration,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = now - AUTHORITY_BACKDATE;
    params.not_after = now + lifetime;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A good leaf's parameters, but for the one thing that `spec.kind` asks to be wrong. Who signs it is not among them.
fn leaf_params(spec: &LeafSpec, now: OffsetDateTime) -> Result<CertificateParams, CertsError> {
    let lifetime = Duration::seconds(spec.lifetime_secs);
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = match spec.kind {
        LeafKind::Expired => (now - OUT_OF_TIME - lifetime, now - OUT_OF_TIME),
        LeafKind::NotYetValid => (now + OUT_OF_TIME, now + OUT_OF_TIME + lifetime),
        _ => (now - Duration::seconds(BACKDATE_SECS), now + lifetime),
    };
    params.distinguished_name = DistinguishedName::new();
    if spec.kind == LeafKind::CnOnly {
        params.distinguished_name.push(DnType::CommonName, spec.id.as_str());
    }
    params.subject_alt_names = match spec.kind {
        LeafKind::WrongTrustDomain => vec![uri(&in_another_trust_domain(&spec.id))?],
        LeafKind::WrongSan => vec![SanType::DnsName(Ia5String::try_from(DNS_NAME)?)],
        LeafKind::TwoUriSans => vec![uri(&spec.id)?, uri(&format!("{}-too", spec.id))?],
        LeafKind::NoSan | LeafKind::CnOnly => Vec::new(),
        _ => vec![uri(&spec.id)?],
    };
    params.key_usages = match spec.kind {
        LeafKind::WrongKeyUsage => vec![KeyUsagePurpose::KeyAgreement],
        _ => vec![KeyUsagePurpose::DigitalSignature],
    };
    params.extended_key_usages = match spec.kind {
        LeafKind::WrongExtendedKeyUsage => vec![ExtendedKeyUsagePurpose::CodeSigning],
        _ => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.is_ca = match spec.kind {
        LeafKind::CaLeaf => IsCa::Ca(BasicConstraints::Unconstrained),
        _ => IsCa::ExplicitNoCa,
    };
    params.use_authority_key_identifier_extension = true;
    if let Some(pod) = &spec.pod {
        params.custom_extensions = vec![CustomExtension::from_oid_content(&OID_ATTESTED_POD, der_utf8_string(pod))];
    }
    Ok(params)
}

fn uri(id: &str) -> Result<SanType, CertsError> {
    let name = Ia5String::try_from(id).map_err(|_| CertsError::Identity(id.to_owned()))?;
    Ok(SanType::URI(name))
}

/// The same path under a trust domain that is nobody's.
fn in_another_trust_domain(id: &str) -> String {
    let path =
        id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map_or("ns/default/sa/default", |(_, path)| path);
    format!("spiffe://{ANOTHER_TRUST_DOMAIN}/{path}")
}

/// A `UTF8String` in DER (X.690, section 8.1: tag, length in the short or the long form, bytes).
fn der_utf8_string(text: &str) -> Vec<u8> {
    const TAG_UTF8_STRING: u8 = 0x0c;
    const LONG_FORM: u8 = 0x80;
    const LONGEST_SHORT: usize = 0x7f;

    let mut der = vec![TAG_UTF8_STRING];
    if text.len() <= LONGEST_SHORT {
        der.push(text.len() as u8);
    } else {
        let length: Vec<u8> = text.len().to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        der.push(LONG_FORM | length.len() as u8);
        der.extend(length);
    }
    der.extend_from_slice(text.as_bytes());
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_der_string_has_a_short_and_a_long_form() {
        assert_eq!(der_utf8_string("a/b"), [0x0c, 3, b'a', b'/', b'b']);
        assert_eq!(der_utf8_string(&"x".repeat(127))[..2], [0x0c, 0x7f]);
        assert_eq!(der_utf8_string(&"x".repeat(128))[..3], [0x0c, 0x81, 0x80]);
        assert_eq!(der_utf8_string(&"x".repeat(317))[..4], [0x0c, 0x82, 0x01, 0x3d]);
    }

    #[test]
    fn another_trust_domain_keeps_the_path() {
        assert_eq!(in_another_trust_domain("spiffe://td/ns/a/sa/b"), "spiffe://elsewhere.invalid/ns/a/sa/b");
        assert_eq!(in_another_trust_domain("nonsense"), "spiffe://elsewhere.invalid/ns/default/sa/default");
    }
}
