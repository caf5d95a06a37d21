//! The mesh's TLS: one posture, one verifier, for every connection between sidecars and to the control plane.
//!
//! TLS 1.3 only, both sides authenticated by SPIFFE ID, hybrid post-quantum key exchange first, no early data and no
//! resumption. Nothing here opens a socket or waits.
#![warn(missing_docs)]

mod bundle;
mod denied;
pub mod jwt;
mod key;
mod leaf;
mod memory;
mod outside;
mod peer;
mod svid;
pub mod tokens;
mod verify;

pub use bundle::{BundleError, TrustBundle, anchor_hash};
pub use denied::{Denied, InvalidSerial, serial};
pub use key::{Key, key_der};
pub use leaf::{LeafError, LeafInfo};
pub use memory::keep_private;
pub use outside::{OutsideError, anchors, outside_config, outside_config_as};
pub use peer::PeerVerifier;
pub use svid::{PendingKey, Svid, SvidError};
pub use verify::{ClientVerifier, PinnedAnchor, ServerVerifier, VerifyError, verify_error};

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The provider that everything uses: aws-lc-rs, cut down to what the mesh speaks.
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::{cipher_suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
}

/// A client's configuration: `svid` is shown if the server asks, `verifier` decides about the server.
pub fn client_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    svid: Option<&Svid>,
    alpn: &[&[u8]],
) -> rustls::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(svid.resolver()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|id| id.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    config
}

/// A server's configuration: shows `svid`, and `verifier` decides about the client.
pub fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    svid: &Svid,
    alpn: &[&[u8]],
) -> rustls::ServerConfig {
    let mut config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(svid.resolver());
    config.alpn_protocols = alpn.iter().map(|id| id.to_vec()).collect();
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}
