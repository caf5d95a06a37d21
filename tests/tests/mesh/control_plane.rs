//! The control plane's certificates: who gets one, by what proof, and for how long; and what it tells of itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use weft_core::SpiffeId;
use weft_proto::v1;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::issue_request::Attestation;
use weft_tests::{ControlPlane, PATIENCE, issue};
use weft_tls::{LeafInfo, PendingKey};

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: app}, {name: weft-sidecar}]}
status: {phase: Running, podIP: 10.1.0.1}
";
const RENEWAL: Attestation = Attestation::Renewal(v1::Renewal {});

fn id(service_account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}").parse().expect("an identity is made of names")
}

#[expect(clippy::unnecessary_wraps, reason = "the shape of the field that it goes into")]
fn token(text: &str) -> Option<Attestation> {
    Some(Attestation::JoinToken(text.to_owned()))
}

fn key() -> PendingKey {
    PendingKey::generate().expect("a key")
}

async fn refused(channel: &Channel, key: &PendingKey, id: &SpiffeId, attestation: Option<Attestation>) -> Status {
    issue(channel.clone(), key, id, attestation).await.expect_err("it should be refused")
}

fn start() -> ControlPlane {
    ControlPlane::start(|manifests| fs::write(manifests.join("pod.yaml"), POD).expect("written"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_is_good_for_one_key_of_one_pod_for_a_while() {
    let mut control_plane = start();
    let (first, anchor) = control_plane.token("shop", "web-0", "web", 0).await;
    let channel = control_plane.stranger(&anchor).await.expect("the control plane is reached");
    let (ours, other, web) = (key(), key(), id("web"));

    let answer = issue(channel.clone(), &ours, &web, token(&first)).await.expect("a fresh token is good");
    let leaf = LeafInfo::read(&CertificateDer::from(answer.chain[0].to_vec())).expect("a leaf");
    assert_eq!(leaf.id, web);
    assert_eq!(leaf.pod.as_ref().map(ToString::to_string).as_deref(), Some("shop/web-0"), "the attested pod stands in it");
    issue(channel.clone(), &ours, &web, token(&first)).await.expect("an answer that was lost is given again to the same key");
    let stolen = refused(&channel, &other, &web, token(&first)).await;
    assert_eq!(stolen.code(), Code::Unauthenticated, "another key: {stolen}");

    let (second, _) = control_plane.token("shop", "web-0", "web", 0).await;
    let another = refused(&channel, &other, &id("admin"), token(&second)).await;
    assert_eq!(another.code(), Code::PermissionDenied, "another identity: {another}");
    let nothing = refused(&channel, &other, &web, None).await;
    assert_eq!(nothing.code(), Code::InvalidArgument, "no attestation: {nothing}");
    let nonsense = refused(&channel, &other, &web, token("weft1.nonsense")).await;
    assert_eq!(nonsense.code(), Code::InvalidArgument, "no token: {nonsense}");
    let garbage = v1::IssueRequest { csr: b"garbage".to_vec().into(), attestation: token(&second), application: false };
    let garbage = CertificatesClient::new(channel.clone()).issue(garbage).await.expect_err("it should be refused");
    assert_eq!(garbage.code(), Code::InvalidArgument, "no request: {garbage}");
    let unproved = refused(&channel, &other, &web, Some(RENEWAL)).await;
    assert_eq!(unproved.code(), Code::Unauthenticated, "renewal of nothing: {unproved}");

    let elsewhere = start();
    let (foreign, foreign_anchor) = elsewhere.token("shop", "web-0", "web", 0).await;
    let unknown = refused(&channel, &other, &web, token(&foreign)).await;
    assert_eq!(unknown.code(), Code::Unauthenticated, "another control plane's token: {unknown}");
    assert!(control_plane.stranger(&foreign_anchor).await.is_err(), "a server without the pinned anchor is not spoken to");

    control_plane.restart();
    let channel = control_plane.stranger(&anchor).await.expect("the anchor outlives the process");
    let stolen = refused(&channel, &other, &web, token(&first)).await;
    assert_eq!(stolen.code(), Code::Unauthenticated, "a use is remembered across a restart: {stolen}");
    expired(&control_plane, &channel).await;
    private_files(&control_plane.state());
}

/// A token of one second is good at first, and then is not, even for the key that used it.
async fn expired(control_plane: &ControlPlane, channel: &Channel) {
    let (short, _) = control_plane.token("shop", "web-0", "web", 1).await;
    let (key, web, end) = (key(), id("web"), Instant::now() + PATIENCE);
    let refusal = loop {
        match issue(channel.clone(), &key, &web, token(&short)).await {
            Ok(_) => assert!(Instant::now() < end, "a token of one second lives on"),
            Err(status) => break status,
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(refusal.code(), Code::Unauthenticated, "{refusal}");
    assert!(refusal.message().contains("expired"), "the reason is said: {refusal}");
}

/// Everything below a directory is its owner's alone.
fn private_files(dir: &Path) {
    for entry in fs::read_dir(dir).expect("it is ours").flatten() {
        let mode = entry.metadata().expect("it is ours").permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
        if entry.path().is_dir() {
            private_files(&entry.path());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_while_its_pod_lives() {
    let control_plane = start();
    let (svid, bundle) = control_plane.join("shop", "web-0", "web").await;
    let channel = control_plane.workload(&svid, &bundle).await.expect("an SVID is a way in");
    let (next, web) = (key(), id("web"));

    let answer = issue(channel.clone(), &next, &web, Some(RENEWAL)).await.expect("its pod lives");
    let leaf = LeafInfo::read(&CertificateDer::from(answer.chain[0].to_vec())).expect("a leaf");
    assert_eq!((&leaf.id, &leaf.pod), (&web, &svid.info().pod), "who it is stays");
    assert_ne!(leaf.serial, svid.info().serial, "the certificate is another");
    let another = refused(&channel, &next, &id("admin"), Some(RENEWAL)).await;
    assert_eq!(another.code(), Code::PermissionDenied, "renewal into another identity: {another}");

    control_plane.remove("pod.yaml");
    let end = Instant::now() + PATIENCE;
    let gone = loop {
        match issue(channel.clone(), &next, &web, Some(RENEWAL)).await {
            Ok(_) => assert!(Instant::now() < end, "the certificate of a pod that is gone is renewed"),
            Err(status) => break status,
        }
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(gone.code(), Code::PermissionDenied, "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_who_it_is_and_how_it_is_and_keeps_its_own_identity_to_itself() {
    let control_plane = start();
    let mut operator = control_plane.operator().await;
    let status = operator.status(v1::StatusRequest {}).await.expect("the operator may").into_inner();
    assert_eq!((status.trust_domain.as_str(), status.workloads, status.problems.len()), ("cluster.local", 1, 0), "{status:?}");
    let reserved = v1::CreateTokenRequest {
        namespace: "weft-system".to_owned(),
        pod: "impostor-0".to_owned(),
        service_account: "weft-control-plane".to_owned(),
        ttl_seconds: 0,
    };
    let reserved = operator.create_token(reserved).await.expect_err("it should be refused");
    assert_eq!(reserved.code(), Code::PermissionDenied, "the control plane's own identity: {reserved}");

    let channel = control_plane.stranger(&status.anchors[0]).await.expect("the control plane is reached");
    for service in ["weft.v1.Certificates", "weft.v1.Discovery"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let health = HealthClient::new(channel.clone()).check(request).await.expect("health is told").into_inner();
        assert_eq!(health.status, ServingStatus::Serving as i32, "{service}");
    }
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let asked = ServerReflectionClient::new(channel).server_reflection_info(Request::new(tokio_stream::iter([request]))).await;
    let answer = asked.expect("reflection is on").into_inner().message().await.expect("an answer").expect("an answer");
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else { panic!("{answer:?}") };
    let names: Vec<&str> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"weft.v1.Discovery") && names.contains(&"weft.v1.Certificates"), "{names:?}");
}
