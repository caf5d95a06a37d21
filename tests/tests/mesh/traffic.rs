//! Routes and traffic policies, from the manifest to what real servers see.

mod balance;
mod grpc;
mod network;
mod opaque;
mod retries;
mod routes;
mod sheds;

use std::fs;
use std::path::Path;

use serde_json::Value;
use weft_tests::{World, eventually};

const CLIENT: &str = "front/client";

/// What a world's client gets for a request: status and reason, and the answer's body.
fn ask(world: &World, arguments: &[&str]) -> (String, String) {
    let written = "\n%{http_code} %header{weft-error}";
    let words: Vec<&str> =
        ["curl", "-sS", "--max-time", "20", "-w", written].into_iter().chain(arguments.iter().copied()).collect();
    let output = world.exec(CLIENT, &words);
    let (body, status) = output.stdout.rsplit_once('\n').unwrap_or(("", &output.stdout));
    (status.trim_end().to_owned(), body.to_owned())
}

/// Writes the manifests that the world follows, at once.
fn put(work: &Path, text: &str) {
    let (file, temporary) = (work.join("traffic.yaml"), work.join(".traffic.new"));
    fs::write(&temporary, text).expect("the directory is ours");
    fs::rename(&temporary, &file).expect("the directory is ours");
}

/// Changes them, and waits until the client's sidecar answers as `known` says.
#[track_caller]
fn change(world: &World, text: &str, known: impl Fn() -> bool) {
    put(&world.work(), text);
    eventually("the change is in force", || known().then_some(()));
}

/// What the client's sidecar knows of a service.
fn known(world: &World, service: &str) -> Value {
    world.config("front/client-0")["addresses"][world.service(service)].clone()
}

/// Header fields that a server saw, of one name.
fn field(seen: &Value, name: &str) -> Vec<String> {
    let pairs = seen["headers"].as_array().into_iter().flatten();
    pairs.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str().map(str::to_owned)).collect()
}
