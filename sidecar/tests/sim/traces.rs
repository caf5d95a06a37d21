//! Traces over whole sidecars: what stands on the wire, and the spans that are told.

use serde_json::Value;
use weft_core::traffic::route::{RouteKind, Rule};

use crate::backend::{Reply, grpc, status};
use crate::calls::grpc_call;
use crate::lab::{Lab, Setup, rule};
use crate::retries::retry;
use crate::seeds::first_seeds;

const ALWAYS: &[(&str, &str)] = &[("OTEL_TRACES_SAMPLER", "parentbased_always_on")];
const NEVER: &[(&str, &str)] = &[("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn traced(mut setup: Setup, variables: &'static [(&'static str, &'static str)]) -> Lab {
    setup.plan.variables = variables;
    Lab::new(setup)
}

/// The span that a `traceparent` names, of the trace that all belong to.
fn span_of(traceparent: Option<&str>) -> String {
    let said = traceparent.expect("it says where it stands");
    assert!(said.starts_with(&format!("00-{TRACE}-")) && said.ends_with("-01"), "{said}");
    said[36..52].to_owned()
}

fn by_kind<'a>(spans: &'a [Value], kind: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["kind"] == kind).collect()
}

#[test]
fn each_attempt_arrives_with_a_span_of_its_own_below_the_requests() {
    first_seeds(4, &async |seed| {
        let mut lab = traced(Setup::plain(seed, &[2]), ALWAYS);
        lab.backends[0].does(|_| Reply::Reset);
        lab.route(0, RouteKind::Http, vec![Rule { retry: Some(retry(&[503], &[], 2)), ..rule(&[(0, 1)]) }]);
        for id in 0..40_u64 {
            let fields = [("x-id", &*id.to_string()), ("traceparent", PARENT)];
            assert_eq!(lab.ask(0, "GET /", &fields, None).await.map(|a| a.status()), Some(200));
            if lab.backends[0].count() > 0 {
                break;
            }
        }
        let first = lab.backends[0].seen.borrow().last().expect("it was asked").clone();
        let again = lab.backends[1].seen.borrow().last().expect("it was asked then").clone();
        assert_eq!(first.id(), again.id());
        let sent = [&first, &again].map(|asked| span_of(asked.field("traceparent")));
        assert_ne!(sent[0], sent[1]);
        let spans = lab.caller.spans();
        let whole = by_kind(&spans, "internal");
        assert_eq!((whole.len(), &whole[0]["parent_span_id"]), (1, &"b7ad6b7169203331".into()), "{spans:?}");
        let below: Vec<&Value> = spans.iter().filter(|span| span["parent_span_id"] == whole[0]["span_id"]).collect();
        assert_eq!(below.iter().map(|span| span["span_id"].as_str().expect("text")).collect::<Vec<_>>(), sent);
        assert_eq!(below.iter().map(|span| span["error"] == true).collect::<Vec<_>>(), [true, false]);
        lab.end().await;
    });
}

#[test]
fn a_grpc_call_has_a_client_span_and_a_server_span_with_its_status() {
    first_seeds(4, &async |seed| {
        let mut lab = traced(Setup::mesh(seed, &[1]), ALWAYS);
        lab.backends[0].does(|_| grpc(14));
        let send = lab.http2(0).await;
        let called = grpc_call(&send, 1, &[("traceparent", PARENT)]).await.expect("an answer");
        assert_eq!(called.code, Some(14));
        let asked = lab.backends[0].seen.borrow().last().expect("it arrived").clone();
        drop(send);
        let spans = [lab.caller.spans(), lab.callees[0].spans()].concat();
        let (client, server) = (by_kind(&spans, "client"), by_kind(&spans, "server"));
        assert_eq!((client.len(), server.len()), (1, 1), "{spans:?}");
        assert_eq!(server[0]["span_id"], span_of(asked.field("traceparent")));
        assert_eq!(server[0]["parent_span_id"], client[0]["span_id"]);
        assert_eq!(client[0]["parent_span_id"], "b7ad6b7169203331");
        for span in [client[0], server[0]] {
            let said = &span["attributes"];
            assert_eq!((&span["name"], &span["error"]), (&"shop.Api/Get".into(), &true.into()), "{span}");
            assert_eq!((&said["rpc.response.status_code"], &said["error.type"]), (&"UNAVAILABLE".into(), &"UNAVAILABLE".into()));
            assert_eq!(said["network.protocol.version"], "2");
        }
        // What failed in gRPC has failed wherever it is counted.
        let edges = lab.caller.shared.metrics.edges();
        assert_eq!(edges.iter().map(|e| (e.requests, e.failed)).collect::<Vec<_>>(), [(1, 1)]);
        lab.end().await;
    });
}

#[test]
fn what_failed_is_told_though_nobody_samples_and_nothing_is_said_on_the_wire() {
    first_seeds(2, &async |seed| {
        let mut setup = Setup::plain(seed, &[1]);
        setup.plan.options = &["--trace-errors=true"];
        let mut lab = traced(setup, NEVER);
        lab.backends[0].does(|asked| status(if asked.id() == 2 { 503 } else { 200 }));
        for id in 1..=3_u64 {
            let answer = lab.ask(0, "GET /", &[("x-id", &id.to_string())], None).await.expect("an answer");
            assert_eq!(answer.status(), if id == 2 { 503 } else { 200 });
        }
        assert!(lab.backends[0].seen.borrow().iter().all(|asked| asked.field("traceparent").is_none()));
        let spans = lab.caller.spans();
        assert_eq!(spans.len(), 1, "{spans:?}");
        assert_eq!(spans[0]["attributes"]["http.response.status_code"], 503);
        lab.end().await;
    });
}
