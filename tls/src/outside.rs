//! TLS to servers outside of the mesh: they are known by their names, and vouched for by public anchors or by those that somebody gives.

use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a server outside cannot be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutsideError {
    /// A text that holds no certificates.
    #[error("it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    Empty,
    /// One of the certificates cannot be an anchor.
    #[error("certificate {number} cannot be an anchor: {why}")]
    Anchor {
        /// Its place in the text, from 1.
        number: usize,
        /// What the parser says.
        why: String,
    },
    /// This machine trusts nobody.
    #[error("this machine has no trust anchors ({why}): install them, or give the external service caCertificates")]
    NoSystemAnchors {
        /// What was found.
        why: String,
    },
    /// What is to be shown to the server.
    #[error("the certificate and key that are to be shown cannot be used: {0}")]
    Own(String),
}

/// The anchors in a text.
pub fn anchors(pem: &str) -> Result<Vec<CertificateDer<'static>>, OutsideError> {
    let mut found = Vec::new();
    for (i, der) in CertificateDer::pem_slice_iter(pem.as_bytes()).enumerate() {
        let broken = |why: String| OutsideError::Anchor { number: i + 1, why };
        let der = der.map_err(|e| broken(e.to_string()))?;
        webpki::anchor_from_trusted_cert(&der).map_err(|e| broken(e.to_string()))?;
        found.push(der);
    }
    if found.is_empty() { Err(OutsideError::Empty) } else { Ok(found) }
}

/// The machine's own anchors, read once while the process lives.
fn system() -> Result<Arc<RootCertStore>, OutsideError> {
    static SYSTEM: OnceLock<Result<Arc<RootCertStore>, OutsideError>> = OnceLock::new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        // Some machines keep certificates there that no verifier takes.
        let (taken, _) = store.add_parsable_certificates(found.certs);
        if taken > 0 {
            return Ok(Arc::new(store));
        }
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        Err(OutsideError::NoSystemAnchors { why })
    };
    SYSTEM.get_or_init(read).clone()
}

/// A client's configuration for a server outside: TLS 1.3 or 1.2, checked against the anchors in `ca` (PEM), or the machine's own. No certificate is
/// shown.
pub fn outside_config(ca: Option<&str>, alpn: &[&[u8]]) -> Result<rustls::ClientConfig, OutsideError> {
    outside_config_as(ca, None, alpn)
}

/// The same for a server that asks who comes: `own` is a certificate chain and its key, both PEM.
pub fn outside_config_as(
    ca: Option<&str>,
    own: Option<(&str, &str)>,
    alpn: &[&[u8]],
) -> Result<rustls::ClientConfig, OutsideError> {
    let store = match ca {
        None => system()?,
        Some(pem) => {
            let mut store = RootCertStore::empty();
            for (i, der) in anchors(pem)?.into_iter().enumerate() {
                store.add(der).map_err(|e| OutsideError::Anchor { number: i + 1, why: e.to_string() })?;
            }
            Arc::new(store)
        }
    };
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has suites of both")
        .with_root_certificates(store);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
            let chain = chain.map_err(|e| OutsideError::Own(e.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| OutsideError::Own(e.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| OutsideError::Own(e.to_string()))?
        }
    };
    config.alpn_protocols = alpn.iter().map(|id| id.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}
