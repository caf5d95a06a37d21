//! Who weft's programs are to the API server, and what they may do there: as little as works.

use serde_json::{Value, json};

use super::crd;
use super::object::Part;
use super::settings::Settings;
use super::webhook;

const RBAC: &str = "rbac.authorization.k8s.io/v1";
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

const FOLLOW: &[&str] = &["list", "watch"];
const LOOK_UP_AND_FOLLOW: &[&str] = &["get", "list", "watch"];
const CREATE: &[&str] = &["create"];
const PATCH: &[&str] = &["patch"];

/// The group of Gateway API, and that of what it tries out.
const GATEWAY: &str = "gateway.networking.k8s.io";
const GATEWAY_EXPERIMENTS: &str = "gateway.networking.x-k8s.io";

/// The config map with the mesh's anchors, which the control plane writes into every meshed namespace.
pub(crate) const TRUST_BUNDLE: &str = "weft-trust-bundle";
/// The secret with the webhook's certificate, which the injector makes.
pub(crate) const WEBHOOK_SECRET: &str = "weft-injector-tls";
/// The config map in which replicas tell each other how many sidecars have which policy.
pub(crate) const UPTAKE: &str = "weft-uptake";
/// The lease that the one replica holds which writes what all share.
pub(crate) const LEASE: &str = "weft-control-plane";

/// The cluster role by which the CNI plugin's agents have pods made anew.
const CNI_REPAIR: &str = "weft-cni-repair";

/// What a program may do with some resources.
pub(crate) struct Rule<'a> {
    pub(crate) group: &'static str,
    pub(crate) resources: &'static [&'static str],
    /// Only those with these names, if there are any here. What is created by POST has none yet.
    pub(crate) names: Vec<&'a str>,
    pub(crate) verbs: &'static [&'static str],
}

fn rule(group: &'static str, resources: &'static [&'static str], verbs: &'static [&'static str]) -> Rule<'static> {
    Rule { group, resources, names: Vec::new(), verbs }
}

fn named<'a>(group: &'static str, resources: &'static [&'static str], name: &'a str, verbs: &'static [&'static str]) -> Rule<'a> {
    Rule { group, resources, names: vec![name], verbs }
}

/// What a program may do in the whole cluster.
pub(crate) fn everywhere(part: Part) -> Vec<Rule<'static>> {
    match part {
        Part::Mesh => Vec::new(),
        Part::ControlPlane => vec![
            rule("", &["namespaces", "services"], FOLLOW),
            rule("", &["pods"], LOOK_UP_AND_FOLLOW),
            rule("discovery.k8s.io", &["endpointslices"], FOLLOW),
            rule("networking.k8s.io", &["networkpolicies"], FOLLOW),
            rule("authentication.k8s.io", &["tokenreviews"], CREATE),
            // About pods that slipped by.
            rule("events.k8s.io", &["events"], CREATE),
            rule(GATEWAY, &["httproutes", "grpcroutes", "tlsroutes", "tcproutes", "referencegrants"], FOLLOW),
            rule(GATEWAY, &["httproutes/status", "grpcroutes/status", "tlsroutes/status", "tcproutes/status"], PATCH),
            rule(GATEWAY_EXPERIMENTS, &["xbackendtrafficpolicies"], FOLLOW),
            rule(GATEWAY_EXPERIMENTS, &["xbackendtrafficpolicies/status"], PATCH),
            rule(
                crd::GROUP,
                &["authorizationpolicies", "externalservices", "jwtissuers", "mtlspolicies", "trafficpolicies"],
                FOLLOW,
            ),
            rule(crd::GROUP, &["federatedtrustdomains", "identitydenials"], FOLLOW),
            rule(
                crd::GROUP,
                &[
                    "authorizationpolicies/status",
                    "externalservices/status",
                    "jwtissuers/status",
                    "mtlspolicies/status",
                    "trafficpolicies/status",
                ],
                PATCH,
            ),
            // Listed by its name, and created by server-side apply, where the name is known too.
            named("", &["configmaps"], TRUST_BUNDLE, &["create", "delete", "list", "patch"]),
        ],
        Part::Injector => vec![
            rule("", &["namespaces"], LOOK_UP_AND_FOLLOW),
            named("admissionregistration.k8s.io", &["mutatingwebhookconfigurations"], webhook::NAME, &["get", "patch"]),
        ],
        // A list of one node's pods is a list of all to the API server's authorization.
        Part::Cni => vec![rule("", &["pods"], LOOK_UP_AND_FOLLOW)],
    }
}

/// What a program may do in weft's own namespace.
pub(crate) fn at_home(part: Part, settings: &Settings) -> Vec<Rule<'_>> {
    match part {
        Part::Mesh => Vec::new(),
        Part::ControlPlane => vec![
            rule("coordination.k8s.io", &["leases"], CREATE),
            named("coordination.k8s.io", &["leases"], LEASE, &["get", "update"]),
            // Made by server-side apply.
            named("", &["configmaps"], UPTAKE, &["create", "get", "patch"]),
            rule("", &["secrets"], CREATE),
            // Changed when the root is rotated: the new one and its key stand there, too.
            named("", &["secrets"], &settings.ca_secret, &["get", "update"]),
        ],
        Part::Injector => {
            vec![rule("", &["secrets"], CREATE), named("", &["secrets"], WEBHOOK_SECRET, &["get", "update"])]
        }
        // By it the agent knows whether it is only replaced, or removed.
        Part::Cni => vec![named("apps", &["daemonsets"], part.name(), &["get"])],
    }
}

/// What the CNI plugin's agents may do besides, where they have pods made anew: to a node that is in the wrong hands, that is the
/// right to delete any pod of the cluster, so that it is a choice of its own.
fn repairs() -> Vec<Rule<'static>> {
    vec![rule("", &["pods"], &["delete"]), rule("events.k8s.io", &["events"], &["create", "patch"])]
}

/// Who these programs are, and all that they may do.
pub(super) fn objects(parts: &[Part], settings: &Settings) -> Vec<Value> {
    let of = |make: &dyn Fn(Part) -> Value| parts.iter().map(|part| make(*part)).collect::<Vec<_>>();
    let everywhere = |part: Part| cluster_role(part, part.name(), &everywhere(part));
    let at_home = |part: Part| {
        json!({
            "apiVersion": RBAC,
            "kind": "Role",
            "metadata": part.in_namespace(settings, part.name()),
            "rules": rules(&at_home(part, settings)),
        })
    };
    [
        of(&|part| service_account(part, settings)),
        of(&everywhere),
        of(&|part| binding("ClusterRole", part, &part.in_cluster(part.name()), settings)),
        of(&at_home),
        of(&|part| binding("Role", part, &part.in_namespace(settings, part.name()), settings)),
    ]
    .concat()
}

/// What lets the CNI plugin's agents have pods made anew.
pub(super) fn repair_objects(settings: &Settings) -> Vec<Value> {
    let metadata = Part::Cni.in_cluster(CNI_REPAIR);
    vec![cluster_role(Part::Cni, CNI_REPAIR, &repairs()), binding("ClusterRole", Part::Cni, &metadata, settings)]
}

fn service_account(part: Part, settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": part.in_namespace(settings, part.name()),
        // The pods that need the token ask for it.
        "automountServiceAccountToken": false,
    })
}

fn cluster_role(part: Part, name: &str, given: &[Rule<'_>]) -> Value {
    json!({ "apiVersion": RBAC, "kind": "ClusterRole", "metadata": part.in_cluster(name), "rules": rules(given) })
}

fn rules(rules: &[Rule<'_>]) -> Vec<Value> {
    rules
        .iter()
        .map(|rule| {
            let mut json = json!({ "apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs });
            if !rule.names.is_empty() {
                json["resourceNames"] = json!(rule.names);
            }
            json
        })
        .collect()
}

/// Gives a part's role, whose name is the binding's, to its service account.
fn binding(role: &str, part: Part, metadata: &Value, settings: &Settings) -> Value {
    json!({
        "apiVersion": RBAC,
        "kind": format!("{role}Binding"),
        "metadata": metadata,
        "roleRef": { "apiGroup": RBAC_GROUP, "kind": role, "name": metadata["name"] },
        "subjects": [{ "kind": "ServiceAccount", "name": part.name(), "namespace": settings.namespace }],
    })
}
