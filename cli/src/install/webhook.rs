//! Which pods the API server asks the injector about. The selectors are what keeps a cluster safe from a mesh that is
//! down: a pod that they do not match is created without anyone being asked.

use serde_json::{Value, json};
use weft_core::wellknown::LABEL_INJECT;

use super::KubeVersion;
use super::object::Part;
use super::service::PORT_WEBHOOK;
use super::settings::Settings;

/// The object's name; the injector keeps its `caBundle` by it.
pub(crate) const NAME: &str = "weft-injector";
/// The file of the chart.
pub(super) const SECTION: &str = "webhook";
/// The label that the API server puts on every namespace.
const LABEL_NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Namespaces that a cluster cannot run without.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];
/// How long the API server waits for an answer.
const TIMEOUT_SECS: u8 = 5;

/// What of a pod's change concerns the injector: its containers, and what the CNI plugin is told. Labels, finalizers and the rest are
/// changed without anyone being asked, also while no injector answers.
const CHANGES_WHAT_IS_GUARDED: &str = "object.spec != oldObject.spec || \
     (has(object.metadata.annotations) && 'weft.dev/redirect' in object.metadata.annotations ? \
     object.metadata.annotations['weft.dev/redirect'] : '') != \
     (has(oldObject.metadata.annotations) && 'weft.dev/redirect' in oldObject.metadata.annotations ? \
     oldObject.metadata.annotations['weft.dev/redirect'] : '')";

/// Whose changes concern the injector: a pod that has its sidecar, and one that gets a container which could be taken for it. By its
/// containers and not by labels, since whoever may change a pod may change its labels first. The changes of other pods wait for no
/// injector.
const IS_IN_THE_MESH: &str = "oldObject.spec.containers.exists(c, c.name == 'weft-sidecar') || \
     (has(oldObject.spec.initContainers) && oldObject.spec.initContainers.exists(c, c.name == 'weft-sidecar')) || \
     (has(object.spec.ephemeralContainers) && object.spec.ephemeralContainers.exists(c, c.name == 'weft-sidecar'))";

/// Two webhooks for what is created: in a labelled namespace, and a pod that opts in elsewhere. A pod matches one of them at most. One
/// more for changes, where the API server can tell which of these concern the mesh.
pub(super) fn configuration(settings: &Settings, kube: KubeVersion) -> Value {
    let never = json!({ "key": LABEL_NAMESPACE_NAME, "operator": "NotIn", "values": excluded(settings) });
    let inject = |operator: &str, values: &[&str]| json!({ "key": LABEL_INJECT, "operator": operator, "values": values });
    let selected = [
        ("namespace", json!([inject("In", &["enabled"]), never]), json!([inject("NotIn", &["disabled"])])),
        // A namespace that says "disabled" means all of its pods.
        ("pod", json!([inject("NotIn", &["enabled", "disabled"]), never]), json!([inject("In", &["enabled"])])),
    ];
    let creations = selected.iter().map(|(whose, namespaces, pods)| {
        let mut hook = webhook(settings, &format!("{whose}.inject.weft.dev"), &rule("CREATE", &["pods"]), namespaces);
        hook["objectSelector"] = json!({ "matchExpressions": pods });
        hook
    });
    let updates = (kube >= KubeVersion::MATCH_CONDITIONS).then(|| {
        let rule = rule("UPDATE", &["pods", "pods/ephemeralcontainers"]);
        let mut hook = webhook(settings, "pod.update.weft.dev", &rule, &json!([never]));
        // The cheaper one first: one that does not hold is enough.
        hook["matchConditions"] = json!([
            { "name": "is-in-the-mesh", "expression": IS_IN_THE_MESH },
            { "name": "changes-what-is-guarded", "expression": CHANGES_WHAT_IS_GUARDED },
        ]);
        hook
    });
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": Part::Injector.in_cluster(NAME),
        "webhooks": creations.chain(updates).collect::<Vec<_>>(),
    })
}

/// The namespaces where no pod is ever asked about.
pub(crate) fn excluded(settings: &Settings) -> Vec<&str> {
    SYSTEM_NAMESPACES.into_iter().chain([settings.namespace.as_str()]).collect()
}

fn rule(operation: &str, resources: &[&str]) -> Value {
    json!({
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": [operation],
        "resources": resources,
        "scope": "Namespaced",
    })
}

/// No `caBundle`: it is the injector's, and to apply one would take it away from there.
fn webhook(settings: &Settings, name: &str, rule: &Value, namespaces: &Value) -> Value {
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
        "rules": [rule],
        "namespaceSelector": { "matchExpressions": namespaces },
        "failurePolicy": settings.failure_policy,
        "matchPolicy": "Equivalent",
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT_SECS,
    })
}
