//! A server of a foreign trust domain that is called by its SPIFFE ID.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::KeyUsage;
use weft_core::egress::Peer;

use crate::bundle::TrustBundle;
use crate::leaf::LeafInfo;
use crate::verify::{VerifyError, signature_methods, verify_chain};

/// Decides about a server outside of the mesh that is a SPIFFE peer: the anchors of its one trust domain vouch for it, and it is one of those who are meant.
/// Its name is not looked at.
#[derive(Debug)]
pub struct PeerVerifier {
    provider: Arc<CryptoProvider>,
    bundle: Arc<TrustBundle>,
    peer: Peer,
}

impl PeerVerifier {
    /// Accepts `peer` and nobody else; who is denied by the bundle is refused all the same.
    pub fn new(provider: Arc<CryptoProvider>, bundle: Arc<TrustBundle>, peer: Peer) -> Self {
        Self { provider, bundle, peer }
    }

    fn verify(&self, leaf: &CertificateDer<'_>, between: &[CertificateDer<'_>], now: UnixTime) -> Result<(), VerifyError> {
        // First: the anchors that are asked follow from what the leaf says, and those of no other domain are to be asked.
        let claimed = LeafInfo::read(leaf)?.id;
        if claimed.trust_domain() != self.peer.domain() {
            return Err(VerifyError::OtherDomain { id: claimed, expected: self.peer.to_string() });
        }
        let info = verify_chain(&self.provider, &self.bundle, leaf, between, now, KeyUsage::server_auth())?;
        if !self.peer.has(&info.id) {
            return Err(VerifyError::OtherPeer { actual: info.id, expected: self.peer.to_string() });
        }
        Ok(())
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signature_methods!();
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject as _;
    use weft_certs::{Authority, LeafKind, LeafSpec};
    use weft_core::TrustDomain;

    use super::*;
    use crate::denied::Denied;

    const STOCK: &str = "spiffe://east.example/ns/shop/sa/stock";

    fn domain(name: &str) -> TrustDomain {
        name.parse().expect("a domain")
    }

    fn root(authority: &Authority) -> Vec<CertificateDer<'static>> {
        vec![authority.root_der()]
    }

    /// What becomes of a server that shows such a leaf, of whom `wanted` is expected; the mesh is `home.example`, and believes `east.example`.
    fn shown(
        east: &Authority,
        home: &Authority,
        leaf: &weft_certs::Leaf,
        wanted: &[&str],
        denied: Denied,
    ) -> Result<(), VerifyError> {
        let mut bundle = TrustBundle::new(domain("home.example"), root(home)).expect("a bundle");
        bundle.insert(domain("east.example"), root(east)).expect("anchors");
        let bundle = Arc::new(bundle.denying(Arc::new(denied)));
        let verifier = PeerVerifier::new(crate::provider(), bundle, Peer::read(wanted).expect("peers"));
        let chain: Vec<_> = CertificateDer::pem_slice_iter(leaf.chain_pem().as_bytes()).collect::<Result<_, _>>().expect("PEM");
        let (leaf, between) = chain.split_first().expect("a leaf");
        verifier.verify(leaf, between, UnixTime::now())
    }

    #[test]
    fn the_anchors_of_one_domain_vouch_for_those_who_are_meant() {
        let (east, home) = (Authority::new("east.example"), Authority::new("home.example"));
        let of = |authority: &Authority, id: &str| authority.leaf(&LeafSpec::new(LeafKind::Valid, id));
        let stock = of(&east, STOCK);
        let ask = |leaf: &weft_certs::Leaf, wanted: &[&str]| shown(&east, &home, leaf, wanted, Denied::default());
        assert_eq!(ask(&stock, &[STOCK]), Ok(()));
        assert_eq!(ask(&stock, &["spiffe://east.example/*"]), Ok(()));
        assert!(matches!(ask(&stock, &["spiffe://east.example/ns/shop/sa/other"]), Err(VerifyError::OtherPeer { .. })));
        assert!(matches!(ask(&stock, &["spiffe://west.example/*"]), Err(VerifyError::OtherDomain { .. })));
        // The mesh's own anchors vouch for nobody here, whoever is meant.
        let own = of(&home, "spiffe://home.example/ns/shop/sa/stock");
        assert!(matches!(ask(&own, &[STOCK]), Err(VerifyError::OtherDomain { .. })));
        let posing = home.leaf(&LeafSpec::new(LeafKind::Valid, STOCK));
        assert!(
            matches!(ask(&posing, &[STOCK]), Err(VerifyError::Chain { .. } | VerifyError::OtherDomain { .. })),
            "not its anchors"
        );
        for kind in [
            LeafKind::Expired,
            LeafKind::ForeignRoot,
            LeafKind::WrongExtendedKeyUsage,
            LeafKind::TwoUriSans,
            LeafKind::SelfSigned,
        ] {
            assert!(ask(&east.leaf(&LeafSpec::new(kind, STOCK)), &[STOCK]).is_err(), "{kind}");
        }
        let denied = Denied::new([STOCK.parse().expect("an identity")], []);
        assert!(matches!(shown(&east, &home, &stock, &[STOCK], denied), Err(VerifyError::Denied { .. })));
    }
}
