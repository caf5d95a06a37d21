//! HTTP/2 on the wire, by the `h2` crate: its header maps and streams end here.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason as H2Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Retryable, Side};

use super::fields::{Fields, Known};
use super::head::{RequestHead, ResponseHead};
use super::{Chunk, hop};
use crate::stream::Shared;

/// Flow-control window of a stream, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Flow-control window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a field section, as HPACK counts them.
const MAX_FIELDS_SIZE: u32 = 64 * 1024;
/// How long a receiver may keep a stream's window shut while there is something to send.
const WINDOW_SHUT: Duration = Duration::from_secs(300);
/// Streams that a client may have open at once.
const MAX_CONCURRENT: u32 = 256;

/// A server's side of a connection, with what a hostile client could grow bounded: concurrent streams, field sections, streams
/// that are reset before they are accepted (rapid reset), buffered output.
pub async fn accept(io: Shared) -> Result<h2::server::Connection<Shared, Bytes>, h2::Error> {
    h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_FIELDS_SIZE)
        .max_concurrent_streams(MAX_CONCURRENT)
        .max_pending_accept_reset_streams(20)
        .max_concurrent_reset_streams(50)
        .reset_stream_duration(Duration::from_secs(5))
        .max_send_buffer_size(256 * 1024)
        .enable_connect_protocol()
        .handshake(io)
        .await
}

/// A client's side of a connection, shared by many exchanges of one worker.
#[derive(Clone)]
pub struct Sender {
    send: SendRequest<Bytes>,
    state: Rc<SenderState>,
    /// Cipher suite and key exchange group.
    pub tls: (&'static str, &'static str),
}

struct SenderState {
    in_flight: Cell<usize>,
    closed: Cell<bool>,
    used: Cell<Instant>,
}

impl Sender {
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.get()
    }

    /// Streams that the peer allows at once.
    pub fn most(&self) -> usize {
        self.send.current_max_send_streams()
    }

    pub fn is_closed(&self) -> bool {
        self.state.closed.get()
    }

    pub fn idle_for(&self) -> Duration {
        self.state.used.get().elapsed()
    }

    /// Has no new exchange begin on it.
    pub fn retire(&self) {
        self.state.closed.set(true);
    }
}

/// Shakes hands; gives the sender and the task that drives the connection.
pub async fn connect(io: Shared) -> Result<(Sender, impl Future<Output = ()> + 'static), Failure> {
    let tls = io.0.tls_names();
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_FIELDS_SIZE)
        .max_concurrent_reset_streams(100)
        .max_send_buffer_size(256 * 1024)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|e| upstream(&e))?;
    let state = Rc::new(SenderState { in_flight: Cell::new(0), closed: Cell::new(false), used: Cell::new(Instant::now()) });
    let driven = Rc::clone(&state);
    let driver = async move {
        // It ends when the last sender is dropped, or by the peer's GOAWAY or error, which each exchange sees for itself.
        let _ = connection.await;
        driven.closed.set(true);
    };
    Ok((Sender { send, state, tls }, driver))
}

/// An exchange that has begun; counts against its connection until it is dropped.
pub struct Begun {
    pub response: ResponseFuture,
    pub body: SendStream<Bytes>,
    state: Rc<SenderState>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.state.in_flight.set(self.state.in_flight.get().saturating_sub(1));
        self.state.used.set(Instant::now());
    }
}

impl Sender {
    /// Sends a request head. What cannot be begun was certainly not processed.
    pub async fn begin(&self, head: &RequestHead, end: bool) -> Result<Begun, Failure> {
        let request = to_request(head)?;
        let mut send = self.send.clone();
        let retire = |e: &h2::Error| {
            self.retire();
            Failure { retryable: Retryable::Unprocessed, ..upstream(e) }
        };
        poll_fn(|cx| send.poll_ready(cx)).await.map_err(|e| retire(&e))?;
        let (response, body) = send.send_request(request, end).map_err(|e| retire(&e))?;
        self.state.in_flight.set(self.state.in_flight.get() + 1);
        Ok(Begun { response, body, state: Rc::clone(&self.state) })
    }
}

/// A body that is being received. Credit goes back for a piece when the next one is asked for: when it has been passed on.
pub struct IncomingBody {
    stream: RecvStream,
    unreleased: usize,
    touched: bool,
    ended: bool,
    side: Side,
}

impl IncomingBody {
    pub fn new(stream: RecvStream, side: Side) -> Self {
        Self { ended: stream.is_end_stream(), stream, unreleased: 0, touched: false, side }
    }

    pub fn is_done(&self) -> bool {
        self.ended
    }

    pub fn is_untouched(&self) -> bool {
        !self.touched
    }

    pub fn length(&self) -> Option<u64> {
        self.ended.then_some(0)
    }

    /// The next piece. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        if self.ended {
            return Ok(None);
        }
        if self.unreleased > 0 {
            let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.unreleased));
        }
        let failed = |side, e: &h2::Error| match side {
            Side::Upstream => Failure { retryable: Retryable::No, ..upstream(e) },
            _ => Failure::downstream(Reason::DownstreamGone).detail(e),
        };
        match poll_fn(|cx| self.stream.poll_data(cx)).await {
            Some(Ok(data)) => {
                self.unreleased = data.len();
                self.touched = true;
                Ok(Some(Chunk::Data(data)))
            }
            Some(Err(e)) => Err(failed(self.side, &e)),
            None => {
                let trailers = poll_fn(|cx| self.stream.poll_trailers(cx)).await.map_err(|e| failed(self.side, &e))?;
                self.ended = true;
                let mut fields = trailers.map(|map| from_map(&map)).unwrap_or_default();
                hop::strip_trailers(&mut fields);
                Ok((!fields.is_empty()).then(|| Chunk::Trailers(Box::new(fields))))
            }
        }
    }
}

/// Sends one piece, as the receiver's window allows.
pub async fn send(stream: &mut SendStream<Bytes>, chunk: Chunk, side: Side) -> Result<(), Failure> {
    let failed = |e: &h2::Error| match side {
        Side::Upstream => upstream(e),
        _ => Failure::downstream(Reason::DownstreamGone).detail(e),
    };
    match chunk {
        Chunk::Trailers(fields) => stream.send_trailers(to_map(&fields)).map_err(|e| failed(&e)),
        Chunk::Data(mut data) => {
            while !data.is_empty() {
                stream.reserve_capacity(data.len());
                let room = tokio::time::timeout(WINDOW_SHUT, poll_fn(|cx| stream.poll_capacity(cx)));
                let Ok(room) = room.await else {
                    stream.send_reset(H2Reason::CANCEL);
                    return Err(failed(&H2Reason::FLOW_CONTROL_ERROR.into()));
                };
                match room {
                    Some(Ok(n)) if n > 0 => {
                        let piece = data.split_to(n.min(data.len()));
                        stream.send_data(piece, false).map_err(|e| failed(&e))?;
                    }
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return Err(failed(&e)),
                    None => return Err(failed(&H2Reason::STREAM_CLOSED.into())),
                }
            }
            Ok(())
        }
    }
}

/// What an upstream's error means: refused streams and those behind a GOAWAY were not processed (RFC 9113, section 8.7).
pub fn upstream(e: &h2::Error) -> Failure {
    let unprocessed = e.reason() == Some(H2Reason::REFUSED_STREAM) || (e.is_go_away() && e.is_remote());
    let retryable = if unprocessed { Retryable::Unprocessed } else { Retryable::IfIdempotent };
    let reason = match e.reason() {
        Some(H2Reason::PROTOCOL_ERROR | H2Reason::COMPRESSION_ERROR | H2Reason::FRAME_SIZE_ERROR) if !e.is_remote() => {
            Reason::UpstreamProtocol
        }
        _ => Reason::UpstreamReset,
    };
    Failure::upstream(reason, retryable).detail(e)
}

/// Our own head from the crate's.
pub fn from_request(request: http::request::Parts) -> RequestHead {
    let uri = request.uri.into_parts();
    let text = |s: &str| Bytes::copy_from_slice(s.as_bytes());
    let mut fields = from_map(&request.headers);
    if uri.authority.is_some() {
        // One of them says where to; the other could only disagree (RFC 9113, section 8.3.1).
        fields.remove(Known::Host);
    }
    RequestHead {
        method: text(request.method.as_str()),
        target: uri.path_and_query.map_or_else(Bytes::new, |p| text(p.as_str())),
        authority: uri.authority.map(|a| text(a.as_str())),
        scheme: uri.scheme.map(|s| text(s.as_str())),
        protocol: request.extensions.get::<h2::ext::Protocol>().map(|p| text(p.as_str())),
        http10: false,
        fields,
    }
}

fn to_request(head: &RequestHead) -> Result<http::Request<()>, Failure> {
    let bad = |why: &dyn std::fmt::Display| Failure::downstream(Reason::BadRequest).detail(why);
    let host = head.authority.as_deref().or_else(|| head.fields.first(Known::Host));
    let mut uri = http::Uri::builder();
    if let Some(host) = host {
        uri = uri.authority(host);
    } else {
        return Err(bad(&"the request names no authority"));
    }
    let extended = head.protocol.is_some();
    if !head.is_connect() || extended {
        uri = uri.scheme(head.scheme.as_deref().unwrap_or(b"http")).path_and_query(&head.target[..]);
    }
    let mut request = http::Request::builder()
        .method(&head.method[..])
        .uri(uri.build().map_err(|e| bad(&e))?)
        .version(http::Version::HTTP_2)
        .body(())
        .map_err(|e| bad(&e))?;
    if let Some(protocol) = &head.protocol {
        let protocol = std::str::from_utf8(protocol).map_err(|e| bad(&e))?;
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    }
    *request.headers_mut() = to_map(&head.fields);
    if head.authority.is_some() {
        request.headers_mut().remove(http::header::HOST);
    }
    Ok(request)
}

/// Our own head from the crate's.
pub fn from_response(response: &http::response::Parts) -> ResponseHead {
    ResponseHead { fields: from_map(&response.headers), ..ResponseHead::new(response.status.as_u16()) }
}

/// The crate's head from our own.
pub fn to_response(head: &ResponseHead) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(head.status).unwrap_or(http::StatusCode::BAD_GATEWAY);
    *response.headers_mut() = to_map(&head.fields);
    response
}

fn from_map(map: &HeaderMap) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in map {
        fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    fields
}

fn to_map(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (known, name, value) in fields.iter() {
        // Framing of the other version has no meaning here.
        if matches!(known, Known::TransferEncoding | Known::Connection) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}
