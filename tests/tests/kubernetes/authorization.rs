//! Who may call whom, by `AuthorizationPolicy` and the default of a namespace.

use serde_json::{Value, json};
use weft_tests::cluster::{self, must, soon, weft, when};

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
    tells_why(mesh, &client, echo);

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

/// An operator finds out why by the reference that the caller got, from a list, and before it happens.
fn tells_why(mesh: &Mesh<'_>, client: &str, url: &str) {
    let shop = mesh.shop.name();
    let context = cluster::context();
    let said = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%header{weft-ref}", url];
    let reference = mesh.shop.exec(client, &said).good();
    let why = weft(&["why", &context, "-o", "json", reference.trim()]).json();
    assert_eq!((&why["cause"], &why["method"]), (&"default".into(), &"GET".into()), "{why:#}");
    assert!(why["text"].as_str().is_some_and(|text| text.contains("no ALLOW policy applies") && text.contains(shop)), "{why:#}");
    let listed = weft(&["why", &context, "-n", shop, "--last", "1000", "-o", "json"]).json();
    let all = listed["denials"].as_array().expect("a list");
    assert!(all.iter().any(|one| one["ref"] == reference.trim()), "{listed:#}");

    let account = mesh.shop.pod(client)["spec"]["serviceAccountName"].as_str().expect("a pod has one").to_owned();
    let (from, to) = (format!("{shop}/{account}"), format!("{shop}/echo:80"));
    let told = weft(&["explain", &context, "--from", &from, "--to", &to, "-o", "json"]);
    let answers: Value = serde_json::from_str(&told.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", told.stdout, told.stderr));
    assert_eq!(answers["answers"][0]["verdict"], "denied", "{answers:#}");

    // Whether anybody would be refused is the story before this one; here, that all sidecars are heard.
    let ready = weft(&["check", "--strict-ready", shop, &context, "-o", "json"]);
    let ready: Value = serde_json::from_str(&ready.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", ready.stdout, ready.stderr));
    assert_eq!((&ready["namespace"], &ready["notHeard"]), (&shop.into(), &json!({})), "{ready:#}");
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
