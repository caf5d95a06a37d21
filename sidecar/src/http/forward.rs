//! One exchange, from the caller's head to the end of the answer, whatever version either side speaks.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use weft_core::SpiffeId;
use weft_core::failure::{Failure, Reason, Retryable, Side};
use weft_core::protocol::MeshProtocol;

use super::body::{Body, Chunk};
use super::fields::{Fields, Known};
use super::h1::{self, Framing, OutgoingBody};
use super::head::{RequestHead, ResponseHead};
use super::{h2 as http2, hop};
use crate::connect::{Destination, Exchange, Http1, now_or_pending};
use crate::metrics::{Direction, Edge, EdgeKey};
use crate::route::{Lease, Route, Tried};
use crate::serve::own_allowed;
use crate::stream::Stream;
use crate::worker::Worker;

/// What is known of the caller of a connection.
pub struct HttpCaller {
    /// Inbound: the proved identity, or none for plaintext. Outbound: none.
    pub identity: Option<SpiffeId>,
    pub address: IpAddr,
    pub direction: Direction,
    /// Inbound: the connection's TLS, for metrics.
    pub tls: (&'static str, &'static str),
}

/// Where an answer goes.
pub enum ResponseSink<'a> {
    H1 { writer: &'a mut h1::Writer, close: bool, http10: bool, body: Option<OutgoingBody> },
    H2 { respond: SendResponse<Bytes>, body: Option<SendStream<Bytes>> },
}

/// How an exchange ended.
#[expect(clippy::large_enum_variant, reason = "one for each request, never kept")]
pub enum Outcome {
    /// The answer is complete; an HTTP/1 connection may go on if `keep` says so.
    Done { keep: bool },
    /// The protocol was switched: bytes both ways from here, beginning with those that the upstream had sent already.
    Tunnel { upstream: Rc<Stream>, rest: Bytes, lease: Lease },
    /// The answer broke off: the caller must see a reset, not an end.
    Broken,
}

/// Attempts for one request.
const MAX_ATTEMPTS: usize = 3;

/// Forwards one request and writes its answer.
pub async fn forward(
    worker: &Rc<Worker>,
    route: &Route,
    caller: &HttpCaller,
    mut head: RequestHead,
    body: &mut Body<'_>,
    mut sink: ResponseSink<'_>,
) -> Outcome {
    let began = Instant::now();
    let upgrade = head.wants_upgrade().then(|| head.fields.first(Known::Upgrade).map(<[u8]>::to_vec)).flatten();
    // h2c by Upgrade is never forwarded (Invariant 2): the request goes on as if it had not asked.
    let upgrade = upgrade.filter(|u| !super::fields::list_elements(u).any(|t| t.eq_ignore_ascii_case(b"h2c")));
    hop::strip(&mut head.fields);
    if caller.direction == Direction::Inbound {
        tell_caller(&mut head.fields, caller.identity.as_ref(), caller.address);
    }
    if head.http10 && head.fields.first(Known::Host).is_none() {
        // It goes on as HTTP/1.1, which needs one.
        head.fields.push(b"host", route.host().as_bytes());
    }
    let grpc = head.is_grpc();
    let replayable = body.is_done();
    let version = match &sink {
        ResponseSink::H1 { .. } => MeshProtocol::Http1,
        ResponseSink::H2 { .. } => MeshProtocol::Http2,
    };
    let mut tried = Tried::new();
    for attempt in 1.. {
        let lease = match route.pick(worker, &tried) {
            Ok(lease) => lease,
            Err(failure) => {
                let edge = edge(worker, route, caller, "none".into(), version, ("", ""));
                return refuse(sink, failure, grpc, &edge, began).await;
            }
        };
        let attempt_head = AttemptHead { head: &head, upgrade: upgrade.as_deref() };
        match try_once(worker, route, caller, &attempt_head, body, &mut sink, lease, version, began).await {
            Ok(outcome) => return outcome,
            Err(Attempt { failure, edge, address, reused }) => {
                let safe = match failure.retryable {
                    Retryable::Unprocessed => replayable || body_untouched(body),
                    Retryable::IfIdempotent => replayable && head.is_idempotent(),
                    Retryable::No => false,
                };
                if attempt < MAX_ATTEMPTS && safe && (route.may_retry_elsewhere() || reused) && !worker.is_draining() {
                    edge.retry();
                    if !reused {
                        tried.push(address);
                    }
                    continue;
                }
                tracing::info!(target = %route.name(), peer = %address, attempt, side = ?failure.side, "{failure}");
                return refuse(sink, failure, grpc, &edge, began).await;
            }
        }
    }
    unreachable!("the loop ends by returning")
}

/// Whether nothing of a body was taken yet. A body is only pulled after the upstream has been connected to.
fn body_untouched(body: &Body<'_>) -> bool {
    matches!(body, Body::Empty) || body.is_untouched()
}

/// Sets what only weft may say, after everything from outside was removed.
fn tell_caller(fields: &mut Fields, identity: Option<&SpiffeId>, address: IpAddr) {
    if let Some(identity) = identity {
        fields.push(b"weft-client-id", identity.to_string().as_bytes());
    }
    let mut chain = Vec::new();
    for earlier in fields.all(Known::ForwardedFor) {
        chain.extend_from_slice(earlier);
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(address.to_string().as_bytes());
    fields.remove(Known::ForwardedFor);
    fields.push(b"x-forwarded-for", &chain);
}

struct AttemptHead<'a> {
    head: &'a RequestHead,
    upgrade: Option<&'a [u8]>,
}

/// An attempt that failed before anything of its answer was passed on.
struct Attempt {
    failure: Failure,
    edge: Arc<Edge>,
    address: IpAddr,
    /// On a connection that was there before: its end may be older than the request.
    reused: bool,
}

fn edge(
    worker: &Worker,
    route: &Route,
    caller: &HttpCaller,
    peer: Arc<str>,
    version: MeshProtocol,
    tls: (&'static str, &'static str),
) -> Arc<Edge> {
    let (peer, tls) = match caller.direction {
        Direction::Outbound => (peer, tls),
        Direction::Inbound => {
            (caller.identity.as_ref().map_or_else(|| "plaintext".into(), |id| id.to_string().into()), caller.tls)
        }
    };
    let protocol = if version == MeshProtocol::Http2 { "http/2" } else { "http/1.1" };
    worker.metrics.edge(&EdgeKey { direction: caller.direction, peer, target: route.name().into(), protocol, tls })
}

#[expect(clippy::too_many_arguments, reason = "the state of one attempt, used once")]
async fn try_once(
    worker: &Rc<Worker>,
    route: &Route,
    caller: &HttpCaller,
    request: &AttemptHead<'_>,
    body: &mut Body<'_>,
    sink: &mut ResponseSink<'_>,
    lease: Lease,
    version: MeshProtocol,
    began: Instant,
) -> Result<Outcome, Attempt> {
    let address = lease.address;
    let opened = match (own_allowed(worker, &lease, version), version) {
        (Err(failure), _) => Err(failure),
        (Ok(()), MeshProtocol::Http2) => worker.open_http2(&lease.destination).await,
        (Ok(()), MeshProtocol::Http1 | MeshProtocol::Tcp) => worker.open_http1(&lease.destination).await,
    };
    let (exchange, reused) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            let edge = edge(worker, route, caller, lease.peer.clone(), version, ("", ""));
            lease.fail(&failure);
            return Err(Attempt { failure, edge, address, reused: false });
        }
    };
    let tls = match &exchange {
        Exchange::Http1(c) => c.stream.tls_names(),
        Exchange::Http2(s) => s.tls,
    };
    let edge = edge(worker, route, caller, lease.peer.clone(), version, tls);
    let own_head = lease.own.then(|| own_head(worker, request.head));
    let head = own_head.as_ref().unwrap_or(request.head);
    let from_mesh = matches!(lease.destination, Destination::Mesh { .. });
    let attempted = Attempted { worker, head, upgrade: request.upgrade, from_mesh, edge: &edge, began };
    let finished = match exchange {
        Exchange::Http1(connection) => run_http1(attempted, connection, body, sink).await,
        Exchange::Http2(sender) => run_http2(attempted, sender, body, sink).await,
    };
    match finished {
        Ok(Finished::Done { keep }) => {
            lease.succeed();
            Ok(Outcome::Done { keep })
        }
        Ok(Finished::Tunnel { upstream, rest }) => Ok(Outcome::Tunnel { upstream, rest, lease }),
        Ok(Finished::Broken(failure)) => {
            tracing::info!(target = %route.name(), peer = %address, side = ?failure.side, "answer broken off: {failure}");
            edge.error(failure.reason);
            lease.fail(&failure);
            Ok(Outcome::Broken)
        }
        Err(mut failure) => {
            let reused = reused && failure.reason == Reason::UpstreamReset && failure.retryable != Retryable::No;
            if reused {
                // A kept-alive connection that the server closed in the moment of use is the pool's own doing, not the endpoint's.
                drop(lease);
            } else {
                lease.fail(&failure);
            }
            if failure.side == Side::Downstream {
                failure.retryable = Retryable::No;
            }
            Err(Attempt { failure, edge, address, reused })
        }
    }
}

fn own_head(worker: &Worker, head: &RequestHead) -> RequestHead {
    let mut head = head.clone();
    let identity = worker.mesh().identity.load();
    tell_caller(&mut head.fields, identity.as_ref().map(|i| &i.svid.info().id), worker.shared.config.net.pod_ips[0]);
    head
}

enum Finished {
    Done { keep: bool },
    Tunnel { upstream: Rc<Stream>, rest: Bytes },
    Broken(Failure),
}

/// What one attempt needs beside its two ends.
struct Attempted<'a> {
    worker: &'a Rc<Worker>,
    head: &'a RequestHead,
    upgrade: Option<&'a [u8]>,
    from_mesh: bool,
    edge: &'a Edge,
    began: Instant,
}

/// What the endpoint's own sidecar refused or could not deliver was not processed by the application, and may go elsewhere.
fn peer_refusal(fields: &Fields, from_mesh: bool) -> Result<(), Failure> {
    if !from_mesh {
        return Ok(());
    }
    let said = fields.iter().find(|(_, name, _)| name.eq_ignore_ascii_case(b"weft-error")).map(|(_, _, value)| value);
    let Some(reason) = said.and_then(|value| Reason::ALL.iter().find(|r| r.as_str().as_bytes() == value)) else { return Ok(()) };
    match reason {
        Reason::UpstreamConnectRefused
        | Reason::UpstreamConnectTimeout
        | Reason::UpstreamUnreachable
        | Reason::NotReady
        | Reason::Draining
        | Reason::Overloaded => Err(Failure::upstream(*reason, Retryable::Unprocessed).detail("the endpoint's sidecar said so")),
        // It may have been processed.
        Reason::UpstreamReset => {
            Err(Failure::upstream(*reason, Retryable::IfIdempotent).detail("the endpoint's sidecar said so"))
        }
        _ => Ok(()),
    }
}

/// Waits for `answer` while `upload` goes on. A caller that fails ends both; an upstream that stops reading may have answered
/// before it did, and its answer decides.
async fn while_uploading<T>(
    mut upload: std::pin::Pin<&mut impl Future<Output = Result<(), Failure>>>,
    uploaded: &mut Option<Result<(), Failure>>,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            biased;
            result = upload.as_mut(), if uploaded.is_none() => match result {
                Err(failure) if failure.side != Side::Upstream => return Err(failure),
                other => *uploaded = Some(other),
            },
            result = &mut answer => return result,
        }
    }
}

async fn run_http1(
    a: Attempted<'_>,
    mut connection: Box<Http1>,
    body: &mut Body<'_>,
    sink: &mut ResponseSink<'_>,
) -> Result<Finished, Failure> {
    let head = a.head;
    let framing = match (body.is_done(), head.fields.first(Known::ContentLength).is_some(), body.length()) {
        (true, _, _) => Framing::None,
        (false, true, Some(n)) => Framing::Length(n),
        _ => Framing::Chunked,
    };
    let named = a.upgrade.map(|u| {
        let mut fields = head.fields.clone();
        fields.push(b"upgrade", u);
        RequestHead { fields, ..head.clone() }
    });
    let (status, whole, keeps) = {
        let Http1 { reader, writer, stream, .. } = &mut *connection;
        writer.request(named.as_ref().unwrap_or(head), framing, a.upgrade.map(|_| "upgrade"));
        let mut out = OutgoingBody::new(framing);
        let sent = std::cell::Cell::new(false);
        let mut upload = pin!(async {
            upload_h1(body, &mut out, writer).await?;
            sent.set(true);
            // From here on it only watches: a caller that goes away ends the exchange.
            Err(body.gone().await)
        });
        let mut uploaded = None;
        // Until the final head: informational ones pass through as they come.
        let response = loop {
            let response = while_uploading(upload.as_mut(), &mut uploaded, reader.response()).await?;
            if !response.is_informational() {
                break response;
            }
            sink.informational(response).await?;
        };
        peer_refusal(&response.fields, a.from_mesh)?;
        let framing = h1::response_framing(&response, head)?;
        let status = response.status;
        if status == 101 && a.upgrade.is_none() {
            return Err(Failure::upstream(Reason::UpstreamProtocol, Retryable::No).detail("it switched protocols unasked"));
        }
        if status == 101 || (head.is_connect() && (200..300).contains(&status)) {
            sink.switch(response, a.from_mesh).await?;
            a.edge.request(status, a.began.elapsed());
            return Ok(Finished::Tunnel { upstream: Rc::clone(stream), rest: reader.take_rest() });
        }
        let keeps = framing != Framing::UntilClose
            && !hop::connection_has(&response.fields, b"close")
            && (!response.http10 || hop::connection_has(&response.fields, b"keep-alive"));
        let mut answer = Body::H1(reader.body(framing));
        let answered = download(&mut answer, response, sink, a.from_mesh, head.is_head());
        if let Err(failure) = while_uploading(upload.as_mut(), &mut uploaded, answered).await {
            return Ok(Finished::Broken(failure));
        }
        (status, sent.get(), keeps)
    };
    a.edge.request(status, a.began.elapsed());
    if whole && keeps {
        a.worker.pools.keep_http1(*connection);
    }
    Ok(Finished::Done { keep: whole && sink.keeps() })
}

async fn run_http2(
    a: Attempted<'_>,
    sender: http2::Sender,
    body: &mut Body<'_>,
    sink: &mut ResponseSink<'_>,
) -> Result<Finished, Failure> {
    let done = body.is_done();
    let mut begun = sender.begin(a.head, done).await?;
    let http2::Begun { response, body: out, .. } = &mut begun;
    let mut upload = pin!(upload_h2(body, out, done));
    let mut uploaded = None;
    let answered = async { response.await.map_err(|e| http2::upstream(&e)) };
    let response = tokio::select! {
        biased;
        response = while_uploading(upload.as_mut(), &mut uploaded, answered) => response?,
        () = sink.gone() => return Err(Failure::downstream(Reason::DownstreamGone)),
    };
    let (parts, stream) = response.into_parts();
    let response = http2::from_response(&parts);
    peer_refusal(&response.fields, a.from_mesh)?;
    let status = response.status;
    let mut answer = Body::H2(http2::IncomingBody::new(stream, Side::Upstream));
    let answered = download(&mut answer, response, sink, a.from_mesh, a.head.is_head());
    if let Err(failure) = while_uploading(upload.as_mut(), &mut uploaded, answered).await {
        return Ok(Finished::Broken(failure));
    }
    a.edge.request(status, a.began.elapsed());
    Ok(Finished::Done { keep: true })
}

/// Sends a request's body; its head goes out with the first piece, or alone if that is not there yet.
async fn upload_h1(body: &mut Body<'_>, out: &mut OutgoingBody, writer: &mut h1::Writer) -> Result<(), Failure> {
    if body.is_done() {
        return out.finish(writer).await;
    }
    loop {
        let piece = {
            let mut next = pin!(body.next());
            if let Some(piece) = now_or_pending(next.as_mut()).await {
                piece?
            } else {
                writer.flush().await?;
                next.await?
            }
        };
        match piece {
            Some(chunk) => {
                let last = matches!(chunk, Chunk::Trailers(_));
                out.send(writer, chunk).await?;
                if last {
                    return writer.flush().await;
                }
            }
            None => return out.finish(writer).await,
        }
    }
}

async fn upload_h2(body: &mut Body<'_>, out: &mut SendStream<Bytes>, ended: bool) -> Result<(), Failure> {
    if ended {
        return Ok(());
    }
    while let Some(chunk) = body.next().await? {
        let last = matches!(chunk, Chunk::Trailers(_));
        http2::send(out, chunk, Side::Upstream).await?;
        if last {
            return Ok(());
        }
    }
    out.send_data(Bytes::new(), true).map_err(|e| http2::upstream(&e))
}

/// Passes an answer on.
async fn download(
    answer: &mut Body<'_>,
    mut head: ResponseHead,
    sink: &mut ResponseSink<'_>,
    from_mesh: bool,
    head_only: bool,
) -> Result<(), Failure> {
    clean_response(&mut head.fields, from_mesh);
    sink.head(head, answer, head_only)?;
    loop {
        let piece = {
            let mut next = pin!(answer.next());
            if let Some(piece) = now_or_pending(next.as_mut()).await {
                piece?
            } else {
                sink.flush().await?;
                tokio::select! {
                    biased;
                    piece = next => piece?,
                    () = sink.gone() => return Err(Failure::downstream(Reason::DownstreamGone)),
                }
            }
        };
        match piece {
            None => return sink.finish().await,
            Some(chunk) => {
                if sink.send(chunk).await? {
                    return Ok(());
                }
            }
        }
    }
}

/// Takes out what belongs to the hop, and `weft-…` unless a mesh peer's sidecar said it.
fn clean_response(fields: &mut Fields, from_mesh: bool) {
    let said: Vec<(Vec<u8>, Vec<u8>)> = if from_mesh {
        fields.iter().filter(|(k, _, _)| *k == Known::Weft).map(|(_, n, v)| (n.to_vec(), v.to_vec())).collect()
    } else {
        vec![]
    };
    hop::strip(fields);
    for (name, value) in said {
        fields.push(&name, &value);
    }
}

/// Answers in weft's own name.
async fn refuse(mut sink: ResponseSink<'_>, failure: Failure, grpc: bool, edge: &Edge, began: Instant) -> Outcome {
    edge.error(failure.reason);
    if failure.side == Side::Downstream && failure.reason == Reason::DownstreamGone {
        return Outcome::Broken;
    }
    edge.request(failure.reason.http_status(), began.elapsed());
    match sink.refuse(&failure, grpc).await {
        Ok(()) => Outcome::Done { keep: false },
        Err(_) => Outcome::Broken,
    }
}

impl ResponseSink<'_> {
    /// Whether the caller's connection may carry another request.
    fn keeps(&self) -> bool {
        !matches!(self, Self::H1 { close: true, .. })
    }

    /// Resolves when the caller has gone away; waits for ever where that shows otherwise.
    async fn gone(&mut self) {
        match self {
            // Shows at the reading end, while the upload waits there.
            Self::H1 { .. } => std::future::pending().await,
            Self::H2 { body: Some(stream), .. } => {
                let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
            }
            Self::H2 { respond, body: None } => {
                let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            }
        }
    }

    async fn informational(&mut self, head: ResponseHead) -> Result<(), Failure> {
        match self {
            Self::H1 { writer, http10: false, .. } => {
                writer.response(&head, Framing::None, None);
                writer.flush().await
            }
            _ => Ok(()),
        }
    }

    /// Passes on that the protocol is switched.
    async fn switch(&mut self, mut head: ResponseHead, from_mesh: bool) -> Result<(), Failure> {
        let Self::H1 { writer, .. } = self else {
            return Err(Failure::upstream(Reason::UpstreamProtocol, Retryable::No).detail("it switched protocols within HTTP/2"));
        };
        let upgrade = head.fields.first(Known::Upgrade).map(<[u8]>::to_vec);
        clean_response(&mut head.fields, from_mesh);
        let connection = upgrade.map(|u| {
            head.fields.push(b"upgrade", &u);
            "upgrade"
        });
        writer.response(&head, Framing::None, connection);
        writer.flush().await
    }

    fn head(&mut self, mut head: ResponseHead, body: &Body<'_>, head_only: bool) -> Result<(), Failure> {
        match self {
            Self::H1 { writer, close, http10, body: out } => {
                let announced = head.fields.first(Known::ContentLength).is_some();
                let framing = match (head_only, body.is_done(), body.length()) {
                    (true, _, _) => Framing::None,
                    (false, true, _) if announced || matches!(head.status, 204 | 304) => Framing::None,
                    (false, true, _) => Framing::Length(0),
                    (false, false, Some(n)) => Framing::Length(n),
                    (false, false, None) if *http10 => Framing::UntilClose,
                    (false, false, None) => Framing::Chunked,
                };
                if framing == Framing::UntilClose {
                    *close = true;
                }
                if framing == Framing::Length(0) {
                    head.fields.push(b"content-length", b"0");
                }
                let connection = match (*close, *http10) {
                    (true, _) => Some("close"),
                    (false, true) => Some("keep-alive"),
                    (false, false) => None,
                };
                writer.response(&head, framing, connection);
                *out = Some(OutgoingBody::new(framing));
                Ok(())
            }
            Self::H2 { respond, body: out } => {
                let end = body.is_done() || head_only;
                let stream = respond.send_response(http2::to_response(&head), end).map_err(|e| downstream(&e))?;
                *out = (!end).then_some(stream);
                Ok(())
            }
        }
    }

    /// Sends a piece; true if it was the last.
    async fn send(&mut self, chunk: Chunk) -> Result<bool, Failure> {
        match self {
            Self::H1 { writer, body: Some(out), .. } => {
                out.send(writer, chunk).await?;
                Ok(false)
            }
            Self::H2 { body: Some(stream), .. } => {
                let last = matches!(chunk, Chunk::Trailers(_));
                http2::send(stream, chunk, Side::Downstream).await?;
                Ok(last)
            }
            _ => Ok(false),
        }
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::H1 { writer, .. } => writer.flush().await,
            Self::H2 { .. } => Ok(()),
        }
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::H1 { writer, body: Some(out), .. } => out.finish(writer).await,
            Self::H1 { writer, .. } => writer.flush().await,
            Self::H2 { body: Some(stream), .. } => stream.send_data(Bytes::new(), true).map_err(|e| downstream(&e)),
            Self::H2 { .. } => Ok(()),
        }
    }

    /// Answers in weft's own name: an HTTP status with `weft-error`, or a gRPC status for gRPC.
    pub async fn refuse(&mut self, failure: &Failure, grpc: bool) -> Result<(), Failure> {
        let reason = failure.reason;
        let mut head = if grpc {
            let mut head = ResponseHead::new(200);
            head.fields.push(b"content-type", b"application/grpc");
            head.fields.push(b"grpc-status", reason.grpc_status().to_string().as_bytes());
            head.fields.push(b"grpc-message", format!("weft: {reason}").as_bytes());
            head
        } else {
            let mut head = ResponseHead::new(reason.http_status());
            head.fields.push(b"content-type", b"text/plain; charset=utf-8");
            head
        };
        head.fields.push(b"weft-error", reason.as_str().as_bytes());
        let text = if grpc { String::new() } else { format!("weft: {reason}: {}\n", reason.explain()) };
        match self {
            Self::H1 { writer, close, .. } => {
                *close = true;
                head.fields.push(b"content-length", text.len().to_string().as_bytes());
                let framing = Framing::Length(text.len() as u64);
                writer.response(&head, framing, Some("close"));
                let mut out = OutgoingBody::new(framing);
                out.send(writer, Chunk::Data(Bytes::from(text))).await?;
                out.finish(writer).await
            }
            Self::H2 { respond, .. } => {
                let mut stream = respond.send_response(http2::to_response(&head), text.is_empty()).map_err(|e| downstream(&e))?;
                if !text.is_empty() {
                    stream.send_data(Bytes::from(text), true).map_err(|e| downstream(&e))?;
                }
                Ok(())
            }
        }
    }
}

fn downstream(e: &h2::Error) -> Failure {
    Failure::downstream(Reason::DownstreamGone).detail(e)
}
