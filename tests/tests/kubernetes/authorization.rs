//! Who may call whom, by `AuthorizationPolicy` and the default of a namespace.

use serde_json::{Value, json};
use weft_tests::cluster::{must, soon, when};

use crate::Mesh;
use crate::routes::{condition, put, read, refused};
use crate::strict;
use crate::traffic::answers;

const KIND: &str = "authorizationpolicies.weft.dev";

pub(crate) fn decides_who_may_call(mesh: &Mesh<'_>) {
    let (shop, client) = (mesh.shop.name(), mesh.client());
    let echo = "http://echo/name";
    answers(&mesh.shop, &client, echo, "200");
    must(&["annotate", "namespace", shop, "weft.dev/default-policy=deny"]);
    answers(&mesh.shop, &client, echo, "403 denied");

    policy(mesh, "shop", &json!({ "action": "Allow", "rules": [{ "from": [{ "namespaces": [shop] }] }] }));
    accepted(mesh, "shop");
    answers(&mesh.shop, &client, echo, "200");
    // The kubelet is nobody's service account, and asks by way of the sidecar.
    strict::an_http_probe_tells_of_the_app(mesh);

    let no_name = json!({ "rules": [{ "to": [{ "paths": ["/name"] }] }], "action": "Deny", "targetRef": { "kind": "Service", "name": "echo" } });
    policy(mesh, "no-name", &no_name);
    accepted(mesh, "no-name");
    answers(&mesh.shop, &client, echo, "403 denied");
    answers(&mesh.shop, &client, "http://echo/seen", "200");
    must(&["-n", shop, "delete", "apol", "no-name"]);
    answers(&mesh.shop, &client, echo, "200");

    // What cannot be honoured says so, and lets nobody in where it may have been meant to.
    policy(mesh, "all", &json!({ "action": "Audit", "targetRef": { "kind": "Mesh" }, "rules": [{}] }));
    refused(mesh, KIND, "all", "Invalid");
    answers(&mesh.shop, &client, echo, "200");
    policy(mesh, "all", &json!({ "action": "Deny", "targetRef": { "kind": "Mesh" } }));
    answers(&mesh.shop, &client, echo, "403 denied");
    must(&["-n", shop, "delete", "apol", "all", "shop"]);
    must(&["annotate", "namespace", shop, "weft.dev/default-policy-"]);
    answers(&mesh.shop, &client, echo, "200");
}

fn policy(mesh: &Mesh<'_>, name: &str, spec: &Value) {
    let object =
        json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": name }, "spec": spec });
    put(mesh, &object);
}

/// Waits until a policy is said to be in force.
#[track_caller]
fn accepted(mesh: &Mesh<'_>, name: &str) {
    soon(&format!("{name} is accepted"), || {
        let now = read(mesh, KIND, name);
        let accepted = condition(&now["status"]["ancestors"][0], "Accepted");
        when(accepted["status"] == "True" && accepted["observedGeneration"] == now["metadata"]["generation"], || {
            now["status"].to_string()
        })
    });
}
