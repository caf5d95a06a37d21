//! What the sidecar tells of itself. On the network: `/live`, `/ready`, `/metrics`, the application's own health
//! (`/probe/NAME`, see `probe.rs`), and nothing that reveals or changes (Invariant 6). On its own Unix socket also `/config`,
//! `/check`, `/held`, `/edges`, `/denials`, `/denials/REF`, `/plaintext`, `/flows`, `/record`, `/tap`, `/traces`, `/log` and `/drain`.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_core::admission::{Admitted, Door, Limits};
use weft_core::breaker::State;
use weft_core::egress::Egress;
use weft_core::metrics::Format;
use weft_core::network_policy::{Isolation, PeerTerm, Policy, PortTerm, Rule};
use weft_core::wellknown::RECORDED_ALREADY;

use crate::checkup;
use crate::flows::MAX_TIME;
use crate::io::Dialer;
use crate::mesh::Target;
use crate::metrics::scrape::scrape;
use crate::metrics::worker::UNUSED;
use crate::probe::Probes;
use crate::telemetry::tap::{self, Events, Filter, Refused};
use crate::worker::Shared;

/// Admin connections at once, so that a flood of them costs nothing else. One source has a quarter of them, and the oldest of a
/// crowd gives way to the next, so that those who are slow keep out no probe.
const MAX_CONNECTIONS: usize = 128;
/// How long a connection may last, beyond what a probe may.
const WHOLE: Duration = Duration::from_secs(10);

/// Binds both, then serves until the process ends.
pub fn serve(shared: &Arc<Shared>, drain: &CancellationToken) -> anyhow::Result<()> {
    let port = shared.config.admin.admin_port;
    let net = &shared.config.net;
    let dialer = Dialer { mark: net.mark };
    let probes = Arc::new(Probes::new(&shared.config.admin.probes, net.pod_ips.first().copied(), dialer));
    for addr in [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))] {
        let listener = match crate::io::listen(addr) {
            Ok(listener) => listener,
            Err(_) if addr.is_ipv6() => continue,
            Err(e) => return Err(e).with_context(|| format!("cannot listen on {addr}: another process may have the port")),
        };
        let (shared, probes, drain) = (shared.clone(), probes.clone(), drain.clone());
        tokio::spawn(accept(listener, shared.admin.clone(), move |stream| {
            connection(stream, shared.clone(), probes.clone(), drain.clone(), false)
        }));
    }
    tokio::spawn(settle(shared.clone()));
    if let Some(path) = &shared.config.admin.admin_socket {
        let listener = owner_only(path)?;
        let (shared, drain) = (shared.clone(), drain.clone());
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        tokio::spawn(connection(stream, shared.clone(), probes.clone(), drain.clone(), true));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
    }
    Ok(())
}

/// How often what workers made and dropped is taken in, whether somebody scrapes or not.
const SETTLE: Duration = Duration::from_secs(60);

async fn settle(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(SETTLE);
    loop {
        tick.tick().await;
        shared.metrics.settle();
        shared.denials.sweep(UNUSED);
    }
}

/// The door of the admin port; what comes back from it ends a connection that has to give way.
pub type AdminDoor = Arc<Door<CancellationToken>>;

/// One that lets in as many as an admin port takes.
pub fn door() -> AdminDoor {
    Door::new(Limits::quarter(MAX_CONNECTIONS))
}

/// Accepts first and counts then. Who is not let in is closed at once. What is slow here is the peer or the application, so that
/// every connection may have to give way.
async fn accept<F>(listener: TcpListener, door: AdminDoor, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let start = Instant::now();
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let gives_way = CancellationToken::new();
        match door.admit(from.ip(), start.elapsed().as_nanos() as u64, gives_way.clone()) {
            Ok(Admitted { guest, gives_way: other }) => {
                if let Some(other) = other {
                    other.cancel();
                }
                let serving = serve(stream);
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        () = gives_way.cancelled() => {}
                        () = serving => {}
                    }
                    drop(guest);
                });
            }
            Err(refused) => {
                if let Some(times) = refused.tell {
                    tracing::warn!(%from, why = refused.why.as_str(), times, "admin connections refused: there are too many");
                }
                // A reset leaves nothing behind in the kernel.
                let _ = stream.set_zero_linger();
            }
        }
    }
}

fn owner_only(path: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("cannot make the admin socket {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn connection(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    shared: Arc<Shared>,
    probes: Arc<Probes>,
    drain: CancellationToken,
    owner: bool,
) {
    let whole = WHOLE + probes.longest();
    let taps = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        let (probe, probes) = (probe_asked(&request), probes.clone());
        let checked = owner.then(|| checkup::asked(&request)).flatten().map(|question| (question, shared.clone()));
        let events = (owner && request.uri().path() == "/tap").then(|| tapped(&request, &shared));
        taps.store(events.as_ref().is_some_and(|events| events.status().is_success()), Relaxed);
        let scraped = (request.method() == Method::GET && request.uri().path() == "/metrics")
            .then(|| (Format::of(request.headers().get(ACCEPT).and_then(|value| value.to_str().ok())), shared.clone()));
        let other = if events.is_none() && scraped.is_none() { Some(answer(&request, &shared, &drain, owner)) } else { None };
        async move {
            if let Some((format, shared)) = scraped {
                return Ok(metrics(&shared, format, owner).await.map(Either::Left));
            }
            if let Some((question, shared)) = checked {
                let answered = match checkup::answer(question, &shared).await {
                    Ok(found) => reply(StatusCode::OK, "application/json", format!("{found:#}\n")),
                    Err(why) => plain(StatusCode::BAD_REQUEST, &why),
                };
                return Ok(answered.map(Either::Left));
            }
            Ok::<_, Infallible>(match (events, probe, other) {
                (Some(events), ..) => events,
                (_, Some((name, agent)), _) => probed(probes.ask(&name, &agent).await).map(Either::Left),
                (_, _, other) => other.unwrap_or_else(|| plain(StatusCode::NOT_FOUND, "there is no such path")).map(Either::Left),
            })
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(Duration::from_secs(2))
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(serving);
    // A tap lasts for as long as somebody looks.
    if tokio::time::timeout(whole, &mut serving).await.is_err() && taps.load(Relaxed) {
        let _ = tokio::time::timeout(LONGEST_TAP, serving).await;
    }
}

/// A tap ends after this, and is opened anew by who wants more.
const LONGEST_TAP: Duration = Duration::from_secs(3_600);

/// The events of a new tap, or why there is none.
fn tapped(request: &Request<Incoming>, shared: &Shared) -> Response<Either<Full<Bytes>, Events>> {
    let refused = |status, why: &str| plain(status, why).map(Either::Left);
    match Filter::read(request.uri().query().unwrap_or_default()) {
        Err(why) => refused(StatusCode::BAD_REQUEST, &why),
        Ok(filter) => match tap::open(&shared.telemetry, filter) {
            Ok(events) => {
                // Whoever looks at requests is not seen by those who make them, but here.
                tracing::info!(filter = request.uri().query().unwrap_or_default(), "a tap was opened");
                Response::new(Either::Right(events))
            }
            Err(Refused::Withheld(why)) => {
                tracing::info!(
                    filter = request.uri().query().unwrap_or_default(),
                    "a tap was refused: it asks to be shown what is not allowed"
                );
                refused(StatusCode::FORBIDDEN, &why)
            }
            Err(Refused::Full) => {
                refused(StatusCode::SERVICE_UNAVAILABLE, "there are as many taps as there may be: end one of them")
            }
        },
    }
}

/// What is logged, read or changed.
fn log(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let filter = request.uri().query().and_then(|q| q.strip_prefix("filter="));
    match (request.method(), filter) {
        (&Method::GET, _) => plain(StatusCode::OK, &shared.levels.now().unwrap_or_else(|| "fixed".to_owned())),
        (&Method::POST, Some(filter)) => match shared.levels.set(filter) {
            Ok(()) => plain(StatusCode::OK, &shared.levels.now().unwrap_or_default()),
            Err(why) => plain(StatusCode::BAD_REQUEST, &why),
        },
        _ => plain(StatusCode::BAD_REQUEST, "use GET /log, or POST /log?filter=FILTER"),
    }
}

/// The name of the probe that is asked for, and whom the application will see asking: who asks here, if it is a kubelet.
fn probe_asked(request: &Request<Incoming>) -> Option<(String, String)> {
    let name = request.uri().path().strip_prefix("/probe/").filter(|_| request.method() == Method::GET)?;
    let agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
    let agent = agent.filter(|agent| agent.starts_with("kube-probe/") && agent.len() <= 64);
    Some((name.to_owned(), agent.unwrap_or("kube-probe/weft").to_owned()))
}

fn probed(verdict: Option<crate::probe::Verdict>) -> Response<Full<Bytes>> {
    match verdict {
        Some(Ok(())) => plain(StatusCode::OK, "well"),
        Some(Err(why)) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("the application is not well: {why}")),
        None => plain(StatusCode::NOT_FOUND, "there is no such probe"),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn answer(request: &Request<Incoming>, shared: &Shared, drain: &CancellationToken, owner: bool) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path(), owner) {
        (&Method::GET, "/live", _) => plain(StatusCode::OK, "live"),
        (&Method::GET, "/ready", _) if shared.draining.is_cancelled() => plain(StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (&Method::GET, "/ready", _) if shared.mesh.is_ready() => plain(StatusCode::OK, "ready"),
        (&Method::GET, "/ready", _) => {
            plain(StatusCode::SERVICE_UNAVAILABLE, &format!("waiting for: {}", shared.mesh.missing().join(", ")))
        }
        (&Method::GET, "/config", true) => reply(StatusCode::OK, "application/json", format!("{:#}\n", config(shared))),
        (&Method::GET, "/edges", true) => {
            reply(StatusCode::OK, "application/json", format!("{:#}\n", json!(shared.metrics.edges())))
        }
        (&Method::GET, "/denials", true) => {
            reply(StatusCode::OK, "application/json", format!("{:#}\n", json!(shared.denials.all())))
        }
        (&Method::GET, path, true) if path.starts_with("/denials/") => {
            match shared.denials.of(path.trim_start_matches("/denials/")) {
                Some(record) => reply(StatusCode::OK, "application/json", format!("{:#}\n", json!(record))),
                None => {
                    plain(StatusCode::NOT_FOUND, "no denial of this reference is kept: it was another sidecar's, or is too old")
                }
            }
        }
        (&Method::GET, "/plaintext", true) => {
            reply(StatusCode::OK, "application/json", format!("{:#}\n", json!(shared.plaintext.report())))
        }
        (&Method::GET, "/flows", true) => reply(StatusCode::OK, "application/json", format!("{}\n", flows(shared))),
        (_, "/log", true) => log(request, shared),
        (&Method::GET, "/traces", true) => {
            let trace = request.uri().query().and_then(|q| q.strip_prefix("id="));
            reply(StatusCode::OK, "application/json", format!("{}\n", json!(shared.telemetry.ring.spans(trace))))
        }
        (&Method::POST, "/record", true) => record(shared, request.uri().query()),
        (_, "/record", true) => plain(StatusCode::METHOD_NOT_ALLOWED, "use POST /record?seconds=N"),
        (&Method::POST, "/drain", true) => {
            drain.cancel();
            plain(StatusCode::ACCEPTED, "draining")
        }
        (_, "/drain", true) => plain(StatusCode::METHOD_NOT_ALLOWED, "use POST"),
        (_, _, true) => {
            let known = "/live, /ready, /metrics, /probe, /config, /check, /check/path?to=IP, /held, /edges, /denials, /plaintext, /flows, /tap, /traces, /log, POST /record and POST /drain";
            plain(StatusCode::NOT_FOUND, &format!("there are {known}"))
        }
        (_, _, false) => plain(StatusCode::NOT_FOUND, "there are /live, /ready, /metrics and /probe"),
    }
}

/// What was recorded, and of whose sidecar.
fn flows(shared: &Shared) -> serde_json::Value {
    let identity = shared.mesh.identity.load();
    let info = identity.as_ref().map(|i| i.svid.info());
    let mut told = json!(shared.flows.report());
    told["pod"] = json!(info.and_then(|i| i.pod.as_ref()).map(ToString::to_string));
    told["identity"] = json!(info.map(|i| i.id.to_string()));
    told
}

/// Has calls recorded for so many seconds, or, with 0, no longer.
/// `seconds=N`, and `by=HEX` for whom: it is theirs to end. Without that, 0 ends it for anybody.
fn record(shared: &Shared, query: Option<&str>) -> Response<Full<Bytes>> {
    let mut parts = query.unwrap_or_default().split('&');
    let seconds = parts.next().and_then(|q| q.strip_prefix("seconds=")).and_then(|n| n.parse::<u64>().ok());
    let by = parts.next().map(|q| q.strip_prefix("by=").and_then(|id| u64::from_str_radix(id, 16).ok()));
    let most = MAX_TIME.as_secs();
    match (seconds, by) {
        (Some(0), None | Some(Some(_))) => {
            shared.flows.stop(by.flatten());
            plain(StatusCode::OK, "nothing is recorded any more")
        }
        (Some(seconds), None | Some(Some(_))) if seconds <= most => {
            let (flows, time) = (shared.flows.clone(), Duration::from_secs(seconds));
            if let Err(left) = flows.record_for(by.flatten().unwrap_or(0), time) {
                let left = left.as_secs();
                let why = format!(
                    "{RECORDED_ALREADY} for somebody else, for {left} s more: wait, or end that with `weft record --stop`"
                );
                return plain(StatusCode::CONFLICT, &why);
            }
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                flows.expire();
            });
            plain(StatusCode::OK, &format!("calls are recorded for {seconds} s"))
        }
        _ => {
            let why = format!("say for how long, and for whom: POST /record?seconds=N&by=HEX, with N from 0 to {most}");
            plain(StatusCode::BAD_REQUEST, &why)
        }
    }
}

/// The metrics, in the format that is asked for. Its owner has them as they are now; of others many may ask, and often.
async fn metrics(shared: &Arc<Shared>, format: Format, owner: bool) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(scrape(shared, format, owner).await));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}

/// How a breaker stands, and for how long yet, in milliseconds.
fn breaker(state: State, now: u64) -> serde_json::Value {
    match state {
        State::Closed => json!({"state": "closed"}),
        State::Open { until } => json!({"state": "open", "millis_left": until.saturating_sub(now) / 1_000_000}),
        State::HalfOpen { probing } => json!({"state": "half-open", "probing": probing}),
    }
}

/// What it knows, with versions, without secrets: what `/config` answers with.
pub fn config(shared: &Shared) -> serde_json::Value {
    let mesh = &shared.mesh;
    let identity = mesh.identity.load();
    let addresses: serde_json::Map<String, serde_json::Value> = mesh
        .addresses
        .load()
        .iter()
        .map(|(ip, address)| {
            let value = match &address.target {
                Target::Unknown => json!("unknown"),
                Target::Workload(w) => json!({"workload": w.workload.id.to_string(), "reach": format!("{:?}", w.workload.reach)}),
                Target::Service(s) => json!({
                    "service": s.id.to_string(),
                    "traffic": s.view.load().traffic.as_ref().map(|t| t.describe()),
                    "ejected": s.view.load().standing.ejections.held(),
                    "retries_left": s.view.load().standing.budget.left(mesh.now()),
                    "requests_connections_pending": s.view.load().standing.held(),
                    "ports": s.view.load().service.ports.iter().map(|p| json!({"port": p.port, "protocol": format!("{:?}", p.protocol)})).collect::<Vec<_>>(),
                    "endpoints": s.view.load().endpoints.iter().map(|e| json!({
                        "address": e.endpoint.address,
                        "workload": e.endpoint.workload.as_ref().map(ToString::to_string),
                        "reach": format!("{:?}", e.endpoint.reach),
                        "ready": e.endpoint.ready,
                        "in_flight": e.health.load.in_flight(),
                        "failures_in_a_row": e.health.load.failures(),
                        "load": e.health.load.load(mesh.now()),
                        "breaker": breaker(e.health.breaker.state(mesh.now()), mesh.now()),
                        "ejections": e.health.breaker.ejections(),
                    })).collect::<Vec<_>>(),
                }),
            };
            (ip.to_string(), value)
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": mesh.is_ready(),
        "waiting_for": mesh.missing(),
        "discovery_connected": mesh.connected.load(std::sync::atomic::Ordering::Relaxed),
        "certificate": identity.as_ref().map(|i| {
            let info = i.svid.info();
            json!({"id": info.id.to_string(), "pod": info.pod.as_ref().map(ToString::to_string), "serial": info.serial,
                   "not_before": info.not_before, "not_after": info.not_after, "anchor": i.anchor, "generation": i.generation})
        }),
        "anchors": identity.as_ref().map(|i| i.bundle.domains()
            .map(|(domain, anchors)| (domain.to_string(), json!(anchors.iter().map(|a| weft_tls::anchor_hash(a)).collect::<Vec<_>>())))
            .collect::<serde_json::Map<_, _>>()),
        "denied": identity.as_ref().map(|i| i.bundle.denied().len()),
        "inbound": mesh.inbound.load().as_ref().map(|p| json!({
            "mode": p.mode.to_string(),
            "port_modes": p.port_modes.iter().map(|(port, m)| json!({"port": port, "mode": m.to_string()})).collect::<Vec<_>>(),
            "protocols": p.protocols.iter().map(|(port, p)| json!({"port": port, "protocol": format!("{p:?}")})).collect::<Vec<_>>(),
            "required_features": p.required_features,
            "network_policies": p.network.as_deref().map(isolating),
            "authorization": {
                "default": p.authorization.posture.to_string(),
                "default_from": p.authorization.posture_from.to_string(),
                "policies": p.authorization.policies.iter().map(|a| json!({
                    "policy": a.id.to_string(), "action": a.action.to_string(), "dry_run": a.dry_run, "target": a.target.to_string(),
                    "rules": a.rules.len(), "ports": a.ports,
                })).collect::<Vec<_>>(),
            },
        })),
        "outbound": mesh.outbound.load().as_ref().map(|p| json!({
            "required_features": p.required_features,
            "network_policies": p.network.as_deref().map(isolating),
            "egress": leaving(&p.policy().egress),
        })),
        "mesh_ranges": mesh.ranges.load().as_ref().map(|r| r.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "addresses": addresses,
    })
}

/// Where a pod may go outside of the mesh.
fn leaving(egress: &Egress) -> Value {
    json!({
        "default": egress.default.to_string(),
        "default_from": egress.default_from.to_string(),
        "external_services": egress.externals.iter().map(|e| json!({
            "id": e.id.to_string(),
            "hosts": e.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "ports": e.ports.iter().map(|p| json!({"port": p.port, "target": p.target, "protocol": p.protocol.as_str()})).collect::<Vec<_>>(),
            "tls": e.origination.is_some(),
            "peer": e.origination.as_ref().and_then(|o| o.peer()).map(ToString::to_string),
            "policies": e.authorization.policies.iter().map(|a| a.id.to_string()).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

/// The network policies that isolate the pod one way.
fn isolating(network: &Isolation) -> Vec<Value> {
    let peer = |term: &PeerTerm| match term {
        PeerTerm::Anywhere => "anywhere".to_owned(),
        PeerTerm::Set(id) => format!("peers/{id}"),
        PeerTerm::Block { cidr, except } if except.is_empty() => cidr.to_string(),
        PeerTerm::Block { cidr, except } => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("{cidr} except {}", except.join(", "))
        }
    };
    let port = |term: &PortTerm| match term {
        PortTerm::All => "all".to_owned(),
        PortTerm::Range(first, last) if first == last => first.to_string(),
        PortTerm::Range(first, last) => format!("{first}-{last}"),
        PortTerm::Named(id) => format!("named in peers/{id}"),
    };
    let rule = |rule: &Rule| {
        json!({
            "rule": rule.place,
            "peers": rule.peers.iter().map(peer).collect::<Vec<_>>(),
            "ports": rule.ports.iter().map(port).collect::<Vec<_>>(),
        })
    };
    let policy = |p: &Arc<Policy>| json!({"policy": p.id.to_string(), "rules": p.rules.iter().map(rule).collect::<Vec<_>>()});
    network.policies.iter().map(policy).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_crowd_from_one_source_is_refused_and_leaves_room_for_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let addr = listener.local_addr().expect("it listens");
        let door = door();
        tokio::spawn(accept(listener, door.clone(), |mut stream| async move {
            let _ = stream.write_all(b"!").await;
            let _ = stream.read(&mut [0]).await;
        }));
        let mut open = Vec::new();
        let mut byte = [0];
        for _ in 0..MAX_CONNECTIONS / 4 {
            let mut stream = TcpStream::connect(addr).await.expect("it listens");
            stream.read_exact(&mut byte).await.expect("it is served");
            open.push(stream);
        }
        // From another address of loopback there is room, whatever the first one holds.
        let other = tokio::net::TcpSocket::new_v4().expect("a socket");
        other.bind("127.0.0.2:0".parse().expect("an address")).expect("all of 127/8 is loopback");
        let mut other = other.connect(addr).await.expect("it listens");
        other.read_exact(&mut byte).await.expect("it is served");
        assert_eq!(door.counts().open, MAX_CONNECTIONS as u64 / 4 + 1);
        drop(open);
    }
}
