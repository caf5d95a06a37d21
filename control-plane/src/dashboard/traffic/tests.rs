use weft_core::policy::MtlsMode;
use weft_proto::v1::resource::Body;

use super::*;
use crate::model::Model;
use crate::snapshot::Entry;
use crate::watch::{Change, parse};

const MINUTE: Duration = Duration::from_secs(60);

/// A service `shop/web` with a pod, and its traffic.
fn traffic() -> Arc<Traffic> {
    let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
    let mut model = Model::new("td".parse().expect("valid"), MtlsMode::Permissive, mesh.clone(), mesh);
    let manifests = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.0.0.9, ports: [{port: 80}]}\n\
        ---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: shop}\nspec: {serviceAccountName: web}\nstatus: {podIP: 10.1.0.1, phase: Running}\n\
        ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
        addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: web-0, namespace: shop}}]\n";
    let changes = parse::parse("test", manifests).expect("good manifests").into_iter().map(Change::Upsert).collect();
    model.apply(changes);
    Traffic::new(Hub::new(model.snapshot().clone()), Duration::ZERO)
}

fn seat(traffic: &Arc<Traffic>, pod: &str) -> Seat {
    let id = "spiffe://td/ns/shop/sa/front".parse().expect("an identity");
    traffic.join(Some(pod.parse().expect("a name")), &id)
}

fn edge(target: &str, requests: u64) -> v1::ReportedEdge {
    let errors =
        vec![v1::ReportedError { reason: "overloaded".into(), count: 1 }, v1::ReportedError { reason: "<b>".into(), count: 1 }];
    let latency = vec![0, requests];
    v1::ReportedEdge { target: target.into(), requests, failed: 1, mutual_tls: true, latency, errors, ..Default::default() }
}

fn report(whole: bool, edges: Vec<v1::ReportedEdge>) -> v1::TrafficReport {
    v1::TrafficReport { whole, edges, ..Default::default() }
}

fn pair(to: &str) -> Pair {
    Pair { from: Node::Account("shop/front".into()), to: Node::Service(to.parse().expect("a name")), mutual_tls: true }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_or_kept_while_nobody_looks() {
    let traffic = traffic();
    let (watching, mut seat) = (tokio::spawn(traffic.clone().watch()), seat(&traffic, "shop/front-0"));
    assert!(tokio::time::timeout(MINUTE * 60, seat.asks()).await.is_err(), "nobody looks");
    seat.take(report(true, vec![edge("shop/web", 5)]));
    assert!(traffic.kept().totals.is_empty(), "nobody has asked for it");
    traffic.look(MINUTE);
    assert!(seat.asks().await.interval_millis >= INTERVAL_MILLIS);
    seat.take(report(true, vec![edge("shop/web", 5)]));
    assert_eq!(traffic.look(MINUTE).totals.len(), 1);
    tokio::time::sleep(LEASE / 2).await;
    traffic.look(MINUTE);
    assert!(tokio::time::timeout(LEASE * 9 / 10, seat.asks()).await.is_err(), "somebody still looks");
    assert_eq!(seat.asks().await.interval_millis, 0, "nobody looks any more");
    assert!(traffic.kept().totals.is_empty() && traffic.kept().slots.is_empty());
    // What was told in another round is not taken back from this one.
    traffic.look(MINUTE);
    drop(seat);
    assert!(traffic.look(MINUTE).totals.is_empty());
    watching.abort();
}

#[tokio::test(start_paused = true)]
async fn pods_are_put_together_and_what_a_sidecar_told_goes_with_it() {
    let traffic = traffic();
    traffic.look(MINUTE);
    let (mut a, mut b, mut web) = (seat(&traffic, "shop/front-0"), seat(&traffic, "shop/front-1"), seat(&traffic, "shop/web-0"));
    a.take(report(true, vec![edge("shop/web", 100)]));
    b.take(report(true, vec![edge("shop/web", 50)]));
    tokio::time::advance(SLOT).await;
    a.take(report(false, vec![edge("shop/web", 3), edge("shop/web-0", 1), edge("<img src=x>", 1)]));
    web.take(report(false, vec![v1::ReportedEdge { inbound: true, requests: 7, ..Default::default() }]));
    let look = traffic.look(MINUTE);
    assert_eq!(
        (look.totals[&pair("shop/web")].requests, look.window[&pair("shop/web")].requests),
        (154, 4),
        "a pod stands for its service"
    );
    assert_eq!(look.totals[&pair("shop/web")].errors, [("overloaded", 4)].into(), "only reasons that there are");
    assert!(look.totals.contains_key(&Pair { to: Node::Outside("<img src=x>".into()), ..pair("shop/web") }));
    let plain = Pair { from: Node::Plaintext, mutual_tls: false, ..pair("shop/web") };
    assert_eq!(look.totals[&plain].requests, 7, "who has no sidecar is told of by whom it calls");
    assert_eq!(look.series[&plain.to].last(), Some(&(11, 2)));
    let p50 = look.window[&pair("shop/web")].quantile(0.5).expect("there were requests");
    assert!((p50 - 0.75).abs() < 1e-9, "{p50}");
    // Told anew, as after the stream was made anew: not counted twice.
    a.take(report(true, vec![edge("shop/web", 103)]));
    assert_eq!(traffic.look(MINUTE).totals[&pair("shop/web")].requests, 153);
    drop((a, b));
    assert!(!traffic.look(MINUTE).totals.contains_key(&pair("shop/web")));
    tokio::time::advance(SLOT * 3).await;
    assert!(traffic.look(MINUTE).window.contains_key(&pair("shop/web")), "the past stays for as long as it is looked at");
    tokio::time::advance(SLOT).await;
    assert!(traffic.look(MINUTE).window.is_empty());
}

#[tokio::test(start_paused = true)]
async fn whatever_sidecars_say_takes_bounded_room() {
    let traffic = traffic();
    traffic.look(MINUTE);
    let mut seats: Vec<_> = (0..MOST_PAIRS / OF_ONE_SIDECAR + 5).map(|i| seat(&traffic, &format!("shop/front-{i}"))).collect();
    for (i, seat) in seats.iter_mut().enumerate() {
        for round in 0..3 {
            let edges = (0..OF_ONE_SIDECAR + 10).map(|j| edge(&format!("host-{i}-{round}-{j}"), u64::MAX)).collect();
            let refusals = (0..MOST_REFUSALS).map(|j| v1::ReportedRefusal {
                reference: format!("{round}-{j}"),
                text: "x".repeat(10_000),
                at: j as i64,
                ..Default::default()
            });
            seat.take(v1::TrafficReport { edges, refusals: refusals.collect(), ..Default::default() });
        }
        assert!(seat.told.len() <= OF_ONE_SIDECAR);
    }
    let kept = traffic.kept();
    assert_eq!((kept.totals.len(), kept.refusals.len()), (MOST_PAIRS, MOST_REFUSALS));
    assert!(kept.slots.iter().all(|slot| slot.pairs.len() <= MOST_PAIRS) && kept.left_out.0 > 0 && kept.left_out.1 > 0);
    assert!(kept.refusals.iter().all(|r| r.told.text.len() <= LONGEST));
    assert!(kept.refusals.iter().zip(kept.refusals.iter().skip(1)).all(|(a, b)| a.told.at <= b.told.at));
}
