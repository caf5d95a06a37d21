//! What is written to the API server: namespaces, Services without selectors, pods that no scheduler takes, and their slices.
//! Controllers of a whole cluster leave all of it alone.

use std::sync::Arc;

use anyhow::{Context, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::server::Server;

/// On everything that is made here, as `app.kubernetes.io/managed-by`.
pub(super) const OURS: &str = "weft-bench";
/// The control plane's own namespace.
pub(super) const HOME: &str = "weft-bench-system";
/// Who all pods run as.
pub(super) const ACCOUNT: &str = "bench";
/// Requests at once while objects are made.
const AT_ONCE: usize = 32;

/// How much there is: `pods` are dealt out to `services`, and these to `namespaces`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) namespaces: usize,
    pub(super) services: usize,
    pub(super) pods: usize,
}

impl Size {
    pub(super) fn namespace(self, service: usize) -> String {
        format!("weft-bench-{}", service % self.namespaces)
    }

    /// `endpoints/NAMESPACE/NAME`, as discovery calls what a service has.
    pub(super) fn endpoints_name(self, service: usize) -> String {
        format!("endpoints/{}/s{service}", self.namespace(service))
    }

    fn pods_of(self, service: usize) -> impl Iterator<Item = usize> {
        (service..self.pods).step_by(self.services)
    }

    fn slices(self, service: usize) -> String {
        format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", self.namespace(service))
    }
}

/// Refuses a cluster in which weft runs: the control plane that is measured would write its own trust bundles there.
pub(super) async fn refuse_weft(server: &Server) -> anyhow::Result<()> {
    let list = |path: &'static str| server.ask(Method::GET, path, "", Value::Null);
    let bundles = list("/api/v1/configmaps?fieldSelector=metadata.name%3Dweft-trust-bundle&limit=1").await?;
    let enabled = list("/api/v1/namespaces?labelSelector=weft.dev%2Finject%3Denabled&limit=1").await?;
    let old = list("/api/v1/namespaces?labelSelector=app.kubernetes.io%2Fmanaged-by%3Dweft-bench&limit=1").await?;
    let any = |found: &Value| found["items"].as_array().is_some_and(|items| !items.is_empty());
    if any(&bundles) || any(&enabled) {
        bail!("weft is in use in this cluster, and its trust bundles would be overwritten: name another one with KUBECONFIG");
    }
    if any(&old) {
        bail!("an earlier run left namespaces: kubectl delete namespace -l app.kubernetes.io/managed-by={OURS}");
    }
    Ok(())
}

/// Makes everything. Gives each service's address, in their order.
pub(super) async fn make(server: &Arc<Server>, size: Size) -> anyhow::Result<Vec<String>> {
    for namespace in (0..size.namespaces).map(|n| size.namespace(n)).chain([HOME.to_owned()]) {
        let labels = json!({ "app.kubernetes.io/managed-by": OURS });
        server.create("/api/v1/namespaces", json!({ "metadata": { "name": namespace, "labels": labels } })).await?;
        let account = json!({ "metadata": { "name": ACCOUNT }, "automountServiceAccountToken": false });
        server.create(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), account).await?;
    }
    // The slices last, as in life: nobody is an endpoint before it runs.
    let mut addresses = vec![String::new(); size.services];
    let s = server.clone();
    for (n, address) in each(size.services, move |n| service(s.clone(), size, n)).await? {
        addresses[n] = address;
    }
    let s = server.clone();
    each(size.pods, move |n| pod(s.clone(), size, n)).await?;
    let s = server.clone();
    each(size.services, move |n| slice(s.clone(), size, n)).await?;
    Ok(addresses)
}

/// Deletes the namespaces, and with them what they hold.
pub(super) async fn delete(server: &Server, size: Size) -> anyhow::Result<()> {
    for namespace in (0..size.namespaces).map(|n| size.namespace(n)).chain([HOME.to_owned()]) {
        server.ask(Method::DELETE, &format!("/api/v1/namespaces/{namespace}"), "", Value::Null).await?;
    }
    Ok(())
}

/// Changes whether the first endpoint of a service is ready.
pub(super) async fn set_ready(server: &Server, size: Size, service: usize, ready: bool) -> anyhow::Result<()> {
    let patch = json!([{ "op": "replace", "path": "/endpoints/0/conditions/ready", "value": ready }]);
    let path = format!("{}/s{service}-0", size.slices(service));
    server.ask(Method::PATCH, &path, "application/json-patch+json", patch).await?;
    Ok(())
}

/// Does `work` for 0 to `count`, [`AT_ONCE`] of them at a time.
async fn each<T, F>(count: usize, work: impl Fn(usize) -> F) -> anyhow::Result<Vec<(usize, T)>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let mut done = Vec::with_capacity(count);
    for n in 0..count {
        let slot = slots.clone().acquire_owned().await?;
        let job = work(n);
        tasks.spawn(async move {
            let outcome = job.await;
            drop(slot);
            outcome.map(|value| (n, value))
        });
        while let Some(outcome) = tasks.try_join_next() {
            done.push(outcome??);
        }
    }
    while let Some(outcome) = tasks.join_next().await {
        done.push(outcome??);
    }
    Ok(done)
}

async fn service(server: Arc<Server>, size: Size, n: usize) -> anyhow::Result<String> {
    let object = json!({
        "metadata": { "name": format!("s{n}"), "labels": { "app": format!("s{n}"), "app.kubernetes.io/managed-by": OURS } },
        "spec": { "ports": [
            { "name": "http", "port": 80, "targetPort": 8080 },
            { "name": "grpc", "port": 9090, "targetPort": 9090 },
        ] },
    });
    let made = server.create(&format!("/api/v1/namespaces/{}/services", size.namespace(n)), object).await?;
    Ok(made["spec"]["clusterIP"].as_str().context("a service without an address")?.to_owned())
}

async fn pod(server: Arc<Server>, size: Size, n: usize) -> anyhow::Result<()> {
    let namespace = size.namespace(n % size.services);
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let made = server.create(&pods, pod_object(&server, size, n)).await?;
    let now = made["metadata"]["creationTimestamp"].clone();
    let containers: Vec<Value> = ["app", "weft-sidecar"]
        .map(|name| {
            json!({ "name": name, "ready": true, "started": true, "restartCount": 0, "image": format!("registry.example/{name}:1"),
                "imageID": format!("registry.example/{name}@sha256:{n:064x}"), "containerID": format!("containerd://{n:064x}"),
                "state": { "running": { "startedAt": now } } })
        })
        .into();
    let conditions: Vec<Value> = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": now }))
        .into();
    let status = json!({ "status": {
        "phase": "Running", "podIP": address(n), "podIPs": [{ "ip": address(n) }], "hostIP": "192.0.2.1", "startTime": now,
        "conditions": conditions, "containerStatuses": containers,
    } });
    server.ask(Method::PATCH, &format!("{pods}/p{n}/status"), "application/merge-patch+json", status).await?;
    Ok(())
}

/// About as much as a pod of a deployment has after injection.
fn pod_object(server: &Server, size: Size, n: usize) -> Value {
    let service = n % size.services;
    let variable = |i: usize| json!({ "name": format!("SETTING_{i}"), "value": format!("a value of some length, number {i}") });
    let probe = |port: u16| json!({ "httpGet": { "path": "/ready", "port": port }, "periodSeconds": 5 });
    let container = |name: &str, port: u16, variables: usize| {
        json!({
            "name": name, "image": format!("registry.example/{name}:1"),
            "ports": [{ "containerPort": port }],
            "env": (0..variables).map(variable).collect::<Vec<_>>(),
            "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
            "readinessProbe": probe(port), "livenessProbe": probe(port),
            "volumeMounts": [{ "name": "scratch", "mountPath": "/tmp" }],
        })
    };
    let mut object = json!({
        "metadata": {
            "name": format!("p{n}"),
            "labels": {
                "app": format!("s{service}"), "pod-template-hash": format!("{service:010x}"), "version": "v1",
                "app.kubernetes.io/managed-by": OURS,
            },
            "annotations": { "example.com/build": format!("{n:064x}"), "example.com/owner": "a team that looks after it" },
        },
        "spec": {
            "serviceAccountName": ACCOUNT,
            // In a whole cluster nobody takes it.
            "schedulerName": OURS,
            "containers": [container("app", 8080, 8), container("weft-sidecar", 4791, 12)],
            "volumes": [{ "name": "scratch", "emptyDir": {} }],
        },
    });
    // Where there is a garbage collector, pods of nodes that aren't there would be deleted.
    if server.is_own() {
        object["spec"]["nodeName"] = node(n).into();
    }
    object
}

async fn slice(server: Arc<Server>, size: Size, n: usize) -> anyhow::Result<()> {
    let namespace = size.namespace(n);
    let endpoints: Vec<Value> = size
        .pods_of(n)
        .map(|p| {
            json!({
                "addresses": [address(p)], "conditions": { "ready": true }, "nodeName": node(p),
                "targetRef": { "kind": "Pod", "namespace": namespace, "name": format!("p{p}") },
            })
        })
        .collect();
    let object = json!({
        "metadata": {
            "name": format!("s{n}-0"),
            "labels": {
                "kubernetes.io/service-name": format!("s{n}"), "endpointslice.kubernetes.io/managed-by": OURS,
                "app.kubernetes.io/managed-by": OURS,
            },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }, { "name": "grpc", "port": 9090, "protocol": "TCP" }],
    });
    server.create(&size.slices(n), object).await?;
    Ok(())
}

/// A pod's address; nothing is ever sent to it.
fn address(pod: usize) -> String {
    let n = pod + 1;
    format!("10.{}.{}.{}", 128 + (n >> 16), n >> 8 & 255, n & 255)
}

fn node(pod: usize) -> String {
    format!("node-{}", pod % 100)
}
