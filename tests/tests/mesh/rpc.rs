//! Who may call what at the control plane: each RPC for each kind of caller, as a table; and what becomes of a caller that is denied.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_core::SpiffeId;
use weft_proto::v1;
use weft_proto::v1::issue_request::Attestation;
use weft_proto::v1::operator_client::OperatorClient;
use weft_proto::v1::replicas_client::ReplicasClient;
use weft_tests::{ControlPlane, PATIENCE, Watch, issue};
use weft_tls::{PendingKey, Svid, TrustBundle};
use zeroize::Zeroizing;

const PODS: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop}
spec: {serviceAccountName: web, containers: [{name: app}, {name: weft-sidecar}]}
status: {phase: Running, podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop}
spec: {serviceAccountName: db, containers: [{name: app}, {name: weft-sidecar}]}
status: {phase: Running, podIP: 10.1.0.2}
";
const RENEWAL: Attestation = Attestation::Renewal(v1::Renewal {});
const RESERVED: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-control-plane";

fn start() -> ControlPlane {
    ControlPlane::start(|manifests| fs::write(manifests.join("pods.yaml"), PODS).expect("written"))
}

fn id(service_account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}").parse().expect("valid")
}

/// A certificate that some authority made.
fn svid(authority: &Authority, kind: LeafKind, id: &str) -> Option<Svid> {
    let leaf = authority.leaf(&LeafSpec::new(kind, id).with_pod("shop/web-0"));
    Svid::new(leaf.chain_der.clone(), Zeroizing::new(leaf.key_der.secret_der().to_vec())).ok()
}

async fn asked(channel: &Channel, who: &SpiffeId, attestation: Attestation) -> Result<(), Status> {
    let key = PendingKey::generate().expect("a key");
    issue(channel.clone(), &key, who, Some(attestation)).await.map(drop)
}

/// What each RPC answers: renewal of one's own, of another's and of a reserved identity; a pod's token, where there is no cluster; discovery; one
/// of the operator's; and what replicas tell each other.
async fn table(channel: &Channel) -> [Code; 7] {
    let code = |r: Result<(), Status>| r.err().map_or(Code::Ok, |s| s.code());
    let reserved: SpiffeId = RESERVED.parse().expect("valid");
    let watched = match Watch::open(channel.clone(), BTreeMap::new()).await {
        Err(status) => Err(status),
        Ok(mut watch) => {
            watch.until(&["trust"]).await;
            Ok(())
        }
    };
    let operator = OperatorClient::new(channel.clone()).status(v1::StatusRequest {}).await.map(drop);
    [
        code(asked(channel, &id("web"), RENEWAL).await),
        code(asked(channel, &id("db"), RENEWAL).await),
        code(asked(channel, &reserved, RENEWAL).await),
        code(asked(channel, &id("web"), Attestation::KubernetesToken("a.b.c".into())).await),
        code(watched),
        code(operator),
        code(ReplicasClient::new(channel.clone()).trust(v1::ReplicaTrustRequest {}).await.map(drop)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rpc_for_each_caller_by_table() {
    use Code::{FailedPrecondition, Ok, PermissionDenied, Unauthenticated, Unimplemented};
    let control_plane = start();
    let (web, bundle) = control_plane.join("shop", "web-0", "web").await;
    let (_, anchor) = control_plane.token("shop", "web-0", "web", 0).await;
    let stranger = control_plane.stranger(&anchor).await.expect("the control plane is reached");
    let (no, denied) = (Unauthenticated, PermissionDenied);
    assert_eq!(table(&stranger).await, [no, no, no, FailedPrecondition, no, Unimplemented, denied], "nobody");
    let workload = control_plane.workload(&web, &bundle).await.expect("an SVID is a way in");
    assert_eq!(table(&workload).await, [Ok, denied, denied, FailedPrecondition, Ok, Unimplemented, denied], "a workload");

    // What no authority of the mesh has signed opens nothing: not even what nobody may have.
    let foreign = Authority::new("cluster.local");
    for (what, svid) in [
        ("another authority's", svid(&foreign, LeafKind::Valid, &id("web").to_string())),
        ("another authority's, for the control plane", svid(&foreign, LeafKind::Valid, RESERVED)),
        ("another authority's, that ended", svid(&foreign, LeafKind::Expired, &id("web").to_string())),
        ("one's own", svid(&foreign, LeafKind::SelfSigned, &id("web").to_string())),
    ] {
        let svid = svid.expect("it has the shape of one");
        // TLS 1.3 has a client done before the server has looked at its certificate.
        let Result::Ok(channel) = control_plane.workload(&svid, &bundle).await else { continue };
        let refused = asked(&channel, &id("web"), RENEWAL).await.expect_err(what);
        assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{what}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_denied_gets_no_certificate_and_hears_nothing() {
    let mut control_plane = start();
    let (web, bundle) = control_plane.join("shop", "web-0", "web").await;
    let (db, _) = control_plane.join("shop", "db-0", "db").await;
    let (token, anchor) = control_plane.token("shop", "web-0", "web", 0).await;
    let channel = control_plane.workload(&web, &bundle).await.expect("an SVID is a way in");
    let mut watch = Watch::open(channel.clone(), BTreeMap::new()).await.expect("an SVID is enough");
    watch.until(&["trust"]).await;
    let others = control_plane.workload(&db, &bundle).await.expect("an SVID is a way in");
    let mut other = Watch::open(others.clone(), BTreeMap::new()).await.expect("an SVID is enough");
    other.until(&["trust"]).await;

    let deny = v1::TrustDenyRequest { subjects: vec![id("web").to_string()], reason: "stolen".into(), until: 0 };
    control_plane.operator().await.trust_deny(deny).await.expect("the operator may");
    let told = other.until(&["trust"]).await;
    let Some(v1::resource::Body::Trust(told)) = &told["trust"].body else { panic!("{told:?}") };
    assert_eq!(told.denied.as_ref().map(|d| d.identities.clone()), Some(vec![id("web").to_string()]), "others are told");
    let ended = tokio::time::timeout(PATIENCE, async { while watch.next().await.is_ok() {} }).await;
    assert!(ended.is_ok(), "its stream ends");

    let refused = |what: &'static str, outcome: Result<(), Status>| {
        let status = outcome.expect_err(what);
        assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status}");
    };
    refused("renewal on a connection that was open", asked(&channel, &id("web"), RENEWAL).await);
    let stranger = control_plane.stranger(&anchor).await.expect("the control plane is reached");
    refused("joining anew", asked(&stranger, &id("web"), Attestation::JoinToken(token)).await);
    asked(&others, &id("db"), RENEWAL).await.expect("others are renewed");

    control_plane.restart();
    let again = anew(&control_plane, &web, &bundle).await;
    assert!(again.is_err(), "a new connection, at a control plane that started again");
    let permit = v1::TrustPermitRequest { subjects: vec![id("web").to_string()] };
    control_plane.operator().await.trust_permit(permit).await.expect("the operator may");
    anew(&control_plane, &web, &bundle).await.expect("it is denied no more");

    // One certificate alone: the same pod with another is who it was.
    let deny = v1::TrustDenyRequest { subjects: vec![web.info().serial.clone()], reason: String::new(), until: 0 };
    control_plane.operator().await.trust_deny(deny).await.expect("the operator may");
    assert!(anew(&control_plane, &web, &bundle).await.is_err(), "the certificate is denied");
    let (next, bundle) = control_plane.join("shop", "web-0", "web").await;
    anew(&control_plane, &next, &bundle).await.expect("another one is not");
}

/// Renews on a connection of its own.
async fn anew(control_plane: &ControlPlane, svid: &Svid, bundle: &Arc<TrustBundle>) -> Result<(), String> {
    let channel = control_plane.workload(svid, bundle).await?;
    asked(&channel, &svid.info().id, RENEWAL).await.map_err(|e| e.to_string())
}
