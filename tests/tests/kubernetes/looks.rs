//! The commands by which people look at a mesh and find a fault, on a cluster: sidecars are asked by `kubectl exec`.

use std::process::{Command, Stdio};

use serde_json::Value;
use weft_tests::cluster::{self, soon, weft, weft_command, when};
use weft_tests::{Dashboard, require};

use crate::Mesh;
use crate::traffic::answers;

pub(crate) fn tell_what_there_is(mesh: &Mesh<'_>) {
    let (shop, client) = (mesh.shop.name(), mesh.client());
    let context = cluster::context();
    let echo = format!("{shop}/echo");
    answers(&mesh.shop, &client, "http://echo/name", "200");
    levels_change(&echo, &context);
    is_tapped(mesh, &client, &echo, &context);
    let pod = format!("{shop}/{client}");
    soon("the sidecar holds what the control plane has for it", || {
        let told = weft(&["diff", &pod, &context, "-o", "json"]);
        let difference: Value = serde_json::from_str(&told.stdout).map_err(|e| format!("{e}: {}", told.stderr))?;
        let is_same = ["missing", "extra", "stale"].iter().all(|part| difference[part].as_array().is_some_and(Vec::is_empty));
        when(is_same && difference["connected"] == true && difference["same"].as_u64() > Some(0), || difference.to_string())
    });
    for command in ["edges", "endpoints", "routes", "stat --since-start"] {
        let words: Vec<&str> = command.split(' ').chain([&*context, "-o", "json"]).collect();
        let told = weft(&words).good();
        // Nobody has made a route yet.
        assert!(told.contains("echo") || command == "routes", "weft {command}: {told}");
    }
    page_comes(&context);
}

/// Of the control plane, the injector and a sidecar, and back.
fn levels_change(echo: &str, context: &str) {
    for of in ["control-plane", "injector", echo] {
        let logs = |filter: &[&str]| -> Vec<String> {
            let words: Vec<&str> = ["log", of].iter().chain(filter).chain(&[context, "-o", "json"]).copied().collect();
            let told = weft(&words).json();
            told.as_array().expect("a list").iter().map(|one| one["filter"].as_str().expect("a text").to_owned()).collect()
        };
        let before = logs(&[]);
        assert!(!before.is_empty() && before.iter().all(|filter| filter == &before[0]), "{of}: {before:?}");
        logs(&["debug"]);
        assert!(logs(&[]).iter().all(|filter| filter == "debug"), "{of}");
        logs(&[&before[0]]);
        assert_eq!(logs(&[]), before, "{of}");
    }
}

fn is_tapped(mesh: &Mesh<'_>, client: &str, echo: &str, context: &str) {
    let words = ["tap", echo, "--path", "/name", "--direction", "inbound", "--max", "1", context, "-o", "json"];
    let mut tap = weft_command(&words).stdout(Stdio::piped()).spawn().expect("weft starts");
    soon("a call is told of", || {
        answers(&mesh.shop, client, "http://echo/name", "200");
        let ended = tap.try_wait().expect("it is our own child");
        when(ended.is_some(), || "the tap goes on".to_owned())
    });
    let told = tap.wait_with_output().expect("it has ended").stdout;
    let event: Value = serde_json::from_slice(&told).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&told)));
    assert_eq!((&event["path"], &event["status"]), (&"/name".into(), &200.into()), "{event:#}");
    assert!(event["peer"].as_str().is_some_and(|peer| peer.contains(mesh.shop.name())), "{event:#}");
}

/// The page comes by way of this machine, for who was given its address.
fn page_comes(context: &str) {
    require(&["curl"]);
    let dashboard = Dashboard::open(weft_command(&["dashboard", "--no-open", context]));
    let get = |address: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        let output = curl.args(["-sSL", "--max-time", "20", "-w", "\n%{http_code}"]).args(more).arg(address).output();
        String::from_utf8_lossy(&output.expect("curl starts").stdout).into_owned()
    };
    let stranger = get(&format!("{}/", dashboard.origin()), &[]);
    assert!(!stranger.ends_with("\n200"), "it came to somebody without the address: {stranger}");
    let page = get(&dashboard.address, &["-b", ""]);
    assert!(page.ends_with("\n200") && page.contains("<title>"), "{page}");
}
