//! Who a pod is, the control plane believes by a token that is bound to that pod, in a call from that pod.

use prost::Message as _;
use weft_core::SpiffeId;
use weft_proto::v1;
use weft_proto::v1::issue_request::Attestation;
use weft_tests::cluster::{HOME, feed, must, soon, when};
use weft_tls::PendingKey;

use crate::Mesh;

/// Made by the kubelet for the control plane, as the sidecar's own is.
pub(crate) const TOKEN: &str = "/token/token";
/// Made for the API server.
const OTHER_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// gRPC's codes (`statuscodes.md`).
pub(crate) const OK: &str = "0";
const UNAUTHENTICATED: &str = "16";

pub(crate) fn is_of_the_pod(mesh: &Mesh<'_>) {
    // Of one service account, so that nothing but the pod tells them apart.
    let pods = mesh.shop.pods("client");
    let [owner, thief] = &pods[..] else { panic!("there are two clients, and not {pods:?}") };
    let token = |file: &str| mesh.shop.exec(owner, &["cat", file]).good();
    let host = format!("weft-control-plane.{HOME}.svc");

    let (code, why) = present(mesh, owner, &token(TOKEN), &host);
    assert_eq!(code, OK, "a pod's own token is good: {why}");
    let (code, why) = present(mesh, thief, &token(TOKEN), &host);
    assert_eq!(code, UNAUTHENTICATED, "a token of another pod: {why}");
    assert!(why.contains(owner) && why.contains("none of its addresses"), "it should say why: {why:?}");
    let (code, why) = present(mesh, owner, &token(OTHER_TOKEN), &host);
    assert_eq!(code, UNAUTHENTICATED, "a token for another audience: {why}");
    assert!(!why.is_empty(), "it should say why");

    // It ends with its pod, whoever kept it.
    let kept = mesh.shop.exec(thief, &["cat", TOKEN]).good();
    must(&["-n", mesh.shop.name(), "delete", "pod", thief, "--timeout=120s"]);
    soon("the token of a pod that is gone is worth nothing", || {
        let (code, why) = present(mesh, owner, &kept, &host);
        when(code == UNAUTHENTICATED && why.contains("does not accept the token"), || format!("{code} {why}"))
    });
    mesh.shop.is_ready("client");
}

/// Asks a host for a certificate, with a token, from a pod; the code and the message of the answer.
pub(crate) fn present(mesh: &Mesh<'_>, pod: &str, token: &str, host: &str) -> (String, String) {
    let id: SpiffeId = mesh.shop.identity("client").parse().expect("an identity is made of names");
    let csr = PendingKey::generate().expect("a key").request(&id).expect("a request").into();
    let attestation = Some(Attestation::KubernetesToken(token.trim().to_owned()));
    let message = v1::IssueRequest { csr, attestation, application: false }.encode_to_vec();
    // Before a message, whether it is compressed, and its length (gRPC, `PROTOCOL-HTTP2.md`).
    let length = u32::try_from(message.len()).expect("a request is short").to_be_bytes();
    let call = [[0_u8].as_slice(), &length, &message].concat();

    let url = format!("https://{host}:4700/weft.v1.Certificates/Issue");
    let exec = ["-n", mesh.shop.name(), "exec", "-i", pod, "-c", "app", "--"];
    let curl = ["curl", "-sS", "-k", "--http2", "--max-time", "20", "-o", "/dev/null", "-D", "-", "--data-binary", "@-"];
    let fields = ["-H", "content-type: application/grpc", "-H", "te: trailers", &url];
    let answer = feed(&call, &[&exec[..], &curl, &fields].concat()).good();
    let field = |name: &str| {
        let value = answer.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_default().trim().replace("%20", " ")
    };
    assert!(answer.contains("grpc-status:"), "no answer of gRPC: {answer}");
    (field("grpc-status:"), field("grpc-message:"))
}
