//! SPIFFE IDs, as texts.

use weft_control_plane::objects::trust::deniable;
use weft_core::authorization::policy::Principal;
use weft_core::{SpiffeId, TrustDomain};

/// What is read is told again to the letter, so that comparing identities is comparing texts; and is a SPIFFE ID for a reader of the
/// standard too (SPIFFE-ID, section 2).
pub fn spiffe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
        assert!(is_domain(text), "{text}");
    }
    let read = text.parse::<SpiffeId>();
    if let Ok(id) = &read {
        assert_eq!(id.to_string(), text);
        assert!(text.len() <= 2048, "{} bytes", text.len());
        let (domain, path) = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).expect("domain and path");
        assert!(is_domain(domain), "{text}");
        for segment in path.split('/') {
            let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            assert!(!segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(is_good), "{text}");
        }
        let parts = SpiffeId::new(id.trust_domain().clone(), id.namespace().clone(), id.service_account().clone());
        assert_eq!(parts, *id);
    }
    assert_eq!(deniable(text).is_ok(), read.as_ref().is_ok_and(|id| !id.is_control_plane()), "who may be denied");
    // A policy's principal is an identity, or a pattern that no identity is spelt like.
    if let Ok(Principal::Exact(id)) = text.parse::<Principal>() {
        assert_eq!(read.as_ref(), Ok(&id));
    }
}

fn is_domain(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
}
