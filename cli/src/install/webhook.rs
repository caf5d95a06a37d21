//! Which pods the API server asks the injector about. The selectors are what keeps a cluster safe from a mesh that is
//! down: a pod that they do not match is created without anyone being asked.

use serde_json::{Value, json};
use weft_core::wellknown::LABEL_INJECT;

use super::object::Part;
use super::service::PORT_WEBHOOK;
use super::settings::Settings;

/// The object's name; the injector keeps its `caBundle` by it.
pub(crate) const NAME: &str = "weft-injector";
/// The label that the API server puts on every namespace.
const LABEL_NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Namespaces that a cluster cannot run without.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];
/// How long the API server waits for an answer.
const TIMEOUT_SECS: u8 = 5;

/// Two webhooks: for what is created in a labelled namespace, and for a pod that opts in elsewhere. A pod matches one
/// of them at most.
pub(super) fn configuration(settings: &Settings) -> Value {
    let never = json!({ "key": LABEL_NAMESPACE_NAME, "operator": "NotIn", "values": excluded(settings) });
    let inject = |operator: &str, values: &[&str]| json!({ "key": LABEL_INJECT, "operator": operator, "values": values });
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": Part::Injector.in_cluster(NAME),
        "webhooks": [
            webhook(
                settings,
                "namespace.inject.weft.dev",
                &json!([inject("In", &["enabled"]), never]),
                &json!([inject("NotIn", &["disabled"])]),
            ),
            webhook(
                settings,
                "pod.inject.weft.dev",
                // A namespace that says "disabled" means all of its pods.
                &json!([inject("NotIn", &["enabled", "disabled"]), never]),
                &json!([inject("In", &["enabled"])]),
            ),
        ],
    })
}

/// The namespaces where no pod is ever asked about.
pub(crate) fn excluded(settings: &Settings) -> Vec<&str> {
    SYSTEM_NAMESPACES.into_iter().chain([settings.namespace.as_str()]).collect()
}

/// No `caBundle`: it is the injector's, and to apply one would take it away from there.
fn webhook(settings: &Settings, name: &str, namespaces: &Value, pods: &Value) -> Value {
    json!({
        "name": name,
        "admissionReviewVersions": ["v1"],
        "clientConfig": {
            "service": {
                "name": Part::Injector.name(),
                "namespace": settings.namespace,
                "path": "/inject",
                "port": PORT_WEBHOOK,
            },
        },
        "rules": [{
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }],
        "namespaceSelector": { "matchExpressions": namespaces },
        "objectSelector": { "matchExpressions": pods },
        "failurePolicy": settings.failure_policy,
        "matchPolicy": "Equivalent",
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT_SECS,
    })
}
