//! What a kubelet or a scraper may ask in plaintext: `/live`, `/ready` and `/metrics`. Nothing here tells who is in the mesh, or
//! changes anything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use weft_core::admission::Limits;

use crate::accept::{self, Gate, Incoming as Accepted};
use crate::hub::Hub;
use crate::issue::ca::Ca;
use crate::server::unix_now;

/// Connections at once, so that a flood of them costs nothing else.
const MAX_CONNECTIONS: usize = 64;

/// How far this replica is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// It waits for something before it serves.
    Waiting(&'static str),
    Serving,
    /// It goes: sidecars are to move elsewhere.
    Stopping,
}

/// What is told of this replica.
pub struct Health {
    stage: ArcSwap<Stage>,
    hub: OnceLock<Arc<Hub>>,
    ca: OnceLock<Arc<Ca>>,
    /// Whether it holds the Lease.
    pub leading: AtomicBool,
    /// Pods without the sidecar that they should have.
    pub strays: AtomicUsize,
    gates: ArcSwap<Vec<Gate>>,
}

impl Health {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            stage: ArcSwap::from_pointee(Stage::Waiting("its start")),
            hub: OnceLock::new(),
            ca: OnceLock::new(),
            leading: AtomicBool::new(false),
            strays: AtomicUsize::new(0),
            gates: ArcSwap::default(),
        })
    }

    pub fn is_now(&self, stage: Stage) {
        self.stage.store(Arc::new(stage));
    }

    /// Has problems and counts told as well, once there is something that has them.
    pub fn follow(&self, hub: Arc<Hub>) {
        let _ = self.hub.set(hub);
    }

    /// Has the CA told of.
    pub fn tells_of_ca(&self, ca: Arc<Ca>) {
        let _ = self.ca.set(ca);
    }

    /// Has the connections of one more port told.
    pub fn tells_of(&self, gate: &Gate) {
        self.gates.rcu(|gates| gates.iter().chain([gate]).cloned().collect::<Vec<_>>());
    }

    /// Why it is not ready, or none.
    fn reason(&self) -> Option<String> {
        match **self.stage.load() {
            Stage::Serving => None,
            Stage::Stopping => Some("stopping".into()),
            Stage::Waiting(what) => {
                let problems = self.hub.get().map(|h| h.problems()).unwrap_or_default();
                Some(problems.iter().take(10).fold(format!("waiting for {what}"), |text, p| format!("{text}\n{p}")))
            }
        }
    }

    fn metrics(&self) -> String {
        let hub = self.hub.get();
        let snapshot = hub.map(|h| h.snapshot());
        let count = |f: &dyn Fn(&crate::snapshot::Snapshot) -> usize| snapshot.as_deref().map_or(0, f);
        let flag = |b: bool| usize::from(b);
        let table = [
            ("ready", "Whether this replica serves.", flag(self.reason().is_none())),
            ("leader", "Whether this replica holds the Lease.", flag(self.leading.load(Relaxed))),
            ("generation", "Generation of the snapshot, as this replica counts.", count(&|s| s.generation as usize)),
            ("sidecars", "Sidecars that are connected to this replica.", hub.map_or(0, |h| h.streams())),
            ("services", "Services in the model.", count(&|s| s.services.len())),
            ("workloads", "Pods in the model.", count(&|s| s.inbound.len())),
            ("strays", "Pods without the sidecar that they should have; `weft check` names them.", self.strays.load(Relaxed)),
            ("problems", "Problems that stand; `weft status` names them.", hub.map_or(0, |h| h.problems().len())),
        ];
        let gauges: String = table
            .into_iter()
            .chain(self.ca.get().map(|ca| of_ca(ca)).into_iter().flatten())
            .map(|(name, help, value)| {
                let name = format!("weft_control_plane_{name}");
                format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n")
            })
            .collect();
        gauges + &accept::metrics(&self.gates.load())
    }
}

/// What is told of the CA.
fn of_ca(ca: &Ca) -> [(&'static str, &'static str, usize); 4] {
    let standing = ca.now();
    let seconds = |at: i64| usize::try_from(at - unix_now()).unwrap_or_default();
    let issuer = usize::try_from(standing.authority.remaining().as_secs()).unwrap_or(usize::MAX);
    [
        ("issuer_expiry_seconds", "Seconds until the certificate ends that others are signed with.", issuer),
        (
            "anchor_expiry_seconds",
            "Seconds until the root ends under which certificates are issued.",
            seconds(standing.authority.anchor_ends()),
        ),
        (
            "ca_refused",
            "Whether the CA that is given now is not in use; `weft status` says why.",
            usize::from(!ca.problem().is_empty()),
        ),
        ("identities_denied", "Identities and certificates that are denied.", ca.denials().now().entries.len()),
    ]
}

/// Binds, then serves until the process ends. Gives the address, in case the port was left open.
pub async fn serve(addr: SocketAddr, health: Arc<Health>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|e| anyhow::anyhow!("cannot listen on {addr} for probes: {e}: another process may have the port"))?;
    let addr = listener.local_addr()?;
    let gate = Gate::new("probe", Limits::quarter(MAX_CONNECTIONS));
    health.tells_of(&gate);
    tokio::spawn(async move {
        loop {
            let accepted = gate.next(&listener).await;
            tokio::spawn(served(accepted, health.clone()));
        }
    });
    Ok(addr)
}

async fn served(Accepted { socket, guest, gives_way, .. }: Accepted, health: Arc<Health>) {
    tokio::select! {
        biased;
        () = gives_way.cancelled() => {}
        () = connection(socket, health) => {}
    }
    drop(guest);
}

async fn connection(stream: TcpStream, health: Arc<Health>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &health);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(Duration::from_secs(2))
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(Duration::from_secs(10), serving).await;
}

fn answer(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/live") => (StatusCode::OK, "text/plain; charset=utf-8", "live\n".into()),
        (&Method::GET, "/ready") => match health.reason() {
            None => (StatusCode::OK, "text/plain; charset=utf-8", "ready\n".into()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", why + "\n"),
        },
        (&Method::GET, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", health.metrics()),
        _ => (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "there are /live, /ready and /metrics\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("it listens");
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("it answers and closes");
        text
    }

    #[tokio::test]
    async fn it_is_ready_while_it_serves_and_live_always() {
        let health = Health::new();
        let addr = serve("127.0.0.1:0".parse().expect("an address"), health.clone()).await.expect("a free port");
        health.is_now(Stage::Waiting("the cluster"));
        let waiting = get(addr, "/ready").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("waiting for the cluster\n"), "{waiting}");
        assert!(get(addr, "/live").await.starts_with("HTTP/1.1 200"));
        health.is_now(Stage::Serving);
        assert!(get(addr, "/ready").await.starts_with("HTTP/1.1 200"));
        assert!(get(addr, "/metrics").await.contains("\nweft_control_plane_ready 1\n"));
        health.is_now(Stage::Stopping);
        assert!(get(addr, "/ready").await.starts_with("HTTP/1.1 503"));
        assert!(get(addr, "/elsewhere").await.starts_with("HTTP/1.1 404"));
    }
}
