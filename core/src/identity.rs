//! Who a workload is: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is not the name that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {why}")]
pub struct InvalidName {
    what: &'static str,
    text: String,
    why: &'static str,
}

fn invalid(what: &'static str, text: &str, why: &'static str) -> InvalidName {
    // A hostile name is quoted, but not at any length.
    InvalidName { what, text: text.chars().take(80).collect(), why }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                $check(s)?;
                Ok(Self(s.into()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A Kubernetes namespace: an RFC 1123 label, 1 to 63 characters.
    Namespace,
    |s: &str| check_labels("namespace", s, 63, false)
);
name_type!(
    /// A Kubernetes service account: an RFC 1123 subdomain, 1 to 253 characters, dots allowed.
    ServiceAccount,
    |s: &str| check_labels("service account", s, 253, true)
);
name_type!(
    /// The name of a Kubernetes object (service, pod): an RFC 1123 subdomain, 1 to 253 characters.
    Name,
    |s: &str| check_labels("name", s, 253, true)
);
name_type!(
    /// A SPIFFE trust domain: lower-case letters, digits, `.`, `-` and `_`, 1 to 255 characters
    /// (SPIFFE-ID, section 2.1). An internationalised name is refused, as it is there.
    TrustDomain,
    check_trust_domain
);

fn check_labels(what: &'static str, s: &str, max: usize, dots: bool) -> Result<(), InvalidName> {
    if s.is_empty() {
        return Err(invalid(what, s, "it is empty"));
    }
    if s.len() > max {
        return Err(invalid(what, s, "it is too long"));
    }
    if !dots && s.contains('.') {
        return Err(invalid(what, s, "it must not contain a dot"));
    }
    for label in s.split('.') {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !edge(label.chars().next()) || !edge(label.chars().last()) {
            return Err(invalid(what, s, "each part must begin and end with a lower-case letter or a digit"));
        }
        if !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(invalid(what, s, "only lower-case letters, digits and '-' are allowed"));
        }
    }
    Ok(())
}

fn check_trust_domain(s: &str) -> Result<(), InvalidName> {
    let what = "trust domain";
    if s.is_empty() || s.len() > 255 {
        return Err(invalid(what, s, "it must have 1 to 255 characters"));
    }
    if !s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')) {
        return Err(invalid(what, s, "only lower-case letters, digits, '.', '-' and '_' are allowed"));
    }
    Ok(())
}

/// The identity of a workload. Cheap to clone; comparison is exact, as SPIFFE asks.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Namespace,
    service_account: ServiceAccount,
}

impl SpiffeId {
    /// Puts an identity together from its parts.
    pub fn new(trust_domain: TrustDomain, namespace: Namespace, service_account: ServiceAccount) -> Self {
        Self { trust_domain, namespace, service_account }
    }

    /// The one identity that is the control plane's own in `trust_domain`.
    pub fn control_plane(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            namespace: Namespace(crate::wellknown::CONTROL_PLANE_NAMESPACE.into()),
            service_account: ServiceAccount(crate::wellknown::CONTROL_PLANE_SERVICE_ACCOUNT.into()),
        }
    }

    /// Whether this is the control plane's identity, which attestation never issues.
    pub fn is_control_plane(&self) -> bool {
        self.namespace.as_str() == crate::wellknown::CONTROL_PLANE_NAMESPACE
            && self.service_account.as_str() == crate::wellknown::CONTROL_PLANE_SERVICE_ACCOUNT
    }

    /// The trust domain, whose anchors alone can vouch for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &ServiceAccount {
        &self.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidName;

    /// Parses the one form that weft issues; any other SPIFFE ID, a query, a fragment, a port or a
    /// percent-encoding is refused.
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let what = "SPIFFE ID";
        let shape = "it must read spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT";
        let rest = s.strip_prefix("spiffe://").ok_or_else(|| invalid(what, s, shape))?;
        let mut parts = rest.split('/');
        let (td, ns_tag, ns, sa_tag, sa) = (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        match (td, ns_tag, ns, sa_tag, sa, parts.next()) {
            (Some(td), Some("ns"), Some(ns), Some("sa"), Some(sa), None) => {
                Ok(Self { trust_domain: td.parse()?, namespace: ns.parse()?, service_account: sa.parse()? })
            }
            _ => Err(invalid(what, s, shape)),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_one_form_is_an_identity() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web.front".parse().expect("the plain form");
        assert_eq!(id.namespace().as_str(), "shop");
        assert_eq!(id.service_account().as_str(), "web.front");
        for bad in [
            "",
            "spiffe://",
            "SPIFFE://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "spiffe://td/sa/a/ns/b",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe://u@td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td/ns/a%2fb/sa/c",
            "spiffe://td/ns/../sa/b",
            "spiffe://bücher/ns/a/sa/b",
            "spiffe://td/ns/a.b/sa/c",
            "spiffe://td/ns/-a/sa/b",
            "https://td/ns/a/sa/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad} was accepted");
        }
    }

    proptest! {
        #[test]
        fn an_identity_survives_the_round_trip(td in "[a-z0-9._-]{1,40}", ns in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", sa in "[a-z0-9]{1,9}(\\.[a-z0-9]{1,9}){0,3}") {
            let text = format!("spiffe://{td}/ns/{ns}/sa/{sa}");
            let id: SpiffeId = text.parse().expect("built by the rules");
            prop_assert_eq!(id.to_string(), text);
        }

        #[test]
        fn any_text_is_refused_or_reproduced(s in "\\PC{0,80}") {
            if let Ok(id) = s.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), s);
            }
        }
    }
}
