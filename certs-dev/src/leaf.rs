//! What a leaf should be like, and what should be wrong with it.

use std::fmt;
use std::str::FromStr;

use weft_core::wellknown::LEAF_LIFETIME_SECS;

/// The one table of kinds: the variant, what it means and its name.
macro_rules! leaf_kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What is right or wrong with a leaf.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum LeafKind {
            $($(#[$doc])* $kind,)*
        }

        impl LeafKind {
            /// Every kind, the good one first.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$kind),*];

            /// The name on the command line and in file names, in kebab case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

leaf_kinds! {
    /// Nothing is wrong: exactly one URI SAN, `digitalSignature`, `serverAuth` and `clientAuth`, `CA:FALSE`,
    /// backdated by five minutes, good for 24 hours.
    Valid = "valid",
    /// Its time ended an hour ago.
    Expired = "expired",
    /// Its time begins in an hour.
    NotYetValid = "not-yet-valid",
    /// The URI SAN names a trust domain that is not the authority's.
    WrongTrustDomain = "wrong-trust-domain",
    /// A DNS SAN instead of the URI.
    WrongSan = "wrong-san",
    /// Two URI SANs, the right one first.
    TwoUriSans = "two-uri-sans",
    /// No SAN and no subject: it names nobody.
    NoSan = "no-san",
    /// The identity stands in the subject's common name only, where nobody may look for it.
    CnOnly = "cn-only",
    /// The key usage lacks `digitalSignature`.
    WrongKeyUsage = "wrong-key-usage",
    /// The extended key usage is `codeSigning` only.
    WrongExtendedKeyUsage = "wrong-extended-key-usage",
    /// The basic constraints say `CA:TRUE`.
    CaLeaf = "ca-leaf",
    /// Signed with its own key; its chain is itself alone.
    SelfSigned = "self-signed",
    /// Signed by an authority with the same names and other keys, so that only the signature tells.
    ForeignRoot = "foreign-root",
}

impl fmt::Display for LeafKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LeafKind {
    type Err = UnknownKind;

    fn from_str(s: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == s).ok_or_else(|| UnknownKind(s.to_owned()))
    }
}

/// A name that is no [`LeafKind`]'s.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no leaf is of the kind {0:?}; the kinds are {kinds}", kinds = LeafKind::ALL.map(LeafKind::name).join(", "))]
pub struct UnknownKind(String);

/// An order for a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafSpec {
    /// What should be wrong with it, if anything.
    pub kind: LeafKind,
    /// The URI for the SAN, in practice a SPIFFE ID. It is not checked beyond what a certificate can hold
    /// (ASCII), so that a test can ask for a malformed one.
    pub id: String,
    /// `NS/POD` for the attested-pod extension; without it, the extension is left out.
    pub pod: Option<String>,
    /// How long it is good for from its making on, in seconds: 24 hours.
    pub lifetime_secs: i64,
}

impl LeafSpec {
    /// A leaf for `id` that names no pod.
    pub fn new(kind: LeafKind, id: impl Into<String>) -> Self {
        Self { kind, id: id.into(), pod: None, lifetime_secs: LEAF_LIFETIME_SECS }
    }

    /// The same, attested for `pod`, which reads `NS/POD`.
    #[must_use]
    pub fn with_pod(mut self, pod: impl Into<String>) -> Self {
        self.pod = Some(pod.into());
        self
    }

    /// The same, good for so many seconds.
    #[must_use]
    pub fn lasting(self, lifetime_secs: i64) -> Self {
        Self { lifetime_secs, ..self }
    }
}
