//! Network policies at the called pod and at the caller's.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use weft_core::authorization::Authorization;
use weft_core::network_policy::{Isolation, Member, PeerSets, PeerTerm, PeersId, Policy, PortTerm, Rule};
use weft_core::policy::{InboundPolicy, OutboundPolicy};

use crate::backend::PORT;
use crate::lab::{Lab, Setup, endpoint, pod};
use crate::seeds::first_seeds;
use crate::world::{A, CALLEE, CALLER, Sidecar, inbound_policy};

const SET: PeersId = PeersId(1);

/// One policy, with one rule: the pods of a set, at some ports.
#[expect(clippy::unnecessary_wraps, reason = "as policies have it")]
fn isolation(ports: Vec<PortTerm>) -> Option<Arc<Isolation>> {
    let rule = Rule { place: 0, peers: vec![PeerTerm::Set(SET)], ports };
    let policy = Policy { id: "shop/only".parse().expect("a name"), rules: vec![rule], broken: None };
    Some(Arc::new(Isolation { policies: vec![Arc::new(policy)] }))
}

fn isolate_ingress(sidecar: &Sidecar) {
    sidecar.govern(InboundPolicy { network: isolation(vec![PortTerm::All]), ..inbound_policy(Authorization::default()) });
}

/// A set of one pod at each address, with the identity that it proves.
fn set(members: &[(std::net::IpAddr, &str)]) -> PeerSets {
    let member = |id: &str| Member {
        pod: "shop/somebody".parse().expect("a name"),
        identity: Some(id.parse().expect("an identity")),
        port: None,
    };
    [(SET, Arc::new(members.iter().map(|(ip, id)| (*ip, member(id))).collect()))].into()
}

#[test]
fn a_caller_is_let_in_if_its_address_and_its_certificate_agree() {
    first_seeds(4, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        let callee = &lab.callees[0];
        isolate_ingress(callee);
        for (sets, status, says) in [
            (set(&[(A, CALLER)]), 200, ""),
            (set(&[(A, CALLEE)]), 403, "and the other end is"),
            (set(&[(pod(7), CALLER)]), 403, "the other end is none of its peers"),
            (PeerSets::new(), 403, "is not there yet"),
        ] {
            callee.shared.mesh.know_peers(sets);
            let answer = lab.ask(0, "GET /ok/1", &[], None).await.expect("an answer");
            assert_eq!(answer.status(), status, "{says}");
            if status == 403 {
                assert_eq!(answer.field("weft-error"), Some("network-policy"));
                let reference = answer.field("weft-ref").expect("a reference");
                let record = callee.shared.denials.of(reference).expect("it is kept");
                assert!(record.text.contains(says) && record.text.contains("shop/only"), "{}", record.text);
                assert_eq!((record.peer.as_str(), record.policy.as_deref()), (CALLER, Some("shop/only")));
            }
        }
        lab.end().await;
    });
}

#[test]
fn a_pod_that_has_just_started_is_given_a_moment_to_be_known() {
    first_seeds(4, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        let callee = &lab.callees[0];
        isolate_ingress(callee);
        callee.shared.mesh.know_peers(set(&[(pod(7), CALLER)]));
        let mesh = callee.shared.mesh.clone();
        let known = spawn_local(async move {
            sleep(Duration::from_millis(200)).await;
            mesh.know_peers(set(&[(pod(7), CALLER), (A, CALLER)]));
        });
        assert_eq!(lab.ask(0, "GET /ok/1", &[], None).await.expect("an answer").status(), 200);
        known.await.expect("it ends");

        // Connections that are open are asked again, and one that is made anew waits in vain.
        callee.shared.mesh.know_peers(set(&[(pod(7), CALLER)]));
        let began = Instant::now();
        let mut client = lab.client(0).await;
        let answer = crate::calls::ask(&mut client, "GET /ok/2", &[], None).await.expect("an answer");
        assert_eq!((answer.status(), answer.field("weft-error")), (403, Some("network-policy")));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        drop(client);
        lab.end().await;
    });
}

#[test]
fn endpoints_that_the_callers_policies_forbid_are_no_candidates() {
    first_seeds(4, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[3]));
        let caller = &lab.caller.shared.mesh;
        let govern = |ports| {
            caller.govern_outbound(OutboundPolicy { network: isolation(ports), ..OutboundPolicy::default() });
            // As discovery does when the policy changes.
            lab.endpoints(0, (0..3).map(|n| endpoint(n, true)).collect());
        };
        caller.know_peers(set(&[(pod(1), CALLEE)]));
        govern(vec![PortTerm::Range(PORT, PORT)]);
        for id in 0..6 {
            let answer = lab.ask(0, &format!("GET /ok/{id}"), &[], None).await.expect("an answer");
            assert_eq!(answer.status(), 200);
        }
        let counts: Vec<usize> = lab.backends.iter().map(|b| b.count()).collect();
        assert_eq!(counts, [0, 6, 0]);

        govern(vec![PortTerm::Range(1, 1)]);
        let answer = lab.ask(0, "GET /ok/9", &[], None).await.expect("an answer");
        assert_eq!((answer.status(), answer.field("weft-error")), (403, Some("network-policy")));
        let record = lab.caller.shared.denials.of(answer.field("weft-ref").expect("a reference")).expect("kept at the caller");
        assert!(record.text.starts_with("egress to ") && record.called.is_some(), "{}", record.text);
        assert_eq!(lab.count(), 6, "nothing was sent");
        lab.end().await;
    });
}
