//! Very many endpoints: they are taken in a bounded time and memory, their neighbours do not wait for them, and no message grows with
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use weft_proto::v1;
use weft_proto::v1::resource::Body;
use weft_tests::{ControlPlane, Heard, PATIENCE, Watch};

const SERVICES: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: huge, namespace: shop}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
";
const WEB: [&str; 2] = ["address/10.96.0.10", "endpoints/shop/web"];
const HUGE: [&str; 2] = ["address/10.96.0.20", "endpoints/shop/huge"];
/// What an `EndpointSlice` of a cluster has at most.
const IN_SLICE: usize = 1_000;
/// How long a change may take to be pushed while very much is being read.
const PUSH: Duration = Duration::from_secs(10);
/// What the control plane may ever have resident with a hundred thousand endpoints, in KiB.
const MEMORY: u64 = 512 * 1024;

fn pod(ready: bool) -> String {
    let ready = if ready { "True" } else { "False" };
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web-0, namespace: shop, labels: {{app: web}}}}
spec: {{serviceAccountName: web, containers: [{{name: weft-sidecar}}]}}
status: {{phase: Running, podIP: 10.1.0.1, conditions: [{{type: Ready, status: \"{ready}\"}}]}}
"
    )
}

/// A full slice of the large service, the `index`th; `more` stands in each of its endpoints.
fn slice(index: usize, more: &str) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: huge-{index}, namespace: shop, labels: {{kubernetes.io/service-name: huge}}}}
ports: [{{port: 8080}}]
endpoints:
"
    );
    for n in index * IN_SLICE..(index + 1) * IN_SLICE {
        let _ = writeln!(text, "- {{addresses: [{}]{more}}}", Ipv4Addr::from(0x0b00_0000 + n as u32));
    }
    text
}

fn start() -> ControlPlane {
    ControlPlane::start(|manifests| {
        fs::write(manifests.join("services.yaml"), SERVICES).expect("written");
        fs::write(manifests.join("web-0.yaml"), pod(true)).expect("written");
    })
}

/// A stream of its own connection that holds an address and what stands behind it.
async fn watch(control_plane: &ControlPlane, names: [&str; 2]) -> Watch {
    let (svid, bundle) = control_plane.join("shop", "web-0", "web").await;
    let channel = control_plane.workload(&svid, &bundle).await.expect("an SVID is a way in");
    let mut watch = Watch::open(channel, BTreeMap::new()).await.expect("an SVID is enough");
    watch.subscribe(&names[..1]);
    watch.until(&names).await;
    watch
}

/// Listens until so many endpoints of the large service are held.
async fn hold(watch: &mut Watch, count: usize) {
    let mut held: BTreeSet<Vec<u8>> = BTreeSet::new();
    while held.len() != count {
        let Heard::Update(update) = watch.next().await.expect("the stream goes on") else { continue };
        for resource in update.resources.into_iter().filter(|resource| resource.name == HUGE[1]) {
            match resource.body {
                Some(Body::Endpoints(all)) => held = all.endpoints.iter().map(|e| e.address.to_vec()).collect(),
                Some(Body::EndpointsDelta(delta)) => {
                    held.extend(delta.upserted.iter().map(|e| e.address.to_vec()));
                    held.retain(|address| !delta.removed.iter().any(|removed| **removed == **address));
                }
                other => panic!("{other:?} is not endpoints"),
            }
        }
    }
}

/// Waits for a change of the small service.
async fn pushed(watch: &mut Watch) {
    timeout(PUSH, watch.until(&WEB[1..])).await.expect("a small change waits for nothing large");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_endpoints_hold_nobody_up() {
    const SLICES: usize = 100;
    let control_plane = start();
    let (mut web, mut huge) = (watch(&control_plane, WEB).await, watch(&control_plane, HUGE).await);

    let begun = Instant::now();
    for index in 0..SLICES {
        control_plane.put(&format!("huge-{index}.yaml"), &slice(index, ""));
    }
    control_plane.put("web-0.yaml", &pod(false));
    pushed(&mut web).await;
    timeout(PATIENCE, hold(&mut huge, SLICES * IN_SLICE)).await.expect("all of them come");
    assert!(begun.elapsed() < PATIENCE, "it took {:?} until all were pushed", begun.elapsed());
    huge.agree().await;

    // One of very many changes: that one is pushed.
    control_plane.put("huge-7.yaml", &slice(7, "").replacen("]}", "], conditions: {ready: false}}", 1));
    let come = timeout(PUSH, huge.until(&HUGE[1..])).await.expect("a change is pushed");
    let Some(Body::EndpointsDelta(delta)) = &come[HUGE[1]].body else { panic!("everything was sent again") };
    assert_eq!((delta.upserted.len(), delta.removed.len()), (1, 0), "{delta:?}");
    let memory = control_plane.peak_memory();
    assert!(memory < MEMORY, "the control plane had {memory} KiB");
}

/// A service of which every endpoint has much to say: whoever reads no more than gRPC's 4 MiB a message still gets all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_is_larger_than_any_client_reads() {
    const SLICES: usize = 20;
    let control_plane = start();
    let mut early = watch(&control_plane, HUGE).await;
    let more = format!(", nodeName: {}", "n".repeat(253));
    for index in 0..SLICES {
        control_plane.put(&format!("huge-{index}.yaml"), &slice(index, &more));
    }
    // On a stream that was there, and on a fresh one: as changes, and as a whole.
    timeout(PATIENCE, hold(&mut early, SLICES * IN_SLICE)).await.expect("all of them come");
    let mut late = watch(&control_plane, WEB).await;
    late.subscribe(&HUGE[..1]);
    timeout(PATIENCE, hold(&mut late, SLICES * IN_SLICE)).await.expect("all of them come");
    assert_eq!(late.agree().await, 0, "and then no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_endpoints_in_one_file_are_refused_with_a_remedy() {
    let control_plane = start();
    let mut web = watch(&control_plane, WEB).await;
    let million: String = (0..1_000).map(|index| slice(index, "") + "---\n").collect();
    control_plane.put("million.yaml", &million);
    let mut operator = control_plane.operator().await;
    let end = Instant::now() + PATIENCE;
    let problem = loop {
        let status = operator.status(v1::StatusRequest {}).await.expect("the operator may").into_inner();
        if let Some(problem) = status.problems.into_iter().next() {
            break problem;
        }
        assert!(Instant::now() < end, "nothing is said of a file that is too large");
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(problem.place, "million.yaml", "{problem:?}");
    assert!(problem.message.contains("at most 16777216 are read: split it"), "{problem:?}");
    control_plane.put("web-0.yaml", &pod(false));
    pushed(&mut web).await;
}
