//! A sidecar that goes while traffic runs: it says so first, what is under way ends well, what is new goes elsewhere, and it is over
//! in a bounded time. What does not end by itself is cut, and is seen to be.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;
use weft_tests::{PATIENCE, Running, World, eventually, require_modules};

const MESH: &str = r#"
workloads:
- name: app
  namespace: shop
  replicas: 2
  command: "'@PYTHON@' '@PEERS@/http_peer.py' 8090 & '@PYTHON@' '@PEERS@/tcp_peer.py' echo 7000 & exec '@PYTHON@' '@PEERS@/grpc_server.py' 50051"
  ports: [{port: 8090}, {port: 7000}, {port: 50051}]
  health: {tcp: 50051}
- {name: client, namespace: shop, command: [sleep, infinity]}
- {name: other, namespace: shop, command: [sleep, infinity]}
"#;
/// The lab's own drains are short, since there everything ends at once.
const SIDECAR: &str = r#"
for word; do
    shift
    case $word in --drain-*) ;; *) set -- "$@" "$word" ;; esac
done
exec @SIDECAR@ "$@" --drain-grace=2s --drain-timeout=15s
"#;
/// Both phases of such a drain.
const DRAIN: Duration = Duration::from_secs(17);
const REPLICAS: [&str; 2] = ["shop/app-0", "shop/app-1"];
/// Has no part in the traffic.
const OTHER: &str = "shop/other";

#[test]
fn a_sidecar_goes_without_an_error() {
    require_modules(&["grpc"]);
    let world = World::up_with_sidecar(MESH, SIDECAR, |_| {});
    let traffic = world.spawn_peer("shop/client", &["traffic.py", "app.shop"]);
    goes_on(&traffic);

    a_server_goes(&world, &traffic, REPLICAS, |sidecar| world.signal(sidecar, Signal::SIGTERM));
    let [first, second] = REPLICAS;
    a_server_goes(&world, &traffic, [second, first], |sidecar| {
        let (status, _) = world.ask(sidecar, "POST", "/drain").expect("the sidecar answers its owner");
        assert_eq!(status, 202, "a drain is granted");
    });
    a_client_goes(&world);

    let failures = traffic.finish(PATIENCE).json();
    assert_eq!(failures, json!([]), "requests failed while sidecars went");
}

/// Waits until traffic of each kind has had some more success.
fn goes_on(traffic: &Running) {
    let successes = || {
        let told = traffic.stderr();
        ["http ", "grpc ", "tcp "].map(|kind| told.lines().filter(|line| line.starts_with(kind)).count())
    };
    let before = successes();
    eventually("traffic of every kind goes on", || {
        let now = successes();
        (0..now.len()).all(|kind| now[kind] >= before[kind] + 20).then_some(())
    });
}

/// Has the sidecar of the first replica go, by what `tell` does, with exchanges of every kind under way on it.
fn a_server_goes(world: &World, traffic: &Running, [server, left]: [&str; 2], tell: impl Fn(Pid)) {
    let name = |replica: &str| replica.trim_start_matches("shop/").to_owned();
    let url = format!("http://{}:8090/name", world.address(server));
    let sidecar = world.sidecar(server);
    let held = hold(world, server);

    let begun = Instant::now();
    tell(sidecar);
    says_so(world, sidecar);
    assert_eq!(world.status(OTHER, &url), "200", "{server} is still dialled at first, and still serves");
    eventually("it takes nobody in any more", || (world.status(OTHER, &url) == "503 upstream-connect-refused").then_some(()));
    let answers = world.curl(OTHER, &["--fail", "http://app:8090/name?n=[1-20]"]);
    assert_eq!(answers, format!("{}\n", name(left)).repeat(20), "what is new goes elsewhere");
    released(world, server, held);
    over(world, sidecar, begun);
    goes_on(traffic);

    world.next_sidecar(server, sidecar);
    eventually("both replicas are ready for everyone again", || {
        ["shop/client-0", "shop/other-0"].iter().all(|client| ready(world, client) == 2).then_some(())
    });
}

/// Has the sidecar of a client go, with exchanges of every kind under way through it.
fn a_client_goes(world: &World) {
    let replica = "shop/other-0";
    let sidecar = world.sidecar(replica);
    let held = hold(world, REPLICAS[0]);

    let begun = Instant::now();
    world.signal(sidecar, Signal::SIGTERM);
    says_so(world, sidecar);
    eventually("nothing goes out any more", || {
        let answer = world.peer(OTHER, &["raw.py", "talk", "app", "7000", "word"]);
        (answer["outcome"] == "refused").then_some(())
    });
    released(world, REPLICAS[0], held);
    over(world, sidecar, begun);

    world.next_sidecar(replica, sidecar);
    assert_eq!(world.status(OTHER, "http://app:8090/name"), "200", "the next one serves");
}

/// Begins exchanges of every kind with one replica, and waits until all are under way.
fn hold(world: &World, server: &str) -> Running {
    let held = world.spawn_peer(OTHER, &["held.py", &world.address(server)]);
    eventually("exchanges of every kind are under way", || {
        (held.stderr().contains("held") && own(world, server, "/holding") == "2").then_some(())
    });
    held
}

/// What a replica's application says itself, past its sidecar.
fn own(world: &World, server: &str, path: &str) -> String {
    world.curl(server, &[&format!("http://127.0.0.1:8090{path}")])
}

/// Lets the exchanges end, and makes sure that they end well.
fn released(world: &World, server: &str, held: Running) {
    own(world, server, "/release");
    let name = server.trim_start_matches("shop/");
    let expected = json!({
        "GET": [200, format!("{name} ")],
        "POST": [200, format!("{name} body")],
        "grpc": ["eno", "owt", "OK"],
        "tcp": ["one", "two"],
    });
    assert_eq!(held.wait(PATIENCE).json(), expected, "what was under way ends well");
}

/// The first that is seen of a drain is that the sidecar is not ready.
fn says_so(world: &World, sidecar: Pid) {
    let said = eventually("it is not ready any more", || {
        let (status, text) = world.ask(sidecar, "GET", "/ready").expect("it answers, and says first that it goes");
        (status != 200).then_some((status, text))
    });
    assert_eq!(said, (503, "draining\n".to_owned()));
}

/// The process ends as soon as nothing is under way any more.
fn over(world: &World, sidecar: Pid, begun: Instant) {
    eventually("its process has ended", || (!world.runs(sidecar)).then_some(()));
    assert!(begun.elapsed() < DRAIN, "it ended after {:?}, when it could not wait any longer", begun.elapsed());
}

/// How many endpoints of the service a client's sidecar takes for ready.
fn ready(world: &World, client: &str) -> usize {
    let config = world.config(client);
    let endpoints = config["addresses"][world.service("shop/app")]["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().filter(|endpoint| endpoint["ready"] == true).count()
}

const ECHO: &str = r#"
workloads:
- {name: echo, namespace: shop, command: ["@PYTHON@", "@PEERS@/tcp_peer.py", echo, "7000"], ports: [{port: 7000}]}
- {name: client, namespace: shop, command: [sleep, infinity]}
"#;
/// The lab's own drain (a tenth of a second, and one), what is left after the cut (one more), and as much again for a busy machine.
const CUT: Duration = Duration::from_millis(2 * 2100);

#[test]
fn what_does_not_end_is_cut_in_time_and_never_looks_whole() {
    let world = World::up(ECHO);
    let address = world.address("shop/echo-0");
    for replica in ["shop/client-0", "shop/echo-0"] {
        let sidecar = world.sidecar(replica);
        let held = world.spawn_peer("shop/client", &["raw.py", "wait", &address, "7000", "under way"]);
        eventually("a connection is under way", || held.stderr().contains("under way").then_some(()));
        let begun = Instant::now();
        world.signal(sidecar, Signal::SIGTERM);
        eventually("its process has ended", || (!world.runs(sidecar)).then_some(()));
        assert!(begun.elapsed() < CUT, "the sidecar of {replica} took {:?} to end", begun.elapsed());
        let end = held.wait(PATIENCE).json();
        assert_eq!(end["outcome"], "reset", "a connection that is cut by {replica} looks as if it had ended");
        world.next_sidecar(replica, sidecar);
    }
}
