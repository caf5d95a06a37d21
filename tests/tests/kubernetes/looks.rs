//! The commands by which people look at a mesh and find a fault, on a cluster: sidecars are asked by `kubectl exec`.

use std::process::{Command, Stdio};

use serde_json::Value;
use weft_tests::cluster::{self, CONTROL_PLANE, soon, weft, weft_command, when};
use weft_tests::{Dashboard, require};

use crate::Mesh;
use crate::replicas::{replicas, sidecars};
use crate::traffic::answers;

pub(crate) fn tell_what_there_is(mesh: &Mesh<'_>) {
    let (shop, client) = (mesh.shop.name(), mesh.client());
    let context = cluster::context();
    let echo = format!("{shop}/echo");
    answers(&mesh.shop, &client, "http://echo/name", "200");
    levels_change(&["control-plane", "injector", &echo], &context);
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
    let told = weft(&["status", &context, "-o", "json"]).json();
    let workloads = told["workloads"].as_array().expect("a list");
    let is_whole =
        |one: &&Value| one["ready"] == true && one["sidecar"]["serial"].as_str().is_some_and(|serial| !serial.is_empty());
    assert_eq!(workloads.iter().filter(is_whole).count() as u64, sidecars(mesh), "{told:#}");
    page_comes(mesh, &context);
}

/// What these log, and back.
pub(crate) fn levels_change(of_them: &[&str], context: &str) {
    for of in of_them {
        let logs = |filter: &[&str]| -> Vec<String> {
            let words: Vec<&str> = ["log", *of].iter().chain(filter).chain(&[context, "-o", "json"]).copied().collect();
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

/// The page comes by way of this machine, for who was given its address; and it has the sidecars of every replica of the control plane.
fn page_comes(mesh: &Mesh<'_>, context: &str) {
    require(&["curl"]);
    let dashboard = Dashboard::open(weft_command(&["dashboard", "--no-open", context]));
    let get = |address: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        let output = curl.args(["-sSL", "--max-time", "20", "-w", "\n%{http_code}"]).args(more).arg(address).output();
        String::from_utf8_lossy(&output.expect("curl starts").stdout).into_owned()
    };
    let stranger = get(&format!("{}/", dashboard.origin()), &[]);
    assert!(!stranger.ends_with("\n200"), "it came to somebody without the address: {stranger}");
    let cookies = tempfile::NamedTempFile::new().expect("there is room");
    let jar = cookies.path().to_str().expect("a path");
    let page = get(&dashboard.address, &["-b", "", "-c", jar]);
    assert!(page.ends_with("\n200") && page.contains("<title>"), "{page}");
    let address = format!("{}/data.json", dashboard.origin());
    soon("the page has the sidecars of every replica", || {
        let answer = get(&address, &["-b", jar]);
        let data: Value = serde_json::from_str(answer.trim_end_matches("\n200")).map_err(|e| format!("{e}: {answer}"))?;
        let others = data["others"].as_array().ok_or("no list of others")?;
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let elsewhere: u64 = others.iter().map(|other| count(&other["sidecars"])).sum();
        let is_whole = others.len() + 1 == replicas(CONTROL_PLANE).len()
            && others.iter().all(|other| other["problem"] == "")
            && count(&data["connected"]) == sidecars(mesh)
            && elsewhere <= count(&data["connected"]);
        // Whichever replica the client's sidecar is connected to: what it has called is there.
        let edges = data["edges"].as_array().ok_or("no list of edges")?;
        let is_told = edges.iter().any(|edge| edge["to"].to_string().contains("echo") && count(&edge["total"]["requests"]) > 0);
        when(is_whole && is_told, || {
            format!("{} run, connected are {}, others: {others:?}, {edges:?}", sidecars(mesh), data["connected"])
        })
    });
}
