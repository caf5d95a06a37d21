//! Who gets a sidecar and who does not: pods that cannot have one, that ask for what they may not have, and that slipped by.

use serde_json::{Value, json};
use weft_tests::cluster::{CONTROL_PLANE, INJECTOR, feed, must, soon, weft, when};

use crate::Mesh;
use crate::cni::events;
use crate::install::visitor;
use crate::replicas::{replicas, told};

/// What the API server would make of a pod in the shop, once `change` was merged into it.
fn asked(mesh: &Mesh<'_>, change: &Value) -> Result<Value, String> {
    let mut pod = visitor("visitor", "");
    merge(&mut pod, change);
    let words = ["-n", mesh.shop.name(), "create", "--dry-run=server", "-o", "json", "-f", "-"];
    let output = feed(pod.to_string().as_bytes(), &words);
    if output.status.success() { Ok(output.json()) } else { Err(output.stderr) }
}

/// A merge patch (RFC 7386) without removals.
fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(members), Value::Object(more)) => {
            for (name, value) in more {
                merge(members.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, other) => *into = other.clone(),
    }
}

pub(crate) fn is_told_and_refused(mesh: &Mesh<'_>) {
    let annotated = |name: &str, text: &str| json!({ "metadata": { "annotations": { name: text } } });
    let with = |security: Value| {
        let container = json!({ "name": "app", "image": "weft.local/shop:1", "command": ["true"], "securityContext": security });
        json!({ "spec": { "containers": [container] } })
    };
    // It cannot be in the mesh, which is no reason to refuse it: it says so itself.
    let host = asked(mesh, &json!({ "spec": { "hostNetwork": true } })).expect("a pod on the host's network");
    assert_eq!(host.pointer("/metadata/annotations").map(|all| &all["weft.dev/not-injected"]), Some(&json!("host-network")));
    assert!(host["spec"]["initContainers"].is_null(), "{host:#}");
    for (what, change, why) in [
        ("the sidecar's user", with(json!({ "runAsUser": 4747 })), "4747"),
        ("power over the network", with(json!({ "capabilities": { "add": ["NET_ADMIN"] } })), "NET_ADMIN"),
        ("a limit that is none", annotated("weft.dev/sidecar-memory-limit", "much"), "weft.dev/sidecar-memory-limit"),
        ("a word that is no mode", json!({ "metadata": { "labels": { "weft.dev/inject": "perhaps" } } }), "perhaps"),
    ] {
        let said = asked(mesh, &change).expect_err(what);
        assert!(said.contains("weft: ") && said.contains(why), "{what}: {said}");
    }

    // An option of the namespace is its pods' default, and what it forbids they may not ask for.
    let shop = ["namespace", mesh.shop.name()];
    must(&[&["annotate"], &shop[..], &["weft.dev/sidecar-memory-request=24Mi", "weft.dev/forbid=skip-subnets"]].concat());
    soon("the namespace's options hold", || {
        let pod = asked(mesh, &json!({}))?;
        let asks = pod.pointer("/spec/initContainers/1/resources/requests/memory");
        when(asks == Some(&json!("24Mi")), || format!("{asks:?}"))
    });
    let said = asked(mesh, &annotated("weft.dev/skip-subnets", "10.0.0.0/8")).expect_err("what its namespace forbids");
    assert!(said.contains("weft.dev/skip-subnets"), "{said}");
    must(&[&["annotate"], &shop[..], &["weft.dev/sidecar-memory-request-", "weft.dev/forbid-"]].concat());

    // Whichever replica was asked, the reasons are counted.
    let stranger = mesh.stranger();
    let metrics: String = replicas(INJECTOR)
        .values()
        .map(|address| mesh.plain.curl(&stranger, &[&format!("http://{address}:4781/metrics")]))
        .collect();
    for labels in [
        r#"weft_verdict="injected""#,
        r#"weft_verdict="skipped",weft_reason="host-network""#,
        r#"weft_verdict="refused",weft_reason="sidecar-uid""#,
        r#"weft_verdict="refused",weft_reason="network-power""#,
        r#"weft_verdict="refused",weft_reason="forbidden""#,
    ] {
        let line = format!("weft_injector_reviews_total{{{labels}}}");
        assert!(metrics.contains(&line), "{line} is not told by any replica:\n{metrics}");
    }
}

/// Pods that were there before their namespace was put in the mesh.
pub(crate) fn who_slipped_by_is_found(mesh: &Mesh<'_>) {
    let plain = mesh.plain.name();
    must(&["label", "namespace", plain, "weft.dev/inject=enabled"]);
    soon("weft check finds them", || {
        let output = weft(&["check", "-o", "json"]);
        let found = ["client", "echo"].iter().all(|app| {
            output.stdout.contains(&format!("2 pods without the sidecar that it should have: deployment/{app} in {plain}"))
        });
        when(found && !output.status.success(), || format!("{} {}", output.stdout, output.stderr))
    });
    let pod = mesh.stranger();
    soon("an event tells about each", || {
        let said = events(&mesh.plain, &pod, "NotInMesh");
        when(said.contains("this pod has no sidecar"), || said.clone())
    });
    soon("each replica counts them", || {
        let counts = told(mesh, CONTROL_PLANE, 4701, "weft_control_plane_strays")?;
        when(counts.values().all(|count| *count == 4), || format!("{counts:?}"))
    });
    must(&["label", "namespace", plain, "weft.dev/inject-"]);
    soon("weft check is content again", || {
        let output = weft(&["check", "-o", "json"]);
        when(output.status.success(), || output.stdout.clone())
    });
}
