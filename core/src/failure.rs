//! What went wrong with a connection or request, whose fault it is, and what may be done about it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Which end failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The caller.
    Downstream,
    /// The endpoint.
    Upstream,
    /// The mesh: discovery, policy, limits.
    Mesh,
}

/// Whether the request may be sent again, elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Retryable {
    /// It was certainly not processed.
    Unprocessed,
    /// It may have been processed: only an idempotent one may be repeated.
    IfIdempotent,
    /// It must not be repeated.
    No,
}

macro_rules! reasons {
    ($($variant:ident $text:literal $status:literal $grpc:literal $explain:literal,)*) => {
        /// Why weft itself refused or failed: the `weft-error` value, a metric label, and the log's reason.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Reason { $(#[doc = $explain] $variant,)* }

        impl Reason {
            /// Every reason, for documentation and metric tables.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The stable word for it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $text,)* }
            }

            /// The HTTP status that the caller gets.
            pub const fn http_status(self) -> u16 {
                match self { $(Reason::$variant => $status,)* }
            }

            /// The gRPC status that a gRPC caller gets (gRPC, `statuscodes.md`).
            pub const fn grpc_status(self) -> u8 {
                match self { $(Reason::$variant => $grpc,)* }
            }

            /// One sentence for people.
            pub const fn explain(self) -> &'static str {
                match self { $(Reason::$variant => $explain,)* }
            }
        }
    };
}

reasons! {
    BadRequest "bad-request" 400 13 "The request is not valid HTTP, or is ambiguous about where it ends.",
    UriTooLong "uri-too-long" 414 3 "The request line is longer than the limit.",
    HeadersTooLarge "headers-too-large" 431 3 "The header section has more or longer fields than the limit.",
    RequestTimeout "request-timeout" 408 4 "The caller did not send a complete header section in time.",
    Denied "denied" 403 7 "A policy refuses this call.",
    NetworkPolicy "network-policy" 403 7 "A NetworkPolicy isolates the pod, and none allows this call.",
    MtlsRequired "mtls-required" 403 7 "The workload takes mutual TLS only and the caller spoke plaintext.",
    ProtocolMismatch "protocol-mismatch" 502 14 "The bytes are not what the port is declared to speak.",
    DiscoveryUnavailable "discovery-unavailable" 503 14 "The address lies in the mesh and the control plane did not answer for it in time.",
    NoEndpoints "no-endpoints" 503 14 "The service has no endpoint that is ready.",
    NoSuchPort "no-such-port" 502 14 "The service has no such port.",
    NoRoute "no-route" 404 12 "The service has routes, and the request matches none of them.",
    NoBackend "no-backend" 500 14 "The route leads to a backend that does not exist or may not be referred to.",
    UpstreamConnectRefused "upstream-connect-refused" 503 14 "The endpoint refused the connection.",
    UpstreamConnectTimeout "upstream-connect-timeout" 504 14 "The endpoint did not accept the connection in time.",
    UpstreamUnreachable "upstream-unreachable" 503 14 "There is no route to the endpoint.",
    UpstreamTls "upstream-tls" 502 14 "The TLS handshake with the endpoint failed.",
    UpstreamDenied "upstream-denied" 502 14 "The endpoint's identity or certificate is on the mesh's deny list.",
    UpstreamIdentity "upstream-identity" 502 14 "The endpoint proved another identity than discovery gave for it.",
    UpstreamUntrusted "upstream-untrusted" 502 14 "No `FederatedTrustDomain` brings the anchors of the trust domain that the endpoint is to be of.",
    UpstreamReset "upstream-reset" 502 14 "The endpoint ended the connection before its answer was complete.",
    UpstreamProtocol "upstream-protocol" 502 14 "The endpoint's answer is not valid HTTP, or is ambiguous about where it ends.",
    UpstreamTimeout "upstream-timeout" 504 4 "The endpoint did not answer in time.",
    Overloaded "overloaded" 503 14 "A limit was reached and the request was shed.",
    RateLimited "rate-limited" 429 8 "The caller has used up the rate that the service allows.",
    FaultInjected "fault-injected" 503 14 "The service's traffic policy asks for this fault.",
    EndpointsEjected "endpoints-ejected" 503 14 "Every endpoint of the service is ejected for now.",
    IdleTimeout "idle-timeout" 504 4 "Nothing was said on the connection for as long as its policy allows.",
    Draining "draining" 503 14 "The sidecar is shutting down.",
    NotReady "not-ready" 503 14 "The sidecar has no certificate or no policy yet.",
    NotRedirected "not-redirected" 403 7 "The connection was not redirected: the sidecar is nobody else's proxy.",
    ForbiddenDestination "forbidden-destination" 403 7 "The destination is not one that this sidecar may dial.",
    EgressDenied "egress-denied" 403 7 "The destination is outside of the mesh, and nothing allows it.",
    NameUnresolved "name-unresolved" 502 14 "The host's name leads to no address that may be dialled.",
    NameNotFound "name-not-found" 502 14 "The name servers say that the host's name does not exist.",
    NameWithoutAddress "name-without-address" 502 14 "The host's name exists, and has no address of a family that the pod has.",
    NameServerSilent "name-server-silent" 504 14 "No name server answered for the host's name in time.",
    NameServerFailed "name-server-failed" 502 14 "The name servers failed, or refused to answer for the host's name.",
    DownstreamGone "downstream-gone" 499 1 "The caller went away.",
    Internal "internal" 500 13 "A fault in weft itself.",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure: alone it decides status code, metric and log line.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which end failed.
    pub side: Side,
    /// Whether the request may be sent again.
    pub retryable: Retryable,
    /// Why.
    pub reason: Reason,
    /// What exactly, for the log; made on the cold side and never sent to the caller.
    pub detail: Option<Box<str>>,
    /// How the caller is answered, where the reason alone does not say it.
    pub answer: Option<Box<Answer>>,
}

/// How a caller is answered, beyond what a [`Reason`] says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// An HTTP status other than the reason's.
    pub http: Option<u16>,
    /// A gRPC status other than the reason's.
    pub grpc: Option<u8>,
    /// When it makes sense to ask again (RFC 9110, section 10.2.3).
    pub retry_after: Option<Duration>,
    /// What an operator finds the whole decision by; it says nothing to anybody else.
    pub reference: Option<u64>,
    /// The policy that denied it, and its rule, as NAMESPACE/NAME#RULE: for whoever runs the pod, and never sent.
    pub policy: Option<Arc<str>>,
    /// The value of `WWW-Authenticate`, for who may come back with another token (RFC 6750, section 3).
    pub challenge: Option<&'static str>,
}

impl Failure {
    /// A failure of the mesh's own making, not to be repeated.
    pub fn mesh(reason: Reason) -> Self {
        Self { side: Side::Mesh, retryable: Retryable::No, reason, detail: None, answer: None }
    }

    /// A failure of the caller.
    pub fn downstream(reason: Reason) -> Self {
        Self { side: Side::Downstream, retryable: Retryable::No, reason, detail: None, answer: None }
    }

    /// A failure of the endpoint.
    pub fn upstream(reason: Reason, retryable: Retryable) -> Self {
        Self { side: Side::Upstream, retryable, reason, detail: None, answer: None }
    }

    /// Adds what exactly happened.
    #[must_use]
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string().into());
        self
    }

    /// Says how the caller is answered.
    #[must_use]
    pub fn answered(mut self, answer: Answer) -> Self {
        self.answer = Some(Box::new(answer));
        self
    }

    /// The HTTP status that the caller gets.
    pub fn http_status(&self) -> u16 {
        self.answer.as_ref().and_then(|a| a.http).unwrap_or_else(|| self.reason.http_status())
    }

    /// The gRPC status that a gRPC caller gets.
    pub fn grpc_status(&self) -> u8 {
        self.answer.as_ref().and_then(|a| a.grpc).unwrap_or_else(|| self.reason.grpc_status())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.as_str())?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => write!(f, ": {}", self.reason.explain()),
        }
    }
}

impl std::error::Error for Failure {}

/// An error with its causes, on one line: each once, for many a text tells its cause already.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word_and_an_error_status() {
        let mut seen = std::collections::HashSet::new();
        for r in Reason::ALL {
            assert!(seen.insert(r.as_str()), "{r} stands twice");
            assert!((400..600).contains(&r.http_status()));
            assert!((1..=16).contains(&r.grpc_status()));
        }
    }
}
