use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn without_a_collector_there_is_no_exporter() {
    for pairs in [
        &[][..],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"), ("OTEL_SDK_DISABLED", "True")],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"), ("OTEL_TRACES_EXPORTER", "none")],
        &[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://c:4317")],
    ] {
        assert!(Settings::read(Signal::Traces, &env(pairs)).is_ok_and(|s| s.is_none()), "{pairs:?}");
    }
}

#[test]
fn endpoints_are_read_as_the_specification_says() {
    for (pairs, place, path, port) in [
        (&[("OTEL_TRACES_EXPORTER", "otlp")][..], "http://localhost:4317", Signal::Traces.rpc(), 4317),
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")], "http://c", Signal::Traces.rpc(), 4317),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "c:99"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")],
            "http://c:99",
            Signal::Traces.rpc(),
            99,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1/x/"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
            "http://c:1/x/v1/traces",
            "/x/v1/traces",
            1,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[fd00::1]:1/y"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
            "http://[fd00::1]:1/y",
            "/y",
            1,
        ),
    ] {
        let settings = Settings::read(Signal::Traces, &env(pairs)).expect("good").expect("a collector");
        assert_eq!((&*settings.place, &*settings.path, settings.port), (place, path, port), "{pairs:?}");
    }
}

#[test]
fn what_cannot_be_honoured_is_told_and_no_secret_with_it() {
    let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
    for (pair, why) in [
        (("OTEL_TRACES_EXPORTER", "zipkin"), "OTEL_TRACES_EXPORTER: \"zipkin\" is not known: write otlp or none"),
        (("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"), "OTEL_EXPORTER_OTLP_PROTOCOL: \"http/json\" is not spoken here"),
        (("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"), "OTEL_EXPORTER_OTLP_COMPRESSION: \"zstd\" is not known"),
        (("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"), "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: \"0\" is not 1 to 600000"),
        (("OTEL_EXPORTER_OTLP_HEADERS", "a=s%secret"), "OTEL_EXPORTER_OTLP_HEADERS: the value of a is not percent-encoded"),
        (("OTEL_EXPORTER_OTLP_HEADERS", "a b=secret"), "OTEL_EXPORTER_OTLP_HEADERS: \"a b\" is no name of a header"),
        (("OTEL_EXPORTER_OTLP_HEADERS", "secret"), "OTEL_EXPORTER_OTLP_HEADERS: a part has no ="),
        (("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://u:secret@c"), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: it has a user in it"),
        (("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://c"), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: it has a scheme"),
    ] {
        let said = Settings::read(Signal::Traces, &env(&[base, pair])).err().expect("refused").to_string();
        assert!(said.starts_with(why) && !said.contains("secret"), "{said}");
    }
    let tls = [("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c"), ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")];
    let said = Settings::read(Signal::Traces, &env(&tls)).err().expect("refused").to_string();
    assert!(said.starts_with("OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere/ca.pem cannot be read"), "{said}");
}

#[test]
fn pauses_grow_and_have_jitter() {
    let pause = |attempt, random| retry::pause(attempt, Duration::from_secs(1), Duration::from_secs(5), random);
    assert_eq!(pause(0, 0), Duration::from_millis(500));
    assert!(pause(1, u64::MAX) <= Duration::from_secs(2) && pause(1, u64::MAX) > Duration::from_millis(1_900));
    assert_eq!(pause(40, 0), Duration::from_millis(2_500));
}

#[test]
fn a_server_says_when_to_come_again() {
    let info = RetryInfo { retry_delay: Some(Span { seconds: 3, nanos: 5 }) };
    let detail = Detail { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info.encode_to_vec() };
    let status = RpcStatus { details: vec![Detail::default(), detail] }.encode_to_vec();
    let text = base64::engine::general_purpose::STANDARD.encode(status);
    assert_eq!(retry_info(text.as_bytes()), Some(Duration::new(3, 5)));
    for hostile in [&b""[..], b"====", b"%%%", b"AAAA"] {
        assert_eq!(retry_info(hostile), None);
    }
}

/// Answers each connection's requests with these texts, one after the other, and keeps what came.
async fn http1_server(answers: Vec<&'static str>) -> (u16, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let port = listener.local_addr().expect("it listens").port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("somebody comes");
            let mut got = Vec::new();
            let mut buf = [0; 1024];
            loop {
                let n = stream.read(&mut buf).await.expect("it reads");
                got.extend_from_slice(&buf[..n]);
                let text = String::from_utf8_lossy(&got).to_ascii_lowercase();
                let Some(end) = got.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                let length = text.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
                if got.len() >= end + 4 + length {
                    break;
                }
            }
            kept.lock().expect("nobody panicked").push(got);
            stream.write_all(answer.as_bytes()).await.expect("it writes");
        }
    });
    (port, seen)
}

fn http_exporter(port: u16, more: &[(&str, &str)]) -> Exporter {
    let endpoint = format!("http://127.0.0.1:{port}");
    let mut pairs = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    pairs.extend_from_slice(more);
    Exporter::new(Signal::Traces, &env(&pairs), 0).expect("good").expect("a collector")
}

#[tokio::test]
async fn http_is_retried_where_that_helps_and_headers_go_with_it() {
    let (port, seen) = http1_server(vec![
        "HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n\x0a\x04\x08\x02\x12\x00",
        "HTTP/1.1 400 Bad\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    ])
    .await;
    let more = [("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")];
    let mut exporter = http_exporter(port, &more);
    let taken = exporter.export(Bytes::from_static(b"spans"), || 0).await.expect("taken at last");
    assert_eq!(taken, Taken { rejected: 2, message: String::new() });
    let refused = exporter.export(Bytes::from_static(b"spans"), || 0).await.expect_err("refused").to_string();
    assert!(refused.contains("it answers 400"), "{refused}");
    let seen = seen.lock().expect("nobody panicked");
    assert_eq!(seen.len(), 3);
    let first = String::from_utf8_lossy(&seen[0]);
    assert!(first.starts_with("POST /v1/traces HTTP/1.1\r\n") && first.contains("api-key: a b\r\n"), "{first}");
    assert!(first.contains("content-encoding: gzip\r\n") && !first.contains("spans"));
}

#[tokio::test]
async fn grpc_is_spoken() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let port = listener.local_addr().expect("it listens").port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("somebody comes");
        let mut connection = ::h2::server::handshake(stream).await.expect("HTTP/2");
        let mut statuses = ["14", "0", "3"].into_iter();
        while let Some(Ok((mut request, mut respond))) = connection.accept().await {
            let status = statuses.next().expect("three requests");
            tokio::spawn(async move {
                let mut got = Vec::new();
                while let Some(Ok(data)) = request.body_mut().data().await {
                    got.extend_from_slice(&data);
                }
                assert_eq!((request.uri().path(), &*got), (Signal::Logs.rpc(), &b"\0\0\0\0\x04logs"[..]));
                let head = http::Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
                let mut out = respond.send_response(head, false).expect("sent");
                if status == "0" {
                    out.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).expect("sent");
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", status.parse().expect("a value"));
                trailers.insert("grpc-message", "for a reason".parse().expect("a value"));
                out.send_trailers(trailers).expect("sent");
            });
        }
    });
    let endpoint = format!("http://127.0.0.1:{port}");
    let env = env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
    let mut exporter = Exporter::new(Signal::Logs, &env, 0).expect("good").expect("a collector");
    let logs = Parts { head: Bytes::from_static(b"lo"), rest: Bytes::from_static(b"gs") };
    let taken = exporter.export(logs.clone(), || 0).await.expect("taken at the second time");
    assert_eq!(taken, Taken::default());
    let refused = exporter.export(logs, || 0).await.expect_err("refused").to_string();
    assert!(refused.ends_with("gRPC status 3: for a reason"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_away_costs_bounded_memory_and_is_told_of() {
    // Nothing listens on port 1 of this address.
    let mut exporter = http_exporter(1, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "2000")]);
    let failed = exporter.export(Bytes::from_static(b"spans"), || 0).await.expect_err("nobody is there").to_string();
    assert!(failed.contains("cannot be reached") && failed.contains("127.0.0.1:1"), "{failed}");

    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let limits = batch::Limits { queue: 10, batch: 4, delay: Duration::from_secs(1) };
            let counts = Arc::new(batch::Counts::default());
            let queue = batch::Queue::new(limits, counts.clone());
            let largest = Rc::new(Cell::new(0));
            let seen = largest.clone();
            let running = tokio::task::spawn_local(queue.clone().run(exporter, "spans", move |bytes| {
                seen.set(seen.get().max(bytes));
                Bytes::new()
            }));
            for i in 0..100 {
                queue.push_all(items(&[i]), 1);
            }
            assert_eq!((counts.overflowed.load(Relaxed), counts.waiting.load(Relaxed)), (90, 10));
            while counts.failed.load(Relaxed) < 10 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!((largest.get(), counts.waiting.load(Relaxed), counts.failing.load(Relaxed)), (4 * 3, 0, true));
            running.abort();
        })
        .await;
}

/// Each of one octet, as a field.
fn items(of: &[u8]) -> Bytes {
    of.iter().flat_map(|octet| [0x12, 1, *octet]).collect()
}

#[tokio::test]
async fn batches_leave_whole_and_in_turn_behind_their_heads() {
    const TAKEN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (port, seen) = http1_server(vec![TAKEN; 6]).await;
    let local = tokio::task::LocalSet::new();
    let told = local.run_until(async {
        let limits = batch::Limits { queue: 20, batch: 6, delay: Duration::from_secs(600) };
        let counts = Arc::new(batch::Counts::default());
        let queue = batch::Queue::new(limits, counts.clone());
        // Few are put together, many are a batch by themselves, and more than that are parted.
        for some in ["01", "23", "4567", "89", "abcdefgh", "ijk"] {
            queue.push_all(items(some.as_bytes()), some.len());
        }
        assert!(queue.presses());
        let head = |bytes| Bytes::from(format!("{bytes}:"));
        tokio::task::spawn_local(queue.clone().run(http_exporter(port, &[]), "spans", head));
        let exported = async |count| {
            while counts.exported.load(Relaxed) < count {
                tokio::task::yield_now().await;
            }
        };
        exported(20).await;
        // In the memory of one that has left.
        queue.push_all(items(b"x"), 1);
        queue.close();
        exported(21).await;
        assert!(queue.is_empty());
        (counts.overflowed.load(Relaxed), counts.waiting.load(Relaxed))
    });
    assert_eq!(told.await, (1, 0));
    let seen = seen.lock().expect("nobody panicked");
    let bodies = seen.iter().map(|got| got.rsplit(|b| *b == b'\n').next().map(String::from_utf8_lossy).expect("a body"));
    let bodies: Vec<String> = bodies.map(|body| body.replace("\u{12}\u{1}", "")).collect();
    assert_eq!(bodies, ["12:0123", "12:4567", "18:89abcd", "18:efghij", "3:x"]);
}

#[test]
fn a_query_of_an_endpoint_goes_behind_its_path_and_is_told_nowhere() {
    for (name, path) in [("OTEL_EXPORTER_OTLP_ENDPOINT", "/x/v1/traces"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/x")] {
        let env = env(&[(name, "http://collector:4318/x?key=secret"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
        let settings = Settings::read(Signal::Traces, &env).expect("good").expect("an endpoint");
        assert_eq!(settings.path, format!("{path}?key=secret"));
        assert_eq!(settings.place, format!("http://collector:4318{path}"));
    }
}

#[tokio::test]
async fn tls_is_spoken_with_a_collector_whose_issuer_is_named_and_with_no_other() {
    use std::io::Write;

    let made = || rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let (own, other) = (made(), made());
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key.into())
        .expect("a certificate and its key");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let endpoint = format!("https://{}", listener.local_addr().expect("it listens"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("somebody comes");
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let (mut got, mut buf) = (Vec::new(), [0; 1024]);
            while !got.ends_with(b"spans") {
                match stream.read(&mut buf).await {
                    Ok(n) if n > 0 => got.extend_from_slice(&buf[..n]),
                    _ => break,
                }
            }
            kept.lock().expect("nobody panicked").push(String::from_utf8_lossy(&got).into_owned());
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    for (anchor, is_taken) in [(&own, true), (&other, false)] {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(anchor.cert.pem().as_bytes()).expect("it is written");
        let path = file.path().to_str().expect("text").to_owned();
        let env = env(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", &path),
            // Of who is not believed, one repetition shows enough.
            ("OTEL_EXPORTER_OTLP_TIMEOUT", if is_taken { "60000" } else { "400" }),
        ]);
        let mut exporter = Exporter::new(Signal::Traces, &env, 0).expect("good").expect("a collector");
        let outcome = exporter.export(Bytes::from_static(b"spans"), || 0).await;
        assert_eq!(outcome.is_ok(), is_taken, "{outcome:?}");
    }
    let seen = seen.lock().expect("nobody panicked");
    assert!(seen.len() == 1 && seen[0].starts_with("POST /v1/traces HTTP/1.1\r\n"), "{seen:?}");
}
