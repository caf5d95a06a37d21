//! A certificate with its key, and how it comes to be.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use weft_core::SpiffeId;
use zeroize::Zeroizing;

use crate::key::Key;
use crate::leaf::{LeafError, LeafInfo};

/// Why a key or certificate cannot be made or used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SvidError {
    /// Key generation or CSR encoding failed.
    #[error("could not make a key or request: {0}")]
    Make(#[from] rcgen::Error),
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf is no SVID.
    #[error("the certificate is not an SVID: {0}")]
    Leaf(#[from] LeafError),
    /// The key does not fit the certificate, or is of a kind that is not supported.
    #[error("the key cannot be used with the certificate: {0}")]
    Key(#[from] rustls::Error),
}

/// A fresh private key that waits for its certificate. It never leaves the process but to memory-backed state.
pub struct PendingKey(Key);

impl PendingKey {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, SvidError> {
        Ok(Self(Key::generate()?))
    }

    /// The certification request (PKCS#10, DER) for `id`: exactly one URI SAN and nothing else.
    pub fn request(&self, id: &SpiffeId) -> Result<Vec<u8>, SvidError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }

    /// The key with the chain that was issued for it.
    pub fn with_chain(&self, chain: Vec<CertificateDer<'static>>) -> Result<Svid, SvidError> {
        Svid::new(chain, Zeroizing::new(self.0.der().to_vec()))
    }
}

impl fmt::Debug for PendingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingKey")
    }
}

/// An X.509-SVID with its private key. Cheap to clone; `Debug` shows no key.
#[derive(Clone)]
pub struct Svid {
    certified: Arc<CertifiedKey>,
    pkcs8: Arc<Zeroizing<Vec<u8>>>,
    info: Arc<LeafInfo>,
}

impl Svid {
    /// Puts a chain (leaf first) and a PKCS#8 key together, and checks that they belong together.
    pub fn new(chain: Vec<CertificateDer<'static>>, pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, SvidError> {
        let info = LeafInfo::read(chain.first().ok_or(SvidError::Empty)?)?;
        let key = any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice())))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match()?;
        Ok(Self { certified: Arc::new(certified), pkcs8: Arc::new(pkcs8), info: Arc::new(info) })
    }

    /// What the leaf says.
    pub fn info(&self) -> &LeafInfo {
        &self.info
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The private key, PKCS#8. Only for state that is memory-backed and the sidecar's alone.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(crate) fn resolver(&self) -> Arc<Always> {
        Arc::new(Always(self.certified.clone()))
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Shows the one certificate, whoever asks.
#[derive(Debug)]
pub(crate) struct Always(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Always {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
