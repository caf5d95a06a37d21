//! The kinds that are followed, and where the API server has them.

use crate::objects::Kind;

/// Where the API server has a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    /// The versions that can be read, the first choice first: the first that is served is read.
    pub versions: &'static [&'static str],
    /// The name of the resource.
    pub plural: &'static str,
    pub need: Need,
}

/// What it means that a server does not have a kind. One that it has and does not let be read is waited for, in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing is served without it.
    Always,
    /// A cluster may do without it; it is read as soon as it is there.
    WhereServed,
}

impl Resource {
    /// As rules and messages name it: `httproutes.gateway.networking.k8s.io`.
    pub fn name(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

const fn needed(group: &'static str, plural: &'static str) -> Resource {
    Resource { group, versions: &["v1"], plural, need: Need::Always }
}

const fn where_served(group: &'static str, versions: &'static [&'static str], plural: &'static str) -> Resource {
    Resource { group, versions, plural, need: Need::WhereServed }
}

const GATEWAY: &str = "gateway.networking.k8s.io";
const GATEWAY_EXPERIMENTS: &str = "gateway.networking.x-k8s.io";

/// Where a kind is.
pub const fn resource(kind: Kind) -> Resource {
    match kind {
        Kind::Namespace => needed("", "namespaces"),
        Kind::Service => needed("", "services"),
        Kind::Pod => needed("", "pods"),
        Kind::EndpointSlice => needed("discovery.k8s.io", "endpointslices"),
        Kind::HttpRoute => where_served(GATEWAY, &["v1", "v1beta1"], "httproutes"),
        Kind::GrpcRoute => where_served(GATEWAY, &["v1", "v1alpha2"], "grpcroutes"),
        Kind::TlsRoute => where_served(GATEWAY, &["v1", "v1alpha3", "v1alpha2"], "tlsroutes"),
        Kind::TcpRoute => where_served(GATEWAY, &["v1", "v1alpha2"], "tcproutes"),
        Kind::ReferenceGrant => where_served(GATEWAY, &["v1", "v1beta1"], "referencegrants"),
        Kind::BackendTrafficPolicy => where_served(GATEWAY_EXPERIMENTS, &["v1alpha1"], "xbackendtrafficpolicies"),
        Kind::TrafficPolicy => where_served("weft.dev", &["v1alpha1"], "trafficpolicies"),
        Kind::NetworkPolicy => needed("networking.k8s.io", "networkpolicies"),
        Kind::AuthorizationPolicy => where_served("weft.dev", &["v1alpha1"], "authorizationpolicies"),
        Kind::Federation => where_served("weft.dev", &["v1alpha1"], "federatedtrustdomains"),
        Kind::IdentityDenial => where_served("weft.dev", &["v1alpha1"], "identitydenials"),
        Kind::MtlsPolicy => where_served("weft.dev", &["v1alpha1"], "mtlspolicies"),
        Kind::JwtIssuer => where_served("weft.dev", &["v1alpha1"], "jwtissuers"),
        Kind::ExternalService => where_served("weft.dev", &["v1alpha1"], "externalservices"),
    }
}

/// The kinds that are followed.
pub const KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Service,
    Kind::Pod,
    Kind::EndpointSlice,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::ReferenceGrant,
    Kind::BackendTrafficPolicy,
    Kind::TrafficPolicy,
    Kind::AuthorizationPolicy,
    Kind::NetworkPolicy,
    Kind::Federation,
    Kind::IdentityDenial,
    Kind::MtlsPolicy,
    Kind::JwtIssuer,
    Kind::ExternalService,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_without_which_nothing_is_served_has_one_version() {
        for kind in KINDS {
            let it = resource(*kind);
            assert!(!it.versions.is_empty() && (it.need == Need::WhereServed || it.versions.len() == 1), "{it:?}");
        }
        assert_eq!(resource(Kind::Pod).name(), "pods");
        assert_eq!(resource(Kind::TlsRoute).name(), "tlsroutes.gateway.networking.k8s.io");
    }
}
