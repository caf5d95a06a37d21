//! Old and new versions meet on the wire: what a later one adds is ignored where it adds, and a denial where it decides.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use prost::encoding::encode_varint;
use serde_json::{Value, json};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_core::SpiffeId;
use weft_proto::v1;
use weft_proto::v1::watch_response::Message as Heard;
use weft_tests::{ControlPlane, Sidecar, eventually};
use weft_tls::{PendingKey, TrustBundle};

/// A number that no field of this version has, nor any arm of a oneof.
const LATER: u32 = 77;
/// Numbers of fields that the fixtures are put together from (`weft/v1/discovery.proto`, `state.proto`).
const RESOURCES: u32 = 5;
const MESH: u32 = 4;
const INBOUND: u32 = 5;
const ADDRESS: u32 = 6;
const OUTBOUND: u32 = 12;

/// A field with bytes in it: a tag, a length, and those (protobuf, "Encoding").
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(u64::from(number) << 3 | 2, &mut bytes);
    encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

/// A message as a later version writes it: this version's, and a field that this one does not know.
fn later(message: &impl Message) -> Vec<u8> {
    [message.encode_to_vec(), field(LATER, b"later")].concat()
}

fn resource(name: &str, body: &[u8]) -> Vec<u8> {
    let bare = v1::Resource { name: name.to_owned(), version: 1, body: None };
    [later(&bare), body.to_vec()].concat()
}

/// The state that a later sidecar of shop/web left, with these resources.
fn saved(resources: &[Vec<u8>]) -> Vec<u8> {
    let authority = Authority::new("cluster.local");
    let spec = LeafSpec::new(LeafKind::Valid, "spiffe://cluster.local/ns/shop/sa/web").with_pod("shop/web-0");
    let leaf = authority.leaf(&spec);
    let bundle = TrustBundle::new(authority.trust_domain().clone(), vec![authority.root_der()]).expect("an anchor is one");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    let state = v1::SavedState {
        saved_at: now.cast_signed(),
        chain: leaf.chain_der.iter().map(|der| der.to_vec().into()).collect(),
        private_key: leaf.key_der.secret_der().to_vec().into(),
        trust_bundle: Some((&bundle).into()),
        resources: Vec::new(),
    };
    let resources = resources.iter().flat_map(|resource| field(RESOURCES, resource));
    later(&state).into_iter().chain(resources).collect()
}

fn permissive() -> v1::InboundPolicy {
    v1::InboundPolicy { mode: v1::MtlsMode::Permissive as i32, ..Default::default() }
}

#[test]
fn a_sidecar_ignores_what_a_later_version_adds_to_what_it_knows() {
    let mesh = v1::Mesh { trust_domain: "cluster.local".to_owned(), ranges: vec!["10.0.0.0/8".to_owned()], ..Default::default() };
    let unknown = v1::Address { kind: Some(v1::address::Kind::Unknown(v1::Unknown {})) };
    let sidecar = Sidecar::restored(
        "shop/web",
        &saved(&[
            resource("mesh", &field(MESH, &later(&mesh))),
            resource("inbound", &field(INBOUND, &later(&permissive()))),
            resource("address/10.0.0.8", &field(ADDRESS, &later(&unknown))),
            // Of a kind that this version does not know: it is not an answer, and certainly not "unknown".
            resource("address/10.0.0.9", &field(ADDRESS, &field(LATER, b"later"))),
            resource("gateway/shop/web", &field(LATER, b"later")),
        ]),
    );
    let config = sidecar.config();
    assert_eq!(config["ready"], true, "{config:#}");
    assert_eq!(config["mesh_ranges"], json!(["10.0.0.0/8"]), "{config:#}");
    assert_eq!((&config["inbound"]["mode"], &config["inbound"]["required_features"]), (&json!("permissive"), &json!([])));
    assert_eq!(config["addresses"], json!({"10.0.0.8": "unknown"}), "{config:#}");
    for why in ["kind of address is missing, or of a kind that this version does not know", "gateway/shop/web"] {
        eventually(&format!("it says {why:?}"), || sidecar.said().contains(why).then_some(()));
    }
}

#[test]
fn an_outbound_policy_is_waited_for_where_the_control_plane_has_one_and_denies_what_cannot_be_judged() {
    let mesh =
        |features: &[&str]| v1::Mesh { features: features.iter().map(ToString::to_string).collect(), ..Default::default() };
    let restored = |mesh: v1::Mesh, more: &[Vec<u8>]| {
        let known = [resource("mesh", &field(MESH, &later(&mesh))), resource("inbound", &field(INBOUND, &later(&permissive())))];
        Sidecar::restored("shop/web", &saved(&[known.as_slice(), more].concat())).config()
    };
    let config = restored(mesh(&[]), &[]);
    assert_eq!(config["ready"], true, "an older control plane has none: {config:#}");

    let config = restored(mesh(&["outbound/v1"]), &[]);
    assert_eq!((&config["ready"], &config["outbound"]), (&json!(false), &Value::Null), "{config:#}");

    let feature = v1::OutboundPolicy { required_features: vec!["time-travel/v9".to_owned()], ..Default::default() };
    let config = restored(mesh(&["outbound/v1"]), &[resource("outbound", &field(OUTBOUND, &later(&feature)))]);
    assert_eq!((&config["ready"], &config["outbound"]["required_features"]), (&json!(true), &json!(["time-travel/v9"])));

    let config = restored(mesh(&["outbound/v1"]), &[resource("outbound", &field(LATER, b"later"))]);
    let denies = config["outbound"]["required_features"].as_array().is_some_and(|list| !list.is_empty());
    assert!(denies, "of another kind altogether: {config:#}");
}

#[test]
fn a_policy_that_a_later_version_wrote_denies_what_this_one_cannot_judge() {
    let restored = |body: &[u8]| Sidecar::restored("shop/web", &saved(&[resource("inbound", body)])).config();
    let denies = |config: &Value| config["inbound"]["required_features"].as_array().is_some_and(|list| !list.is_empty());

    let feature = v1::InboundPolicy { required_features: vec!["time-travel/v9".to_owned()], ..permissive() };
    let config = restored(&field(INBOUND, &later(&feature)));
    assert_eq!(config["inbound"]["required_features"], json!(["time-travel/v9"]), "a feature that it lacks: {config:#}");

    let mode = v1::InboundPolicy { mode: LATER.cast_signed(), ..permissive() };
    let port = v1::PortMode { port: 8080, mode: LATER.cast_signed() };
    let port = v1::InboundPolicy { port_modes: vec![port], ..permissive() };
    let none = v1::InboundPolicy::default();
    for (what, policy) in [("a mode that it does not know", mode), ("a port's mode", port), ("no mode", none)] {
        let config = restored(&field(INBOUND, &later(&policy)));
        assert!(denies(&config) && config["inbound"]["mode"] == "strict", "{what}: {config:#}");
    }

    // A policy of another kind altogether: nobody comes in by it, whether it denies or the sidecar is not ready.
    let config = restored(&field(LATER, b"later"));
    assert!(denies(&config) || (config["inbound"].is_null() && config["ready"] == false), "{config:#}");
}

/// A request of a later version: its first field is this version's, and the other one is not.
#[derive(Clone, PartialEq, Message)]
struct Later {
    #[prost(bytes = "vec", tag = "1")]
    known: Vec<u8>,
    #[prost(bytes = "vec", tag = "77")]
    later: Vec<u8>,
}

fn start() -> ControlPlane {
    ControlPlane::start(|manifests| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: shop}\n\
                   spec: {serviceAccountName: web, containers: [{name: weft-sidecar}]}\nstatus: {podIP: 10.1.0.1}\n";
        std::fs::write(manifests.join("pod.yaml"), pod).expect("written");
    })
}

/// Begins a discovery stream with one message, and keeps it open.
async fn watch(channel: &Channel, message: Later) -> Streaming<v1::WatchResponse> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("the channel serves");
    let codec = ProstCodec::<Later, v1::WatchResponse>::default();
    let messages = tokio_stream::StreamExt::chain(tokio_stream::once(message), tokio_stream::pending());
    let path = PathAndQuery::from_static("/weft.v1.Discovery/Watch");
    client.streaming(Request::new(messages), path, codec).await.expect("an SVID is enough").into_inner()
}

/// The first update of a stream, or the error that it ends with.
async fn outcome(mut answers: Streaming<v1::WatchResponse>) -> Result<v1::Update, Status> {
    for _ in 0..20 {
        if let Some(Heard::Update(update)) = answers.message().await?.expect("the stream goes on").message {
            return Ok(update);
        }
    }
    panic!("nothing but heartbeats")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_serves_a_later_sidecar_as_far_as_it_knows() {
    let control_plane = start();
    let (svid, bundle) = control_plane.join("shop", "web-0", "web").await;
    let channel = control_plane.workload(&svid, &bundle).await.expect("an SVID is a way in");

    let hello = v1::Hello { version: "later".to_owned(), features: vec!["time-travel/v9".to_owned()], ..Default::default() };
    let greeting = Later { known: later(&hello), later: b"later".to_vec() };
    let update = outcome(watch(&channel, greeting).await).await.expect("what it does not know does not matter");
    assert!(update.resources.iter().any(|resource| resource.name == "inbound"), "{update:?}");

    let other = Later { known: Vec::new(), later: b"later".to_vec() };
    let refused = outcome(watch(&channel, other).await).await.expect_err("a message of an unknown kind is not read over");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("of a kind that this version does not know"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_of_an_unknown_kind_attests_nothing() {
    let control_plane = start();
    // Whoever has an SVID could renew it; this asks for the same by other means.
    let (svid, bundle) = control_plane.join("shop", "web-0", "web").await;
    let channel = control_plane.workload(&svid, &bundle).await.expect("an SVID is a way in");
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an identity is made of names");
    let csr = PendingKey::generate().and_then(|key| key.request(&id)).expect("a request");
    let mut client = Grpc::new(channel);
    client.ready().await.expect("the channel serves");
    let codec = ProstCodec::<Later, v1::IssueResponse>::default();
    let request = Request::new(Later { known: csr, later: b"later".to_vec() });
    let path = PathAndQuery::from_static("/weft.v1.Certificates/Issue");
    let refused = client.unary(request, path, codec).await.expect_err("nothing is attested");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("no attestation that this version knows"), "{refused}");
}
