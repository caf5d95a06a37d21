//! What of a certification request is believed: its public key, once the signature proves that the requester holds it.

use rcgen::{CertificateSigningRequestParams, PublicKey, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use weft_core::SpiffeId;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    #[error("the request has {0} bytes; at most {MAX} are read")]
    TooLong(usize),
    #[error("the request is not usable: {0}: send PKCS#10 (DER) with one URI name, signed with its own key")]
    Unusable(#[from] rcgen::Error),
    #[error("the key is {0}: use ECDSA P-256 or P-384, or Ed25519")]
    Key(String),
    #[error("the request asks for {0} names: exactly one is allowed, the URI of the identity")]
    Names(usize),
    #[error("the request asks for a name that is not a URI")]
    NotUri,
    #[error("the request asks for a name that is no identity: {0}")]
    Identity(#[from] weft_core::identity::InvalidName),
    #[error("the request asks to be a CA")]
    Ca,
}

const MAX: usize = 8 * 1024;

/// A request whose signature is good and whose shape is right. Who asks is decided by the attestation.
pub struct Request {
    pub id: SpiffeId,
    pub public_key: PublicKey,
}

pub fn check(der: &[u8]) -> Result<Request, CsrError> {
    if der.len() > MAX {
        return Err(CsrError::TooLong(der.len()));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))?;
    let algorithm = request.public_key.algorithm();
    if ![&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519].contains(&algorithm) {
        return Err(CsrError::Key(format!("{algorithm:?}")));
    }
    if !matches!(request.params.is_ca, rcgen::IsCa::NoCa | rcgen::IsCa::ExplicitNoCa) {
        return Err(CsrError::Ca);
    }
    match &request.params.subject_alt_names[..] {
        [SanType::URI(uri)] => Ok(Request { id: uri.as_str().parse()?, public_key: request.public_key }),
        [_] => Err(CsrError::NotUri),
        names => Err(CsrError::Names(names.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn request(names: Vec<SanType>, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        change(&mut params);
        params.serialize_request(key).expect("encodes").der().to_vec()
    }

    #[test]
    fn hostile_requests_by_table() {
        let key = KeyPair::generate().expect("a key");
        let uri = |u: &str| SanType::URI(u.try_into().expect("ascii"));
        let good = request(vec![uri(ID)], &key, |_| {});
        assert_eq!(check(&good).expect("good").id.to_string(), ID);

        let mut forged = good.clone();
        *forged.last_mut().expect("not empty") ^= 1;
        let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
        for (name, der) in [
            ("bad signature", forged),
            ("two names", request(vec![uri(ID), uri("spiffe://cluster.local/ns/shop/sa/db")], &key, |_| {})),
            ("an extra DNS name", request(vec![uri(ID), SanType::DnsName("web".try_into().expect("ascii"))], &key, |_| {})),
            ("no name", request(vec![], &key, |_| {})),
            ("only a DNS name", request(vec![SanType::DnsName("web".try_into().expect("ascii"))], &key, |_| {})),
            ("another URI", request(vec![uri("https://example.org/")], &key, |_| {})),
            ("an RSA key", request(vec![uri(ID)], &rsa, |_| {})),
            ("garbage", b"garbage".to_vec()),
            ("nothing", vec![]),
            ("truncated", good[..good.len() / 2].to_vec()),
            ("too long", vec![0; MAX + 1]),
        ] {
            assert!(check(&der).is_err(), "{name} was accepted");
        }
    }
}
