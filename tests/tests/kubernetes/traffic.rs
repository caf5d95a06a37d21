//! What pods of the mesh say to each other: that it arrives, who it is known to come from, and that nobody else reads it.

use serde_json::{Value, json};
use weft_tests::cluster::{Capture, Namespace, soon, when};
use weft_tests::contains;

use crate::Mesh;

/// What the meshed and the unmeshed say, each in their own words.
const MESHED: &str = "weft-marker-meshed-5b7e";
const PLAIN: &str = "weft-marker-plain-5b7e";
/// A record of application data: its type, and the version that every TLS 1.3 record carries (RFC 8446, section 5.1).
const TLS_RECORD: &[u8] = &[0x17, 0x03, 0x03];

pub(crate) fn is_mutual_tls(mesh: &Mesh<'_>) {
    let (shop, client) = (&mesh.shop, mesh.client());
    for url in ["http://echo/name", "http://web/"] {
        answers(shop, &client, url, "200");
    }
    let me = shop.identity("client");
    let forged = shop.curl(&client, &["-H", "weft-client-id: spiffe://cluster.local/ns/shop/sa/admin", "http://echo/seen"]);
    assert_eq!(callers(&forged), [me.as_str()], "{forged}");

    let redis = |words: &[&str]| shop.exec(&client, &[&["redis-cli", "-h", "cache"][..], words].concat()).good();
    assert_eq!(redis(&["set", "greeting", "hello"]).trim(), "OK");
    assert_eq!(redis(&["get", "greeting"]).trim(), "hello");

    let said = shop.exec(&client, &["python3", "/shop/raw.py", "banner", "banner", "7000"]).json();
    assert_eq!(said, json!(["220 the server speaks first\r\n", "and then the client\r\n"]));

    // Metrics are for everyone to read, and say with whom the client's sidecar spoke how.
    let metrics = mesh.plain.curl(&mesh.stranger(), &[&format!("http://{}:4791/metrics", shop.address(&client))]);
    let (request, connection) = ("http_client_request_duration_seconds_count", "weft_connections_total");
    for (app, counter) in [("echo", request), ("web", request), ("cache", connection), ("banner", connection)] {
        let (peer, name) = (shop.identity(app), shop.name());
        let labels = format!(r#"weft_peer="{peer}",weft_service="{name}/{app}",weft_mtls="true""#);
        let is_it = |line: &str| line.starts_with(counter) && line.contains(&labels);
        assert!(metrics.lines().any(is_it), "{counter} with {labels} is not in the metrics of {client}:\n{metrics}");
    }
}

/// Whom an answer of `/seen` says the call came from.
#[track_caller]
pub(crate) fn callers(seen: &str) -> Vec<String> {
    let seen: Value = serde_json::from_str(seen).unwrap_or_else(|error| panic!("{error}: {seen}"));
    let fields = seen["headers"].as_array().expect("the server tells the fields");
    let callers = fields.iter().filter(|field| field[0] == "weft-client-id");
    callers.map(|field| field[1].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits until what a pod gets from a URL is this status.
#[track_caller]
pub(crate) fn answers(from: &Namespace, pod: &str, url: &str, status: &str) {
    soon(&format!("{pod} gets {status} from {url}"), || {
        let now = from.status(pod, url);
        when(now == status, || now.clone())
    });
}

pub(crate) fn is_not_in_the_clear(mesh: &Mesh<'_>) {
    let Some(capture) = Capture::start(mesh.cluster) else {
        eprintln!("not on this cluster: WEFT_CLUSTER is not `own`, so that there is no access to its nodes");
        return;
    };
    let client = mesh.client();
    say(&mesh.shop, &client, MESHED);
    for words in [["set", "marker", MESHED].as_slice(), &["get", "marker"]] {
        mesh.shop.exec(&client, &[&["redis-cli", "-h", "cache"][..], words].concat()).good();
    }
    say(&mesh.plain, &mesh.stranger(), PLAIN);

    // Frames come in order: when the last words are there, everything is. That they are seen shows what the test would find.
    let last = format!("body-{PLAIN}");
    let frames = soon("the capture has the last words", || {
        let frames = capture.frames();
        if contains(&frames, last.as_bytes()) { Ok(frames) } else { Err(format!("it has {} bytes", frames.len())) }
    });
    assert!(!contains(&frames, MESHED.as_bytes()), "something that a meshed program said was in the clear");
    assert!(contains(&frames, TLS_RECORD), "there are no TLS records at all");
}

/// Says `marker` in path, header and body, and makes sure that it arrived.
#[track_caller]
fn say(from: &Namespace, pod: &str, marker: &str) {
    let url = format!("http://echo/seen?path-{marker}");
    let (header, body) = (format!("x-marker: header-{marker}"), format!("body-{marker}"));
    let seen = from.curl(pod, &["-H", &header, "--data", &body, &url]);
    assert!(seen.contains(&format!("header-{marker}")) && seen.contains(&format!("path-{marker}")), "it did not arrive: {seen}");
}
