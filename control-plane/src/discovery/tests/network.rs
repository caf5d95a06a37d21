//! Sets of peers: to whom they come, when, and when they go.

use super::*;

const POD: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: caller, namespace: shop, labels: {app: a}}\n\
                   spec: {containers: [{name: weft-sidecar}]}\nstatus: {podIP: 10.1.0.1}\n";

fn policy(peer: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{from: [{peer}]}}]}}\n"
    )
}

/// Each resource that is sent, with whether it has a body.
async fn told(world: &mut World) -> Vec<(String, bool)> {
    let all = world.sent().await.into_iter().flatten().map(|r| (r.name, r.body.is_some()));
    all.filter(|(name, _)| name != "trust" && name != "mesh").collect()
}

#[tokio::test]
async fn a_set_comes_before_the_policy_that_names_it_and_goes_after() {
    let mut world = World::new(
        "shop",
        &["mtls-mode/v1", "outbound/v1", "network-policy/v1"],
        &(POD.to_owned() + &policy("{podSelector: {}}")),
    );
    let first = told(&mut world).await;
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names[0].starts_with("peers/") && names[1..] == ["inbound", "outbound"], "{names:?}");

    // Another peer is another set: it comes first, and the one that is named no more goes last.
    world.apply(&policy("{podSelector: {matchLabels: {app: b}}}"));
    let second = told(&mut world).await;
    let names: Vec<(&str, bool)> = second.iter().map(|(name, body)| (name.as_str(), *body)).collect();
    assert!(names[0].0.starts_with("peers/") && names[0] != (first[0].0.as_str(), true), "{names:?}");
    assert_eq!(names[1..], [("inbound", true), (first[0].0.as_str(), false)]);
    assert!(!world.session.held.keys().any(|name| name.to_string() == first[0].0), "it is held no more");

    // Nobody is told of a set that its policies do not name, whatever it says that it holds.
    world.subscribe(&first[0].0);
    assert_eq!(told(&mut world).await, []);
    let held = vec![v1::Held { name: "peers/00000000000000aa".into(), version: 7 }];
    world.hear(Message::Hello(v1::Hello {
        features: vec!["outbound/v1".into(), "network-policy/v1".into()],
        held,
        ..Default::default()
    }));
    let again = told(&mut world).await;
    assert!(again.contains(&("peers/00000000000000aa".to_owned(), false)), "{again:?}");
}

#[tokio::test]
async fn a_sidecar_that_does_not_know_of_outbound_policies_gets_none() {
    let mut world = World::new("shop", &["mtls-mode/v1"], POD);
    assert_eq!(told(&mut world).await, [("inbound".to_owned(), true)]);
    world.apply(&policy("{podSelector: {}}"));
    let names: Vec<String> = told(&mut world).await.into_iter().map(|(name, _)| name).collect();
    assert!(!names.contains(&"outbound".to_owned()) && names.contains(&"inbound".to_owned()), "{names:?}");
}
