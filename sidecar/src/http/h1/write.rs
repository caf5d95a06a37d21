//! Heads and bodies to a stream. A head waits for its body's first piece, so that a small message is one write.

use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use weft_core::failure::{Failure, Reason, Retryable, Side};
use weft_http::h1::{put_lines, put_request, put_response};

use super::Framing;
use super::read::reset;
use crate::http::Chunk;
use crate::http::head::{RequestHead, ResponseHead};
use crate::stream::Stream;

/// The sending half of an HTTP/1 connection.
pub struct Writer {
    stream: Rc<Stream>,
    out: Vec<u8>,
    side: Side,
    /// A peer that takes nothing for this long is given up.
    stall: Duration,
}

impl Writer {
    pub(super) fn new(stream: Rc<Stream>, side: Side, stall: Duration) -> Self {
        Self { stream, out: Vec::new(), side, stall }
    }

    /// Puts a request head into the buffer. `connection` is this hop's own `Connection` field.
    pub fn request(&mut self, head: &RequestHead, framing: Framing, connection: Option<&str>) {
        put_request(&mut self.out, head, framing, connection);
    }

    /// Puts a response head into the buffer.
    pub fn response(&mut self, head: &ResponseHead, framing: Framing, connection: Option<&str>) {
        put_response(&mut self.out, head, framing, connection);
    }

    /// Sends what stands in the buffer.
    pub async fn flush(&mut self) -> Result<(), Failure> {
        if self.out.is_empty() {
            return Ok(());
        }
        let sent = self.stream.write_all(&self.out, self.stall).await;
        self.out.clear();
        self.settle(sent)
    }

    /// Sends the buffer and then `data`, in one write where the socket takes it.
    async fn send(&mut self, data: &[u8], after: &[u8]) -> Result<(), Failure> {
        let mut bufs = [IoSlice::new(&self.out), IoSlice::new(data), IoSlice::new(after)];
        let sent = self.stream.write_all_vectored(&mut bufs, self.stall).await;
        self.out.clear();
        self.settle(sent)
    }

    fn settle(&mut self, sent: std::io::Result<()>) -> Result<(), Failure> {
        if self.out.capacity() > 16 * 1024 {
            self.out = Vec::new();
        }
        match (sent, self.side) {
            (Ok(()), _) => Ok(()),
            (Err(e), Side::Upstream) if e.kind() == std::io::ErrorKind::TimedOut => {
                Err(Failure::upstream(Reason::UpstreamTimeout, Retryable::No).detail("it takes no bytes"))
            }
            (Err(e), Side::Upstream) => Err(reset(&e)),
            (Err(e), _) => Err(Failure::downstream(Reason::DownstreamGone).detail(e)),
        }
    }
}

/// How a body goes out, and how much of it is left.
pub struct OutgoingBody {
    framing: Framing,
    left: u64,
}

impl OutgoingBody {
    pub fn new(framing: Framing) -> Self {
        Self { framing, left: if let Framing::Length(n) = framing { n } else { 0 } }
    }

    /// Sends one piece.
    pub async fn send(&mut self, writer: &mut Writer, chunk: Chunk) -> Result<(), Failure> {
        match (chunk, self.framing) {
            (Chunk::Data(data), _) if data.is_empty() => Ok(()),
            (Chunk::Data(data), Framing::Length(_)) => {
                // More than was announced would be read as the next message.
                let Some(left) = self.left.checked_sub(data.len() as u64) else {
                    return Err(Failure::mesh(Reason::Internal).detail("a body is longer than its announced length"));
                };
                self.left = left;
                writer.send(&data, b"").await
            }
            (Chunk::Data(data), Framing::Chunked) => {
                writer.out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                writer.send(&data, b"\r\n").await
            }
            (Chunk::Data(data), Framing::UntilClose) => writer.send(&data, b"").await,
            (Chunk::Data(_), Framing::None) => Err(Failure::mesh(Reason::Internal).detail("a body where there is none")),
            (Chunk::Trailers(fields), Framing::Chunked) => {
                writer.out.extend_from_slice(b"0\r\n");
                put_lines(&mut writer.out, &fields);
                writer.out.extend_from_slice(b"\r\n");
                self.framing = Framing::None;
                writer.flush().await
            }
            // There is no place for trailers: they are dropped, as RFC 9110, section 6.5 allows.
            (Chunk::Trailers(_), _) => Ok(()),
        }
    }

    /// Ends the body.
    pub async fn finish(&mut self, writer: &mut Writer) -> Result<(), Failure> {
        match self.framing {
            Framing::Length(_) if self.left > 0 => {
                return Err(Failure::mesh(Reason::Internal).detail("a body is shorter than its announced length"));
            }
            Framing::Chunked => writer.out.extend_from_slice(b"0\r\n\r\n"),
            _ => {}
        }
        writer.flush().await
    }
}
