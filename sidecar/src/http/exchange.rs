//! One exchange with an endpoint, once it is open: the request goes up while the answer comes down.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Retryable, Side};

use super::body::{Body, Chunk};
use super::fields::{Fields, Known};
use super::h1::{self, Framing, OutgoingBody};
use super::head::{RequestHead, ResponseHead};
use super::sink::{ResponseSink, clean_response};
use super::treatment::Treatment;
use super::{h2 as http2, hop};
use crate::connect::{Exchange, Http1, now_or_pending};
use crate::metrics::Edge;
use crate::route::Lease;
use crate::stream::Stream;
use crate::worker::Worker;

/// How an exchange ended that got as far as an answer.
pub enum Finished {
    Done { keep: bool },
    Tunnel { upstream: Rc<Stream>, rest: Bytes },
    Broken(Failure),
}

/// What one attempt needs beside its two ends.
pub struct Attempted<'a> {
    pub worker: &'a Rc<Worker>,
    pub head: &'a RequestHead,
    pub upgrade: Option<&'a [u8]>,
    pub from_mesh: bool,
    pub edge: &'a Edge,
    pub lease: &'a Lease,
    pub began: Instant,
    pub treatment: &'a Treatment,
}

/// Sends the request and passes the answer on. An error means that nothing of an answer was passed on.
pub async fn run(
    a: Attempted<'_>,
    exchange: Exchange,
    body: &mut Body<'_>,
    sink: &mut ResponseSink<'_>,
) -> Result<Finished, Failure> {
    match exchange {
        Exchange::Http1(connection) => run_http1(a, connection, body, sink).await,
        Exchange::Http2(sender) => run_http2(a, sender, body, sink).await,
    }
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
        Reason::UpstreamReset if fields.named("weft-unprocessed").next().is_some() => {
            Err(Failure::upstream(*reason, Retryable::Unprocessed).detail("the endpoint's sidecar said so"))
        }
        // It may have been processed.
        Reason::UpstreamReset => {
            Err(Failure::upstream(*reason, Retryable::IfIdempotent).detail("the endpoint's sidecar said so"))
        }
        _ => Ok(()),
    }
}

/// Waits for `answer` while `upload` goes on. A caller that fails ends both; an upstream that stops reading may have answered
/// before it did, and its answer decides. Both stay where they are: to move a future is to copy all the room that it may need.
async fn while_uploading<T>(
    mut upload: std::pin::Pin<&mut impl Future<Output = Result<(), Failure>>>,
    uploaded: &mut Option<Result<(), Failure>>,
    mut answer: std::pin::Pin<&mut impl Future<Output = Result<T, Failure>>>,
) -> Result<T, Failure> {
    loop {
        tokio::select! {
            biased;
            result = upload.as_mut(), if uploaded.is_none() => match result {
                // A caller that is gone, and an endpoint that takes nothing any more: its answer might never come.
                Err(failure) if failure.side != Side::Upstream || failure.reason == Reason::UpstreamTimeout => return Err(failure),
                other => *uploaded = Some(other),
            },
            result = answer.as_mut() => return result,
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
        Box::new(RequestHead { fields, ..head.clone() })
    });
    let (status, whole, keeps) = {
        let Http1 { reader, writer, stream, .. } = &mut *connection;
        writer.request(named.as_deref().unwrap_or(head), framing, a.upgrade.map(|_| "upgrade"));
        let mut out = OutgoingBody::new(framing);
        let (sent, answering) = (Cell::new(false), Cell::new(false));
        let mut upload = pin!(async {
            upload_h1(body, &mut out, writer, &a).await?;
            sent.set(true);
            // From here on it only watches: a caller that goes away ends the exchange.
            Err(body.gone(&answering).await)
        });
        let mut uploaded = None;
        // Until the final head: informational ones pass through as they come.
        let mut response = loop {
            let answer = pin!(reader.response());
            let response = tokio::select! {
                biased;
                response = while_uploading(upload.as_mut(), &mut uploaded, answer) => response?,
                () = sink.gone() => return Err(Failure::downstream(Reason::DownstreamGone)),
            };
            if !response.is_informational() {
                break response;
            }
            a.treatment.passes(true);
            Box::pin(sink.informational(response)).await?;
            a.treatment.passes(false);
        };
        a.treatment.hears();
        if let Some(note) = sink.noted() {
            note.answered(response.status);
        }
        peer_refusal(&response.fields, a.from_mesh)?;
        let framing = h1::response_framing(&response, head)?;
        a.treatment.judge(a.worker, &response, a.lease)?;
        answering.set(true);
        let status = response.status;
        if status == 101 && a.upgrade.is_none() {
            return Err(Failure::upstream(Reason::UpstreamProtocol, Retryable::No).detail("it switched protocols unasked"));
        }
        if status == 101 || (head.is_connect() && (200..300).contains(&status)) {
            a.treatment.edit(&mut response, a.lease);
            Box::pin(sink.switch(response, a.from_mesh)).await?;
            a.treatment.ended(status, a.lease);
            counted(&a, status, sink);
            return Ok(Finished::Tunnel { upstream: Rc::clone(stream), rest: reader.take_rest() });
        }
        let keeps = framing != Framing::UntilClose
            && !hop::connection_has(&response.fields, b"close")
            && (!response.http10 || hop::connection_has(&response.fields, b"keep-alive"));
        let mut answer = Body::H1(reader.body(framing));
        let answered = pin!(download(&a, &mut answer, response, sink, &answering));
        if let Err(failure) = while_uploading(upload.as_mut(), &mut uploaded, answered).await {
            return Ok(Finished::Broken(failure));
        }
        a.treatment.ended(status, a.lease);
        (status, sent.get(), keeps)
    };
    counted(&a, status, sink);
    if whole && keeps {
        a.worker.pools.keep_http1(connection);
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
    let handle = tokio::select! {
        biased;
        begun = sender.begin(a.head, done) => begun?,
        () = sink.gone() => return Err(Failure::downstream(Reason::DownstreamGone)),
    };
    let answering = Cell::new(false);
    let mut upload = pin!(async {
        upload_h2(body, &handle, done, &a).await?;
        // From here on it only watches, where the caller's going away shows there.
        Err(body.gone(&answering).await)
    });
    let mut uploaded = None;
    let answered = pin!(async { handle.head().await.map_err(http2::upstream) });
    let response = tokio::select! {
        biased;
        response = while_uploading(upload.as_mut(), &mut uploaded, answered) => response?,
        () = sink.gone() => return Err(Failure::downstream(Reason::DownstreamGone)),
    };
    a.treatment.hears();
    if let Some(note) = sink.noted() {
        note.answered(response.status);
    }
    peer_refusal(&response.fields, a.from_mesh)?;
    a.treatment.judge(a.worker, &response, a.lease)?;
    let status = response.status;
    let mut answer = Body::H2(http2::IncomingBody::new(handle.clone(), Side::Upstream));
    answering.set(true);
    {
        let answered = pin!(download(&a, &mut answer, response, sink, &answering));
        if let Err(failure) = while_uploading(upload.as_mut(), &mut uploaded, answered).await {
            return Ok(Finished::Broken(failure));
        }
    }
    a.treatment.ended(status, a.lease);
    counted(&a, status, sink);
    Ok(Finished::Done { keep: true })
}

/// Counts a request that was answered. One whose trace is kept stands for others of its kind.
fn counted(a: &Attempted<'_>, status: u16, sink: &mut ResponseSink<'_>) {
    let (call, took) = (a.treatment.answered(a.head, status), a.began.elapsed());
    a.edge.request(&call, took);
    if let Some((at, began)) = sink.noted().and_then(|note| note.sampled()) {
        let ended = began.saturating_add(took.as_nanos() as u64);
        a.edge.exemplar(&call, took, (at.trace.to_bytes(), at.span.to_bytes()), ended);
    }
}

/// Sends a request's body; its head goes out with the first piece, or alone if that is not there yet.
async fn upload_h1(
    body: &mut Body<'_>,
    out: &mut OutgoingBody,
    writer: &mut h1::Writer,
    a: &Attempted<'_>,
) -> Result<(), Failure> {
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
                a.edge.forth(chunk.octets());
                a.treatment.uploads(&chunk);
                out.send(writer, chunk).await?;
                if last {
                    return writer.flush().await;
                }
            }
            None => return out.finish(writer).await,
        }
    }
}

async fn upload_h2(body: &mut Body<'_>, out: &http2::Handle, ended: bool, a: &Attempted<'_>) -> Result<(), Failure> {
    if ended {
        return Ok(());
    }
    while let Some(chunk) = body.next().await? {
        let last = matches!(chunk, Chunk::Trailers(_));
        a.edge.forth(chunk.octets());
        a.treatment.uploads(&chunk);
        http2::send(out, chunk, Side::Upstream).await?;
        if last {
            return Ok(());
        }
    }
    out.finish().map_err(http2::upstream)
}

/// Passes an answer on; notes in `progress` that there is some.
async fn download(
    a: &Attempted<'_>,
    answer: &mut Body<'_>,
    mut head: ResponseHead,
    sink: &mut ResponseSink<'_>,
    progress: &Cell<bool>,
) -> Result<(), Failure> {
    clean_response(&mut head.fields, a.from_mesh);
    a.treatment.edit(&mut head, a.lease);
    sink.head(head, answer, a.head.is_head())?;
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
                progress.set(true);
                a.edge.back(chunk.octets());
                if let Chunk::Trailers(trailers) = &chunk {
                    a.treatment.trailers(trailers, a.lease);
                }
                if sink.send(chunk).await? {
                    return Ok(());
                }
            }
        }
    }
}
