use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// An application on a free port: to each request whose head holds a key, the answer that stands with it. Counts them.
async fn app(answers: &'static [(&'static str, &'static str)]) -> (u16, Arc<AtomicUsize>) {
    let (listener, count) = (listener().await, Arc::new(AtomicUsize::new(0)));
    let (port, counted) = (port(&listener), count.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..n]).to_lowercase();
            let found = answers.iter().find(|(key, _)| head.contains(key));
            let answer = found.map_or("HTTP/1.1 404 No\r\n\r\n", |(_, answer)| *answer);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, count)
}

async fn listener() -> TcpListener {
    TcpListener::bind((LOOPBACK, 0)).await.expect("loopback has a free port")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("it listens").port()
}

fn probes(check: &Value) -> Probes {
    let text = json!({ "app/liveness": check }).to_string();
    Probes::new(&text.parse().expect("a check"), Some(LOOPBACK), Dialer { mark: 0 })
}

async fn asked(check: Value) -> Verdict {
    probes(&check).ask("app/liveness", "kube-probe/1.31").await.expect("it is known")
}

const OK: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nwell";

#[test]
fn checks_read_as_the_injector_writes_them_and_are_of_the_application_alone() {
    let text = r#"{"app/liveness":{"check":"tcp","port":8080,"timeout_secs":1},
        "app/readiness":{"check":"http","headers":[["X-A","b"]],"path":"/ready","port":80,"timeout_secs":3,"tls":true},
        "app/startup":{"check":"grpc","port":9000,"service":"","timeout_secs":1}}"#;
    let checks: Checks = text.parse().expect("checks");
    let kind = Kind::Http { path: "/ready".into(), tls: true, headers: vec![("X-A".into(), "b".into())] };
    assert_eq!(checks.0["app/readiness"], Check { port: 80, timeout_secs: 3, kind });
    assert_eq!("{}".parse::<Checks>(), Ok(Checks::default()));
    for bad in [
        "",
        "[]",
        r#"{"a/liveness":{"check":"tcp","timeout_secs":1}}"#,
        r#"{"a/liveness":{"check":"udp","port":1,"timeout_secs":1}}"#,
        r#"{"a/liveness":{"check":"tcp","port":0,"timeout_secs":1}}"#,
        r#"{"a/liveness":{"check":"tcp","port":4743,"timeout_secs":1}}"#,
        r#"{"a/liveness":{"check":"tcp","port":1,"timeout_secs":0}}"#,
    ] {
        assert!(bad.parse::<Checks>().is_err(), "{bad} was accepted");
    }
}

#[tokio::test]
async fn http_is_well_from_200_to_399_with_the_path_and_headers_asked_for() {
    let (port, _) = app(&[
        ("get /well?a=%20b http/1.1\r\n", OK),
        ("get /ill", "HTTP/1.1 500 No\r\nconnection: close\r\n\r\n"),
        ("get /away", "HTTP/1.1 302 Found\r\nlocation: http://elsewhere.example/\r\nconnection: close\r\n\r\n"),
        ("get /near", "HTTP/1.1 302 Found\r\nlocation: /ill\r\nconnection: close\r\n\r\n"),
        ("get /round", "HTTP/1.1 302 Found\r\nlocation: /round\r\nconnection: close\r\n\r\n"),
        ("x-a: b\r\n", OK),
        ("host: shop.example\r\n", OK),
        ("user-agent: kube-probe/1.31\r\n", "HTTP/1.1 403 No\r\n\r\n"),
    ])
    .await;
    let http = |path: &str, headers: Value| json!({ "check": "http", "port": port, "path": path, "headers": headers, "timeout_secs": 9 });
    let none = json!([]);
    assert_eq!(asked(http("well?a= b#c", none.clone())).await, Ok(()));
    assert_eq!(asked(http("/ill", none.clone())).await, Err("it answered 500".to_owned()));
    assert_eq!(asked(http("/away", none.clone())).await, Ok(()));
    assert_eq!(asked(http("/near", none.clone())).await, Err("it answered 500".to_owned()));
    assert!(asked(http("/round", none.clone())).await.is_err_and(|why| why.contains("10 times")));
    assert_eq!(asked(http("/", json!([["X-A", "b"]]))).await, Ok(()));
    assert_eq!(asked(http("/", json!([["Host", "shop.example"]]))).await, Ok(()));
    assert_eq!(asked(http("/", none)).await, Err("it answered 403".to_owned()));
}

#[tokio::test]
async fn an_application_that_is_down_or_hangs_is_not_well() {
    let closed = port(&listener().await);
    let hung = listener().await;
    for check in ["tcp", "http", "grpc"] {
        let of = |port: u16| json!({ "check": check, "port": port, "path": "/", "timeout_secs": 1 });
        assert!(asked(of(closed)).await.is_err(), "{check}");
        // What accepts a connection is well as far as TCP goes.
        let verdict = asked(of(port(&hung))).await;
        assert_eq!(verdict.is_ok(), check == "tcp", "{check}: {verdict:?}");
    }
    assert_eq!(probes(&json!({ "check": "tcp", "port": 1, "timeout_secs": 1 })).ask("app/readiness", "").await, None);
}

#[tokio::test]
async fn https_is_asked_with_any_certificate() {
    let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).expect("a certificate");
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(weft_tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("key and certificate fit");
    let listener = listener().await;
    let port = port(&listener);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a caller");
        let mut stream = acceptor.accept(stream).await.expect("a handshake");
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(OK.as_bytes()).await;
        let _ = stream.shutdown().await;
    });
    let check = json!({ "check": "http", "port": port, "path": "/", "tls": true, "timeout_secs": 9 });
    assert_eq!(asked(check).await, Ok(()));
}

#[tokio::test]
async fn grpc_is_well_where_the_service_serves() {
    let (health, service) = tonic_health::server::health_reporter();
    health.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
    health.set_service_status("till", tonic_health::ServingStatus::NotServing).await;
    let listener = listener().await;
    let port = port(&listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let grpc = |service: &str| json!({ "check": "grpc", "port": port, "service": service, "timeout_secs": 9 });
    assert_eq!(asked(grpc("shop")).await, Ok(()));
    assert_eq!(asked(grpc("till")).await, Err("it answered NOT_SERVING".to_owned()));
    assert!(asked(grpc("unheard-of")).await.is_err());
}

#[tokio::test]
async fn however_many_ask_the_application_is_asked_once() {
    let (port, count) = app(&[("get", OK)]).await;
    let probes = Arc::new(probes(&json!({ "check": "http", "port": port, "path": "/", "timeout_secs": 9 })));
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let probes = probes.clone();
            tokio::spawn(async move { probes.ask("app/liveness", "").await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.expect("it ends"), Some(Ok(())));
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}
