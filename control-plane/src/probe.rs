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
use hyper::header::ACCEPT;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use weft_core::admission::Limits;
use weft_core::metrics::{Family, Format, Labels, expose, table};
use weft_log::Levels;
use weft_otlp::batch::Counts;

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
    /// What became of data points that were pushed.
    pub pushed: Arc<Counts>,
    levels: Levels,
}

impl Health {
    /// Of a process that logs so.
    pub fn new(levels: Levels) -> Arc<Self> {
        Arc::new(Self {
            stage: ArcSwap::from_pointee(Stage::Waiting("its start")),
            hub: OnceLock::new(),
            ca: OnceLock::new(),
            leading: AtomicBool::new(false),
            strays: AtomicUsize::new(0),
            gates: ArcSwap::default(),
            pushed: Arc::default(),
            levels,
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

    /// All metrics.
    pub fn families(&self) -> Vec<Family> {
        let hub = self.hub.get();
        let snapshot = hub.map(|h| h.snapshot());
        let count = |f: &dyn Fn(&crate::snapshot::Snapshot) -> usize| snapshot.as_deref().map_or(0, f) as u64;
        let mut info = Family::new(&table::TARGET_INFO);
        let name = Labels::new().and(table::SERVICE_NAME, SERVICE).and(table::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
        info.counts(name, 1);
        let mut all = vec![
            info,
            Family::count(&table::CP_READY, u64::from(self.reason().is_none())),
            Family::count(&table::CP_LEADER, u64::from(self.leading.load(Relaxed))),
            Family::count(&table::CP_GENERATION, count(&|s| s.generation as usize)),
            Family::count(&table::CP_SIDECARS, hub.map_or(0, |h| h.streams()) as u64),
            Family::count(&table::CP_SERVICES, count(&|s| s.services.len())),
            Family::count(&table::CP_WORKLOADS, count(&|s| s.inbound.len())),
            Family::count(&table::CP_STRAYS, self.strays.load(Relaxed) as u64),
            Family::count(&table::CP_PROBLEMS, hub.map_or(0, |h| h.problems().len()) as u64),
            Family::count(&table::LOG_LOST, self.levels.lost()),
        ];
        all.extend(of_ca(self.ca.get().map(|ca| &**ca)));
        all.extend(accept::families(&self.gates.load()));
        all.extend(self.pushed.fate().families(None, &table::POINTS_EXPORTED));
        all
    }
}

/// What this program is called.
pub const SERVICE: &str = "weft-control-plane";

/// What is told of the CA; no series before there is one.
fn of_ca(ca: Option<&Ca>) -> [Family; 4] {
    let mut all = [&table::CP_ISSUER_EXPIRY, &table::CP_ANCHOR_EXPIRY, &table::CP_CA_REFUSED, &table::CP_IDENTITIES_DENIED]
        .map(Family::new);
    let Some(ca) = ca else { return all };
    let standing = ca.now();
    let values = [
        standing.authority.remaining().as_secs() as f64,
        (standing.authority.anchor_ends() - unix_now()).max(0) as f64,
        f64::from(u8::from(!ca.problem().is_empty())),
        ca.denials().now().entries.len() as f64,
    ];
    for (family, value) in all.iter_mut().zip(values) {
        family.levels(Labels::new(), value);
    }
    all
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
    const PLAIN: &str = "text/plain; charset=utf-8";
    let (status, kind, text): (_, _, Bytes) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/live") => (StatusCode::OK, PLAIN, "live\n".into()),
        (&Method::GET, "/ready") => match health.reason() {
            None => (StatusCode::OK, PLAIN, "ready\n".into()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, (why + "\n").into()),
        },
        (&Method::GET, "/metrics") => {
            let format = Format::of(request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()));
            (StatusCode::OK, format.content_type(), expose(format, &health.families(), &Labels::new()).into())
        }
        _ => (StatusCode::NOT_FOUND, PLAIN, "there are /live, /ready and /metrics\n".into()),
    };
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::issue::ca::Source;

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("it listens");
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("it answers and closes");
        text
    }

    #[tokio::test]
    async fn it_is_ready_while_it_serves_and_live_always() {
        let health = Health::new(Levels::fixed());
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
        let told = health.families();
        assert_eq!(table::disagreements(weft_core::metrics::Program::ControlPlane, &told), [""; 0]);
    }

    #[test]
    fn the_ends_of_the_ca_are_told_and_whether_another_was_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let ca = Ca::open("cluster.local".parse().expect("valid"), &Source::Kept(dir.path())).expect("made");
        let told = |ca: Option<&Ca>| {
            let text = String::from_utf8(expose(Format::Text, &of_ca(ca), &Labels::new())).expect("text");
            let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            ["issuer_expiry_seconds", "anchor_expiry_seconds", "ca_refused"]
                .map(|name| value(&format!("weft_control_plane_{name}")))
        };
        assert_eq!(told(None), [None; 3]);
        let [issuer, anchor, refused] = told(Some(&ca));
        let day = 86_400.0;
        assert!(issuer.is_some_and(|left| left > 30.0 * day) && anchor >= issuer, "{issuer:?} {anchor:?}");
        assert_eq!(refused, Some(0.0));
        ca.note_problem("its key is another one's".into());
        assert_eq!(told(Some(&ca))[2], Some(1.0));
    }
}
