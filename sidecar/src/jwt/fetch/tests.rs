use clap::Parser;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::Config;
use crate::mesh::Mesh;
use crate::worker::Shared;

#[test]
fn keys_are_fresh_for_as_long_as_their_server_says_within_bounds() {
    for (control, seconds) in [
        ("", 300),
        ("max-age=0", 60),
        ("public, MAX-AGE=\"120\"", 120),
        ("max-age=99999999", 3600),
        ("max-age=x", 300),
        ("no-store, max-age=600", 60),
    ] {
        let mut answer = ResponseHead::new(200);
        answer.fields.push(b"cache-control", control.as_bytes());
        assert_eq!(freshness(&answer), Duration::from_secs(seconds), "{control}");
    }
}

/// A server outside of the mesh, and its certificate.
struct Outside {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    certificate: CertificateDer<'static>,
}

impl Outside {
    async fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["id.example.com".to_owned()]).expect("a certificate");
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_no_client_auth();
        let config = builder.with_single_cert(vec![certificate.clone()], key).expect("a configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), certificate }
    }

    /// Answers one connection, if it gets that far.
    async fn answer(&self, answer: &[u8]) {
        let (socket, _) = self.listener.accept().await.expect("a connection");
        let Ok(mut stream) = self.acceptor.accept(socket).await else { return };
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.expect("a request"));
        }
        assert!(asked.starts_with(b"GET /keys HTTP/1.1\r\nhost: "), "{}", String::from_utf8_lossy(&asked));
        // Whoever has read enough closes.
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
    }
}

fn worker() -> Rc<Worker> {
    let config = Config::parse_from(["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1"]);
    let (mesh, _lookups) = Mesh::new();
    Worker::new(Arc::new(Shared::new(config, mesh)), 1)
}

#[tokio::test]
async fn what_is_fetched_from_outside_is_whole_and_of_whom_it_should_be() {
    let server = Outside::new().await;
    let worker = worker();
    let mut roots = RootCertStore::empty();
    roots.add(server.certificate.clone()).expect("a root");
    let trusting = web_config(roots).expect("a configuration");
    let to = server.listener.local_addr().expect("an address");
    let large = [b"HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n".to_vec(), vec![b' '; 70_000]].concat();
    for (host, answer, expected) in [
        ("id.example.com", &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"[..], Ok("{}")),
        ("id.example.com", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", Ok("{}")),
        ("other.example.com", b"", Err("TLS with ")),
        ("id.example.com", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", Err("")),
        (
            "id.example.com",
            b"HTTP/1.1 302 Found\r\nlocation: https://id.example.com/\r\ncontent-length: 0\r\n\r\n",
            Err("it answers with status 302, and redirects"),
        ),
        ("id.example.com", b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", Err("it answers with status 500")),
        ("id.example.com", &large, Err("its answer has more than 65536 bytes")),
    ] {
        let url: KeysUrl = format!("https://{host}:{}/keys", to.port()).parse().expect("a URL");
        let (fetched, ()) = tokio::join!(from_outside(&worker, &url, to, trusting.clone()), server.answer(answer));
        match (fetched, expected) {
            (Ok((set, _)), Ok(text)) => assert_eq!(set, text.as_bytes()),
            (Err(why), Err(begin)) => assert!(why.starts_with(begin), "{why}"),
            (fetched, expected) => panic!("{:?} is not {expected:?}", fetched.map(|(set, _)| set.len())),
        }
    }
}
