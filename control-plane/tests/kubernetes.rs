//! The source that follows a cluster, and what is asked of and told to one, against an API server that plays a script.

#[path = "kubernetes/server.rs"]
mod server;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weft_control_plane::hub::counts::Counts;
use weft_control_plane::issue::ca::{Ca, Pem, Source as CaSource, make};
use weft_control_plane::issue::kubernetes::Witness;
use weft_control_plane::kubernetes::status::Statusing;
use weft_control_plane::kubernetes::{bundle, ca, lease, review::ApiServer};
use weft_control_plane::model::status::{Condition, ObjectStatus, RouteStatus, Statuses as Outcomes};
use weft_control_plane::objects::traffic::ParentRef;
use weft_control_plane::objects::{Kind, ObjectKey};
use weft_control_plane::watch::kubernetes::follow;
use weft_control_plane::watch::kubernetes::standing::{Standing, Statuses};
use weft_control_plane::watch::{Batch, Change};

use server::{Server, Store, Watch};

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

fn service(name: &str, ip: &str, version: u32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string(), "managedFields": [{"manager": "m"}]},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
        "status": {"loadBalancer": {}},
    })
}

fn broken(name: &str, version: u32) -> Value {
    let mut object = service(name, "10.0.0.9", version);
    object["spec"]["ports"][0]["port"] = "eighty".into();
    object
}

fn list(version: u32, more: Option<&str>, items: &[Value]) -> String {
    json!({
        "kind": "List", "apiVersion": "v1", "items": items,
        "metadata": {"resourceVersion": version.to_string(), "continue": more.unwrap_or_default()},
    })
    .to_string()
}

fn status(code: u16, reason: &str) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "as the script has it", "code": code})
        .to_string()
}

/// What a batch changes: `+name` and `-name`.
fn names(batch: &Batch) -> Vec<String> {
    let name = |c: &Change| match c {
        Change::Upsert(o) => format!("+{}", o.key().id.name),
        Change::Delete(k) => format!("-{}", k.id.name),
    };
    batch.changes.iter().map(name).collect()
}

async fn next(batches: &mut mpsc::Receiver<Batch>) -> Batch {
    timeout(PATIENCE, batches.recv()).await.expect("a batch in time").expect("the source goes on")
}

/// The first batch with everything in it; before it there is nothing but problems, which are collected.
async fn first(batches: &mut mpsc::Receiver<Batch>) -> (Batch, Vec<String>) {
    let mut problems = Vec::new();
    loop {
        let batch = next(batches).await;
        if batch.complete {
            return (batch, problems);
        }
        assert!(batch.changes.is_empty(), "nothing is delivered before everything has been read: {batch:?}");
        problems.extend(batch.problems.iter().map(ToString::to_string));
    }
}

#[tokio::test]
async fn everything_is_read_page_by_page_and_then_followed() {
    let server = Server::start().await;
    server.list("services", 200, list(10, Some("next"), &[service("a", "10.0.0.1", 3)]));
    server.list("services", 200, list(10, None, &[service("b", "10.0.0.2", 4)]));
    let mut batches = follow(&server.client(), &Arc::default());
    let (batch, problems) = first(&mut batches).await;
    assert_eq!((names(&batch), problems.len()), (vec!["+a".to_owned(), "+b".to_owned()], 0));
    let asked = server.asked("/api/v1/services?");
    assert!(asked[0].contains("limit=") && asked[1].contains("continue=next"), "{asked:?}");

    let watch = server.watch("services").await;
    assert!(watch.query.contains("resourceVersion=10") && watch.query.contains("allowWatchBookmarks=true"), "{}", watch.query);
    watch.tell("ADDED", &service("c", "10.0.0.3", 11));
    assert_eq!(names(&next(&mut batches).await), ["+c"]);
    // What changes nothing that is read is not told.
    watch.tell("MODIFIED", &service("c", "10.0.0.3", 12));
    watch.tell("DELETED", &service("a", "10.0.0.1", 13));
    assert_eq!(names(&next(&mut batches).await), ["-a"]);

    // The watch ends; the next begins at the last bookmark.
    watch.tell("BOOKMARK", &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"resourceVersion": "50"}}));
    drop(watch);
    let watch = server.watch("services").await;
    assert!(watch.query.contains("resourceVersion=50"), "{}", watch.query);
    watch.tell("ADDED", &service("d", "10.0.0.4", 51));
    assert_eq!(names(&next(&mut batches).await), ["+d"]);
}

/// Collects changes until there are as many as expected.
async fn changes(batches: &mut mpsc::Receiver<Batch>, count: usize) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    while all.len() < count {
        let batch = next(batches).await;
        assert_eq!(batch.problems, [], "a watch that was forgotten is no problem");
        all.extend(names(&batch));
    }
    all
}

#[tokio::test]
async fn a_watch_that_the_server_has_forgotten_starts_over_and_what_went_meanwhile_is_gone() {
    let server = Server::start().await;
    server.list("services", 200, list(10, None, &[service("a", "10.0.0.1", 3), service("b", "10.0.0.2", 4)]));
    let mut batches = follow(&server.client(), &Arc::default());
    first(&mut batches).await;
    let watch = server.watch("services").await;
    server.list("services", 200, list(70, None, &[service("b", "10.0.0.2", 4), service("c", "10.0.0.3", 60)]));
    watch.tell("ERROR", &serde_json::from_str(&status(410, "Expired")).expect("JSON"));
    assert_eq!(changes(&mut batches, 2).await, BTreeSet::from(["+c", "-a"].map(str::to_owned)));

    // It is refused for it before it begins: the same.
    let watch = server.watch("services").await;
    server.refuse("services", 410, status(410, "Gone"));
    server.list("services", 200, list(90, None, &[service("c", "10.0.0.3", 60)]));
    drop(watch);
    assert_eq!(changes(&mut batches, 1).await, BTreeSet::from(["-b"].map(str::to_owned)));
    assert!(server.watch("services").await.query.contains("resourceVersion=90"));
}

#[tokio::test]
async fn a_kind_that_is_missing_or_forbidden_is_reported_and_waited_for() {
    let server = Server::start().await;
    server.list("services", 200, list(10, None, &[service("a", "10.0.0.1", 3)]));
    // Of a group that it does not know, the server says so in plain text.
    server.list("endpointslices", 404, "404 page not found".into());
    server.list("endpointslices", 403, status(403, "Forbidden"));
    server.list("endpointslices", 200, list(10, None, &[]));
    let mut batches = follow(&server.client(), &Arc::default());
    let (batch, problems) = first(&mut batches).await;
    assert_eq!((names(&batch), batch.problems.len()), (vec!["+a".to_owned()], 0));
    assert!(problems.iter().all(|p| p.starts_with("discovery.k8s.io/v1/EndpointSlice: ")), "{problems:?}");
    assert!(problems.iter().any(|p| p.contains("has no endpointslices.discovery.k8s.io")), "{problems:?}");
    assert!(problems.iter().any(|p| p.contains("list and watch on endpointslices.discovery.k8s.io")), "{problems:?}");
}

#[tokio::test]
async fn routes_that_may_not_be_read_are_waited_for_and_never_taken_for_none() {
    let server = Server::start().await;
    for _ in 0..3 {
        server.list("httproutes", 403, status(403, "Forbidden"));
    }
    server.list("trafficpolicies", 500, status(500, "InternalError"));
    server.list("trafficpolicies", 200, list(10, None, &[]));
    server.list("httproutes", 200, list(10, None, &[http_route("canary", 7)]));
    let mut batches = follow(&server.client(), &Arc::default());
    let (batch, problems) = first(&mut batches).await;
    assert_eq!(names(&batch), ["+canary"]);
    assert!(problems.iter().any(|p| p.contains("list and watch on httproutes.gateway")), "{problems:?}");
}

fn http_route(name: &str, version: u32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string(), "generation": 2},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
        },
        "status": {"parents": [{"parentRef": {"name": "edge"}, "controllerName": "example.com/other", "conditions": []}]},
    })
}

#[tokio::test]
async fn a_cluster_without_gateway_api_is_served_and_its_kinds_are_found_when_they_come() {
    let server = Server::start().await;
    let missing = || "404 page not found".to_owned();
    for resource in ["grpcroutes", "tcproutes", "referencegrants", "xbackendtrafficpolicies"] {
        server.list(resource, 404, missing());
    }
    server.list("httproutes", 404, missing());
    // Of three versions the last is served.
    for answer in [(404, missing()), (404, missing()), (200, list(10, None, &[]))] {
        server.list("tlsroutes", answer.0, answer.1);
    }
    let statuses = Arc::<Statuses>::default();
    let mut batches = follow(&server.client(), &statuses);
    let (batch, _) = first(&mut batches).await;
    assert_eq!((names(&batch), batch.problems.len()), (Vec::<String>::new(), 0));
    // Once is not enough: a server that has just started has none of these for a moment.
    let looks = server.asked("/apis/gateway.networking.k8s.io/v1/grpcroutes?").len();
    assert!(looks > 1, "{looks}");

    server.list("httproutes", 200, list(10, None, &[http_route("canary", 7)]));
    let route = loop {
        let batch = next(&mut batches).await;
        if !batch.changes.is_empty() {
            break names(&batch);
        }
    };
    assert_eq!(route, ["+canary"]);
    let key = ObjectKey { kind: Kind::HttpRoute, id: "shop/canary".parse().expect("valid") };
    let standing = statuses.get(&key).expect("its status is known");
    assert_eq!((standing.resource_version.as_str(), standing.generation, statuses.version(key.kind)), ("7", 2, Some("v1")));
    assert_eq!(standing.status["parents"][0]["controllerName"], "example.com/other");

    server.watch("tlsroutes").await;
    assert_eq!(statuses.version(Kind::TlsRoute), Some("v1alpha2"));
    let asked = server.asked("/apis/gateway.networking.k8s.io/");
    let versions: Vec<&str> = asked.iter().filter(|p| p.contains("/tlsroutes?")).filter_map(|p| p.split('/').nth(3)).collect();
    assert_eq!(versions, ["v1", "v1alpha3", "v1alpha2"]);
}

#[tokio::test]
async fn the_holder_of_the_lease_writes_status_and_what_others_wrote_stays() {
    let server = Server::start().await;
    let (written, answers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(VecDeque::from([409, 200, 200]))));
    let patches = written.clone();
    server.answer(move |method, path, body| {
        patches.lock().expect("no one panicked").push((method.to_owned(), path.to_owned(), body.clone()));
        match answers.lock().expect("no one panicked").pop_front() {
            Some(200) => (200, http_route("canary", 9).to_string()),
            Some(code) => (code, status(code, "Conflict")),
            None => (500, status(500, "InternalError")),
        }
    });
    let statuses = Arc::<Statuses>::default();
    let key = ObjectKey { kind: Kind::HttpRoute, id: "shop/canary".parse().expect("valid") };
    let standing = |version: u32| Standing {
        resource_version: version.to_string(),
        generation: 2,
        status: http_route("canary", version)["status"].clone(),
        unreadable: None,
    };
    statuses.served(Kind::HttpRoute, "v1");
    statuses.put(key.clone(), standing(7));
    let parent = ParentRef {
        group: Some(String::new()),
        kind: Some("Service".into()),
        namespace: None,
        name: "web".into(),
        section_name: None,
        port: Some(80),
    };
    let accepted = Condition {
        type_: "Accepted",
        status: true,
        reason: "Accepted",
        message: "it is in force".into(),
        observed_generation: 2,
    };
    let entry = RouteStatus { route: key.clone(), parent, conditions: vec![accepted] };
    let (outcomes, seen) = watch::channel(Outcomes::new());
    let (leading, led) = watch::channel(false);
    let (_counts, counts) = watch::channel(Counts::new());
    let statusing = Statusing { client: server.client(), statuses: statuses.clone(), outcomes: seen, counts };
    let writer = tokio::spawn(statusing.run(led));

    // Somebody else was faster: what they wrote is seen first, then ours is written.
    outcomes.send_modify(|all| drop(all.insert(key.clone(), Arc::new(ObjectStatus { generation: 2, entries: vec![entry] }))));
    leading.send_replace(true);
    server.waited_for("PATCH", "/status", 1).await;
    statuses.put(key.clone(), standing(8));
    server.waited_for("PATCH", "/status", 2).await;
    let (_, path, body) = written.lock().expect("no one panicked")[1].clone();
    assert_eq!(path, "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/canary/status");
    assert_eq!(body["metadata"]["resourceVersion"], "8");
    let parents = body["status"]["parents"].as_array().expect("a list").clone();
    assert_eq!(parents[0], standing(8).status["parents"][0]);
    assert_eq!(parents[1]["parentRef"], json!({"group": "", "kind": "Service", "name": "web", "port": 80}));
    assert_eq!((&parents[1]["controllerName"], parents.len()), (&json!("weft.dev/controller"), 2));

    // It refers to nothing of ours any more: ours goes, theirs stays.
    statuses.put(
        key.clone(),
        Standing { resource_version: "9".into(), generation: 2, status: body["status"].clone(), unreadable: None },
    );
    outcomes.send_modify(|all| drop(all.remove(&key)));
    server.waited_for("PATCH", "/status", 3).await;
    let (_, _, body) = written.lock().expect("no one panicked")[2].clone();
    assert_eq!(body["status"]["parents"], json!([standing(8).status["parents"][0]]));
    drop(leading);
    timeout(PATIENCE, writer).await.expect("it ends").expect("cleanly");
}

#[tokio::test]
async fn an_object_that_cannot_be_read_stops_nothing() {
    let server = Server::start().await;
    server.list("services", 200, list(10, None, &[broken("bad", 3), service("good", "10.0.0.1", 4), json!({"metadata": {}})]));
    let mut batches = follow(&server.client(), &Arc::default());
    let (batch, _) = first(&mut batches).await;
    assert_eq!(names(&batch), ["+good"]);
    let told: Vec<_> = batch.problems.iter().map(|p| (p.place.as_str(), p.field.as_str())).collect();
    assert!(told.contains(&("Service shop/bad", "spec.ports[0].port")), "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");

    let watch: Watch = server.watch("services").await;
    watch.tell("MODIFIED", &broken("good", 11));
    let batch = next(&mut batches).await;
    assert_eq!((batch.changes.len(), batch.problems.len()), (0, 3), "the last good version stands: {batch:?}");
    watch.tell("MODIFIED", &service("bad", "10.0.0.2", 12));
    let batch = next(&mut batches).await;
    assert_eq!((names(&batch), batch.problems.len()), (vec!["+bad".to_owned()], 2));
    watch.tell("DELETED", &broken("good", 13));
    let batch = next(&mut batches).await;
    assert_eq!((names(&batch), batch.problems.len()), (vec!["-good".to_owned()], 1));
}

#[tokio::test]
async fn a_token_is_reviewed_for_our_audience_and_its_pod_is_looked_up() {
    let server = Server::start().await;
    server.answer(|method, path, body| match (method, path) {
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews") => {
            let good = body["spec"]["token"] == "good" && body["spec"]["audiences"] == json!(["weft"]);
            let user = json!({"username": "system:serviceaccount:shop:web", "extra": {"k": ["v"]}});
            let status = if good {
                json!({"authenticated": true, "audiences": ["weft"], "user": user})
            } else {
                json!({"error": format!("{} is bad", body["spec"]["token"].as_str().unwrap_or_default())})
            };
            (201, json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": body["spec"], "status": status}).to_string())
        }
        ("GET", "/api/v1/namespaces/shop/pods/web-0") => {
            let metadata = json!({"name": "web-0", "namespace": "shop", "uid": "u-1", "resourceVersion": "7"});
            (200, json!({"metadata": metadata, "spec": {"serviceAccountName": "web"}, "status": {"podIP": "10.0.0.5"}}).to_string())
        }
        _ => (404, status(404, "NotFound")),
    });
    let cluster = ApiServer::new(server.client());
    let review = cluster.review("good", "weft").await.expect("an answer");
    assert!(review.authenticated && review.audiences == ["weft"] && review.extra["k"] == ["v"], "{review:?}");
    let review = cluster.review("secret", "weft").await.expect("an answer");
    assert!(!review.authenticated && !review.error.contains("secret"), "{review:?}");
    let facts = cluster.pod(&"shop/web-0".parse().expect("valid")).await.expect("an answer").expect("it is there");
    assert_eq!((facts.uid.as_deref(), facts.service_account.as_str()), (Some("u-1"), "web"));
    assert!(cluster.pod(&"shop/web-1".parse().expect("valid")).await.expect("an answer").is_none());
}

#[tokio::test]
async fn two_replicas_that_start_together_share_the_ca_of_the_faster() {
    let server = Server::start().await;
    let store = Store::default();
    server.answer(move |method, path, body| store.answer(method, path, body));
    let domain = "cluster.local".parse().expect("valid");
    let open = || ca::open(server.client(), "weft-system", "weft-ca", &domain);
    let (a, b) = tokio::join!(open(), open());
    assert_eq!(a.expect("opened").anchor_hash(), b.expect("opened").anchor_hash());
}

#[tokio::test]
async fn the_lease_has_one_holder_and_goes_to_another_when_it_is_given_back() {
    let server = Server::start().await;
    let store = Store::default();
    server.answer(move |method, path, body| store.answer(method, path, body));
    let candidate = |name: &str| {
        let ((leading, led), stop) = (watch::channel(false), CancellationToken::new());
        tokio::spawn(lease::hold(server.client(), "weft-system".into(), name.into(), leading, stop.clone()));
        (led, stop)
    };
    let (mut a, stop_a) = candidate("a");
    timeout(PATIENCE, a.wait_for(|l| *l)).await.expect("in time").expect("it goes on");
    let (mut b, _stop_b) = candidate("b");
    server.waited_for("GET", "/leases/", 2).await;
    assert!(!*b.borrow(), "there is one already");
    stop_a.cancel();
    timeout(PATIENCE, b.wait_for(|l| *l)).await.expect("in time").expect("it goes on");
    assert!(!*a.borrow());
}

#[tokio::test]
async fn anchors_are_put_into_meshed_namespaces_and_taken_out_of_those_that_left() {
    let server = Server::start().await;
    let (writes, mut written) = mpsc::unbounded_channel();
    let left = json!({
        "metadata": {"name": bundle::NAME, "namespace": "left", "labels": {"app.kubernetes.io/managed-by": "weft-control-plane"}},
        "data": {(bundle::FILE): "old"},
    });
    server.answer(move |method, path, body| match method {
        "GET" => (200, json!({"metadata": {"resourceVersion": "1"}, "items": [left]}).to_string()),
        _ => {
            writes.send((method.to_owned(), path.to_owned(), body.clone())).expect("the test listens");
            (200, json!({"metadata": {"name": bundle::NAME}}).to_string())
        }
    });
    let (_meshed, meshed) = watch::channel(Arc::new(BTreeSet::from(["shop".parse().expect("valid")])));
    let (leading, led) = watch::channel(false);
    let domain: weft_core::TrustDomain = "cluster.local".parse().expect("valid");
    let made = make(&domain, "").expect("made");
    let pem = Pem { place: "here".into(), chain: made.chain.to_string(), key: made.issuer_key.clone(), anchors: None };
    let ca = Arc::new(Ca::open(domain, &CaSource::Text(&pem)).expect("good"));
    let anchors = ca.anchor_pem();
    let bundles = bundle::Bundles { client: server.client(), ca };
    tokio::spawn(bundles.run(meshed, led));
    leading.send_replace(true);
    let mut next = async || timeout(PATIENCE, written.recv()).await.expect("in time").expect("it goes on");
    let (method, path, body) = next().await;
    assert_eq!((method.as_str(), path.as_str()), ("PATCH", "/api/v1/namespaces/shop/configmaps/weft-trust-bundle"));
    assert_eq!(body["data"], json!({(bundle::FILE): anchors}));
    let (method, path, _) = next().await;
    assert_eq!((method.as_str(), path.as_str()), ("DELETE", "/api/v1/namespaces/left/configmaps/weft-trust-bundle"));
    let asked = server.asked("/api/v1/configmaps?");
    assert!(asked[0].contains("fieldSelector=metadata.name"), "the right is to this one name alone: {asked:?}");
    let patched = server.asked("/api/v1/namespaces/shop/configmaps/weft-trust-bundle?");
    assert!(patched[0].contains("fieldManager=weft-control-plane") && patched[0].contains("force=true"), "{patched:?}");
}
