//! Whether a connection may come in, and why not.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::authorization::Authorization;
use crate::identity::SpiffeId;
use crate::jwt::Issuer;
use crate::network_policy::Isolation;
use crate::protocol::{AppProtocol, MeshProtocol};
use crate::traffic::policy::RateLimit;

/// Whether plaintext from outside the mesh is let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MtlsMode {
    /// Only mesh peers that prove an identity.
    Strict,
    /// Mesh peers and plaintext.
    Permissive,
}

/// A word that is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mTLS mode {0:?} is not valid: it must be \"strict\" or \"permissive\"")]
pub struct InvalidMode(String);

impl FromStr for MtlsMode {
    type Err = InvalidMode;
    fn from_str(s: &str) -> Result<Self, InvalidMode> {
        match s {
            "strict" => Ok(Self::Strict),
            "permissive" => Ok(Self::Permissive),
            _ => Err(InvalidMode(s.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for MtlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
        })
    }
}

/// What a sidecar must know before it lets anything in.
#[derive(Clone, PartialEq, Debug)]
pub struct InboundPolicy {
    /// The mode where no port says otherwise.
    pub mode: MtlsMode,
    /// Modes of single ports.
    pub port_modes: Vec<(u16, MtlsMode)>,
    /// Declared protocols by port.
    pub protocols: Vec<(u16, AppProtocol)>,
    /// Features without which this policy cannot be enforced. One that this version lacks denies everything.
    pub required_features: Vec<String>,
    /// The zone that the pod runs in; empty if unknown.
    pub zone: Arc<str>,
    /// How many requests are taken; each must let a request in. Ports are the pod's own.
    pub rates: Vec<RateLimit>,
    /// Who may call what.
    pub authorization: Authorization,
    /// Whose tokens its clauses about tokens go by.
    pub issuers: Vec<Arc<Issuer>>,
    /// The network policies that isolate the pod for ingress; none where none does.
    pub network: Option<Arc<Isolation>>,
}

/// Needed by a policy that has rates.
pub const FEATURE_RATE_LIMIT: &str = "rate-limit/v1";
/// Needed by a policy whose [`Authorization`] is not the default.
pub const FEATURE_AUTHORIZATION: &str = "authorization/v1";
/// Needed by a policy with clauses about tokens.
pub const FEATURE_JWT: &str = "jwt/v1";
/// Needed by a policy that has network policies.
pub const FEATURE_NETWORK_POLICY: &str = "network-policy/v1";
/// Had by a sidecar that routes: it gets routes and traffic policies with the services that it subscribes to.
pub const FEATURE_ROUTES: &str = "routes/v1";

/// The feature of refusing identities and certificates that a trust bundle denies.
pub const FEATURE_DENY_LIST: &str = "deny-list/v1";
/// Had by a sidecar that asks an [`OutboundPolicy`] before it connects: it waits for one before it is ready.
pub const FEATURE_OUTBOUND: &str = "outbound/v1";

/// Had by a sidecar that tells of its traffic while it is asked to; it makes no decision stricter.
pub const FEATURE_TRAFFIC_REPORT: &str = "traffic-report/v1";

/// The features that this version has, told to the control plane when a sidecar subscribes.
pub const FEATURES: &[&str] = &[
    "mtls-mode/v1",
    FEATURE_RATE_LIMIT,
    FEATURE_AUTHORIZATION,
    FEATURE_ROUTES,
    FEATURE_OUTBOUND,
    FEATURE_NETWORK_POLICY,
    FEATURE_DENY_LIST,
    FEATURE_JWT,
    crate::egress::FEATURE_EGRESS,
    crate::egress::FEATURE_EGRESS_PEER,
    FEATURE_TRAFFIC_REPORT,
];

/// What the pod's own programs may call. The default lets them call everything.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OutboundPolicy {
    /// Features without which this policy cannot be enforced. One that this version lacks denies every call.
    pub required_features: Vec<String>,
    /// The network policies that isolate the pod for egress; none where none does.
    pub network: Option<Arc<Isolation>>,
    /// Where the pod may go outside of the mesh.
    pub egress: crate::egress::Egress,
}

/// Who is at the other end of an inbound connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A mesh peer that proved its identity, and the framing that it claims.
    Mesh(SpiffeId, MeshProtocol),
    /// Anything else.
    Plaintext,
}

/// Why a connection is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denial {
    /// Plaintext where the mode is strict.
    MtlsRequired {
        /// The port.
        port: u16,
        /// Whether the port's own mode says so, rather than the workload's.
        by_port: bool,
    },
    /// A mesh peer sends opaque bytes on a port that is declared as HTTP.
    ProtocolMismatch {
        /// The port.
        port: u16,
        /// What it is declared to speak.
        declared: AppProtocol,
    },
    /// The policy needs what this version does not have.
    FeatureMissing(String),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MtlsRequired { port, by_port: true } => write!(f, "port {port} is strict and the caller spoke plaintext"),
            Self::MtlsRequired { port, by_port: false } => {
                write!(f, "the workload is strict and the caller spoke plaintext to port {port}")
            }
            Self::ProtocolMismatch { port, declared } => {
                write!(f, "port {port} is declared as {declared:?} and the caller sent opaque bytes")
            }
            Self::FeatureMissing(feature) => {
                write!(f, "the policy needs {feature:?}, which this sidecar does not have: upgrade it")
            }
        }
    }
}

impl InboundPolicy {
    /// The mode of one port, and whether the port itself sets it.
    pub fn mode_of(&self, port: u16) -> (MtlsMode, bool) {
        match self.port_modes.iter().find(|(p, _)| *p == port) {
            Some((_, mode)) => (*mode, true),
            None => (self.mode, false),
        }
    }

    /// What a port is declared to speak.
    pub fn protocol_of(&self, port: u16) -> AppProtocol {
        self.protocols.iter().find(|(p, _)| *p == port).map_or(AppProtocol::Detect, |(_, proto)| *proto)
    }

    /// Decides whether `caller` may open a connection to `port`.
    pub fn decide(&self, port: u16, caller: &Caller) -> Result<(), Denial> {
        enforceable(&self.required_features)?;
        match caller {
            Caller::Plaintext => match self.mode_of(port) {
                (MtlsMode::Permissive, _) => Ok(()),
                (MtlsMode::Strict, by_port) => Err(Denial::MtlsRequired { port, by_port }),
            },
            Caller::Mesh(_, MeshProtocol::Tcp) if self.protocol_of(port).is_http() => {
                Err(Denial::ProtocolMismatch { port, declared: self.protocol_of(port) })
            }
            Caller::Mesh(..) => Ok(()),
        }
    }
}

impl OutboundPolicy {
    /// Whether this version can enforce the policy; if not, every call is denied.
    pub fn decide(&self) -> Result<(), Denial> {
        enforceable(&self.required_features)
    }
}

fn enforceable(required: &[String]) -> Result<(), Denial> {
    match required.iter().find(|f| !FEATURES.contains(&f.as_str())) {
        Some(missing) => Err(Denial::FeatureMissing(missing.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: MtlsMode) -> InboundPolicy {
        InboundPolicy {
            mode,
            port_modes: vec![],
            protocols: vec![],
            required_features: vec![],
            zone: "".into(),
            rates: vec![],
            authorization: Authorization::default(),
            issuers: vec![],
            network: None,
        }
    }

    fn peer(protocol: MeshProtocol) -> Caller {
        Caller::Mesh("spiffe://td/ns/a/sa/b".parse().expect("valid"), protocol)
    }

    #[test]
    fn strict_refuses_plaintext_and_a_port_overrides() {
        let mut p = policy(MtlsMode::Strict);
        p.port_modes.push((9000, MtlsMode::Permissive));
        assert_eq!(p.decide(80, &Caller::Plaintext), Err(Denial::MtlsRequired { port: 80, by_port: false }));
        assert_eq!(p.decide(9000, &Caller::Plaintext), Ok(()));
        assert_eq!(p.decide(80, &peer(MeshProtocol::Http1)), Ok(()));
        let mut p = policy(MtlsMode::Permissive);
        p.port_modes.push((80, MtlsMode::Strict));
        assert_eq!(p.decide(80, &Caller::Plaintext), Err(Denial::MtlsRequired { port: 80, by_port: true }));
    }

    #[test]
    fn opaque_bytes_are_refused_where_http_is_declared() {
        let mut p = policy(MtlsMode::Permissive);
        p.protocols.push((80, AppProtocol::Http));
        assert!(matches!(p.decide(80, &peer(MeshProtocol::Tcp)), Err(Denial::ProtocolMismatch { .. })));
        assert_eq!(p.decide(81, &peer(MeshProtocol::Tcp)), Ok(()));
        assert_eq!(p.decide(80, &peer(MeshProtocol::Http2)), Ok(()));
    }

    #[test]
    fn an_outbound_policy_that_needs_what_is_missing_denies() {
        assert_eq!(OutboundPolicy::default().decide(), Ok(()));
        let policy = OutboundPolicy {
            required_features: vec![FEATURE_OUTBOUND.into(), "time-travel/v9".into()],
            ..OutboundPolicy::default()
        };
        assert_eq!(policy.decide(), Err(Denial::FeatureMissing("time-travel/v9".into())));
    }

    #[test]
    fn a_feature_that_is_missing_denies_everything() {
        let mut p = policy(MtlsMode::Permissive);
        p.required_features.push("time-travel/v9".into());
        for caller in [Caller::Plaintext, peer(MeshProtocol::Http1)] {
            assert_eq!(p.decide(80, &caller), Err(Denial::FeatureMissing("time-travel/v9".into())));
        }
    }
}
