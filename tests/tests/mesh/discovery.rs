//! The discovery stream: on demand, by delta, resumable, agreed upon by hash; and manifests that are broken.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_proto::v1;
use weft_proto::v1::address::Kind;
use weft_proto::v1::operator_client::OperatorClient;
use weft_proto::v1::resource::Body;
use weft_tests::{ControlPlane, PATIENCE, Watch};

const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
";
const ADDRESS: &str = "address/10.96.0.10";
const ENDPOINTS: &str = "endpoints/shop/web";
const SERVICE: &str = "service/shop/web";

fn pod(index: usize, ready: bool) -> String {
    let ready = if ready { "True" } else { "False" };
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web-{index}, namespace: shop, labels: {{app: web}}}}
spec: {{serviceAccountName: web, containers: [{{name: app}}, {{name: weft-sidecar}}]}}
status: {{phase: Running, podIP: 10.1.0.{index}, conditions: [{{type: Ready, status: \"{ready}\"}}]}}
"
    )
}

fn start() -> ControlPlane {
    ControlPlane::start(|manifests| {
        fs::write(manifests.join("web.yaml"), WEB).expect("written");
        for index in 1..=4 {
            fs::write(manifests.join(format!("web-{index}.yaml")), pod(index, true)).expect("written");
        }
    })
}

/// A connection of the sidecar of web-1.
async fn sidecar(control_plane: &ControlPlane) -> Channel {
    let (svid, bundle) = control_plane.join("shop", "web-1", "web").await;
    control_plane.workload(&svid, &bundle).await.expect("an SVID is a way in")
}

async fn fresh(channel: &Channel) -> Watch {
    Watch::open(channel.clone(), BTreeMap::new()).await.expect("an SVID is enough")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_gets_what_it_asks_for_and_then_only_what_changes() {
    let control_plane = start();
    let (_, anchor) = control_plane.token("shop", "web-1", "web", 0).await;
    let stranger = control_plane.stranger(&anchor).await.expect("the control plane is reached");
    let refused = Watch::open(stranger, BTreeMap::new()).await.expect_err("nobody looks in without an SVID");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");

    let channel = sidecar(&control_plane).await;
    let mut watch = fresh(&channel).await;
    let first = watch.until(&["trust", "mesh", "inbound"]).await;
    let Some(Body::Inbound(policy)) = &first["inbound"].body else { panic!("{first:?}") };
    assert_eq!(policy.mode, v1::MtlsMode::Permissive as i32);

    watch.subscribe(&[ADDRESS, "address/10.96.0.99"]);
    let come = watch.until(&[ADDRESS, SERVICE, ENDPOINTS, "address/10.96.0.99"]).await;
    assert!(matches!(kind(&come[ADDRESS]), Some(Kind::Service(id)) if id.name == "web"), "{come:?}");
    assert!(matches!(kind(&come["address/10.96.0.99"]), Some(Kind::Unknown(_))), "unknown is an answer: {come:?}");
    let Some(Body::Endpoints(all)) = &come[ENDPOINTS].body else { panic!("{come:?}") };
    assert_eq!(all.endpoints.len(), 4);
    for endpoint in &all.endpoints {
        assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(endpoint.ports, [v1::PortPair { service_port: 80, target_port: 8080 }]);
    }
    assert_eq!(watch.agree().await, 0, "nothing was sent twice");

    let before = come[ENDPOINTS].version;
    control_plane.put("web-4.yaml", &pod(4, false));
    let base = delta(&mut watch, false).await;
    assert_eq!(base, before, "the change is from what was sent before");
    assert_eq!(watch.agree().await, 0, "one edit is one update");

    // Another stream goes on where this one ended.
    let held = watch.held().clone();
    drop(watch);
    let version = held[ENDPOINTS];
    let mut resumed = Watch::open(channel.clone(), held).await.expect("an SVID is enough");
    assert_eq!(resumed.agree().await, 0, "what is held is not sent again");
    control_plane.put("web-4.yaml", &pod(4, true));
    assert_eq!(delta(&mut resumed, true).await, version, "a resumed stream gets the change alone");

    resumed.subscribe(&["secret/shop/web"]);
    let refused = end_of(&mut resumed).await;
    assert_eq!(refused.code(), Code::InvalidArgument, "a name of no resource: {refused}");
}

fn kind(resource: &v1::Resource) -> Option<&Kind> {
    match &resource.body {
        Some(Body::Address(address)) => address.kind.as_ref(),
        _ => None,
    }
}

/// Waits for the change of web-4 and gives its base.
async fn delta(watch: &mut Watch, ready: bool) -> u64 {
    let come = watch.until(&[ENDPOINTS]).await;
    let Some(Body::EndpointsDelta(delta)) = &come[ENDPOINTS].body else { panic!("not a delta: {come:?}") };
    let [endpoint] = &delta.upserted[..] else { panic!("more than the one that changed: {delta:?}") };
    assert_eq!((endpoint.pod.as_ref().map(|pod| pod.name.as_str()), endpoint.ready), (Some("web-4"), ready), "{delta:?}");
    assert!(delta.removed.is_empty(), "{delta:?}");
    delta.base
}

/// The error that a stream ends with.
async fn end_of(watch: &mut Watch) -> Status {
    for _ in 0..20 {
        if let Err(status) = watch.next().await {
            return status;
        }
    }
    panic!("the stream goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_manifest_is_reported_with_its_place_and_the_last_good_one_stays() {
    let control_plane = start();
    let mut operator = control_plane.operator().await;
    let channel = sidecar(&control_plane).await;

    control_plane.put("web.yaml", &WEB.replace("port: 80,", "port: eighty,"));
    let told = problems(&mut operator, 1).await;
    let found = (told[0].place.as_str(), told[0].field.as_str());
    assert_eq!(found, ("web.yaml:8", "spec.ports[0].port"), "{told:?}");

    let mut watch = fresh(&channel).await;
    watch.subscribe(&[SERVICE]);
    let come = watch.until(&[SERVICE]).await;
    let Some(Body::Service(service)) = &come[SERVICE].body else { panic!("the last good version is gone: {come:?}") };
    assert_eq!(service.ports[0].port, 80);

    control_plane.put("web.yaml", &WEB.replace("port: 80,", "port: 81,"));
    let come = watch.until(&[SERVICE]).await;
    let Some(Body::Service(service)) = &come[SERVICE].body else { panic!("the mended version is missing: {come:?}") };
    assert_eq!(service.ports[0].port, 81);
    problems(&mut operator, 0).await;

    watch.agree().await;
    let status = operator.status(v1::StatusRequest {}).await.expect("the operator may").into_inner();
    let sidecar = status.sidecars.iter().find(|sidecar| sidecar.pod == "web-1").expect("its stream is known");
    assert_eq!(sidecar.identity, "spiffe://cluster.local/ns/shop/sa/web");
    assert!(sidecar.subscriptions >= 4, "{sidecar:?}");
}

/// What the source could not use, once it is so much.
async fn problems(operator: &mut OperatorClient<Channel>, count: usize) -> Vec<v1::Problem> {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = operator.status(v1::StatusRequest {}).await.expect("the operator may").into_inner();
        if status.problems.len() == count {
            return status.problems;
        }
        assert!(Instant::now() < end, "{count} problems should be told, and these are: {:?}", status.problems);
        sleep(Duration::from_millis(20)).await;
    }
}
