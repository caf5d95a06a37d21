//! HTTP/2 on a stream (RFC 9113). `weft_http::h2` reads and writes frames and heads, `session.rs` is the protocol, without a socket, `connection.rs` gives its streams to
//! whoever forwards.
//!
//! Written for a proxy between neighbours: heads are ours from the first octet on, what many streams say in one turn goes in one write, and what a hostile peer could grow is bounded:
//! streams, sections, what waits to go out, streams that are ended as soon as they begin.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::time::Duration;

use weft_core::failure::{Failure, Reason, Retryable, Side};

use super::head::RequestHead;
use super::{Chunk, hop};
use crate::multiplex::UNSENT;
use crate::stream::Stream;
use crate::within::within;

mod connection;
pub mod session;
mod state;

pub use connection::{Connection, Handle};
use frame::Code;
pub use session::{USUAL_STREAMS, With};
pub use state::Broken;
pub use weft_http::h2::frame;
pub use weft_http::h2::section::Fault;
use weft_http::h2::{hpack, section};

/// How long a receiver may keep a stream's window shut while there is something to send.
const WINDOW_SHUT: Duration = Duration::from_secs(300);

/// A client's side of a connection, shared by many exchanges of one worker.
#[derive(Clone)]
pub struct Sender {
    held: Rc<Held>,
    /// Cipher suite and key exchange group.
    pub tls: (&'static str, &'static str),
}

/// With the last sender the connection ends.
struct Held(Rc<Connection>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Sender {
    /// Whether another exchange may begin on it, of at most so many.
    pub fn has_room(&self, most: usize) -> bool {
        self.held.0.has_room(most)
    }

    pub fn is_closed(&self) -> bool {
        self.held.0.is_closed()
    }

    /// How long it has had no exchange; none while it has one.
    pub fn idle(&self) -> Option<Duration> {
        self.held.0.idle()
    }

    /// Whether it is known that the other end is there, or nobody asks; else it is asked.
    pub fn is_here(&self) -> bool {
        self.held.0.is_here()
    }

    /// Waits until it is known whether the other end is there.
    pub async fn is_heard(&self) {
        self.held.0.is_heard().await;
    }

    /// Sends a request head. What cannot be begun was certainly not processed.
    pub async fn begin(&self, head: &RequestHead, ends: bool) -> Result<Handle, Failure> {
        let begun = self.held.0.begin(head, ends).await?;
        begun.map_err(|broken| Failure { retryable: Retryable::Unprocessed, ..upstream(broken) })
    }
}

/// Begins to speak; gives the sender and the task that drives the connection. A server that says nothing at all is given up after `patience`. `answers`: see [`Connection::asking`].
pub fn connect(stream: Stream, patience: Duration, answers: Option<Duration>) -> (Sender, impl Future<Output = ()> + 'static) {
    if answers.is_some() {
        stream.bound_unsent(UNSENT);
    }
    let connection = Connection::asking(answers);
    let sender = Sender { held: Rc::new(Held(Rc::clone(&connection))), tls: stream.tls_names() };
    let driver = async move {
        // Each exchange sees for itself how it ends.
        tokio::select! {
            biased;
            ended = connection.drive(&stream, |_| {}) => if let Err(e) = ended {
                tracing::debug!(peer = %stream.peer(), error = %e, "HTTP/2 connection ended");
            },
            () = connection.silent(patience) => {
                tracing::debug!(peer = %stream.peer(), "HTTP/2 connection ended: it says nothing");
                stream.reset();
            }
        }
    };
    (sender, driver)
}

/// A body that is being received. Credit goes back for a piece when the next one is asked for: when it has been passed on.
pub struct IncomingBody {
    handle: Handle,
    touched: bool,
    side: Side,
}

impl IncomingBody {
    pub fn new(handle: Handle, side: Side) -> Self {
        Self { handle, touched: false, side }
    }

    pub fn is_done(&self) -> bool {
        self.handle.is_done()
    }

    pub fn is_untouched(&self) -> bool {
        !self.touched
    }

    pub fn length(&self) -> Option<u64> {
        self.is_done().then_some(0)
    }

    /// The next piece. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        let mut piece = poll_fn(|cx| self.handle.poll_piece(cx)).await.map_err(|broken| match self.side {
            Side::Upstream => Failure { retryable: Retryable::No, ..upstream(broken) },
            _ => downstream(broken),
        })?;
        self.touched |= piece.is_some();
        if let Some(Chunk::Trailers(fields)) = &mut piece {
            hop::strip_trailers(fields);
            piece = piece.filter(|piece| !matches!(piece, Chunk::Trailers(fields) if fields.is_empty()));
        }
        Ok(piece)
    }
}

/// Sends one piece, as the receiver's window allows.
pub async fn send(handle: &Handle, chunk: Chunk, side: Side) -> Result<(), Failure> {
    let failed = |broken| if side == Side::Upstream { upstream(broken) } else { downstream(broken) };
    match chunk {
        Chunk::Trailers(fields) => handle.trailers(&fields).map_err(failed),
        Chunk::Data(mut data) => {
            while !data.is_empty() {
                let Ok(sent) = within(WINDOW_SHUT, |cx| handle.poll_send(cx, &mut data)).await else {
                    handle.cut(Code::CANCEL);
                    return Err(failed(Broken::Reset(Code::FLOW_CONTROL_ERROR)));
                };
                sent.map_err(failed)?;
            }
            Ok(())
        }
    }
}

/// What it means that an upstream's stream broke: refused ones and those behind a GOAWAY were not processed (RFC 9113, section 8.7).
pub fn upstream(broken: Broken) -> Failure {
    let (reason, retryable) = match broken {
        Broken::Unseen | Broken::Reset(Code::REFUSED_STREAM) => (Reason::UpstreamReset, Retryable::Unprocessed),
        Broken::Reset(_) | Broken::Lost => (Reason::UpstreamReset, Retryable::IfIdempotent),
        Broken::Ours(_) => (Reason::UpstreamProtocol, Retryable::IfIdempotent),
    };
    Failure::upstream(reason, retryable).detail(broken)
}

/// Whether a connection ended because the other end did what it may not.
pub fn is_violation(e: &std::io::Error) -> bool {
    e.get_ref().and_then(|e| e.downcast_ref::<frame::Violation>()).is_some()
}

/// What it means that a caller's stream broke.
pub fn downstream(broken: Broken) -> Failure {
    Failure::downstream(Reason::DownstreamGone).detail(broken)
}
