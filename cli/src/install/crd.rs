//! The kinds that weft itself defines, as CustomResourceDefinitions. Their schemas say what `control-plane/src/objects` reads; a test
//! holds the two together.

use serde_json::{Value, json};

use super::KubeVersion;
use super::object::Part;

mod authorization;
mod external;
mod jwt;
mod mtls;
mod schema;
mod traffic;
mod trust;

/// The group of weft's kinds.
pub(crate) const GROUP: &str = "weft.dev";
/// The section that they are rendered in.
pub(super) const SECTION: &str = "crds";

/// All of them. A server that does not evaluate rules in CEL gets them without: it would refuse what it does not know, and the
/// control plane checks the same and tells in the status.
pub(super) fn definitions(kube: KubeVersion) -> Vec<Value> {
    let mut all = vec![
        authorization::definition(),
        external::definition(),
        jwt::definition(),
        mtls::definition(),
        traffic::definition(),
        trust::federation(),
        trust::denial(),
    ];
    if kube < KubeVersion::CRD_RULES {
        for definition in &mut all {
            schema::without_rules(&mut definition["spec"]);
        }
    }
    all
}

/// What a kind is called, and how `kubectl get` shows it.
struct Names {
    kind: &'static str,
    singular: &'static str,
    plural: &'static str,
    short: &'static str,
}

/// A column of `kubectl get`.
fn column(name: &str, kind: &str, path: &str, text: &str) -> Value {
    json!({ "name": name, "type": kind, "jsonPath": path, "description": text })
}

/// Whether it is in force, as its status has it.
fn accepted() -> Value {
    column("Accepted", "string", ".status.ancestors[*].conditions[?(@.type==\"Accepted\")].status", "Whether it is in force")
}

/// A kind with namespaces in its first version.
fn namespaced(names: &Names, columns: &[Value], schema: &Value) -> Value {
    let Names { kind, singular, plural, short } = names;
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": Part::Mesh.in_cluster(&format!("{plural}.{GROUP}")),
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": singular,
                "shortNames": [short],
                "categories": ["weft"],
            },
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": schema },
            }],
        },
    })
}

#[cfg(test)]
mod tests;
