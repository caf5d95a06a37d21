//! Strict mTLS: who is not in the mesh is refused, but for the kubelet, whose probes still find out what the app is.

use std::collections::BTreeSet;

use weft_tests::cluster::{is_ready, must, soon, when};

use crate::Mesh;
use crate::traffic::answers;

/// A way to take an app down although its container runs on, and to bring it back.
struct Fall {
    /// What its probe is.
    probe: &'static str,
    app: &'static str,
    down: &'static str,
    up: &'static str,
}

const STOP: &str = "kill -STOP $(cat /tmp/pid)";
const CONTINUE: &str = "kill -CONT $(cat /tmp/pid)";
const FALLS: [Fall; 4] = [
    // It accepts connections still, and says nothing.
    Fall { probe: "http", app: "web", down: STOP, up: CONTINUE },
    Fall { probe: "grpc", app: "health", down: STOP, up: CONTINUE },
    // Nothing listens on its port; on the sidecar's, there would be an answer.
    Fall { probe: "tcp", app: "cache", down: "kill $(cat /tmp/pid)", up: r#"eval "$REDIS""# },
    Fall { probe: "exec", app: "echo", down: "touch /tmp/down", up: "rm /tmp/down" },
];

pub(crate) fn strangers_are_refused(mesh: &Mesh<'_>) {
    let (shop, stranger) = (mesh.shop.name(), mesh.stranger());
    let echo = format!("http://echo.{shop}/name");
    let redis = || {
        let host = format!("cache.{shop}");
        let command = ["python3", "/shop/raw.py", "talk", &host, "6379", "PING\r\n"];
        mesh.plain.exec(&stranger, &command).json()
    };
    // While the mesh is permissive, they are served: so it is not for want of a way that they are not afterwards.
    answers(&mesh.plain, &stranger, &echo, "200");
    let served = redis();
    assert_eq!(served["data"], "+PONG\r\n", "{served}");

    must(&["annotate", "namespace", shop, "weft.dev/mtls=strict"]);
    answers(&mesh.plain, &stranger, &echo, "403 mtls-required");
    soon("Redis is kept from strangers", || {
        let answer = redis();
        let refused = answer["data"] == "" && ["closed", "reset"].iter().any(|outcome| answer["outcome"] == *outcome);
        when(refused, || answer.to_string())
    });
    answers(&mesh.shop, &mesh.client(), "http://echo/name", "200");
}

pub(crate) fn probes_tell_of_the_app(mesh: &Mesh<'_>) {
    for fall in &FALLS {
        tells(mesh, fall);
    }
}

/// The same of the web server's HTTP probe alone.
pub(crate) fn an_http_probe_tells_of_the_app(mesh: &Mesh<'_>) {
    tells(mesh, &FALLS[0]);
}

fn tells(mesh: &Mesh<'_>, Fall { probe, app, down, up }: &Fall) {
    let pod = mesh.shop.pods(app).swap_remove(0);
    becomes(mesh, &pod, probe, true);
    mesh.shop.shell(&pod, down);
    becomes(mesh, &pod, probe, false);
    runs_on(mesh, &pod);
    sees(mesh, app, &pod, false);
    mesh.shop.shell(&pod, up);
    becomes(mesh, &pod, probe, true);
    runs_on(mesh, &pod);
    sees(mesh, app, &pod, true);
}

#[track_caller]
fn becomes(mesh: &Mesh<'_>, pod: &str, probe: &str, ready: bool) {
    soon(&format!("the readiness of {pod} is {ready} by its {probe} probe"), || {
        let now = mesh.shop.pod(pod);
        when(is_ready(&now) == ready, || now["status"].to_string())
    });
}

/// Neither the sidecar nor the app's container was started again, and the sidecar is as ready as ever.
#[track_caller]
fn runs_on(mesh: &Mesh<'_>, name: &str) {
    let pod = mesh.shop.pod(name);
    for (list, container) in [("initContainerStatuses", "weft-sidecar"), ("containerStatuses", "app")] {
        let all = pod["status"][list].as_array();
        let status = all.into_iter().flatten().find(|status| status["name"] == container);
        let well = status.is_some_and(|status| status["state"]["running"].is_object() && status["restartCount"] == 0);
        assert!(well, "{container} of {name}: {status:#?}");
    }
    let url = format!("http://{}:4791/ready", mesh.shop.address(name));
    assert_eq!(mesh.plain.status(&mesh.stranger(), &url), "200", "the sidecar of {name}");
}

/// A change of readiness reaches the sidecars that have dialled the service.
#[track_caller]
fn sees(mesh: &Mesh<'_>, app: &str, pod: &str, ready: bool) {
    let client = mesh.client();
    match app {
        // Its only pod.
        "web" => answers(&mesh.shop, &client, "http://web/", if ready { "200" } else { "503 no-endpoints" }),
        // One of two.
        "echo" => soon(&format!("the client's sidecar has {pod} as ready: {ready}"), || {
            let names = mesh.shop.curl(&client, &["http://echo/name?n=[1-20]"]);
            let seen: BTreeSet<&str> = names.lines().collect();
            when(seen.contains(pod) == ready && !seen.is_empty(), || format!("{seen:?} answer"))
        }),
        _ => {}
    }
}
