use proptest::prelude::*;
use weft_core::SpiffeId;
use weft_core::authorization::Posture;
use weft_core::policy::MtlsMode;
use weft_proto::v1;
use weft_proto::v1::resource::Body;

use super::*;
use crate::explain::flows::Replay;
use crate::model::Model;
use crate::snapshot::{Entry, Snapshot};
use crate::watch::Change;
use crate::watch::parse::parse;

/// A Service for the web, and a job's pod that no Service leads to.
const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 81, targetPort: 8081}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web, pod-template-hash: abc}}
spec: {serviceAccountName: web, containers: [{name: weft-sidecar}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: job-0, namespace: shop, labels: {app: job}}
spec: {serviceAccountName: job, containers: [{name: weft-sidecar}]}
status: {podIP: 10.0.0.2}
";

fn domain() -> TrustDomain {
    "td".parse().expect("a domain")
}

fn objects(text: &str) -> Vec<Object> {
    parse("test", text).unwrap_or_else(|problem| panic!("{problem}\n{text}"))
}

fn snapshot(suggested: &str) -> Snapshot {
    let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
    let mut model = Model::new(domain(), MtlsMode::Permissive, mesh.clone(), mesh);
    model = model.with_authorization(Posture::AllowAll, "weft-system".parse().expect("a namespace"));
    let policies = if suggested.is_empty() { vec![] } else { objects(suggested) };
    model.apply(objects(SHOP).into_iter().chain(policies).map(Change::Upsert).collect());
    assert_eq!(model.problems(), [], "{suggested}");
    model.snapshot().clone()
}

fn suggested(flows: &[Flow], collapse: Option<usize>) -> Suggestion {
    let (objects, domain) = (objects(SHOP), domain());
    suggest(flows, objects.iter(), Options { domain: &domain, namespace: None, collapse })
}

fn flow(pod: &str, port: u16, caller: &str, call: Option<(&str, &str)>) -> Flow {
    let account = pod.split_once('-').expect("a pod of an account").0;
    Flow {
        pod: format!("shop/{pod}").parse().expect("a name"),
        identity: format!("spiffe://td/ns/shop/sa/{account}").parse().expect("an identity"),
        caller: (!caller.is_empty()).then(|| caller.parse::<SpiffeId>().expect("an identity")),
        source: [10, 0, 9, 1].into(),
        port,
        protocol: if call.is_some() { "http/1.1" } else { "tcp" }.into(),
        method: call.map(|(method, _)| method.into()),
        path: call.map(|(_, path)| path.into()),
        host: call.map(|_| "web.shop".into()),
        grpc: false,
        allowed: true,
        reason: None,
        count: 3,
        first: 1_700_000_000,
        last: 1_700_000_060,
    }
}

const CLIENT: &str = "spiffe://td/ns/front/sa/client";
const TILL: &str = "spiffe://td/ns/shop/sa/till";
const PARTNER: &str = "spiffe://other/ns/a/sa/b";

fn arb_flow() -> impl Strategy<Value = Flow> {
    let pod = prop_oneof![Just(("web-0", 8080)), Just(("web-0", 8081)), Just(("job-0", 9000)), Just(("job-0", 9001))];
    let caller = prop_oneof![Just(CLIENT), Just(TILL), Just(PARTNER), Just("")];
    let method = prop_oneof![Just("GET"), Just("PUT"), Just("DELETE")];
    let segment = prop_oneof![Just("a"), Just("b"), Just("c%20d"), Just("é"), Just("7")];
    let path = proptest::collection::vec(segment, 0..3).prop_map(|all| format!("/{}", all.join("/")));
    (pod, caller, method, path, any::<bool>()).prop_map(|((pod, port), caller, method, path, grpc)| {
        // Bytes have ports of their own: of them nothing else can be asked.
        let call = (port % 2 == 0).then_some((method, path.as_str()));
        let mut flow = flow(pod, port, caller, call);
        flow.grpc = grpc && call.is_some();
        flow
    })
}

/// What tells two calls apart for a policy.
fn key(flow: &Flow) -> String {
    let source = if flow.caller.is_none() { flow.source.to_string() } else { String::new() };
    let path = flow.path.as_deref().map(|p| normalise(p.as_bytes()).map(std::borrow::Cow::into_owned));
    format!("{:?}", (&flow.pod, flow.port, &flow.caller, source, &flow.method, path))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn what_was_seen_is_allowed_and_nothing_else(
        seen in proptest::collection::vec(arb_flow(), 1..20), other in proptest::collection::vec(arb_flow(), 1..20),
    ) {
        let told = suggested(&seen, None);
        prop_assert!(told.left_out.is_empty());
        let (snapshot, domain) = (snapshot(&told.manifests), domain());
        let mut replay = Replay::new(&snapshot, &domain);
        for flow in &seen {
            let ruling = replay.ruling(flow).expect("the pod is there");
            prop_assert!(ruling.allowed, "{}: {}\n{}", flow.told(), ruling.reason, told.manifests);
        }
        for flow in other.iter().filter(|flow| !seen.iter().any(|s| key(s) == key(flow))) {
            let ruling = replay.ruling(flow).expect("the pod is there");
            prop_assert!(!ruling.allowed, "{} was never seen: {}\n{}", flow.told(), ruling.reason, told.manifests);
        }
    }

    #[test]
    fn what_is_collapsed_allows_all_that_was_seen(
        seen in proptest::collection::vec(arb_flow(), 1..40), most in 0_usize..4,
    ) {
        let told = suggested(&seen, Some(most));
        let (snapshot, domain) = (snapshot(&told.manifests), domain());
        let mut replay = Replay::new(&snapshot, &domain);
        for flow in &seen {
            let ruling = replay.ruling(flow).expect("the pod is there");
            prop_assert!(ruling.allowed, "{}: {}\n{}", flow.told(), ruling.reason, told.manifests);
        }
    }
}

#[test]
fn a_suggestion_reads_like_this() {
    let mut grpc = flow("web-0", 8081, CLIENT, Some(("POST", "/shop.v1.Books/Get")));
    grpc.grpc = true;
    let mut denied = flow("web-0", 8080, TILL, Some(("GET", "/admin")));
    denied.allowed = false;
    let flows = [
        flow("web-0", 8080, CLIENT, Some(("GET", "/books/1"))),
        flow("web-0", 8080, CLIENT, Some(("HEAD", "/books/1"))),
        grpc,
        flow("web-0", 8080, "", Some(("GET", "/metrics"))),
        flow("job-0", 9000, PARTNER, None),
        flow("web-0", 8080, CLIENT, Some(("GET", "/a/../b"))),
        denied,
    ];
    let told = suggested(&flows, None);
    let expected = "\
---
# What no other policy allows is refused: in shop nothing else was called.
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: suggested-nothing-else, namespace: shop}
spec: {action: Allow}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: suggested-web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  action: Allow
  rules:
  # 9 calls, from 2023-11-14T22:13:20Z to 2023-11-14T22:14:20Z.
  - from: [{serviceAccounts: [\"front/client\"]}]
    to:
    - {ports: [8080], methods: [\"GET\",\"HEAD\"], paths: [\"/books/1\"]}
    - {ports: [8081], methods: [\"POST\"], grpc: [{service: \"shop.v1.Books\", method: \"Get\"}]}
  # 3 calls, from 2023-11-14T22:13:20Z to 2023-11-14T22:14:20Z. It proves no identity: bring it into the mesh.
  - from: [{unauthenticated: true, ipBlocks: [\"10.0.9.1/32\"]}]
    to:
    - {ports: [8080], methods: [\"GET\"], paths: [\"/metrics\"]}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: suggested-job, namespace: shop}
spec:
  # No Service leads to the port.
  selector: {matchLabels: {\"app\":\"job\"}}
  action: Allow
  rules:
  # 3 calls, from 2023-11-14T22:13:20Z to 2023-11-14T22:14:20Z.
  - from: [{principals: [\"spiffe://other/ns/a/sa/b\"]}]
    to:
    # Bytes that are not HTTP: of them nothing but the port can be asked.
    - {ports: [9000]}
";
    assert_eq!(told.manifests, expected);
    assert_eq!((told.calls, told.flows), (15, 5));
    let why: Vec<_> = told.left_out.iter().map(|(why, calls)| (why.as_str(), *calls)).collect();
    assert_eq!(
        why,
        [("it was refused when it was recorded", 3), ("its path could be taken for another one, and is never judged", 3)]
    );
    snapshot(&told.manifests);
}

#[test]
fn paths_are_collapsed_only_where_that_is_asked_for() {
    let paths = |all: &[&str]| all.iter().map(|p| (*p).to_owned()).collect::<BTreeSet<String>>();
    let many = paths(&["/orders/1", "/orders/2", "/orders/3", "/health"]);
    assert_eq!(paths::collapsed(many.clone(), 4), many);
    assert_eq!(paths::collapsed(many.clone(), 2), paths(&["/orders/{any}", "/health"]));
    let deep = paths(&["/f/a", "/f/b/c", "/f/d/e/g", "/f/h/i/j/k", "/x"]);
    assert_eq!(paths::collapsed(deep, 2), paths(&["/f/*", "/x"]));
}

#[test]
fn a_suggestion_is_for_one_namespace_where_that_is_asked_for() {
    let (objects, domain, away) = (objects(SHOP), domain(), "away".parse().expect("a namespace"));
    let told = suggest(
        &[flow("web-0", 8080, CLIENT, Some(("GET", "/")))],
        objects.iter(),
        Options { domain: &domain, namespace: Some(&away), collapse: None },
    );
    assert_eq!((told.manifests.as_str(), told.flows), ("", 0));
}
