//! One connection to a collector, and one exchange on it. gRPC is HTTP/2 with a frame around the message and a status in the trailers.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, TE, USER_AGENT};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use socket2::{Domain, Socket as RawSocket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use weft_core::failure::chain;

use super::parts::Parts;
use super::settings::{Protocol, Settings};
use super::{printable, retry, retry_info};

/// How long a collector may take to accept a connection, TLS handshake included.
const CONNECT: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// The longest pause that a collector may ask for.
const MAX_AFTER: Duration = Duration::from_secs(600);
const AGENT: &str = concat!("weft/", env!("CARGO_PKG_VERSION"));

/// What a collector said.
pub(super) enum Answer {
    /// The body of an answer that is good.
    Taken(Bytes),
    /// It may be sent again, after so long if it says so.
    Again { why: String, after: Option<Duration> },
    /// It will not be taken.
    Refused(String),
}

/// What HTTP goes over. One type, so that a program holds its code once.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

enum Sender {
    Http1(http1::SendRequest<Parts>),
    Http2(http2::SendRequest<Parts>),
}

/// A connection, which ends when it is dropped.
pub(super) struct Connection {
    sender: Sender,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects to an address; where `mark` is not 0, by a socket with it, which the redirect lets by.
async fn connect(to: SocketAddr, mark: u32) -> io::Result<TcpStream> {
    let raw = RawSocket::new(Domain::for_address(to), Type::STREAM, Some(socket2::Protocol::TCP))?;
    raw.set_nonblocking(true)?;
    if mark != 0 {
        raw.set_mark(mark)?;
    }
    TcpSocket::from_std_stream(raw.into()).connect(to).await
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

impl Connection {
    /// Connects; an error says what failed.
    pub(super) async fn open(settings: &Settings, mark: u32) -> Result<Self, String> {
        let opening = async {
            let addresses = tokio::net::lookup_host((&*settings.host, settings.port)).await;
            let addresses = addresses.map_err(|e| format!("its name cannot be looked up: {e}"))?;
            let mut why = "its name stands for no address".to_owned();
            for address in addresses {
                match connect(address, mark).await {
                    Ok(stream) => {
                        let _ = stream.set_nodelay(true);
                        return Self::speak(settings, stream).await;
                    }
                    Err(e) => why = format!("{address}: {e}"),
                }
            }
            Err(why)
        };
        tokio::time::timeout(CONNECT, opening).await.unwrap_or_else(|_| Err(format!("no connection in {} s", CONNECT.as_secs())))
    }

    async fn speak(settings: &Settings, stream: TcpStream) -> Result<Self, String> {
        let Some(tls) = &settings.tls else { return Self::begin(settings, Box::new(stream)).await };
        let name =
            ServerName::try_from(settings.host.clone()).map_err(|_| "its name cannot stand in a certificate".to_owned())?;
        let connector = tokio_rustls::TlsConnector::from(tls.clone());
        let stream = connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
        Self::begin(settings, Box::new(stream)).await
    }

    async fn begin(settings: &Settings, stream: Box<dyn Wire>) -> Result<Self, String> {
        let (io, told) = (TokioIo::new(stream), |e: hyper::Error| chain(&e));
        match settings.protocol {
            Protocol::Http => {
                let (sender, connection) = http1::handshake(io).await.map_err(told)?;
                let driver = tokio::spawn(async move { drop(connection.await) });
                Ok(Self { sender: Sender::Http1(sender), driver })
            }
            Protocol::Grpc => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(20)));
                let (sender, connection) = builder.handshake(io).await.map_err(told)?;
                let driver = tokio::spawn(async move { drop(connection.await) });
                Ok(Self { sender: Sender::Http2(sender), driver })
            }
        }
    }

    /// Whether another request may go out on it.
    pub(super) fn is_open(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => !sender.is_closed(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }

    /// Sends a message that [`framed`] has made. An error means that the connection is of no use any more.
    pub(super) async fn send(&mut self, settings: &Settings, body: Parts) -> Result<Answer, String> {
        let request = request(settings, body);
        let told = |e: hyper::Error| chain(&e);
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await.map_err(told)?;
                sender.send_request(request).await.map_err(told)?
            }
            Sender::Http2(sender) => {
                sender.ready().await.map_err(told)?;
                sender.send_request(request).await.map_err(told)?
            }
        };
        let (parts, body) = response.into_parts();
        let whole = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| format!("its answer broke off: {e}"))?;
        let trailers = whole.trailers().cloned();
        let head = Response::from_parts(parts, ());
        Ok(match settings.protocol {
            Protocol::Http => of_http(&head, whole.to_bytes()),
            Protocol::Grpc => of_grpc(&head, trailers.as_ref(), &whole.to_bytes()),
        })
    }
}

/// A message as it is sent: compressed where that is asked for, and in gRPC's frame.
pub(super) fn framed(settings: &Settings, message: Parts) -> Parts {
    let Parts { head, rest } = if settings.gzip { gzipped(&message).into() } else { message };
    if settings.protocol == Protocol::Http {
        return Parts { head, rest };
    }
    let mut frame = BytesMut::with_capacity(5 + head.len());
    frame.put_u8(u8::from(settings.gzip));
    frame.put_u32((head.len() + rest.len()) as u32);
    frame.put(head);
    Parts { head: frame.freeze(), rest }
}

fn gzipped(message: &Parts) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(message.len() / 4), Compression::fast());
    for part in [&message.head, &message.rest] {
        encoder.write_all(part).expect("memory takes it");
    }
    encoder.finish().expect("memory takes it").into()
}

fn request(settings: &Settings, body: Parts) -> Request<Parts> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let uri = match settings.protocol {
        Protocol::Grpc => format!("{scheme}://{}{}", settings.authority, settings.path),
        Protocol::Http => settings.path.clone(),
    };
    // Both parts were read as a URL before.
    *request.uri_mut() = uri.parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    match settings.protocol {
        Protocol::Grpc => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
            if settings.gzip {
                headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
            }
        }
        Protocol::Http => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if let Ok(host) = HeaderValue::from_str(&settings.authority) {
                headers.insert(HOST, host);
            }
            if settings.gzip {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
    }
    for (name, value) in &settings.headers {
        headers.insert(name.clone(), value.clone());
    }
    request
}

fn of_http(head: &Response<()>, body: Bytes) -> Answer {
    let status = head.status();
    if status.is_success() {
        return Answer::Taken(body);
    }
    let why = format!("it answers {status}");
    if !retry::is_temporary_http(status.as_u16()) {
        return Answer::Refused(why);
    }
    let after = head.headers().get(RETRY_AFTER);
    let after = after.and_then(|value| weft_core::retry::retry_after(value.as_bytes(), unix_now(), MAX_AFTER));
    Answer::Again { why, after }
}

fn of_grpc(head: &Response<()>, trailers: Option<&HeaderMap>, body: &[u8]) -> Answer {
    if !head.status().is_success() {
        let why = format!("it answers {} where gRPC is spoken: is it the port for gRPC?", head.status());
        let again = retry::is_temporary_http(head.status().as_u16());
        return if again { Answer::Again { why, after: None } } else { Answer::Refused(why) };
    }
    // An answer without a message has its status in the head.
    let field = |name: &str| trailers.and_then(|t| t.get(name)).or_else(|| head.headers().get(name));
    let status = field("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u8>().ok());
    match status {
        Some(0) => Answer::Taken(Bytes::copy_from_slice(body.get(5..).unwrap_or_default())),
        None => Answer::Again { why: "it answers without a gRPC status".to_owned(), after: None },
        Some(status) => {
            let message = field("grpc-message").and_then(|v| v.to_str().ok()).unwrap_or_default();
            let why = format!("gRPC status {status}: {}", printable(message));
            let after = field("grpc-status-details-bin").and_then(|v| retry_info(v.as_bytes())).map(|d| d.min(MAX_AFTER));
            if retry::is_temporary_grpc(status, after.is_some()) { Answer::Again { why, after } } else { Answer::Refused(why) }
        }
    }
}
