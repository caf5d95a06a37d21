//! Which anchors vouch for which trust domain.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::KeyUsage;
use weft_core::TrustDomain;
use weft_proto::v1;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::denied::Denied;
use crate::leaf::{LeafError, LeafInfo};
use crate::verify::{VerifyError, verify_chain};

/// Why a bundle cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BundleError {
    /// The trust domain's name is malformed.
    #[error("trust bundle: {0}")]
    Name(#[from] weft_core::identity::InvalidName),
    /// An anchor is no certificate.
    #[error("trust bundle: an anchor of {domain} is not a certificate: {why}")]
    Anchor {
        /// The trust domain.
        domain: TrustDomain,
        /// What the parser says.
        why: String,
    },
    /// A domain has no anchors, so that nothing of it could be trusted.
    #[error("trust bundle: {0} has no anchors")]
    Empty(TrustDomain),
}

/// Each trust domain's anchors, and who is refused all the same.
#[derive(Clone, Debug, Default)]
pub struct TrustBundle {
    domains: BTreeMap<TrustDomain, Vec<(TrustAnchor<'static>, CertificateDer<'static>)>>,
    denied: Arc<Denied>,
}

impl TrustBundle {
    /// A bundle of one domain.
    pub fn new(domain: TrustDomain, anchors: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        let mut bundle = Self::default();
        bundle.insert(domain, anchors)?;
        Ok(bundle)
    }

    /// The same, with some refused.
    #[must_use]
    pub fn denying(mut self, denied: Arc<Denied>) -> Self {
        self.denied = denied;
        self
    }

    /// Who is refused though anchors vouch for it.
    pub fn denied(&self) -> &Denied {
        &self.denied
    }

    /// Whether a certificate that was believed is believed no more: its domain is gone, or it is denied.
    pub fn gave_up(&self, leaf: &LeafInfo) -> bool {
        !self.domains.contains_key(leaf.id.trust_domain()) || self.denied.has(leaf)
    }

    /// Adds a trust domain, or replaces its anchors.
    ///
    /// # Errors
    ///
    /// Where there are no anchors, or one is no certificate.
    pub fn insert(&mut self, domain: TrustDomain, anchors: Vec<CertificateDer<'static>>) -> Result<(), BundleError> {
        if anchors.is_empty() {
            return Err(BundleError::Empty(domain));
        }
        let mut parsed = Vec::with_capacity(anchors.len());
        for der in anchors {
            let anchor = webpki::anchor_from_trusted_cert(&der)
                .map_err(|e| BundleError::Anchor { domain: domain.clone(), why: e.to_string() })?
                .to_owned();
            parsed.push((anchor, der));
        }
        self.domains.insert(domain, parsed);
        Ok(())
    }

    /// The anchors of one domain; none if the domain is not trusted.
    pub fn anchors(&self, domain: &TrustDomain) -> impl Iterator<Item = &TrustAnchor<'static>> {
        self.domains.get(domain).into_iter().flatten().map(|(anchor, _)| anchor)
    }

    /// The SHA-256 of each anchor of one domain, hexadecimal; none if the domain is not trusted.
    pub fn hashes(&self, domain: &TrustDomain) -> impl Iterator<Item = String> {
        self.domains.get(domain).into_iter().flatten().map(|(_, der)| anchor_hash(der))
    }

    /// Each anchor of one domain: its SHA-256, hexadecimal, and when it ends, in seconds since the Unix epoch (0 where that cannot be read).
    pub fn facts(&self, domain: &TrustDomain) -> Vec<(String, i64)> {
        let ends =
            |der: &CertificateDer<'_>| X509Certificate::from_der(der).map_or(0, |(_, c)| c.validity().not_after.timestamp());
        self.domains.get(domain).into_iter().flatten().map(|(_, der)| (anchor_hash(der), ends(der))).collect()
    }

    /// The anchor that a chain leads to: its SHA-256, hexadecimal. `None` where no anchor of the leaf's own domain vouches for the chain at
    /// `now`. Where several do, the first of the bundle is named.
    pub fn vouching(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Option<String> {
        let leaf = chain.first()?;
        let domain = LeafInfo::read(leaf).ok()?.id.trust_domain().clone();
        let vouches = |der: &CertificateDer<'static>| Self::new(domain.clone(), vec![der.clone()]).ok()?.check(chain, now).ok();
        self.domains.get(&domain)?.iter().find(|(_, der)| vouches(der).is_some()).map(|(_, der)| anchor_hash(der))
    }

    /// Checks a chain (leaf first) as a peer's would be, for a client: path, times, usage and names.
    ///
    /// # Errors
    ///
    /// Where it would be refused.
    pub fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<LeafInfo, VerifyError> {
        let (leaf, between) = chain.split_first().ok_or(LeafError::Malformed)?;
        verify_chain(&crate::provider(), self, leaf, between, now, KeyUsage::client_auth())
    }

    /// The domains, with their anchors as certificates.
    pub fn domains(&self) -> impl Iterator<Item = (&TrustDomain, Vec<&CertificateDer<'static>>)> {
        self.domains.iter().map(|(domain, anchors)| (domain, anchors.iter().map(|(_, der)| der).collect()))
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        // The parsed form follows from the certificates.
        self.domains().eq(other.domains()) && self.denied == other.denied
    }
}

impl From<&TrustBundle> for v1::TrustBundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self {
            domains: bundle
                .domains()
                .map(|(domain, anchors)| v1::TrustDomainAnchors {
                    trust_domain: domain.to_string(),
                    anchors: anchors.into_iter().map(|der| der.as_ref().to_vec().into()).collect(),
                    ..v1::TrustDomainAnchors::default()
                })
                .collect(),
            issuing: None,
            denied: (!bundle.denied.is_empty()).then(|| (&*bundle.denied).into()),
        }
    }
}

impl TryFrom<&v1::TrustBundle> for TrustBundle {
    type Error = BundleError;
    fn try_from(wire: &v1::TrustBundle) -> Result<Self, BundleError> {
        let mut bundle = Self::default();
        for d in &wire.domains {
            let anchors = d.anchors.iter().map(|a| CertificateDer::from(a.to_vec())).collect();
            bundle.insert(d.trust_domain.parse()?, anchors)?;
        }
        if let Some(denied) = &wire.denied {
            bundle.denied = Arc::new(denied.try_into()?);
        }
        Ok(bundle)
    }
}

/// SHA-256 of an anchor's DER, hexadecimal: what a join token pins.
pub fn anchor_hash(der: &CertificateDer<'_>) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der.as_ref());
    weft_core::hex::hex(digest.as_ref())
}
