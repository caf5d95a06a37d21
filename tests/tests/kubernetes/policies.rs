//! The other kinds of policies, each once on a real cluster: what they mean in all their parts is tested without one.

use serde_json::{Value, json};
use weft_tests::cluster::must;

use crate::Mesh;
use crate::routes::put;
use crate::traffic::answers;

pub(crate) fn hold(mesh: &Mesh<'_>) {
    network_policies(mesh);
    modes(mesh);
    egress(mesh);
}

fn network_policies(mesh: &Mesh<'_>) {
    let (shop, client, echo) = (mesh.shop.name(), mesh.client(), "http://echo/name");
    let from = |app: &str| {
        put(
            mesh,
            &json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": { "name": "echo" },
                "spec": {
                    "podSelector": { "matchLabels": { "app": "echo" } },
                    "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": app } } }] }],
                },
            }),
        );
    };
    from("web");
    answers(&mesh.shop, &client, echo, "403 network-policy");
    from("client");
    answers(&mesh.shop, &client, echo, "200");
    must(&["-n", shop, "delete", "networkpolicy", "echo"]);
}

/// The namespace is strict by its annotation, before and afterwards.
fn modes(mesh: &Mesh<'_>) {
    let (shop, stranger) = (mesh.shop.name(), mesh.stranger());
    let echo = format!("http://echo.{shop}/name");
    must(&["annotate", "namespace", shop, "weft.dev/mtls-"]);
    answers(&mesh.plain, &stranger, &echo, "200");
    weft(mesh, "MtlsPolicy", &json!({ "mode": "strict" }));
    answers(&mesh.plain, &stranger, &echo, "403 mtls-required");
    must(&["-n", shop, "delete", "mpol", "it"]);
    answers(&mesh.plain, &stranger, &echo, "200");
    must(&["annotate", "namespace", shop, "weft.dev/mtls=strict"]);
    answers(&mesh.plain, &stranger, &echo, "403 mtls-required");
}

/// Addresses for documentation (RFC 5737): nobody is there, so that what is let out comes nowhere.
fn egress(mesh: &Mesh<'_>) {
    let (shop, client) = (mesh.shop.name(), mesh.client());
    let outside = "http://192.0.2.1/";
    must(&["annotate", "namespace", shop, "weft.dev/egress=deny"]);
    answers(&mesh.shop, &client, outside, "403 egress-denied");
    // The pod's own resolver and the API server are no concern of that: names are found, and sidecars renew.
    answers(&mesh.shop, &client, "http://echo/name", "200");
    must(&["annotate", "namespace", shop, "weft.dev/egress-"]);
}

fn weft(mesh: &Mesh<'_>, kind: &str, spec: &Value) {
    put(mesh, &json!({ "apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": { "name": "it" }, "spec": spec }));
}
