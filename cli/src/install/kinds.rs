//! The kinds of objects that an installation consists of.
#![cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "most of it is for a client"))]

use serde_json::Value;

/// A kind, as the API server serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    /// As paths and rules have it.
    pub(crate) plural: &'static str,
    pub(crate) namespaced: bool,
}

const fn cluster(api_version: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind { api_version, kind, plural, namespaced: false }
}

const fn namespaced(api_version: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind { api_version, kind, plural, namespaced: true }
}

pub(crate) const NAMESPACE: Kind = cluster("v1", "Namespace", "namespaces");
pub(crate) const CRD: Kind = cluster("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions");
pub(crate) const CONFIG_MAP: Kind = namespaced("v1", "ConfigMap", "configmaps");
pub(crate) const SECRET: Kind = namespaced("v1", "Secret", "secrets");
pub(crate) const LEASE: Kind = namespaced("coordination.k8s.io/v1", "Lease", "leases");
pub(crate) const DAEMON_SET: Kind = namespaced("apps/v1", "DaemonSet", "daemonsets");
pub(crate) const DEPLOYMENT: Kind = namespaced("apps/v1", "Deployment", "deployments");
pub(crate) const DISRUPTION_BUDGET: Kind = namespaced("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets");
/// As Kubernetes 1.20 and earlier have it.
pub(crate) const OLD_DISRUPTION_BUDGET: Kind = namespaced("policy/v1beta1", "PodDisruptionBudget", "poddisruptionbudgets");
pub(crate) const WEBHOOK: Kind =
    cluster("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations");

/// The kinds that weft itself defines; what is of one of them is its users'.
pub(crate) const DEFINED: [Kind; 7] = [
    namespaced("weft.dev/v1alpha1", "AuthorizationPolicy", "authorizationpolicies"),
    namespaced("weft.dev/v1alpha1", "ExternalService", "externalservices"),
    namespaced("weft.dev/v1alpha1", "JwtIssuer", "jwtissuers"),
    namespaced("weft.dev/v1alpha1", "MtlsPolicy", "mtlspolicies"),
    namespaced("weft.dev/v1alpha1", "TrafficPolicy", "trafficpolicies"),
    namespaced("weft.dev/v1alpha1", "FederatedTrustDomain", "federatedtrustdomains"),
    namespaced("weft.dev/v1alpha1", "IdentityDenial", "identitydenials"),
];

/// Every kind, in the order in which objects are applied: what others refer to comes first, and the webhook last.
pub(crate) const KINDS: [Kind; 18] = [
    NAMESPACE,
    namespaced("v1", "ResourceQuota", "resourcequotas"),
    CRD,
    namespaced("v1", "ServiceAccount", "serviceaccounts"),
    cluster("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles"),
    cluster("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings"),
    namespaced("rbac.authorization.k8s.io/v1", "Role", "roles"),
    namespaced("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    CONFIG_MAP,
    SECRET,
    LEASE,
    namespaced("v1", "Service", "services"),
    namespaced("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    OLD_DISRUPTION_BUDGET,
    DISRUPTION_BUDGET,
    DAEMON_SET,
    DEPLOYMENT,
    WEBHOOK,
];

impl Kind {
    /// The kind of a manifest.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        KINDS.into_iter().find(|kind| text("apiVersion") == Some(kind.api_version) && text("kind") == Some(kind.kind))
    }

    /// The group, which is empty for the core.
    pub(crate) fn group(self) -> &'static str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// The path of all of them, or of those in one namespace.
    pub(crate) fn path(self, namespace: Option<&str>) -> String {
        let root = if self.group().is_empty() { "api" } else { "apis" };
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("/{root}/{}/namespaces/{namespace}/{}", self.api_version, self.plural)
            }
            _ => format!("/{root}/{}/{}", self.api_version, self.plural),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        assert_eq!(SECRET.path(Some("shop")), "/api/v1/namespaces/shop/secrets");
        assert_eq!(SECRET.path(None), "/api/v1/secrets");
        assert_eq!(NAMESPACE.path(Some("shop")), "/api/v1/namespaces");
        assert_eq!(DEPLOYMENT.path(Some("shop")), "/apis/apps/v1/namespaces/shop/deployments");
        assert_eq!(WEBHOOK.path(None), "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations");
        assert_eq!(WEBHOOK.group(), "admissionregistration.k8s.io");
        assert_eq!(Kind::of(&json!({"apiVersion": "v1", "kind": "Secret"})), Some(SECRET));
        assert_eq!(Kind::of(&json!({"apiVersion": "v1", "kind": "Pod"})), None);
    }
}
