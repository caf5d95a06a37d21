//! Where an answer goes: the caller's connection or stream, whatever version it speaks.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use weft_core::failure::{Failure, Reason, Retryable, Side};
use weft_core::protocol::MeshProtocol;

use super::body::{Body, Chunk};
use super::fields::{Fields, Known};
use super::h1::{self, Framing, OutgoingBody};
use super::h2::{self as http2, Handle};
use super::head::ResponseHead;
use super::hop;
use crate::denials::Reference;
use crate::telemetry::Note;

/// How long a caller may take for the text of a refusal.
const TEXT_STALL: Duration = Duration::from_secs(10);

/// Where an answer goes.
pub enum ResponseSink<'a> {
    H1 {
        writer: &'a mut h1::Writer,
        close: bool,
        http10: bool,
        /// The answer to a HEAD has no body (RFC 9110, section 9.3.2).
        head_only: bool,
        body: Option<OutgoingBody>,
        note: Option<Note>,
    },
    H2 {
        handle: Handle,
        head_only: bool,
        /// The head was said, and a body follows.
        has_body: bool,
        note: Option<Note>,
    },
    /// Nobody waits for the answer to a copy.
    Nowhere { version: MeshProtocol },
}

impl ResponseSink<'_> {
    /// What the caller speaks; the endpoint is spoken to alike.
    pub fn version(&self) -> MeshProtocol {
        match self {
            Self::H1 { .. } => MeshProtocol::Http1,
            Self::H2 { .. } => MeshProtocol::Http2,
            Self::Nowhere { version } => *version,
        }
    }

    /// Has what becomes of the request be told.
    pub fn note(&mut self, made: Option<Note>) {
        if let (Some(made), Self::H1 { note, .. } | Self::H2 { note, .. }) = (made, self) {
            *note = Some(made);
        }
    }

    /// What is noted of the request; none where nobody wants to know.
    pub fn noted(&mut self) -> Option<&mut Note> {
        match self {
            Self::H1 { note, .. } | Self::H2 { note, .. } => note.as_mut(),
            Self::Nowhere { .. } => None,
        }
    }

    /// Whether the caller's connection may carry another request.
    pub fn keeps(&self) -> bool {
        !matches!(self, Self::H1 { close: true, .. })
    }

    /// Has an HTTP/1 connection end after this answer.
    pub fn close(&mut self) {
        if let Self::H1 { close, .. } = self {
            *close = true;
        }
    }

    /// Resolves when the caller has gone away; waits for ever where that shows otherwise.
    pub async fn gone(&mut self) {
        match self {
            // Shows at the reading end, while the upload waits there.
            Self::H1 { .. } | Self::Nowhere { .. } => std::future::pending().await,
            Self::H2 { handle, .. } => {
                handle.broken().await;
            }
        }
    }

    pub async fn informational(&mut self, head: ResponseHead) -> Result<(), Failure> {
        match self {
            Self::H1 { writer, http10: false, .. } => {
                writer.response(&head, Framing::None, None);
                writer.flush().await
            }
            _ => Ok(()),
        }
    }

    /// Passes on that the protocol is switched.
    pub async fn switch(&mut self, mut head: ResponseHead, from_mesh: bool) -> Result<(), Failure> {
        let Self::H1 { writer, note, .. } = self else {
            return Err(Failure::upstream(Reason::UpstreamProtocol, Retryable::No).detail("it switched protocols within HTTP/2"));
        };
        let upgrade = head.fields.first(Known::Upgrade).map(<[u8]>::to_vec);
        clean_response(&mut head.fields, from_mesh);
        if let Some(note) = note {
            note.head(head.status, &head.fields);
        }
        let connection = upgrade.map(|u| {
            head.fields.push(b"upgrade", &u);
            "upgrade"
        });
        writer.response(&head, Framing::None, connection);
        writer.flush().await
    }

    pub fn head(&mut self, mut head: ResponseHead, body: &Body<'_>, head_only: bool) -> Result<(), Failure> {
        if let Some(note) = self.noted() {
            note.head(head.status, &head.fields);
        }
        match self {
            Self::H1 { writer, close, http10, body: out, .. } => {
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
            Self::H2 { handle, has_body, .. } => {
                let ends = body.is_done() || head_only;
                *has_body = !ends;
                handle.respond(&head, ends).map_err(http2::downstream)
            }
            Self::Nowhere { .. } => Ok(()),
        }
    }

    /// Sends a piece; true if it was the last.
    pub async fn send(&mut self, chunk: Chunk) -> Result<bool, Failure> {
        if let Some(note) = self.noted() {
            match &chunk {
                Chunk::Data(data) => note.sends(data),
                Chunk::Trailers(trailers) => note.trailers(trailers),
            }
        }
        match self {
            Self::H1 { writer, body: Some(out), .. } => {
                out.send(writer, chunk).await?;
                Ok(false)
            }
            Self::H2 { handle, has_body: true, .. } => {
                let last = matches!(chunk, Chunk::Trailers(_));
                http2::send(handle, chunk, Side::Downstream).await?;
                Ok(last)
            }
            _ => Ok(false),
        }
    }

    pub async fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::H1 { writer, .. } => writer.flush().await,
            Self::H2 { .. } | Self::Nowhere { .. } => Ok(()),
        }
    }

    pub async fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::H1 { writer, body: Some(out), .. } => out.finish(writer).await,
            Self::H1 { writer, .. } => writer.flush().await,
            Self::H2 { handle, has_body: true, .. } => handle.finish().map_err(http2::downstream),
            Self::H2 { .. } | Self::Nowhere { .. } => Ok(()),
        }
    }

    /// Answers in weft's own name: an HTTP status with `weft-error`, or a gRPC status for gRPC.
    pub async fn refuse(&mut self, failure: &Failure, grpc: bool) -> Result<(), Failure> {
        if let Some(note) = self.noted() {
            note.fails(failure);
        }
        let reason = failure.reason;
        let mut head = if grpc {
            let mut head = ResponseHead::new(200);
            head.fields.push(b"content-type", b"application/grpc");
            head.fields.push(b"grpc-status", failure.grpc_status().to_string().as_bytes());
            head.fields.push(b"grpc-message", format!("weft: {reason}").as_bytes());
            head
        } else {
            let mut head = ResponseHead::new(failure.http_status());
            head.fields.push(b"content-type", b"text/plain; charset=utf-8");
            head
        };
        head.fields.push(b"weft-error", reason.as_str().as_bytes());
        if failure.reason == Reason::UpstreamReset && failure.retryable == Retryable::Unprocessed {
            // A stream that was refused: whoever asked may ask again, whatever the method.
            head.fields.push(b"weft-unprocessed", b"yes");
        }
        if let Some(wait) = failure.answer.as_ref().and_then(|a| a.retry_after) {
            // Whole seconds, rounded up: earlier would be in vain.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            head.fields.push(b"retry-after", seconds.max(1).to_string().as_bytes());
        }
        if let Some(challenge) = failure.answer.as_ref().and_then(|a| a.challenge) {
            head.fields.push(b"www-authenticate", challenge.as_bytes());
        }
        let mut text = if grpc { String::new() } else { format!("weft: {reason}: {}\n", reason.explain()) };
        if let Some(reference) = failure.answer.as_ref().and_then(|a| a.reference) {
            let reference = Reference(reference).to_string();
            head.fields.push(b"weft-ref", reference.as_bytes());
            if !grpc {
                let _ = writeln!(text, "An operator finds out why by the reference {reference}.");
            }
        }
        self.answer(head, text).await
    }

    /// Answers with a head and a text of weft's own.
    pub async fn answer(&mut self, mut head: ResponseHead, text: String) -> Result<(), Failure> {
        if let Some(note) = self.noted() {
            note.head(head.status, &head.fields);
            note.whole();
        }
        // Whoever asked reads no body of such an answer, and would take it for the next one.
        let lengthless = matches!(head.status, 204 | 304);
        let is_head = matches!(self, Self::H1 { head_only: true, .. } | Self::H2 { head_only: true, .. });
        if !lengthless
            && !is_head
            && let Some(note) = self.noted()
        {
            note.sends(text.as_bytes());
        }
        match self {
            Self::H1 { writer, close, http10, head_only, .. } => {
                let bare = lengthless || *head_only;
                if !lengthless {
                    head.fields.push(b"content-length", text.len().to_string().as_bytes());
                }
                let framing = if bare { Framing::None } else { Framing::Length(text.len() as u64) };
                let connection = match (*close, *http10) {
                    (true, _) => Some("close"),
                    (false, true) => Some("keep-alive"),
                    (false, false) => None,
                };
                writer.response(&head, framing, connection);
                if bare {
                    return writer.flush().await;
                }
                let mut out = OutgoingBody::new(framing);
                out.send(writer, Chunk::Data(Bytes::from(text))).await?;
                out.finish(writer).await
            }
            Self::H2 { handle, head_only, .. } => {
                let bare = lengthless || *head_only || text.is_empty();
                handle.respond(&head, bare).map_err(http2::downstream)?;
                if bare {
                    return Ok(());
                }
                // Nobody is kept for a text that its caller does not take.
                let sent = http2::send(handle, Chunk::Data(Bytes::from(text)), Side::Downstream);
                match tokio::time::timeout(TEXT_STALL, sent).await {
                    Ok(sent) => sent?,
                    Err(_) => return Err(Failure::downstream(Reason::DownstreamGone).detail("it takes no bytes")),
                }
                handle.finish().map_err(http2::downstream)
            }
            Self::Nowhere { .. } => Ok(()),
        }
    }
}

/// Takes out what belongs to the hop, and `weft-…` unless a mesh peer's sidecar said it.
pub fn clean_response(fields: &mut Fields, from_mesh: bool) {
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
