//! What peers show and what workloads ask to be signed.

use rustls_pki_types::CertificateDer;
use weft_control_plane::issue::csr::check;
use weft_core::SpiffeId;
use weft_core::service::ObjectRef;
use weft_tls::LeafInfo;

/// A leaf is read or refused; what is read of identity and pod are names, to the letter.
pub fn leaf(der: &[u8]) {
    if let Ok(info) = LeafInfo::read(&CertificateDer::from(der)) {
        reads_back(&info.id);
        if let Some(pod) = info.pod {
            assert_eq!(pod.to_string().parse::<ObjectRef>().as_ref(), Ok(&pod));
        }
    }
}

/// A request is believed or refused; so is the identity that it asks for.
pub fn csr(der: &[u8]) {
    if let Ok(request) = check(der) {
        reads_back(&request.id);
    }
}

/// What is compared, logged and signed must be one and the same.
fn reads_back(id: &SpiffeId) {
    let again: SpiffeId = id.to_string().parse().expect("an identity's own text is one");
    assert_eq!(again, *id);
}
