//! What somebody spoils or deletes by hand of what weft made, weft makes good.

use serde_json::{Value, json};
use weft_tests::cluster::{HOME, kubectl, must, soon, when};

use crate::Mesh;
use crate::install::would_be;

const WEBHOOKS: &str = "mutatingwebhookconfigurations/weft-injector";

pub(crate) fn makes_good_what_is_spoilt(mesh: &Mesh<'_>) {
    let shop = mesh.shop.name();
    let secret = || kubectl(&["-n", HOME, "get", "secret", "weft-injector-tls", "-o", "json"]);
    let anchors = || {
        let output = kubectl(&["-n", shop, "get", "configmap", "weft-trust-bundle", "-o", "json"]);
        if output.status.success() { output.json()["data"]["anchors.pem"].clone() } else { Value::Null }
    };
    let (good, old) = (anchors(), secret().json());
    assert!(good.as_str().is_some_and(|text| text.contains("BEGIN CERTIFICATE")), "{good}");

    // The webhook's certificate and who vouches for it, at once: what is in use here is vouched for until it is replaced.
    must(&["-n", HOME, "delete", "secret", "weft-injector-tls"]);
    let spoilt = json!([{ "op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": old["data"]["tls.crt"] }]);
    must(&["patch", WEBHOOKS, "--type=json", "-p", &spoilt.to_string()]);
    let junk = json!({ "data": { "anchors.pem": "junk", "more": "junk" } }).to_string();
    must(&["-n", shop, "patch", "configmap", "weft-trust-bundle", "--type=merge", "-p", &junk]);
    soon("the anchors are as they were", || when(anchors() == good, || anchors().to_string()));
    must(&["-n", shop, "delete", "configmap", "weft-trust-bundle"]);

    soon("the webhook has another certificate", || {
        let now = secret();
        if !now.status.success() {
            return Err(now.stderr);
        }
        let now = now.json();
        let hooks = kubectl(&["get", WEBHOOKS, "-o", "json"]).json();
        let hooks = hooks["webhooks"].as_array().cloned().unwrap_or_default();
        let vouched = hooks.iter().all(|hook| hook["clientConfig"]["caBundle"] == now["data"]["ca.crt"]);
        when(now["data"]["tls.crt"] != old["data"]["tls.crt"] && vouched && !hooks.is_empty(), || "not yet".to_owned())
    });
    let pod = soon("pods get sidecars again", || would_be(shop, ""));
    assert_eq!(pod.pointer("/spec/initContainers/1/name"), Some(&Value::from("weft-sidecar")), "{pod:#}");
    soon("the anchors are there again", || when(anchors() == good, || anchors().to_string()));
}
