//! No session outlives what it was made with: a client resumes none, though the server offers it.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_tls::{ServerVerifier, TrustBundle, client_config, outside_config, provider};

/// A server that gives tickets.
fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .expect("the provider has suites")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they fit");
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("a ticketer");
    Arc::new(config)
}

/// One connection, up to after the tickets; what its handshake was.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, name: &'static str) -> HandshakeKind {
    let name = ServerName::try_from(name).expect("a name");
    let mut client = ClientConnection::new(client.clone(), name).expect("a client");
    let mut server = ServerConnection::new(server.clone()).expect("a server");
    for _ in 0..6 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory takes it");
        }
        if !bytes.is_empty() {
            server.read_tls(&mut &bytes[..]).expect("memory gives it");
            server.process_new_packets().expect("a good client");
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory takes it");
        }
        if !bytes.is_empty() {
            client.read_tls(&mut &bytes[..]).expect("memory gives it");
            client.process_new_packets().expect("a good server");
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    client.handshake_kind().expect("it is done")
}

/// Two connections of a client as it is, and then of the same if it kept sessions.
fn shaken(mut config: ClientConfig, server: &Arc<ServerConfig>, name: &'static str) -> [bool; 2] {
    let second = |config: ClientConfig| {
        let config = Arc::new(config);
        assert_ne!(shake(&config, server, name), HandshakeKind::Resumed, "there is nothing to resume");
        shake(&config, server, name) == HandshakeKind::Resumed
    };
    let as_it_is = second(config.clone());
    config.resumption = Resumption::in_memory_sessions(8);
    [as_it_is, second(config)]
}

#[test]
fn no_session_with_a_mesh_peer_is_resumed() {
    let authority = Authority::new("cluster.local");
    let id = "spiffe://cluster.local/ns/shop/sa/api";
    let leaf = authority.leaf(&LeafSpec::new(LeafKind::Valid, id));
    let server = server(leaf.chain_der, leaf.key_der, &rustls::version::TLS13);
    let bundle = TrustBundle::new("cluster.local".parse().expect("a domain"), vec![authority.root_der()]).expect("a bundle");
    let provider = provider();
    let verifier = Arc::new(ServerVerifier::new(provider.clone(), Arc::new(bundle), vec![id.parse().expect("an identity")]));
    let config = client_config(&provider, verifier, None, &[]);
    assert_eq!(shaken(config, &server, "api.shop"), [false, true], "as it is, and with sessions kept");
}

#[test]
fn no_session_with_a_server_outside_is_resumed() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let made = rcgen::generate_simple_self_signed(["outside.example".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let server = server(vec![made.cert.der().clone()], key, version);
        let config = outside_config(Some(&made.cert.pem()), &[]).expect("an anchor");
        assert_eq!(shaken(config, &server, "outside.example"), [false, true], "as it is, and with sessions kept: {version:?}");
    }
}
