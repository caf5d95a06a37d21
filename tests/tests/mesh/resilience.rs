//! What goes wrong while traffic runs: an endpoint that dies, a control plane that stops, and one that is killed.

use nix::sys::signal::Signal;
use weft_tests::{PATIENCE, World, eventually};

const MESH: &str = r#"
workloads:
- name: web
  namespace: shop
  replicas: 3
  command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"]
  ports: [{port: 8090}]
  restart: never
- {name: quiet, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: later, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: client, namespace: shop, command: [sleep, infinity]}
"#;
const CLIENT: &str = "shop/client";
const REQUESTS: usize = 300;

#[test]
fn traffic_goes_on_while_parts_of_the_mesh_do_not() {
    let world = World::up(MESH);
    an_endpoint_dies(&world);
    the_control_plane_stops(&world);
    the_control_plane_is_killed(&world);
}

/// Ends one of three applications under load, the one that answered last. No request may fail.
fn an_endpoint_dies(world: &World) {
    let url = format!("http://web:8090/name?n=[1-{REQUESTS}]");
    let traffic = world.spawn(CLIENT, &["curl", "-sS", "-N", "--fail", "--fail-early", "--rate", "100/s", &url]);
    let victim = eventually("traffic runs", || {
        let answers = traffic.stdout();
        let whole: Vec<&str> = answers.lines().collect();
        (whole.len() > REQUESTS / 5).then(|| whole[whole.len() - 2].to_owned())
    });
    let exit = format!("http://{}:8090/exit", world.address(&format!("shop/{victim}")));
    // On a connection that its sidecar had kept, the request is sent once more, to nobody.
    let status = world.status(CLIENT, &exit);
    assert!(["502 upstream-reset", "503 upstream-connect-refused"].contains(&status.as_str()), "{victim} ended with {status}");

    let output = traffic.wait(PATIENCE);
    assert!(output.status.success(), "a request failed when {victim} died: {}", output.stderr);
    let answers: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(answers.len(), REQUESTS, "every request was answered");
    assert!(answers.iter().all(|name| name.starts_with("web-")), "{answers:?}");
    let last = &answers[REQUESTS - 50..];
    assert!(!last.contains(&victim.as_str()), "{victim} is dead and answers");
    let ready = eventually("the dead endpoint is known as such", || {
        let config = world.config("shop/client-0");
        let endpoints = config["addresses"][world.service("shop/web")]["endpoints"].as_array()?.clone();
        let ready: Vec<_> = endpoints.iter().filter(|e| e["ready"] == true).map(|e| e["workload"].clone()).collect();
        (ready.len() == 2).then_some(ready)
    });
    assert!(!ready.contains(&serde_json::json!(format!("shop/{victim}"))), "{ready:?}");
}

/// A control plane that does not answer: what is known goes on, what is not known fails with the reason and never in plaintext.
fn the_control_plane_stops(world: &World) {
    let (known, unknown) = (world.service("shop/web"), world.service("shop/quiet"));
    let (known, unknown) = (format!("http://{known}:8090/name"), format!("http://{unknown}:8090/name"));
    assert_eq!(world.status(CLIENT, &known), "200");
    let control_plane = world.control_plane();
    world.signal(control_plane, Signal::SIGSTOP);
    assert_eq!(world.status(CLIENT, &known), "200", "what is known needs no control plane");
    assert_eq!(world.status(CLIENT, &unknown), "503 discovery-unavailable", "what is not known is not guessed");
    world.signal(control_plane, Signal::SIGCONT);
    eventually("what was not known is", || (world.status(CLIENT, &unknown) == "200").then_some(()));
}

/// A control plane that dies is started again with its keys, and sidecars find it.
fn the_control_plane_is_killed(world: &World) {
    let (known, unknown) = (world.service("shop/web"), world.service("shop/later"));
    let serial = || world.config("shop/client-0")["certificate"]["serial"].clone();
    let before = serial();
    let control_plane = world.control_plane();
    world.signal(control_plane, Signal::SIGKILL);
    let url = format!("http://{known}:8090/name?n=[1-50]");
    let answers = world.curl(CLIENT, &["--fail", "--fail-early", &url]);
    assert_eq!(answers.lines().count(), 50, "what is known needs no control plane: {answers}");
    eventually("another one runs", || (world.control_plane() != control_plane).then_some(()));
    let later = format!("http://{unknown}:8090/name");
    eventually("sidecars find the new one", || (world.status(CLIENT, &later) == "200").then_some(()));
    assert_eq!(serial(), before, "certificates outlive it");
}
