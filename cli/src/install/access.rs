//! Who weft's programs are to the API server, and what they may do there: as little as works.

use serde_json::{Value, json};

use super::object::Part;
use super::settings::Settings;
use super::webhook;

const RBAC: &str = "rbac.authorization.k8s.io/v1";
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

const FOLLOW: &[&str] = &["list", "watch"];
const LOOK_UP_AND_FOLLOW: &[&str] = &["get", "list", "watch"];
const CREATE: &[&str] = &["create"];

/// The config map with the mesh's anchors, which the control plane writes into every meshed namespace.
pub(crate) const TRUST_BUNDLE: &str = "weft-trust-bundle";
/// The secret with the webhook's certificate, which the injector makes.
pub(crate) const WEBHOOK_SECRET: &str = "weft-injector-tls";
/// The lease that the one replica holds which writes what all share.
pub(crate) const LEASE: &str = "weft-control-plane";

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
            rule("authentication.k8s.io", &["tokenreviews"], CREATE),
            // Listed by its name, and created by server-side apply, where the name is known too.
            named("", &["configmaps"], TRUST_BUNDLE, &["create", "delete", "list", "patch"]),
        ],
        Part::Injector => vec![
            rule("", &["namespaces"], LOOK_UP_AND_FOLLOW),
            named("admissionregistration.k8s.io", &["mutatingwebhookconfigurations"], webhook::NAME, &["get", "patch"]),
        ],
    }
}

/// What a program may do in weft's own namespace.
pub(crate) fn at_home(part: Part, settings: &Settings) -> Vec<Rule<'_>> {
    match part {
        Part::Mesh => Vec::new(),
        Part::ControlPlane => vec![
            rule("coordination.k8s.io", &["leases"], CREATE),
            named("coordination.k8s.io", &["leases"], LEASE, &["get", "update"]),
            rule("", &["secrets"], CREATE),
            named("", &["secrets"], &settings.ca_secret, &["get"]),
        ],
        Part::Injector => {
            vec![rule("", &["secrets"], CREATE), named("", &["secrets"], WEBHOOK_SECRET, &["get", "update"])]
        }
    }
}

pub(super) fn service_accounts(settings: &Settings) -> Vec<Value> {
    let account = |part: Part| {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": part.in_namespace(settings, part.name()),
            // The pods that need the token ask for it.
            "automountServiceAccountToken": false,
        })
    };
    Part::PROGRAMS.map(account).to_vec()
}

pub(super) fn cluster_roles() -> Vec<Value> {
    let role = |part: Part| {
        json!({
            "apiVersion": RBAC,
            "kind": "ClusterRole",
            "metadata": part.in_cluster(part.name()),
            "rules": rules(&everywhere(part)),
        })
    };
    Part::PROGRAMS.map(role).to_vec()
}

pub(super) fn roles(settings: &Settings) -> Vec<Value> {
    let role = |part: Part| {
        json!({
            "apiVersion": RBAC,
            "kind": "Role",
            "metadata": part.in_namespace(settings, part.name()),
            "rules": rules(&at_home(part, settings)),
        })
    };
    Part::PROGRAMS.map(role).to_vec()
}

pub(super) fn cluster_role_bindings(settings: &Settings) -> Vec<Value> {
    Part::PROGRAMS.map(|part| binding("ClusterRole", part, &part.in_cluster(part.name()), settings)).to_vec()
}

pub(super) fn role_bindings(settings: &Settings) -> Vec<Value> {
    Part::PROGRAMS.map(|part| binding("Role", part, &part.in_namespace(settings, part.name()), settings)).to_vec()
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

/// Gives a part's role to its service account.
fn binding(role: &str, part: Part, metadata: &Value, settings: &Settings) -> Value {
    json!({
        "apiVersion": RBAC,
        "kind": format!("{role}Binding"),
        "metadata": metadata,
        "roleRef": { "apiGroup": RBAC_GROUP, "kind": role, "name": part.name() },
        "subjects": [{ "kind": "ServiceAccount", "name": part.name(), "namespace": settings.namespace }],
    })
}
