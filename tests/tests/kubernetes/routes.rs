//! Routes and policies: what they do, and what their status says of it.

use serde_json::{Value, json};
use weft_tests::cluster::{feed, kubectl, must, soon, weft, when};

use crate::Mesh;
use crate::traffic::answers;

/// What the tests install where the cluster has no Gateway API.
const HTTP_ROUTES: &str = "httproutes.gateway.networking.k8s.io";

pub(crate) fn policies_tell_how_far_they_have_come(mesh: &Mesh<'_>) {
    let policy = |name: &str, target: &str, spec: Value| {
        let mut object = json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": { "name": name },
            "spec": { "targetRef": { "name": target } },
        });
        object["spec"].as_object_mut().expect("it is one").extend(spec.as_object().expect("it is one").clone());
        put(mesh, &object);
    };
    // Callers subscribe to what they call.
    for client in mesh.shop.pods("client") {
        answers(&mesh.shop, &client, "http://echo/name", "200");
    }
    for (generation, balancer) in [(1, "RoundRobin"), (2, "LeastRequest")] {
        policy("echo", "echo", json!({ "balancer": { "type": balancer } }));
        soon(&format!("generation {generation} of the policy is in force with all callers"), || {
            let now = read(mesh, "trafficpolicies.weft.dev", "echo");
            let sidecars = &now["status"]["sidecars"];
            let accepted = condition(&now["status"]["ancestors"][0], "Accepted");
            let counted = sidecars["subscribed"].as_u64() >= Some(2) && sidecars["applied"] == sidecars["subscribed"];
            let seen = [&sidecars["observedGeneration"], &accepted["observedGeneration"], &now["metadata"]["generation"]];
            let is_so = counted && accepted["status"] == "True" && seen.iter().all(|one| **one == json!(generation));
            when(is_so, || now.to_string())
        });
    }
    let shown = must(&["-n", mesh.shop.name(), "get", "tpol", "echo"]);
    let columns: Vec<&str> = shown.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(columns, ["NAME", "TARGET", "ACCEPTED", "SIDECARS", "APPLIED", "AGE"], "{shown}");

    policy("nowhere", "nowhere", json!({}));
    refused(mesh, "trafficpolicies.weft.dev", "nowhere", "TargetNotFound");
    for name in ["echo", "nowhere"] {
        must(&["-n", mesh.shop.name(), "delete", "tpol", name]);
    }
}

/// Gateway API comes to a cluster that runs, and leaves it again.
pub(crate) fn routes_are_followed(mesh: &Mesh<'_>) {
    let found = must(&["get", "customresourcedefinitions", HTTP_ROUTES, "--ignore-not-found", "-o", "name"]);
    let is_ours = found.is_empty();
    if is_ours {
        mesh.cluster.apply(None, &weft_tests::cluster::Namespace::manifest("httproutes.yaml"));
        must(&["wait", "--for=condition=Established", &format!("crd/{HTTP_ROUTES}"), "--timeout=60s"]);
    }
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| follow(mesh)));
    if is_ours {
        must(&["delete", "customresourcedefinitions", HTTP_ROUTES, "--timeout=60s"]);
    }
    if let Err(panic) = told {
        std::panic::resume_unwind(panic);
    }
    // What is gone has no effect.
    answers(&mesh.shop, &mesh.client(), "http://echo/via-web", "404");
}

fn follow(mesh: &Mesh<'_>) {
    let route = |name: &str, rules: Value| {
        put(
            mesh,
            &json!({
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": { "name": name },
                "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "echo", "port": 80 }], "rules": rules },
            }),
        );
    };
    let rule = |path: &str, to: &str| {
        json!({
            "matches": [{ "path": { "type": "PathPrefix", "value": path } }],
            "backendRefs": [{ "name": to, "port": 80 }],
        })
    };
    route("split", json!([rule("/via-web", "web"), rule("/", "echo")]));
    stands(mesh, "split", 1, &[("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "ResolvedRefs")]);
    let client = mesh.client();
    soon("the route is followed", || {
        let said = mesh.shop.exec(&client, &["curl", "-sS", "--max-time", "5", "http://echo/via-web"]).stdout;
        when(said == "nginx\n", || said.clone())
    });
    answers(&mesh.shop, &client, "http://echo/name", "200");

    route("split", json!([rule("/via-web", "web"), rule("/lost", "nowhere"), rule("/", "echo")]));
    stands(mesh, "split", 2, &[("Accepted", "True", "Accepted"), ("ResolvedRefs", "False", "BackendNotFound")]);
    answers(&mesh.shop, &client, "http://echo/name", "200");

    // A rule that cannot be read: the version before it stays, and that is said.
    let mut odd = rule("/odd", "web");
    odd["matches"][0]["path"]["type"] = "Sideways".into();
    route("split", json!([odd, rule("/", "echo")]));
    soon("it is said that the version before it stays in force", || {
        let now = read(mesh, HTTP_ROUTES, "split");
        let partial = condition(&now["status"]["parents"][0], "PartiallyInvalid");
        let is_so = partial["status"] == "True" && partial["observedGeneration"] == 3;
        when(is_so, || now["status"].to_string())
    });
    answers(&mesh.shop, &client, "http://echo/name", "200");

    let findings = weft(&["check", "-o", "json"]).stdout;
    assert!(findings.contains("weft reads HTTPRoute"), "{findings}");
}

/// Creates or changes an object of the shop.
#[track_caller]
pub(crate) fn put(mesh: &Mesh<'_>, object: &Value) {
    let words = ["-n", mesh.shop.name(), "apply", "--validate=false", "-f", "-"];
    feed(object.to_string().as_bytes(), &words).good();
}

#[track_caller]
pub(crate) fn read(mesh: &Mesh<'_>, kind: &str, name: &str) -> Value {
    kubectl(&["-n", mesh.shop.name(), "get", kind, name, "-o", "json"]).json()
}

/// One condition of an entry of a status; null where there is none.
pub(crate) fn condition(entry: &Value, kind: &str) -> Value {
    let all = entry["conditions"].as_array();
    all.into_iter().flatten().find(|one| one["type"] == kind).cloned().unwrap_or_default()
}

/// Waits until a route's conditions are these, of this generation.
#[track_caller]
fn stands(mesh: &Mesh<'_>, name: &str, generation: u64, wanted: &[(&str, &str, &str)]) {
    soon(&format!("the status of {name} is that of generation {generation}"), || {
        let now = read(mesh, HTTP_ROUTES, name);
        let entry = &now["status"]["parents"][0];
        let is_so = |(kind, status, reason): &(&str, &str, &str)| {
            let it = condition(entry, kind);
            it["status"] == *status && it["reason"] == *reason && it["observedGeneration"] == generation
        };
        when(entry["controllerName"] == "weft.dev/controller" && wanted.iter().all(is_so), || now["status"].to_string())
    });
}

/// Waits until a policy is said not to be in force, for this reason.
#[track_caller]
pub(crate) fn refused(mesh: &Mesh<'_>, kind: &str, name: &str, reason: &str) {
    soon(&format!("{name} is refused"), || {
        let now = read(mesh, kind, name);
        let accepted = condition(&now["status"]["ancestors"][0], "Accepted");
        when(accepted["status"] == "False" && accepted["reason"] == reason, || now["status"].to_string())
    });
}
