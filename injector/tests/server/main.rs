//! The webhook over loopback, as the API server and its enemies meet it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use weft_injector::InjectorOptions;
use weft_injector::certificate::{Current, Made, Serving, make};
use weft_injector::namespaces::Namespaces;
use weft_injector::status::{self, Status};
use weft_injector::webhook::{self, Limits, Webhook};
use weft_log::Levels;

const HOST: &str = "weft-injector.weft-system.svc";
/// Whatever is waited for is there long before, or never.
const PATIENCE: Duration = Duration::from_secs(20);

/// A webhook that serves, and what a test needs of it.
struct World {
    address: SocketAddr,
    status_address: SocketAddr,
    current: Arc<Current>,
    status: Arc<Status>,
    made: Made,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

fn made() -> Made {
    make(&[HOST.to_owned()], OffsetDateTime::now_utc(), Duration::from_secs(3600)).expect("a certificate")
}

fn serving(made: &Made) -> Serving {
    Serving::read(made.certificate.as_bytes(), made.key.as_bytes()).expect("it is whole")
}

impl World {
    /// A webhook whose directory has the namespace `shop`.
    async fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let shop = json!({ "metadata": { "name": "shop", "labels": { "weft.dev/inject": "enabled" } } });
        std::fs::write(dir.path().join("shop.json"), shop.to_string()).expect("the directory is writable");
        let made = made();
        let current = Arc::new(Current::default());
        let status = Arc::new(Status::new(current.clone(), Levels::fixed(), ["certificate"]));
        let (listener, status_listener) = (bind().await, bind().await);
        let (address, status_address) = (local(&listener), local(&status_listener));
        let webhook = Arc::new(Webhook {
            options: InjectorOptions::new("weft:1", "weft-control-plane.weft-system.svc:4700"),
            namespaces: Namespaces::Directory(dir.path().to_owned()),
            status: status.clone(),
            limits,
        });
        let (stop, tls) = (CancellationToken::new(), TlsAcceptor::from(Arc::new(current.clone().tls())));
        tokio::spawn(status::serve(status_listener, status.clone(), stop.clone()));
        let serving = tokio::spawn(webhook::serve(listener, tls, webhook, stop.clone()));
        Self { address, status_address, current, status, made, stop, serving, _dir: dir }
    }

    /// One that has its certificate.
    async fn ready(limits: Limits) -> Self {
        let world = Self::new(limits).await;
        world.current.serve(serving(&world.made));
        world.status.has("certificate");
        world
    }

    /// A connection of a caller that trusts the CA `authority` alone.
    async fn connect(&self, authority: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).expect("a CA")).expect("a CA");
        let config = ClientConfig::builder_with_provider(weft_tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 suites")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(HOST).expect("a name");
        in_time(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await
    }

    /// What is answered to these bytes, to the end.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect(&self.made.authority).await.expect("a handshake");
        send(&mut stream, bytes).await;
        rest(&mut stream).await
    }

    async fn status(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.status_address).await.expect("it listens");
        send(&mut stream, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
        rest(&mut stream).await
    }
}

async fn bind() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback has a free port")
}

fn local(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("it listens")
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends in time")
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) {
    in_time(stream.write_all(bytes)).await.expect("it is taken");
    in_time(stream.flush()).await.expect("it is taken");
}

/// All that still comes. A caller that was cut off has its answer all the same.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    let _ = in_time(stream.read_to_end(&mut bytes)).await;
    String::from_utf8(bytes).expect("an answer is text")
}

fn review(namespace: &str) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "namespace": namespace,
            "operation": "CREATE",
            "dryRun": true,
            "object": { "metadata": {}, "spec": { "containers": [{ "name": "app", "image": "app:1" }] } },
        },
    })
    .to_string()
}

fn post(body: &str) -> Vec<u8> {
    let head = "POST /inject?timeout=5s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The response in the review that was answered.
fn response(answer: &str) -> Value {
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut review: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(review["kind"], "AdmissionReview");
    review["response"].take()
}

#[tokio::test]
async fn a_pod_is_injected_and_counted() {
    let world = World::ready(Limits::default()).await;
    let response = response(&world.exchange(&post(&review("shop"))).await);
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    assert!(response["patch"].is_string());
    let metrics = world.status("/metrics").await;
    assert!(metrics.contains("weft_injector_reviews_total{weft_verdict=\"injected\"} 1\n"), "{metrics}");
    assert!(metrics.contains("weft_injector_ready 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_namespace_that_cannot_be_looked_at_is_a_refusal_but_never_of_the_clusters_own() {
    let world = World::ready(Limits::default()).await;
    let refused = response(&world.exchange(&post(&review("unheard-of"))).await);
    assert_eq!((&refused["allowed"], &refused["status"]["code"]), (&json!(false), &json!(503)));
    assert!(refused["status"]["message"].as_str().is_some_and(|text| text.contains("unheard-of")), "{refused}");
    let system = response(&world.exchange(&post(&review("kube-system"))).await);
    assert_eq!((&system["allowed"], system.get("patch")), (&json!(true), None));
}

#[tokio::test]
async fn what_is_no_review_has_a_status_of_its_own_and_is_counted() {
    let world = World::ready(Limits::default()).await;
    let json = "content-type: application/json\r\nconnection: close\r\n";
    let chunks = {
        let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
        format!("POST /inject HTTP/1.1\r\nhost: x\r\n{json}transfer-encoding: chunked\r\n\r\n{}1\r\n \r\n", chunk.repeat(4))
    };
    for (request, status) in [
        (format!("POST /inject HTTP/1.1\r\nhost: x\r\n{json}content-length: 5\r\n\r\n{{\"a\":"), 400),
        (format!("POST /other HTTP/1.1\r\nhost: x\r\n{json}content-length: 2\r\n\r\n{{}}"), 404),
        (format!("GET /inject HTTP/1.1\r\nhost: x\r\n{json}\r\n"), 405),
        (format!("GET /metrics HTTP/1.1\r\nhost: x\r\n{json}\r\n"), 404),
        (format!("POST /inject HTTP/1.1\r\nhost: x\r\n{json}content-length: 4194305\r\n\r\n"), 413),
        (chunks, 413),
        ("POST /inject HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}".to_owned(), 415),
        ("\u{16}\u{3}\u{1} this is no HTTP\r\n\r\n".to_owned(), 400),
    ] {
        let answer = world.exchange(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
    let metrics = world.status("/metrics").await;
    assert!(metrics.contains("weft_injector_bad_requests_total{http_response_status_code=\"413\"} 2\n"), "{metrics}");
    // And JSON that is no review is answered by one.
    assert_eq!(response(&world.exchange(&post("{}")).await)["allowed"], json!(false));
}

#[tokio::test]
async fn a_slow_caller_is_cut_off_at_every_step() {
    let short = Duration::from_secs(1);
    let limits = Limits { connections: 2, handshake: short, head: short, body: short, ..Limits::default() };
    let world = World::ready(limits).await;
    // There is room for one, and for one more while that is closed: each of these would keep out the next but one.
    let mut silent = TcpStream::connect(world.address).await.expect("it listens");
    assert_eq!(rest(&mut silent).await, "");
    let mut garbage = TcpStream::connect(world.address).await.expect("it listens");
    send(&mut garbage, b"GET / HTTP/1.1\r\n\r\n").await;
    let _ = in_time(garbage.read_to_end(&mut Vec::new())).await;
    assert!(!world.exchange(b"POST /inject HTTP/1.1\r\nhost: x\r\n").await.contains(" 200 "));
    let head = "POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    assert!(world.exchange(head.as_bytes()).await.starts_with("HTTP/1.1 408 "));
    let metrics = world.status("/metrics").await;
    assert!(metrics.contains("weft_injector_bad_handshakes_total 2\n"), "{metrics}");
}

/// The value of a metric of the webhook's port, by reason.
fn refused(metrics: &str, reason: &str) -> u64 {
    let start = format!("weft_injector_connections_refused_total{{weft_port_name=\"webhook\",weft_reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(start.as_str())).expect("it is told");
    value.parse().expect("a number")
}

#[tokio::test]
async fn who_finds_no_room_is_closed_at_once_and_counted() {
    let world = World::ready(Limits { connections: 1, ..Limits::default() }).await;
    let first = world.connect(&world.made.authority).await.expect("there is room for one");
    // It waits for a request. Whether it waited long enough to give way is a matter of time; one of the two is closed.
    let second = world.connect(&world.made.authority).await;
    let metrics = world.status("/metrics").await;
    let told = (refused(&metrics, "source"), refused(&metrics, "gave-way"));
    assert_eq!(told, if second.is_ok() { (0, 1) } else { (1, 0) }, "{metrics}");
    assert!(metrics.contains("weft_injector_connections{weft_port_name=\"status\"} 1\n"), "{metrics}");
    drop(first);
}

#[tokio::test]
async fn it_is_ready_with_a_certificate_and_renews_it_while_serving() {
    let world = World::new(Limits::default()).await;
    assert!(world.status("/ready").await.contains("503"), "it has no certificate yet");
    assert!(world.status("/live").await.contains("200"));
    assert!(world.connect(&world.made.authority).await.is_err());

    world.current.serve(serving(&world.made));
    world.status.has("certificate");
    assert!(world.status("/ready").await.contains("200"));
    let mut open = world.connect(&world.made.authority).await.expect("a handshake");

    let next = made();
    world.current.serve(serving(&next));
    world.connect(&next.authority).await.expect("a handshake under the new CA");
    assert!(world.connect(&world.made.authority).await.is_err(), "the old CA does not vouch for the new leaf");
    send(&mut open, &post(&review("shop"))).await;
    assert_eq!(response(&rest(&mut open).await)["allowed"], true, "a connection outlives the certificate that it began with");

    world.status.drain();
    assert!(world.status("/ready").await.contains("draining"));
}

#[tokio::test]
async fn what_is_under_way_when_it_stops_is_answered() {
    let world = World::ready(Limits::default()).await;
    let request = String::from_utf8(post(&review("shop"))).expect("text");
    let (head, body) = request.split_once("\r\n\r\n").expect("a head");
    let mut stream = world.connect(&world.made.authority).await.expect("a handshake");
    send(&mut stream, format!("{head}\r\nexpect: 100-continue\r\n\r\n").as_bytes()).await;
    // The webhook asks for the body once it waits for it.
    let mut asked = [0; 25];
    in_time(stream.read_exact(&mut asked)).await.expect("an answer");
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    world.stop.cancel();
    in_time(async { while TcpStream::connect(world.address).await.is_ok() {} }).await;
    send(&mut stream, body.as_bytes()).await;
    assert_eq!(response(&rest(&mut stream).await)["allowed"], true);
    in_time(world.serving).await.expect("it ends by itself");
}
